"""The metrics added to TRL's: means over pairs, whatever the batches, accumulation and processes."""

import json
import logging
import math
import os
import statistics
from pathlib import Path

import pytest
import torch
from helpers.project import ROOT
from helpers.trainers import FORMATS, TWO_PROCESSES, build, joint, launch, load, logged, steps

import pcrm

NAMES = ("delta", "delta_median", "target", "target_median", "residual", "over_target", "violation", "pull", "prior")
# Ceilings from 0.1 up, some of which the margins of a tiny model are over.
CONSTRAINT = {"pcrm_beta1": 0.1, "pcrm_beta3": -0.0999}
STILL = {"learning_rate": 0.0}  # all steps see the same model


def evaluated(trainer):
    trainer.evaluate()
    return {k: v for k, v in trainer.state.log_history[-1].items() if k.startswith("eval_pcrm/")}


def expected(trainer, pairs):
    """The metrics of pairs, one at a time, without padding."""
    deltas, priors, margins = [], [], []
    for pair in pairs:
        prior = pcrm._engine.torch_reference.length_ratio(pair["chosen_ids"], pair["rejected_ids"], None)
        with torch.no_grad():
            chosen, rejected = (
                trainer.model(torch.tensor([pair[k]])).logits.item() for k in ("chosen_ids", "rejected_ids")
            )
        priors.append(prior)
        deltas.append(trainer.constraint.delta(prior))
        margins.append(chosen - rejected)
    n = len(pairs)
    median = statistics.median(deltas)
    return {
        "delta": sum(deltas) / n,
        "delta_median": median,
        "target": sum(deltas) / n / 2,
        "target_median": median / 2,
        "residual": sum(m - d / 2 for m, d in zip(margins, deltas, strict=True)) / n,
        "over_target": sum(m > d / 2 for m, d in zip(margins, deltas, strict=True)) / n,
        "violation": sum(m > d for m, d in zip(margins, deltas, strict=True)) / n,
        "pull": sum(1 / (1 + math.exp(d - m)) for m, d in zip(margins, deltas, strict=True))
        / sum(1 / (1 + math.exp(m)) for m in margins),
        "prior": sum(priors) / n,
    }


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_evaluation_does_not_depend_on_the_batch_size(kind, tiny, tiny_policy, rows, tmp_path):
    """Of 17 pairs, the last of which is unlike the others and is alone in the last batch of 4."""
    pairs = [*rows[:16], {"prompt": "q: ", "chosen": "the brain " * 40, "rejected": "sleep"}]
    data = FORMATS["plain"](pairs)
    folder = tiny if kind == "reward" else tiny_policy
    found = []
    for size in (17, 4, 1):
        trainer = build(
            kind,
            folder,
            tmp_path,
            data,
            eval_data=data,
            per_device_eval_batch_size=size,
            pcrm_beta1=1.1,
            pcrm_beta3=0.9,
        )
        found.append(evaluated(trainer))
    # Scores are float32, and their batches have other padding.
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5, abs=1e-7)
    if kind == "reward":
        want = expected(trainer, [trainer.eval_dataset[i] for i in range(17)])
        assert found[0] == pytest.approx({f"eval_pcrm/{k}": v for k, v in want.items()}, rel=1e-5)


@pytest.mark.slow
def test_training_weighs_batches_by_their_pairs(tiny, rows, tmp_path):
    """An epoch of 10 pairs in batches of 4, 4 and 2, in one log and in an accumulated step."""
    data = FORMATS["plain"](rows[:10])
    logs = []
    for options in ({"logging_steps": 3, "max_steps": 3}, {"gradient_accumulation_steps": 3, "max_steps": 1}):
        trainer = build("reward", tiny, tmp_path, data, **CONSTRAINT, **STILL, **options)
        trainer.train()
        logs.append(steps(trainer)[0])
    want = expected(trainer, [trainer.train_dataset[i] for i in range(10)])
    assert 0 < want["violation"] <= want["over_target"] < 1
    for log in logs:
        assert {name: log[f"pcrm/{name}"] for name in NAMES} == pytest.approx(want, rel=1e-5)


