"""TRL's reward trainer with our loss, against TRL's own."""

import functools
import math

import pcrm.trl.reward
import pytest
import torch
from datasets import IterableDataset, Value
from helpers.trainers import FORMATS, build, distance, logged, steps
from pcrm._engine import native
from pcrm.settings import Targets
from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig, PCRMRewardTrainer
from trl import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

import pcrm
from pcrm import cli


@pytest.fixture
def train(tiny, tmp_path):
    """A function that trains the tiny reward model and returns the trainer."""

    def run(*, data, go=True, **options):
        trainer = build("reward", tiny, tmp_path, data, **{"max_steps": 10} | options)
        if go:
            trainer.train()
        return trainer

    return run


@pytest.fixture(scope="module")
def plain(rows):
    return FORMATS["plain"](rows)


@pytest.fixture(scope="module")
def conversational(rows):
    return FORMATS["conversational"](rows)


UNCONSTRAINED = {"pcrm_prior": "fixed", "pcrm_delta": math.inf}
COLUMN = {"pcrm_prior": "column", "pcrm_preset": "alpaca/length_ratio"}


@pytest.mark.parametrize("options", [{}, {"center_rewards_coefficient": 0.01}, {"gradient_accumulation_steps": 2}])
def test_the_stock_trainer_is_reached_by_our_loss(train, plain, monkeypatch, options):
    """And not by TRL's: Go is called at each step. test_trl_invariants.py has the rest."""
    calls = []
    monkeypatch.setattr(
        pcrm.trl.reward,
        "pcrm_loss",
        lambda *a, **k: calls.append(native.chosen_library()) or pcrm.functional.pcrm_loss(*a, **k),
    )
    stock = train(stock=True, data=plain, **options)
    assert distance(train(data=plain, **UNCONSTRAINED, **options), stock) < 5e-6
    assert len(calls) == 10 * options.get("gradient_accumulation_steps", 1) and None not in calls


@pytest.mark.slow
def test_adam_with_a_large_epsilon_too(train, conversational):
    options = {"optim": "adamw_torch", "adam_epsilon": 1e-4, "learning_rate": 1e-3}
    stock = train(stock=True, data=conversational, **options)
    assert distance(train(data=conversational, **UNCONSTRAINED, **options), stock) < 5e-6
    assert distance(train(data=conversational, pcrm_prior="fixed", pcrm_delta=0.2, **options), stock) > 1e-4


def test_length_ratio_comes_from_the_token_ids(train, plain):
    """The metrics of a step are those of its batch, computed here from the ids."""
    trainer = train(data=plain, go=False)
    examples = [trainer.train_dataset[i] for i in range(4)]
    batch = trainer.data_collator(examples)
    want = [pcrm._engine.torch_reference.length_ratio(e["chosen_ids"], e["rejected_ids"], None) for e in examples]
    assert batch["prior"].tolist() == torch.tensor(want, dtype=torch.float32).tolist()
    assert 0 < min(want) < max(want) <= 1
    inputs = {k: v.clone() for k, v in batch.items()}
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    assert "prior" in batch, "the caller's batch is left as it was"
    delta = trainer.constraint.delta(batch["prior"])
    inputs.pop("prior")
    scores = trainer.model(**inputs).logits.squeeze(-1)
    margin = (scores[:4] - scores[4:]).detach()
    torch.testing.assert_close(loss, pcrm._engine.torch_reference.pair_loss(margin, delta).mean())
    want = {
        "prior": batch["prior"].mean(),
        "delta": delta.mean(),
        "target": delta.mean() / 2,
        "residual": (margin - delta / 2).mean(),
        "over_target": 0.0,
        "violation": 0.0,
        "pull": (margin - delta).sigmoid().sum() / (-margin).sigmoid().sum(),
    }
    log = logged(trainer)
    for name, value in want.items():
        assert log[f"pcrm/{name}"] == pytest.approx(float(value), rel=1e-6), name


def test_violation_counts_pairs_over_the_ceiling(train, plain):
    history = steps(train(data=plain, pcrm_prior="fixed", pcrm_delta=1e-6))
    for step in history:
        assert step["pcrm/violation"] == pytest.approx(step["accuracy"]), "every positive margin is over 1e-6"
    assert any(step["pcrm/violation"] > 0 for step in history)


