"""experiments/binding.py: its runs, with few pairs, its margins against TRL's, and how it goes on after a kill."""

import copy
import importlib.util
import sys

import numpy as np
import pytest
from datasets import Dataset
from helpers.project import ROOT


@pytest.fixture
def binding(monkeypatch):
    """The experiment as a module, with few held-out pairs."""
    spec = importlib.util.spec_from_file_location("binding", ROOT / "experiments" / "binding.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "binding", module)  # its dataclass looks there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HELD_OUT", 16)
    return module


def test_only_missing_rows_are_measured(binding, tmp_path, monkeypatch, capsys):
    ran = []

    def run(task, prior, encoder):
        ran.append((task, prior))
        return {"accuracy": 0.5, "margin_sd": 1} | (dict.fromkeys(binding.COLUMNS[4:-1], 0.25) if prior else {})

    monkeypatch.setattr(binding, "run", run)
    monkeypatch.setattr(binding, "tldr", lambda *given, **kwargs: binding.Task([], [], 1, 1.0))
    out = tmp_path / "binding.csv"
    monkeypatch.setattr(sys, "argv", ["binding.py", "data", "--model", "encoder", "--out", str(out)])
    binding.main()
    assert [prior for _, prior in ran] == [None, *binding.PRIORS] * 3 and len({task for task, _ in ran}) == 3
    first = capsys.readouterr().out
    head, *lines = out.read_text().splitlines(keepends=True)
    (gone,) = [i for i, line in enumerate(lines) if line.startswith('"TL;DR, reward",lexical')]
    out.write_text("".join([head, *lines[:gone], *lines[gone + 1 :]]))
    ran.clear()
    binding.main()
    assert [prior for _, prior in ran] == ["lexical"]
    again = capsys.readouterr().out
    table = lambda text: [line for line in text.splitlines() if line.startswith("|")]  # noqa: E731
    assert len(table(first)) == 2 + 12 and table(again) == table(first)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [False, True])
def test_a_run(binding, policy):
    task = binding.demo(48, epochs=1, learning_rate=1e-3, policy=policy)
    plain, row = (binding.run(task, prior, encoder="") for prior in (None, "lexical"))
    assert plain.keys() == {"accuracy", "margin_sd", "message"} and row.keys() == set(binding.COLUMNS[2:])
    assert 1 <= row["target_p10"] < row["target_p90"] <= 3
    binding.start.cache_clear()


@pytest.mark.slow
def test_margins_of_a_policy_are_those_of_trl(binding, tmp_path):
    task = binding.demo(48, epochs=1, learning_rate=1e-2, policy=True)
    tokenizer, model = copy.deepcopy(binding.start(task))
    reference = copy.deepcopy(model)
    trainer = binding.DPOTrainer(
        model,
        ref_model=reference,
        args=binding.DPOConfig(**binding.arguments(task, str(tmp_path)), per_device_eval_batch_size=64),
        train_dataset=Dataset.from_list(task.train),
        eval_dataset=Dataset.from_list(task.held_out),
        processing_class=tokenizer,
    )
    trainer.train()
    want = trainer.evaluate()
    found = binding._rewards(trainer.eval_dataset, model, reference, tokenizer.pad_token_id)
    assert want["eval_rewards/margins"] != pytest.approx(0, abs=1e-3)
    for side in ("chosen", "rejected"):
        # Sums of some 60 float32 log probabilities of about 5.
        assert np.mean(found[side]) == pytest.approx(want[f"eval_rewards/{side}"], abs=1e-3)


def test_the_page_shows_the_kept_rows(binding):
    rows = binding.kept(binding.HERE / "binding.csv")
    assert list(rows[0]) == list(binding.COLUMNS)
    page = (ROOT / "docs" / "experiments.md").read_text()
    assert all(line in page for line in binding.table(rows))
