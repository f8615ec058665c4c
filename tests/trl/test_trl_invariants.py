"""Whole training runs as equivalence classes. `make compat` runs this file against other versions of TRL."""

import math

import pytest
import torch
from helpers.trainers import FORMATS, STOCK, build, distance, steps

import pcrm

pytestmark = pytest.mark.slow

KINDS = ("reward", "dpo")
UNCONSTRAINED = {"pcrm_prior": "fixed", "pcrm_delta": math.inf}
# A ceiling that binds from the first step on.
BINDING = {"pcrm_prior": "fixed", "pcrm_delta": 0.05}
# What float32 rounding of the loss's two implementations amounts to after six steps.
SAME = 5e-6


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def run(kind, request, tmp_path):
    """Train the tiny model of this kind and return the trainer."""
    folder = request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy")

    def train(data, **options):
        trainer = build(kind, folder, options.pop("out", tmp_path / "out"), data, **options)
        trainer.train()
        return trainer

    return train


@pytest.mark.parametrize("format", FORMATS)
def test_infinite_delta_is_the_stock_trainer(run, kind, rows, format):
    data = FORMATS[format](rows)
    stock, ours = run(data, stock=True), run(data, **UNCONSTRAINED)
    assert distance(ours, stock) < SAME
    # The metrics that TRL logs are the same, step by step, the loss among them.
    for a, b in zip(steps(ours), steps(stock), strict=True):
        assert set(a) - set(b) == {"pcrm/violation", "pcrm/pull"} and a["pcrm/pull"] == 0
        for key in set(b) - {"epoch"}:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=2e-6), key
    # And it is not that nothing would move it.
    assert distance(run(data, **BINDING), stock) > 20 * SAME


def test_backends_train_the_same_model(run, rows):
    data = FORMATS["plain"](rows)
    with pcrm.backends.use_backend("torch"):
        reference = run(data, pcrm_beta1=1.0, pcrm_beta3=0.0)
    ours = run(data, pcrm_beta1=1.0, pcrm_beta3=0.0)
    assert distance(ours, reference) < SAME
    assert steps(ours)[-1]["pcrm/delta"] == pytest.approx(steps(reference)[-1]["pcrm/delta"], rel=1e-6)