@pytest.mark.parametrize(
    ("error", "value", "message"),
    [
        (ValueError, 1.5, r"prior\[3\] must be in \[0, 1\], got 1.5"),
        (ValueError, math.nan, r"(?i)prior\[3\] must be in \[0, 1\], got nan"),
        (TypeError, None, r"prior\[3\] must be a number, got None"),
    ],
)
def test_bad_prior_column(train, plain, error, value, message):
    data = plain.add_column("prior", [0.5] * 3 + [value] + [0.5] * (len(plain) - 4))
    with pytest.raises(error, match=message):
        train(data=data, go=False, **COLUMN)
    trainer = train(data=data.to_iterable_dataset(), go=False, **COLUMN)
    with pytest.raises(error, match=message):  # at its batch, with the index there
        trainer.train()


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_prior_column_of_a_formatted_data_set(train, plain, form):
    values = [0.25, 0.5, 0.75, 1.0] * (len(plain) // 4)
    data = plain.add_column("prior", values).cast_column("prior", Value("float32")).with_format(form)
    trainer = train(data=data, go=False)
    assert trainer.data_collator([trainer.train_dataset[i] for i in range(4)])["prior"].tolist() == values[:4]
    with pytest.raises(TypeError, match=r"prior\[0\] must be a number, got True"):
        train(data=plain.add_column("prior", [True] * len(plain)).with_format(form), go=False)


@pytest.mark.parametrize("lacking", [0, 2])
def test_rows_of_a_batch_without_a_prior_are_refused(train, rows, lacking):
    """Rows of a generator have keys of their own: none may get another prior than its neighbors."""

    def generate():
        for i, r in enumerate(rows):
            yield {k: r[k] for k in ("prompt", "chosen", "rejected")} | ({} if i == lacking else {"prior": 0.5})

    trainer = train(data=IterableDataset.from_generator(generate), go=False, pcrm_beta1=10.0)
    with pytest.raises(
        ValueError, match=f"row {lacking} of a batch must have a 'prior', because other rows have one, got none"
    ):
        trainer.train()


@pytest.mark.slow
def test_a_prior_of_the_collator_is_not_replaced_in_silence(train, plain):
    class Own(DataCollatorForPreference):
        def torch_call(self, examples):
            return super().torch_call(examples) | {"prior": torch.full((len(examples),), 0.5)}

    own = {"data_collator": Own(pad_token_id=0)}
    with pytest.raises(
        ValueError, match="data_collator must not return a key 'prior', which pcrm_prior='length_ratio' would replace"
    ):
        train(data=plain, trainer=own, pcrm_beta1=10.0)
    column = plain.add_column("prior", [0.25] * len(plain))
    assert steps(train(data=column, max_steps=1, trainer=own, pcrm_beta1=10.0))[0]["pcrm/prior"] == 0.25
    fixed = train(data=plain, max_steps=1, pcrm_prior="fixed", pcrm_delta=4.5, trainer=own)
    assert "pcrm/prior" not in steps(fixed)[0]


@pytest.mark.slow
def test_margin_column(train, plain):
    data = plain.add_column("margin", [i % 3 / 2 for i in range(len(plain))])
    stock = train(stock=True, data=data, center_rewards_coefficient=0.01)
    ours = train(data=data, center_rewards_coefficient=0.01, **UNCONSTRAINED)
    assert distance(ours, stock) < 5e-6
    with pytest.raises(ValueError, match="column 'margin', which would shift the margin that the constraint bounds"):
        train(data=data)
    with pytest.raises(ValueError, match=r"column 'margin'.*pcrm_delta=inf and pcrm_form='pair'"):
        train(data=data, pcrm_form="token", **UNCONSTRAINED)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"pcrm_prior": "fixed", "pcrm_delta": 4.5}, {"bf16": True}])