def test_demonstrations_are_weighed_by_their_tokens(tiny_policy, rows, tmp_path):
    data = FORMATS["plain"](rows[:7])
    found = []
    for size in (7, 2):
        options = {"per_device_eval_batch_size": size, "pcrm_sft_eta": 0.5}
        trainer = build("reward", tiny_policy, tmp_path, data, eval_data=data, model=joint(tiny_policy), **options)
        found.append(evaluated(trainer)["eval_pcrm/nll"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_prediction_is_in_no_evaluation(tiny, rows, tmp_path):
    data = FORMATS["plain"](rows[:4])
    trainer = build("reward", tiny, tmp_path, FORMATS["plain"](rows[8:16]), eval_data=data, **CONSTRAINT)
    want = evaluated(trainer)
    trainer.predict(trainer.train_dataset)
    assert evaluated(trainer) == want


@pytest.mark.slow
def test_scores_that_are_not_numbers_are_seen(tiny, rows, tmp_path):
    """A diverged model has NaN metrics, except for those that do not depend on scores."""
    diverged = load("reward", tiny)
    with torch.no_grad():
        diverged.score.weight.fill_(math.nan)
    found = []
    for model in (diverged, load("reward", tiny)):
        trainer = build("reward", tiny, tmp_path, FORMATS["plain"](rows), model=model, max_steps=1, **CONSTRAINT)
        trainer.train()
        found += steps(trainer)
    step, sound = found
    of_scores = {"residual", "over_target", "violation", "pull"}
    assert all(math.isnan(step[f"pcrm/{name}"]) for name in of_scores)
    assert all(step[f"pcrm/{name}"] == sound[f"pcrm/{name}"] for name in set(NAMES) - of_scores)


def test_pairs_without_a_ceiling_have_no_target(tiny, rows, tmp_path):
    """beta2 = 0 leaves pairs of similarity 0 unconstrained: they count where they can."""
    prior = [0.0, 1.0, 0.5, 0.0]
    data = FORMATS["plain"](rows[:4]).add_column("prior", prior)
    trainer = build("reward", tiny, tmp_path, data, pcrm_prior="column", pcrm_beta1=2.0, pcrm_beta2=0.0, pcrm_beta3=1.0)
    trainer.model.eval()
    with torch.no_grad():
        _, outputs = trainer.compute_loss(
            trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(4)]), return_outputs=True
        )
    chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
    log = logged(trainer)
    assert log["eval_pcrm/delta"] == log["eval_pcrm/delta_median"] == pytest.approx((3 + 5) / 2)
    assert log["eval_pcrm/target"] == pytest.approx((3 + 5) / 4)
    assert log["eval_pcrm/residual"] == pytest.approx((chosen - rejected)[1:3].mean().item() - 2, rel=1e-6)
    assert log["eval_pcrm/prior"] == pytest.approx(0.375) and log["eval_pcrm/violation"] == 0
    margin = (chosen - rejected).double()
    assert log["eval_pcrm/over_target"] == (margin[1:3] > torch.tensor([1.5, 2.5])).double().mean()
    pulls = (margin[1:3] - torch.tensor([3.0, 5.0])).sigmoid().sum()
    assert log["eval_pcrm/pull"] == pytest.approx((pulls / (-margin).sigmoid().sum()).item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["reward", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_run_says_once_that_it_does_nothing(kind, tiny, tiny_policy, rows, tmp_path, caplog, monkeypatch):
    """After the second of 3 steps 4 pairs of training are known, which are too few, and an evaluation, which is enough."""
    monkeypatch.setattr("pcrm.training.binding._ENOUGH_PAIRS", 8)
    data = FORMATS["plain"](rows[:16])
    options = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, **STILL}

    def said(**constraint):
        caplog.clear()
        folder = tiny if kind == "reward" else tiny_policy
        with caplog.at_level(logging.WARNING, logger="pcrm.training.trainer"):
            trainer = build(kind, folder, tmp_path, data, eval_data=data, **options, **constraint)
            trainer.evaluate()
            assert caplog.messages == [], "nothing was trained"
            trainer.train()
        return caplog.messages

    (message,) = said(pcrm_prior="fixed", pcrm_delta=14.0)
    assert message.startswith("the constraint is not binding: over 16 evaluation pairs the mean margin is ")
    assert message.endswith(" trains as if unconstrained. Set a lower pcrm_delta, or train longer")
    assert said(pcrm_prior="fixed", pcrm_delta=2.0) == []


SCRIPT = """\
import json
import sys

from helpers.trainers import FORMATS, build, joint

folder, out, rows, options = sys.argv[1:]
data = FORMATS["plain"](json.loads(open(rows).read()))
trainer = build("reward", folder, out, data, eval_data=data, model=joint(folder), **json.loads(options))
trainer.train()
trainer.evaluate()
if trainer.is_world_process_zero():
    with open(f"{out}/log.json", "w") as file:
        json.dump(trainer.state.log_history, file)
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_log_what_one_does(tiny_policy, rows, tmp_path, monkeypatch):
    """An evaluation of 9 pairs by two repeats some in each process at its end; they count once."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "rows.json").write_text(json.dumps(rows[:9]))
    # Before what is there: tests/compat.py puts another TRL on it.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests'}:{Path(pcrm.__file__).parent.parent}", prepend=os.pathsep)
    options = {"max_steps": 1, "pcrm_sft_eta": 0.5, "per_device_eval_batch_size": 2, **STILL, **CONSTRAINT}
    found = {}
    for name, launcher, size in (("one", (), 8), ("two", TWO_PROCESSES, 4)):
        arguments = (tmp_path / "script.py", tiny_policy, tmp_path / name, tmp_path / "rows.json")
        launch(*launcher, *map(str, arguments), json.dumps(options | {"per_device_train_batch_size": size}))
        log = json.loads((tmp_path / name / "log.json").read_text())
        found[name] = {k: v for entry in log for k, v in entry.items() if "pcrm/" in k}
    assert len(found["one"]) == 2 * (len(NAMES) + 1)
    assert found["two"] == pytest.approx(found["one"], rel=1e-5)
