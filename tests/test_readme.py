"""The README's Python blocks run as they are printed."""

import re

from conftest import ROOT

from pcrm import cli


def test_python_blocks(tmp_path, monkeypatch):
    """In one folder, in their order, after a demo as the README has it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--pairs", "32", "--held-out", "8", "--epochs", "1", "--max-length", "32"]) == 0
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