def test_traced_run_is_verified(train, plain, tmp_path, backend, options):
    """Gradient accumulation's calls are steps of their own."""
    with pcrm.trace(tmp_path / "trace", every=2):
        train(data=plain, gradient_accumulation_steps=2, **options)
    assert len(list((tmp_path / "trace").iterdir())) == 10
    assert cli.main(["verify", str(tmp_path / "trace")]) == 0


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (
            "pcrm_prior must be one of length_ratio, cosine, lexical, column, fixed, random, got 'cosinus'",
            {"pcrm_prior": "cosinus"},
        ),
        ("preset must be one of alpaca/cosine.*, got 'alpaca'", {"pcrm_preset": "alpaca"}),
        (
            r"delta must be greater than 0 on all of \[0, 1\], got -10.01 at similarity 1",
            {"pcrm_beta1": 10.0, "pcrm_beta3": -20.0},
        ),
        ("pcrm_delta must not be set, got 5.0: pcrm_prior='length_ratio' does not use it", {"pcrm_delta": 5.0}),
        (
            "pcrm_beta1 must not be set, got 1.0: pcrm_prior='fixed' does not use it",
            {"pcrm_prior": "fixed", "pcrm_beta1": 1.0},
        ),
        ("pcrm_beta3 is missing.*Set pcrm_beta1 and pcrm_beta3", {"pcrm_prior": "column", "pcrm_beta1": 2.0}),
        ("delta must be greater than 0, got -1", {"pcrm_prior": "fixed", "pcrm_delta": -1.0}),
        (
            "pcrm_preset must be one for pcrm_prior='cosine', got 'alpaca/fixed', which is for 'fixed'",
            {"pcrm_prior": "cosine", "pcrm_preset": "alpaca/fixed"},
        ),
        ("floor must be at most cap, which is 2, got 3", {"pcrm_floor": 3.0, "pcrm_cap": 2.0}),
    ],
)
def test_bad_config(tmp_path, message, fields):
    with pytest.raises(ValueError, match=message):
        PCRMRewardConfig(output_dir=str(tmp_path), bf16=False, **fields)


COEFFICIENT = "center_rewards_coefficient"


@pytest.mark.parametrize(
    ("config", "error", "message", "fields"),
    [
        (PCRMRewardConfig, ValueError, f"{COEFFICIENT} must be finite and at least 0, got -1", {COEFFICIENT: -1}),
        (
            PCRMRewardConfig,
            ValueError,
            f"{COEFFICIENT} must be finite and at least 0, got nan",
            {COEFFICIENT: math.nan},
        ),
        (
            PCRMRewardConfig,
            ValueError,
            f"{COEFFICIENT} must be finite and at least 0, got inf",
            {COEFFICIENT: math.inf},
        ),
        (PCRMRewardConfig, TypeError, f"{COEFFICIENT} must be a number, got 'x'", {COEFFICIENT: "x"}),
        (PCRMRewardConfig, TypeError, "pcrm_sft_eta must be a number, got '0.1'", {"pcrm_sft_eta": "0.1"}),
        (PCRMDPOConfig, TypeError, "pcrm_sft_eta must be a number, got None", {"pcrm_sft_eta": None}),
        (PCRMRewardConfig, ValueError, r"pcrm_preset must be one of .*, got \['x'\]", {"pcrm_preset": ["x"]}),
        (PCRMDPOConfig, TypeError, "beta must be a number, got 'x'", {"beta": "x"}),
        (PCRMDPOConfig, TypeError, "label_smoothing must be a number, got None", {"label_smoothing": None}),
    ],
)
def test_config_says_which_field(tmp_path, config, error, message, fields):
    with pytest.raises(error, match=f"^{message}"):
        config(output_dir=str(tmp_path), bf16=False, **fields)


def test_config(tmp_path):
    config = functools.partial(PCRMRewardConfig, output_dir=str(tmp_path), bf16=False)
    assert config().pcrm_settings().constraint == Targets(1, 3)
    assert config(pcrm_beta1=20.0).pcrm_constraint() == pcrm.Constraint(20, 0.001, -5)
    assert config(pcrm_prior="column", pcrm_preset="tldr/cosine", pcrm_cap=50.0).pcrm_constraint() == pcrm.Constraint(
        30, 0.001, -25, cap=50
    )
    assert config(pcrm_prior="fixed", pcrm_preset="tldr/fixed").pcrm_constraint() == pcrm.Constraint.fixed(5)
    with pytest.raises(TypeError, match="args must be a PCRMRewardConfig, got a RewardConfig"):
        PCRMRewardTrainer("model", RewardConfig(output_dir=str(tmp_path), bf16=False))
