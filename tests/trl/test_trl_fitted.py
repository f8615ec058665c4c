"""Targets in a trainer's arguments: the fitted constraint, where it is stored, and who uses it."""

import json

import numpy as np
import pytest
from datasets import Dataset
from helpers.trainers import FORMATS, OURS, TWO_PROCESSES, build, distance, launch
from pcrm.settings import load_config
from pcrm.training import fit
from pcrm.trl import collator

import pcrm
from pcrm import cli

# `pcrm reward` puts our classes behind TRL's names.
pytestmark = pytest.mark.usefixtures("trl_as_it_was")

TARGETS = {"pcrm_target_alike": 1.0, "pcrm_target_unlike": 3.0}


@pytest.fixture(params=["reward", "dpo"])
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tiny, tiny_policy):
    return {"reward": tiny, "dpo": tiny_policy}[kind]


def ids_that_train(kind, trainer):
    """What the loss sees of both responses, by TRL's own columns and settings."""
    longest = trainer.args.max_length
    begin = [[] if kind == "reward" else row["prompt_ids"] for row in trainer.train_dataset]
    for side in ("chosen_ids", "rejected_ids"):
        rows = zip(begin, trainer.train_dataset, strict=True)
        yield [(prompt + row[side])[:longest][len(prompt) :] for prompt, row in rows]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("max_length", [None, 60])
def test_the_constraint_is_that_of_the_training_data(kind, folder, tmp_path, rows, caplog, streaming, max_length):
    data = FORMATS["plain"](rows)
    data = data.to_iterable_dataset() if streaming else data
    trainer = build(kind, folder, tmp_path / "out", data, max_length=max_length, **TARGETS)
    want = pcrm.Constraint.fit(
        pcrm.priors.length_ratio(*ids_that_train(kind, trainer)), target_alike=1, target_unlike=3
    )
    assert trainer.constraint == want and trainer.settings.constraint == want
    config = load_config(tmp_path / "out" / "pcrm.toml")
    assert (config.constraint, config.prior) == (want, "length_ratio")
    (line,) = [r.message for r in caplog.records if r.message.startswith("Fitted to the prior length_ratio of ")]
    assert (
        f"delta(s) = {want.beta1:.6g} / (s + {want.beta2:.6g})" in line and str(tmp_path / "out" / "pcrm.toml") in line
    )


@pytest.mark.slow
def test_training_is_that_of_the_file(kind, folder, tmp_path, rows):
    """The run, the run with its own pcrm.toml, and the constraint kept with the model are one."""
    data = FORMATS["plain"](rows)
    options = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 1.0}
    fit = build(kind, folder, tmp_path / "fit", data, pcrm_win_alike=0.55, pcrm_win_unlike=0.6, **options)
    fit.train()
    fit.save_model(tmp_path / "model")
    kept = [tmp_path / "model", *(tmp_path / "fit" / name for name in ("", "checkpoint-3", "checkpoint-6"))]
    assert {pcrm.Constraint.from_toml(place / "pcrm.toml") for place in kept} == {fit.constraint}
    same = build(kind, folder, tmp_path / "same", data, pcrm_config=str(tmp_path / "fit" / "pcrm.toml"), **options)
    same.train()
    assert distance(fit, same) == 0
    assert not (tmp_path / "same" / "pcrm.toml").exists()
    other = build(kind, folder, tmp_path / "other", data, **options)
    other.train()
    assert distance(fit, other) > 0


@pytest.mark.slow
def test_a_resumed_run_keeps_its_constraint(kind, folder, tmp_path, rows, caplog):
    """Even though the data set has grown since then."""
    options = {"save_strategy": "steps", "save_steps": 3, **TARGETS}
    begun = build(kind, folder, tmp_path, FORMATS["plain"](rows[:32]), **options)
    begun.train()
    resumed = build(kind, folder, tmp_path, FORMATS["plain"](rows), **options)
    assert resumed.constraint != begun.constraint
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.constraint == resumed.settings.constraint == begun.constraint
    assert "checkpoint-3/pcrm.toml, which the run started with" in caplog.text


