"""What does not compute with torch does not wait for it: help, and the commands that need NumPy and Go alone."""

import json
import os
import subprocess
import sys

import pytest
from helpers.project import ROOT

# Runs a command, and prints last which of the slow libraries it loaded.
RUN = """
import sys
from pcrm import cli
try:
    code = cli.main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print()
print(code or 0, *sorted({"torch", "transformers", "trl"} & set(sys.modules)))
"""

# TRL's own parser writes the help of these.
OF_TRL = {"reward", "dpo"}


def run(*arguments, cwd=ROOT):
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, cwd=cwd, timeout=200)
    return done.stdout.splitlines()[-1], done.stdout + done.stderr


def commands():
    return sorted(p.stem for p in (ROOT / "pyproject" / "pcrm" / "commands").glob("[a-z]*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", *(c for c in commands() if c not in OF_TRL)])
def test_help_loads_no_torch(command):
    loaded, text = run(*filter(None, [command]), "--help")
    assert loaded == "0", text
    assert "usage: pcrm" in text


@pytest.mark.slow
def test_commands_of_numpy_and_go(tmp_path, tiny):
    rows = [
        {"prompt": "q", "chosen": "a" * i, "rejected": "b" * (40 - i), "prior": i / 40, "chosen_score": i / 9, "rejected_score": 1.0}
        for i in range(1, 40)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rankings.jsonl").write_text('{"responses": ["a", "b"], "ratings": [1, 2]}')
    trace = (
        "import pcrm, torch\nwith pcrm.trace('trace'):\n"
        "    pcrm.functional.pcrm_loss(torch.ones(3, requires_grad=True), torch.zeros(3), 4.5).backward()"
    )
    subprocess.run([sys.executable, "-c", trace], cwd=tmp_path, check=True, timeout=200)
    for command in (
        "check rows.jsonl --json",
        "fit rows.jsonl --target-alike 1 --target-unlike 3 --out fitted.toml",
        "report rows.jsonl --out report",
        "report rows.jsonl --out report-constrained --constraint fitted.toml",
        "calibrate rows.jsonl --out calibrated.jsonl",
        f"calibrate rows.jsonl --method temperature --fit-on rows.jsonl --out divided.jsonl --model {tiny} --save divided",
        "pairs rankings.jsonl --out pairs.jsonl",
        f"average {tiny} {tiny} --out average",
        "verify trace",
    ):
        loaded, text = run(*command.split(), cwd=tmp_path)
        assert loaded == "0", f"{command}: {text}"
    made = {"fitted.toml", "report", "calibrated.jsonl", "divided", "pairs.jsonl", "average"}
    assert made <= set(os.listdir(tmp_path))


@pytest.mark.slow
def test_importing_the_package_loads_no_torch():
    code = "import sys, pcrm; before = 'torch' in sys.modules; pcrm.PCRMLoss; print(before, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "False True\n", done.stderr
