"""The warnings of the trainers about their training data, and how TRL treats long pairs."""

import logging

import pytest
from datasets import Dataset
from helpers.trainers import FORMATS, build
from pcrm.data.sources import open_source
from pcrm.evaluate.check_data import check
from pcrm.trl import data_check
from transformers import AutoTokenizer

FAULTY = "the train data set has "


def faulty(rows):
    """Six pairs, then an identical one, an empty one, one in the other order, and one once more."""
    a, b = rows[0], rows[1]
    return [
        *rows[:6],
        a | {"chosen": "sleep", "rejected": "sleep"},
        a | {"chosen": ""},
        a | {"chosen": a["rejected"], "rejected": a["chosen"]},
        b,
    ]


def said(caplog):
    return [r.getMessage() for r in caplog.records if r.name == data_check.__name__]


@pytest.fixture(scope="module")
def pairs(rows):
    """Pairs with distinct prompts."""
    return list({row["prompt"]: row for row in rows}.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "dpo"])
@pytest.mark.parametrize("form", FORMATS)
def test_trainers_say_what_is_wrong(kind, form, tiny, tiny_policy, pairs, tmp_path, caplog):
    folder = tiny if kind == "reward" else tiny_policy
    with caplog.at_level(logging.WARNING):
        trainer = build(kind, folder, tmp_path, FORMATS[form](pairs[:6]), eval_data=FORMATS[form](faulty(pairs)))
        assert said(caplog) == [], "the training data is good, and the evaluation data is not checked"
        build(kind, folder, tmp_path, trainer.train_dataset)
        build(kind, folder, tmp_path, FORMATS[form](faulty(pairs)).to_iterable_dataset())
        assert said(caplog) == [], "token ids and streams are not checked"
        build(kind, folder, tmp_path, FORMATS[form](faulty(pairs)))
    lines = said(caplog)
    assert all(line.startswith(FAULTY) and line.endswith(" Run `pcrm check` for details") for line in lines)
    found = {line.removeprefix(FAULTY).partition(". To fix: ")[0] for line in lines}
    want = {
        "rows with an empty response: 1 of 10 (row 7: chosen)",
        "rows with identical responses: 1 of 10 (row 6)",
        "pairs that also occur in the opposite order: 2 of 10 (row 8: same pair as row 0)",
        "rows that occur more than once: 1 of 10 (row 9: same pair as row 1)",
    }
    assert found == want


def test_other_processes_say_nothing(pairs, caplog, monkeypatch):
    data = FORMATS["plain"](faulty(pairs))
    monkeypatch.setattr(data_check, "PartialState", lambda: type("State", (), {"is_main_process": False}))
    data_check.warn_of_faults(data, "train")
    assert said(caplog) == []
    monkeypatch.undo()
    data_check.warn_of_faults(data, "train")
    assert len(said(caplog)) == 4
    data_check.warn_of_faults(Dataset.from_dict({"text": ["a"]}), "train")
    assert len(said(caplog)) == 4, "a data set without preferences is the trainer's to refuse"


@pytest.mark.slow
def test_trl_leaves_out_as_many_long_pairs(tiny, pairs, tmp_path):
    data = FORMATS["plain"](pairs)
    data.to_json(tmp_path / "pairs.jsonl")
    lengths = sorted(len(AutoTokenizer.from_pretrained(tiny)(p["prompt"] + p["chosen"])["input_ids"]) for p in pairs)
    limit = lengths[len(lengths) // 2]
    found = check(
        open_source(tmp_path / "pairs.jsonl"), tokenizer=AutoTokenizer.from_pretrained(tiny), max_length=limit
    )
    (long,) = [f for f in found.findings if f.id == "over_max_length"]
    trainer = build("reward", tiny, tmp_path, data, max_length=limit)
    assert 0 < long.count == len(data) - len(trainer.train_dataset) < len(data)