def test_of_a_column_it_takes_all_rows(kind, folder, tmp_path, rows, monkeypatch):
    monkeypatch.setattr(fit, "MOST_PAIRS", 8)
    s = np.random.default_rng(0).beta(2, 3, len(rows))
    data = FORMATS["plain"](rows).add_column("prior", s)
    trainer = build(kind, folder, tmp_path, data, pcrm_prior="column", **TARGETS)
    assert trainer.constraint == pcrm.Constraint.fit(s, target_alike=1, target_unlike=3)
    assert load_config(tmp_path / "pcrm.toml").prior == "column"


def test_a_prior_that_is_computed_before_training(kind, folder, tmp_path, rows):
    trainer = build(kind, folder, tmp_path, FORMATS["plain"](rows), pcrm_prior="lexical", **TARGETS)
    s = pcrm.priors.lexical([r["chosen"] for r in rows], [r["rejected"] for r in rows])
    assert trainer.constraint == pcrm.Constraint.fit(s, target_alike=1, target_unlike=3)


@pytest.mark.parametrize(("rows", "kept"), [(10, [0, 3, 6, 9]), (8, [0, 2, 4, 6]), (4, [0, 1, 2, 3]), (1, [0])])
def test_of_many_rows_it_takes_evenly_spaced_ones(monkeypatch, rows, kept):
    monkeypatch.setattr(fit, "MOST_PAIRS", 4)
    monkeypatch.setattr(fit, "BATCH", 3)
    data = Dataset.from_dict({"at": list(range(rows)), "twice": [2 * i for i in range(rows)]})
    assert list(collator._sampled(data)) == [{"at": i, "twice": 2 * i} for i in kept]
    stream = fit.priors_of(collator._sampled(data.to_iterable_dataset()), lambda batch: [row["at"] for row in batch])
    assert stream.tolist() == list(range(min(rows, 4)))


