"""The Python blocks of the README and of the guides run as they are printed."""

import dataclasses
import re

import pytest
from conftest import ROOT

from pcrm import cli


def blocks(page):
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    assert found, f"{page} has no blocks"
    return found


def test_python_blocks(tmp_path, monkeypatch):
    """In one folder, in their order, after a demo as the README has it."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--pairs", "32", "--held-out", "8", "--epochs", "1", "--max-length", "32"]) == 0
    for block in blocks("README.md"):
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("page", ["docs/trl.md", "docs/frameworks.md"])
def test_guides(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        exec(compile(block, page, "exec"), {})
    if page == "docs/trl.md":
        assert "'pcrm/residual'" in capsys.readouterr().out


def test_the_class_for_axolotl(tiny_policy, rows, tmp_path):
    """With arguments of a subclass of TRL's own, as Axolotl makes them."""
    from trainers import FORMATS, SETTINGS, load, steps
    from transformers import AutoTokenizer
    from trl import DPOConfig

    @dataclasses.dataclass
    class Arguments(DPOConfig):
        axolotl_has_more: int = 3

    names = {}
    exec(next(b for b in blocks("docs/frameworks.md") if "ConstrainedDPO" in b), names)
    trainer = names["ConstrainedDPO"](
        load("dpo", tiny_policy),
        None,
        args=Arguments(output_dir=str(tmp_path), **SETTINGS | {"max_steps": 1}),
        train_dataset=FORMATS["plain"](rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_policy),
        dataset_tags=["x"],
    )
    trainer.train()
    assert steps(trainer)[0]["pcrm/delta"] >= 2.0