def test_gradient_accumulation_is_one_big_batch(run, rows):
    """Exactly where each part is of the same size, as the loss is the batch's mean."""
    data = FORMATS["plain"](rows)
    options = {"max_steps": 3, **BINDING}
    whole = run(data, per_device_train_batch_size=8, **options)
    parts = run(data, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    assert distance(whole, parts) < SAME
    for a, b in zip(steps(whole), steps(parts), strict=True):
        for key in ("loss", "pcrm/delta", "pcrm/target", "pcrm/residual", "pcrm/violation"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=2e-6), key


def test_resumed_is_uninterrupted(run, kind, rows, tmp_path):
    data = FORMATS["plain"](rows)
    options = {"save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch", "adam_epsilon": 1e-4, **BINDING}
    whole = run(data, out=tmp_path / "whole", **options)
    folder = tmp_path / "whole" / "checkpoint-3"
    stock, _ = STOCK[kind]
    assert isinstance(whole, stock)
    trainer = build(kind, whole.model.config._name_or_path, tmp_path / "resumed", data, **options)
    trainer.train(resume_from_checkpoint=str(folder))
    assert trainer.state.global_step == whole.state.global_step == 6
    assert distance(trainer, whole) == 0


def test_evaluation_has_the_constraint(run, kind, rows):
    data = FORMATS["plain"](rows)
    held_out = data.select(range(12))
    trainer = run(
        data,
        eval_data={"a": held_out, "b": data.select(range(12, 24))},
        eval_strategy="steps",
        eval_steps=3,
        per_device_eval_batch_size=4,
        pcrm_beta1=1.0,
        pcrm_beta3=0.0,
    )
    evaluated = [entry for entry in trainer.state.log_history if any(k.endswith("_loss") for k in entry)]
    assert sum("eval_a_loss" in entry for entry in evaluated) == 2
    metrics = next(e for e in evaluated if "eval_b_loss" in e)
    for name in ("delta", "target", "residual", "violation", "prior"):
        assert math.isfinite(metrics[f"eval_pcrm/{name}"])
    assert metrics["eval_pcrm/target"] == pytest.approx(metrics["eval_pcrm/delta"] / 2)
    if "evaluate" not in vars(STOCK[kind][0]):
        return  # before trl 1.9 only prepared data can be evaluated
    again = trainer.evaluate(held_out)  # new data, prepared on the way
    assert again["eval_loss"] == pytest.approx(
        [e for e in evaluated if "eval_a_loss" in e][-1]["eval_a_loss"], rel=1e-5
    )


def test_prior_column_wins_and_is_checked(run, kind, rows):
    data = FORMATS["plain"](rows)
    prior = [i % 5 / 4 for i in range(len(data))]
    withit = data.add_column("prior", prior)
    column = {"pcrm_prior": "column", "pcrm_preset": f"{'dpo' if kind == 'dpo' else 'alpaca'}/length_ratio"}
    trainer = run(withit, **column)
    assert max(step["pcrm/delta"] for step in steps(trainer)) > 2000, "one row in five has s = 0"
    betas = {"pcrm_beta1": 20.0 if kind == "dpo" else 10.0}
    assert distance(run(withit, **betas), trainer) == 0
    bad = data.add_column("prior", [0.5] * 3 + [1.5] + [0.5] * (len(data) - 4))
    with pytest.raises(ValueError, match=r"prior\[3\] must be in \[0, 1\], got 1.5"):
        run(bad)
    with pytest.raises(ValueError, match=r"prior\[3\] must be in \[0, 1\], got 1.5"):  # at its batch
        run(bad.to_iterable_dataset(), **betas)
    with pytest.raises(ValueError, match="the train data set must have a column 'prior' with pcrm_prior='column', got"):
        run(data, **column)
    for train, held_out, words in (
        (withit, data, "must have a column 'prior', because the train data set has one, got none"),
        (data, withit, "must not have a column 'prior', because the train data set has none, got one"),
    ):
        with pytest.raises(ValueError, match=f"the eval data set {words}"):
            run(train, eval_data=held_out.select(range(4)))


def test_iterable_data(run, rows):
    data = FORMATS["conversational"](rows)
    options = {"pcrm_beta1": 1.0, "pcrm_beta3": 0.0, "max_steps": 3}
    streamed = run(data.to_iterable_dataset(), **options)
    mapped = run(data, **options)
    for i, step in enumerate(steps(streamed)):  # batches of four, in the order of the rows
        batch = mapped.data_collator([mapped.train_dataset[j] for j in range(4 * i, 4 * i + 4)])
        assert step["pcrm/prior"] == pytest.approx(batch["prior"].mean().item(), rel=1e-6)


def test_workers_and_processes(run, rows):
    """Both fork after Go was used here."""
    data = FORMATS["plain"](rows)
    pcrm.priors.length_ratio([[1]], [[1]])
    options = {"pcrm_beta1": 1.0, "pcrm_beta3": 0.0}
    here = run(data, **options)
    forked = run(data, dataloader_num_workers=2, dataset_num_proc=2, **options)
    assert distance(here, forked) == 0


def test_random_prior_is_the_same_in_any_batch(run, rows):
    data = FORMATS["plain"](rows)
    options = {"pcrm_prior": "random", "pcrm_low": 0.1, "pcrm_high": 0.3, "pcrm_seed": 3}
    trainer = run(data, max_steps=2, **options)
    examples = [trainer.train_dataset[i] for i in range(6)]
    whole = trainer.data_collator(examples)["prior"]
    parts = torch.cat([trainer.data_collator(examples[i : i + 2])["prior"] for i in (0, 2, 4)])
    assert torch.equal(whole, parts) and len(set(whole.tolist())) == 6
    deltas = [step["pcrm/delta"] for step in steps(trainer)]
    assert all(0.1 <= d <= 0.3 for d in deltas) and deltas[0] != deltas[1]
    other = run(data, max_steps=1, **options | {"pcrm_seed": 4})
    assert not torch.equal(other.data_collator(examples)["prior"], whole)


def test_trace_is_verified(run, rows, tmp_path):
    from pcrm import cli

    with pcrm.trace(tmp_path / "trace"):
        run(FORMATS["plain"](rows), pcrm_beta1=1.0, pcrm_beta3=0.0)
    assert len(list((tmp_path / "trace").iterdir())) == 6
    assert cli.main(["verify", str(tmp_path / "trace")]) == 0