def test_what_cannot_be_fitted(kind, folder, tmp_path, rows):
    data = FORMATS["plain"](rows)
    for column, message in (
        (
            [0.5] * len(rows),
            r"the prior 'column' of the training data: similarities must differ by at least 1e-06 between the quantiles",
        ),
        ([1.5] * len(rows), r"prior\[0\] must be in \[0, 1\], got 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            build(kind, folder, tmp_path, data.add_column("prior", column), pcrm_prior="column", **TARGETS)
    with pytest.raises(
        ValueError, match=r"the constraint must be fitted to the training data first, got Targets\(alike=1\.0"
    ):
        OURS[kind][1](output_dir=str(tmp_path), bf16=False, **TARGETS).pcrm_constraint()
    assert not (tmp_path / "pcrm.toml").exists()


def test_targets_bound_the_margin_that_a_column_would_move(tiny, tmp_path, rows):
    data = FORMATS["plain"](rows).add_column("margin", [0.5] * len(rows))
    with pytest.raises(
        ValueError,
        match="the data set must not have a column 'margin', which would shift the margin that the constraint",
    ):
        build("reward", tiny, tmp_path, data, **TARGETS)


@pytest.mark.filterwarnings("error:label_smoothing=0.1 has no effect")
def test_label_smoothing_does_nothing_beside_targets(tmp_path):
    with pytest.raises(UserWarning, match=r"label_smoothing=0\.1 has no effect on training where delta is finite"):
        OURS["dpo"][1](output_dir=str(tmp_path), bf16=False, label_smoothing=0.1, **TARGETS)


@pytest.mark.parametrize(
    ("options", "asked", "prior"),
    [
        ({"pcrm_prior": "length_ratio"}, "pcrm_prior='length_ratio'", "length_ratio"),
        ({"pcrm_prior": "lexical", **TARGETS}, "pcrm_prior='lexical'", "lexical"),
        ({"pcrm_preset": "tldr/cosine"}, "pcrm_preset='tldr/cosine'", "cosine"),
    ],
)
def test_a_column_beside_another_prior_is_refused(kind, folder, tmp_path, rows, options, asked, prior):
    data = FORMATS["plain"](rows).add_column("prior", [i / 64 for i in range(64)])
    with pytest.raises(ValueError) as caught:
        build(kind, folder, tmp_path, data, **options)
    assert str(caught.value) == (
        f"the train data set must not have a column 'prior' with {asked}, which computes the prior '{prior}', got one: set "
        "pcrm_prior='column' to use the column, or remove it"
    )


def test_a_column_that_nothing_contradicts_is_used(tiny, tmp_path, rows):
    (tmp_path / "pcrm.toml").write_text("[constraint]\nprior = 'lexical'\nbeta1 = 1\nbeta3 = 1\n")
    s = [i / 64 for i in range(64)]
    data = FORMATS["plain"](rows).add_column("prior", s)
    for options in (
        {"pcrm_prior": "column", "pcrm_preset": "tldr/cosine"},
        {"pcrm_beta1": 1.1, "pcrm_beta3": 0.9},
        {"pcrm_config": str(tmp_path / "pcrm.toml")},
        TARGETS,
    ):
        trainer = build("reward", tiny, tmp_path / "out", data, **options)
        assert trainer.data_collator([trainer.train_dataset[i] for i in range(8)])["prior"].tolist() == s[:8]
    # The length ratio's by default, but these betas are not.
    assert load_config(tmp_path / "out" / "pcrm.toml").prior == "column"


@pytest.fixture
def recorded(tmp_path, rows, monkeypatch):
    """A file of preferences whose column `prior` is recorded as lexical."""
    monkeypatch.chdir(tmp_path)
    kept = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert cli.main(["prior", "pairs.jsonl", "--out", "recorded.jsonl", "--prior", "lexical"]) == 0
    return tmp_path


FLAGS = "--max_steps 1 --bf16 false --use_cpu true --report_to none --save_strategy no --dataset_name recorded.jsonl"


def reward(tiny, *flags):
    return cli.main(["reward", "--model_name_or_path", str(tiny), "--output_dir", "out", *FLAGS.split(), *flags])


@pytest.mark.slow
def test_the_command_takes_the_prior_that_is_recorded(recorded, tiny):
    assert reward(tiny, "--pcrm_prior", "lexical", "--pcrm_win_alike", "0.7", "--pcrm_win_unlike", "0.9") == 0
    rows = [json.loads(line) for line in (recorded / "recorded.jsonl").read_text().splitlines()]
    s = pcrm.priors.lexical([r["chosen"] for r in rows], [r["rejected"] for r in rows])
    want = pcrm.Constraint.fit(s, target_alike=pcrm.margin_of(0.7), target_unlike=pcrm.margin_of(0.9))
    kept = load_config(recorded / "out" / "pcrm.toml")
    assert (kept.prior, kept.constraint.beta1) == ("lexical", pytest.approx(want.beta1, rel=1e-5))


@pytest.mark.parametrize(
    ("flags", "prior"),
    [
        (["--pcrm_prior", "length_ratio"], "length_ratio"),
        (["--pcrm_preset", "tldr/cosine"], "cosine"),
        (["--pcrm_config", "pcrm.toml"], "cosine"),
    ],
)
def test_the_command_refuses_betas_of_another_prior(recorded, tiny, capsys, flags, prior):
    (recorded / "pcrm.toml").write_text("[constraint]\npreset = 'tldr/cosine'\n")
    with pytest.raises(SystemExit):
        reward(tiny, *flags)
    assert (
        f"{flags[0]} {flags[1]} must be for the prior lexical, which is recorded for the column 'prior' of recorded.jsonl, got "
        f"{prior}. Use betas for lexical, or recompute the column with `pcrm prior --prior {prior}`"
    ) in capsys.readouterr().err


_TWO = """
import json, sys
sys.path.insert(0, sys.argv[1])
from helpers.trainers import FORMATS, build
from pcrm.demo.world import generate
import os
rank = int(os.environ["RANK"])
data = FORMATS["plain"](generate(64, seed=rank))
trainer = build("reward", sys.argv[2], sys.argv[3] + "/out", data, pcrm_target_alike=1.0, pcrm_target_unlike=3.0)
open(f"{sys.argv[3]}/{rank}.json", "w").write(trainer.constraint.recorded)
"""


@pytest.mark.slow
def test_all_processes_agree(tiny, tmp_path):
    """Even if each process has different data, the constraint is the main process's."""
    from helpers.project import ROOT

    (tmp_path / "two.py").write_text(_TWO)
    launch(*TWO_PROCESSES, str(tmp_path / "two.py"), str(ROOT / "tests"), str(tiny), str(tmp_path))
    first, second = ((tmp_path / f"{rank}.json").read_text() for rank in (0, 1))
    assert first == second == pcrm.Constraint.from_toml(tmp_path / "out" / "pcrm.toml").recorded
