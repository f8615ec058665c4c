"""Prioritized sampling: the draws, the unbiased gradient, and the trainers."""

import itertools
import math
import re
import textwrap
from decimal import Decimal

import numpy as np
import pytest
import torch
from helpers.documents import blocks
from helpers.project import ROOT
from helpers.trainers import FORMATS, TWO_PROCESSES, build, distance, launch, load, steps
from pcrm.methods.prioritized import PrioritizedSampler
from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig
from torch.utils.data import DataLoader, RandomSampler

import pcrm

KINDS = ("reward", "dpo")
CONSTRAINT = {"pcrm_beta1": 1.0, "pcrm_beta3": 0.0}
PRIORITIES = torch.tensor([0.0, 0.05, 0.9, 0.3, 1e-7], dtype=torch.float64)


def drawing(priorities=PRIORITIES, **options):
    """Return a sampler in its first round with these priorities."""
    sampler = PrioritizedSampler(len(priorities), **options)
    sampler.update(torch.arange(len(priorities)), priorities)
    sampler.set_round(1)
    return sampler


# The sampler


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.01, 1.0])
def test_weighted_expectation_is_the_mean_over_the_data(alpha, epsilon):
    sampler = drawing(alpha=alpha, epsilon=epsilon)
    p, values = sampler.probabilities, torch.tensor([3.0, -1.0, 0.5, 7.0, 1e3], dtype=torch.float64)
    weights = sampler.weights(torch.arange(5))
    assert p.sum().item() == pytest.approx(1, rel=1e-15)
    assert (p * weights * values).sum().item() == pytest.approx(values.mean().item(), rel=1e-14)
    assert weights.max().item() <= 1 / epsilon * (1 + 1e-15)
    a = [x**alpha for x in PRIORITIES.tolist()]
    assert p.tolist() == pytest.approx([(1 - epsilon) * x / sum(a) + epsilon / 5 for x in a], rel=1e-14)


def test_draws_have_those_probabilities_and_that_mean():
    """Each count and the weighted mean are within five standard deviations, which fails once in a million."""
    n = 20_000
    sampler = drawing(alpha=0.7, epsilon=0.2, num_samples=n)
    p, values = sampler.probabilities, torch.tensor([3.0, -1.0, 0.5, 7.0, 10.0], dtype=torch.float64)
    drawn = torch.tensor(list(sampler))
    counts = drawn.bincount(minlength=5)
    assert ((counts - n * p).abs() < 5 * (n * p * (1 - p)).sqrt()).all(), counts
    weighted = values * sampler.weights(torch.arange(5))
    mean = values.mean()
    deviation = ((p * weighted**2).sum() - mean**2).sqrt().item()
    estimate = (values[drawn] * sampler.weights(drawn)).mean().item()
    assert abs(estimate - mean) < 5 * deviation / math.sqrt(n)
    # Without the weights the mean would be different.
    assert abs(values[drawn].mean() - mean) > 5 * deviation / math.sqrt(n)


def test_a_round_keeps_its_probabilities_and_its_draws():
    sampler = PrioritizedSampler(5, alpha=1.0, epsilon=0.1, num_samples=12, seed=3)
    assert sampler.probabilities.tolist() == pytest.approx([0.2] * 5), "nothing is known yet"
    first = list(sampler)
    assert len(first) == len(sampler) == 12 and set(first) <= set(range(5))
    sampler.update(torch.tensor([1, 0, 2, 1]), torch.tensor([0.2, 0.0, 0.5, 0.4], dtype=torch.float64))
    sampler.set_round(0)
    assert list(sampler) == first and sampler.weights(torch.tensor([4, 4])).tolist() == pytest.approx([1, 1])
    sampler.set_round(1)
    # For a pair named twice the larger value counts, and a pair never drawn counts as 1.
    share = [x / (0.4 + 0.5 + 1 + 1) for x in (0.0, 0.4, 0.5, 1, 1)]
    assert sampler.probabilities.tolist() == pytest.approx([0.9 * x + 0.02 for x in share], rel=1e-14)
    assert list(sampler) != first
    assert list(sampler) == [int(i) for i in DataLoader(range(5), batch_size=None, sampler=sampler)]
    other = PrioritizedSampler(5, alpha=1.0, epsilon=0.1, num_samples=12, seed=4)
    assert list(other) != first


def test_all_priorities_zero_is_uniform():
    sampler = drawing(torch.zeros(3, dtype=torch.float64))
    assert sampler.probabilities.tolist() == pytest.approx([1 / 3] * 3)


def test_resumed_sampler_goes_on(tmp_path):
    sampler = drawing(alpha=1.0, epsilon=0.1, num_samples=50)
    sampler.update(torch.tensor([0]), torch.tensor([0.7]))
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    again = PrioritizedSampler(5, alpha=1.0, epsilon=0.1, num_samples=50)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for number in (1, 2):
        for one in (sampler, again):
            one.set_round(number)
        assert list(again) == list(sampler)
        assert torch.equal(again.probabilities, sampler.probabilities)
    with pytest.raises(ValueError, match="the state is for 5 pairs, and this sampler has 6"):
        PrioritizedSampler(6).load_state_dict(sampler.state_dict())


def _state(**changes):
    return PrioritizedSampler(3).state_dict() | {"round": 2} | changes


@pytest.mark.parametrize(
    ("error", "message", "state"),
    [
        (TypeError, "state must be a mapping from state_dict(), got None", None),
        (ValueError, "state['round'] is missing", {}),
        (ValueError, "state['probabilities'] is missing", {"round": 0, "priorities": torch.ones(3)}),
        (TypeError, "state['round'] must be an integer, got 1.5", _state(round=1.5)),
        (ValueError, "state['round'] must be in [0, 2**63), got -1", _state(round=-1)),
        (
            TypeError,
            "state['priorities'] must be a tensor of real numbers, got [1, 1, 1]",
            _state(priorities=[1, 1, 1]),
        ),
        (
            TypeError,
            "state['priorities'] must be a tensor of real numbers, got dtype torch.complex64",
            _state(priorities=torch.ones(3) * 1j),
        ),
        (ValueError, "state['priorities'] must have shape (3,), got (3, 1)", _state(priorities=torch.ones(3, 1))),
        (ValueError, "state['priorities'] must have shape (3,), got ()", _state(priorities=torch.tensor(1.0))),
        (
            ValueError,
            "state['probabilities'] must have shape (3,), got (2,): the state is for 2 pairs, and this sampler has 3",
            _state(probabilities=torch.ones(2) / 2),
        ),
        (
            ValueError,
            "state['priorities'][1] must be finite and at least 0, got nan",
            _state(priorities=torch.tensor([0.0, math.nan, 1.0])),
        ),
        (
            ValueError,
            "state['probabilities'][2] must be greater than 0 and at most 1, got nan",
            _state(probabilities=torch.tensor([0.5, 0.5, math.nan])),
        ),
        (
            ValueError,
            "state['probabilities'][0] must be greater than 0 and at most 1, got 0",
            _state(probabilities=torch.tensor([0.0, 0.5, 0.5])),
        ),
    ],
)
def test_bad_states_change_nothing(error, message, state):
    sampler = PrioritizedSampler(3)
    before = sampler.state_dict()
    with pytest.raises(error, match=re.escape(message)):
        sampler.load_state_dict(state)
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(before[k])) for k, v in sampler.state_dict().items())


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("size must be an integer, got 5.0", {"size": 5.0}),
        ("size must be an integer, got True", {"size": True}),
        ("num_samples must be an integer, got 1.5", {"num_samples": 1.5}),
        ("seed must be an integer, got 'x'", {"seed": "x"}),
        ("alpha must be a number, got 'x'", {"alpha": "x"}),
        ("epsilon must be a number, got None", {"epsilon": None}),
    ],
)
def test_arguments_of_other_kinds(message, options):
    with pytest.raises(TypeError, match=message):
        PrioritizedSampler(**{"size": 5} | options)


def test_rounds_are_integers():
    with pytest.raises(TypeError, match=re.escape("number must be an integer, got 1.5")):
        PrioritizedSampler(5).set_round(1.5)
    with pytest.raises(ValueError, match=re.escape("number must be in [0, 2**63), got -1")):
        PrioritizedSampler(5).set_round(-1)


@pytest.mark.parametrize(
    ("message", "indices"),
    [
        ("indices must be a tensor of integers, got dtype torch.float32", torch.tensor([1.7])),
        ("indices must be a tensor of integers, got dtype torch.bool", torch.tensor([True, False])),
        ("indices must be a tensor of integers, got dtype torch.complex64", torch.tensor([1j])),
        ("indices must be a tensor of integers, got [0]", [0]),
    ],
)
def test_indices_of_other_kinds(message, indices):
    sampler = PrioritizedSampler(5)
    for call in (lambda: sampler.weights(indices), lambda: sampler.update(indices, torch.ones(1))):
        with pytest.raises(TypeError, match=re.escape(message)):
            call()


@pytest.mark.parametrize(
    ("message", "priorities"),
    [
        ("priorities must be a tensor of real numbers, got dtype torch.bool", torch.tensor([True])),
        ("priorities must be a tensor of real numbers, got dtype torch.complex64", torch.tensor([1 + 1j])),
        ("priorities must be a tensor of real numbers, got [0.5]", [0.5]),
    ],
)
def test_priorities_of_other_kinds_change_nothing(message, priorities):
    sampler = PrioritizedSampler(5)
    with pytest.raises(TypeError, match=re.escape(message)):
        sampler.update(torch.tensor([0]), priorities)
    assert sampler.state_dict()["priorities"].tolist() == [1.0] * 5


def test_integers_of_every_width():
    sampler = drawing()
    want = sampler.weights(torch.tensor([4, 2]))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(sampler.weights(torch.tensor([4, 2], dtype=dtype)), want)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("size must be .*, got 0", {"size": 0}),
        ("seed must be .*, got 9223372036854775808", {"seed": 2**63}),
        ("seed must be .*, got -9223372036854775809", {"seed": -(2**63) - 1}),
        ("num_samples must be .*, got 0", {"num_samples": 0}),
        ("alpha must be finite and at least 0, got -0.5", {"alpha": -0.5}),
        ("alpha must be finite and at least 0, got nan", {"alpha": math.nan}),
        ("epsilon must be greater than 0 and at most 1, got 0", {"epsilon": 0}),
        ("epsilon must be greater than 0 and at most 1, got 1.5", {"epsilon": 1.5}),
    ],
)
def test_bad_arguments(message, options):
    with pytest.raises(ValueError, match=message):
        PrioritizedSampler(**{"size": 5} | options)


@pytest.mark.parametrize(
    ("message", "indices", "priorities"),
    [
        (r"indices\[1\] must be in \[0, 5\), got 5", [0, 5], [0.1, 0.1]),
        (r"indices\[0\] must be in \[0, 5\), got -1", [-1], [0.1]),
        (r"indices must have shape \(B,\), got \(1, 1\)", [[1]], [[0.1]]),
        (r"priorities must have the shape of indices, \(2,\), got \(1,\)", [0, 1], [0.1]),
        (r"priorities\[1\] must be finite and at least 0, got -0.1", [0, 1], [0.1, -0.1]),
        (r"priorities\[1\] must be finite and at least 0, got nan", [0, 1], [0.1, math.nan]),
        (r"priorities\[0\] must be finite and at least 0, got inf", [0, 1], [math.inf, 0.1]),
    ],
)
def test_bad_updates_change_nothing(message, indices, priorities):
    sampler = PrioritizedSampler(5)
    with pytest.raises(ValueError, match=message):
        sampler.update(torch.tensor(indices), torch.tensor(priorities))
    assert sampler.state_dict()["priorities"].tolist() == [1.0] * 5


# The trainers


@pytest.fixture
def trainer_of(tiny, tiny_policy, tmp_path, rows):
    """A function that builds a trainer of a tiny model on the first rows."""

    def make(kind, pairs=16, *, out=tmp_path, data=None, **options):
        folder = tiny if kind == "reward" else tiny_policy
        data = FORMATS["plain"](rows[:pairs]) if data is None else data
        return build(kind, folder, out, data, **CONSTRAINT | options)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_expected_gradient_of_a_batch_is_that_of_the_data(trainer_of, kind):
    """Over all 16 batches of two of four pairs, weighted by their probabilities: the test does not sample."""
    options = {"center_rewards_coefficient": 0.1} if kind == "reward" else {"beta": 0.7}
    plain = trainer_of(kind, 4, **options)
    ours = trainer_of(kind, 4, pcrm_priority_alpha=1.0, pcrm_priority_epsilon=0.2, **options)
    priorities = torch.tensor([0.9, 0.01, 0.3, 0.0], dtype=torch.float64)
    ours.sampler.update(torch.arange(4), priorities)
    ours.sampler.set_round(1)
    p = ours.sampler.probabilities.tolist()
    assert max(p) > 5 * min(p)

    def gradient(trainer, indices):
        model = trainer.model.double().train()
        if kind == "dpo":
            trainer.ref_model.double()
        model.zero_grad()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in indices])
        trainer.compute_loss(model, batch).backward()
        return torch.cat([w.grad.double().flatten() for w in model.parameters()])

    if kind == "dpo":  # move away from the reference, where all pairs have the same slope
        with torch.no_grad():
            plain.model.lm_head.weight.mul_(2)
        ours.model.load_state_dict(plain.model.state_dict())
    want = gradient(plain, range(4))
    expected = sum(p[i] * p[j] * gradient(ours, (i, j)) for i, j in itertools.product(range(4), repeat=2))
    uniform = sum(gradient(ours, (i, i)) / 4 for i in range(4))
    scale = want.abs().max().item()
    # Llama's norms compute in float32. Three of them, and pairs that cancel, cost two digits.
    assert (expected - want).abs().max().item() < 100 * torch.finfo(torch.float32).eps * scale
    assert (uniform - want).abs().max().item() > 1e-2 * scale, "the weights matter"


@pytest.mark.slow
def test_priorities_are_the_slopes_of_the_loss(trainer_of):
    trainer = trainer_of("reward", pcrm_priority_alpha=1.0, center_rewards_coefficient=0.3, learning_rate=0.5)
    trainer.train()
    trainer.model.train()
    assert trainer.train_dataset["pcrm_index"][:] == list(range(16))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (5, 2, 9)])
    trainer.compute_loss(trainer.model, dict(batch))
    scores = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    margin, delta = (scores[:3] - scores[3:]).double(), trainer.constraint.delta(batch["prior"].double())
    want = (torch.sigmoid(margin - delta) - torch.sigmoid(-margin)).abs()
    # float32 scores, and a slope with a derivative of at most 1/2.
    got = trainer.sampler.state_dict()["priorities"][[5, 2, 9]]
    assert got.tolist() == pytest.approx(want.tolist(), abs=1e-6) and len(set(got.tolist())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [3, 4, 6], ids=["within the first", "between", "within the second"])
def test_resumed_is_uninterrupted(trainer_of, tmp_path, kind, at):
    """Rounds have four steps, so the priorities of the first round determine the draws of the second."""
    options = {"pcrm_priority_alpha": 1.0, "pcrm_priority_samples": 16, "max_steps": 7, "learning_rate": 0.5}
    whole = trainer_of(kind, 64, save_strategy="steps", save_steps=1, **options)
    whole.train()
    again = trainer_of(kind, 64, out=tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert distance(again, whole) == 0
    for key, value in whole.sampler.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again.sampler.state_dict()[key])), key
    p = whole.sampler.probabilities
    assert p.max() > 1.05 * p.min() and whole.state.epoch == 7 / 4


@pytest.mark.slow
def test_a_checkpoint_without_the_sampler_is_told(trainer_of, tmp_path):
    trainer_of("reward", save_strategy="steps", save_steps=2, max_steps=2).train()
    ours = trainer_of("reward", out=tmp_path / "ours", pcrm_priority_alpha=1.0, max_steps=4)
    message = r"checkpoint-2 must contain pcrm_sampler.safetensors to resume with pcrm_priority_alpha"
    with pytest.raises(ValueError, match=message):
        ours.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.slow
def test_a_checkpoint_of_other_data_is_named(trainer_of, tmp_path):
    options = {"pcrm_priority_alpha": 1.0, "save_strategy": "steps", "save_steps": 2}
    trainer_of("reward", max_steps=2, **options).train()
    fewer = trainer_of("reward", 12, out=tmp_path / "fewer", max_steps=4, **options)
    with pytest.raises(
        ValueError, match=r"checkpoint-2/pcrm_sampler.safetensors: .* is for 16 pairs, and this sampler has 12"
    ):
        fewer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_score_that_gets_no_priority_names_its_row(trainer_of):
    trainer = trainer_of("reward", pcrm_priority_alpha=1.0)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (5, 2, 9)])
    trainer.model.train()
    score = trainer.model.score.forward
    # The second pair's chosen response.
    trainer.model.score.forward = lambda states: score(states).index_fill(0, torch.tensor(1), math.nan)
    with pytest.raises(ValueError, match=r"row 2 of the prepared training data .* must have finite scores.*got nan"):
        trainer.compute_loss(trainer.model, batch)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainer_sees_the_draws_in_their_order(trainer_of, workers):
    options = {"max_steps": 6, "pcrm_priority_samples": 12, "dataloader_num_workers": workers}
    trainer = trainer_of("reward", pcrm_priority_alpha=1.0, pcrm_priority_epsilon=0.5, **options)
    seen = []
    update = trainer.sampler.update
    trainer.sampler.update = lambda index, slopes: (seen.extend(index.tolist()), update(index, slopes))
    drawn = list(trainer.sampler)
    trainer.train()
    assert seen[:12] == drawn
    assert seen[12:] == list(trainer.sampler) != drawn


@pytest.mark.slow
def test_evaluation_is_not_drawn(trainer_of):
    trainer = trainer_of("reward", pcrm_priority_alpha=1.0, eval_data=None)
    trainer.train()
    before = trainer.sampler.state_dict()["priorities"]
    loss = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    plain = trainer_of("reward", model=trainer.model)
    assert loss == pytest.approx(plain.evaluate(plain.train_dataset)["eval_loss"], rel=1e-6)
    assert torch.equal(trainer.sampler.state_dict()["priorities"], before)


@pytest.mark.slow
def test_prepared_data_may_be_used_again(trainer_of):
    prepared = trainer_of("reward", pcrm_priority_alpha=1.0).train_dataset
    some = trainer_of("reward", data=prepared.select([7, 3, 5]), pcrm_priority_alpha=1.0)
    assert some.train_dataset["pcrm_index"][:] == [0, 1, 2]
    uniform, plain = trainer_of("reward", data=prepared), trainer_of("reward")
    uniform.train()
    plain.train()
    assert distance(uniform, plain) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_without_priorities_the_draws_are_those_of_trl(trainer_of, kind):
    trainer = trainer_of(kind)
    assert trainer.sampler is None and "pcrm_index" not in trainer.train_dataset.column_names
    assert isinstance(trainer._get_train_sampler(), RandomSampler)


@pytest.mark.slow
def test_dpo_with_precomputed_reference(trainer_of):
    losses = []
    for precompute in (True, False):
        trainer = trainer_of("dpo", pcrm_priority_alpha=1.0, precompute_ref_log_probs=precompute)
        trainer.train()
        losses.append([step["loss"] for step in steps(trainer)])
    # The reference model sees other batches, so its float32 sums round differently.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_in_two_processes_is_accumulation_in_one(tiny, tmp_path):
    """All processes have the same priorities, so they draw the same pairs in the second round."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import conftest
        import torch
        from pcrm.demo.world import generate
        from helpers.trainers import FORMATS, build
        trainer = build("reward", sys.argv[1], sys.argv[2], FORMATS["plain"](generate(64, seed=0)),
                        pcrm_priority_alpha=1.0, pcrm_priority_samples=24, max_steps=5, learning_rate=0.5,
                        pcrm_beta1=1.0, pcrm_beta3=0.0, gradient_accumulation_steps=int(sys.argv[3]))
        trainer.train()
        trainer.save_model()
        torch.save(trainer.sampler.state_dict(), f"{{sys.argv[2]}}/sampler-{{trainer.args.process_index}}.pt")
        trainer.accelerator.end_training()
        """)
    )
    launch(str(script), str(tiny), str(tmp_path / "one"), "2")
    launch(*TWO_PROCESSES, str(script), str(tiny), str(tmp_path / "two"), "1")
    one, two, other = (
        torch.load(tmp_path / path, weights_only=True)
        for path in ("one/sampler-0.pt", "two/sampler-0.pt", "two/sampler-1.pt")
    )
    assert one["round"] == two["round"] == 1
    for key in ("priorities", "probabilities"):
        assert torch.equal(two[key], other[key])
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-6)
    a, b = (load("reward", tmp_path / name).state_dict() for name in ("one", "two"))
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 5e-6


@pytest.mark.parametrize("config", [PCRMRewardConfig, PCRMDPOConfig])
@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("pcrm_priority_alpha must be finite and at least 0, got -1.0", {"pcrm_priority_alpha": -1.0}),
        ("pcrm_priority_epsilon must be greater than 0 and at most 1, got 0.0", {"pcrm_priority_epsilon": 0.0}),
        ("pcrm_priority_samples must be .*, got 0", {"pcrm_priority_samples": 0}),
        (
            "pcrm_sft_eta must be 0.0 with pcrm_priority_alpha=1.0, got 0.1",
            {"pcrm_priority_alpha": 1.0, "pcrm_sft_eta": 0.1},
        ),
        (
            "pcrm_priority_alpha must be 0 with pcrm_form='token', got 1.0",
            {"pcrm_priority_alpha": 1.0, "pcrm_form": "token"},
        ),
        (
            "train_sampling_strategy must be 'random' with pcrm_priority_alpha=1.0, got 'sequential'",
            {"pcrm_priority_alpha": 1.0, "train_sampling_strategy": "sequential"},
        ),
    ],
)
def test_bad_config(tmp_path, config, message, fields):
    with pytest.raises(ValueError, match=message):
        config(output_dir=str(tmp_path), bf16=False, **fields)


@pytest.mark.parametrize("config", [PCRMRewardConfig, PCRMDPOConfig])
@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("pcrm_priority_alpha must be a number, got 'x'", {"pcrm_priority_alpha": "x"}),
        ("pcrm_priority_epsilon must be a number, got None", {"pcrm_priority_epsilon": None}),
        ("pcrm_priority_samples must be an integer, got 1.5", {"pcrm_priority_samples": 1.5}),
    ],
)
def test_config_of_other_kinds(tmp_path, config, message, fields):
    with pytest.raises(TypeError, match=message):
        config(output_dir=str(tmp_path), bf16=False, **fields)


def test_what_cannot_be_drawn_or_weighted_is_refused(trainer_of, tmp_path, rows):
    with pytest.raises(
        ValueError, match=r"loss_type must be \['pcrm'\] with pcrm_priority_alpha=1.0, got \['pcrm', 'ipo'\]"
    ):
        PCRMDPOConfig(output_dir=str(tmp_path), bf16=False, pcrm_priority_alpha=1.0, loss_type=["pcrm", "ipo"])
    streamed = FORMATS["plain"](rows).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"pcrm_priority_alpha must be 0 with an iterable data set, got 1.0"):
        trainer_of("reward", data=streamed, pcrm_priority_alpha=1.0)
    trainer = trainer_of("dpo", pcrm_priority_alpha=1.0)
    trainer.sampler = None  # as if TRL prepared no data, which is the case for images
    with pytest.raises(ValueError, match=r"pcrm_priority_alpha must be 0 for data sets with images, got 1.0"):
        trainer._finish(trainer.args)


def test_the_guide_runs_as_it_is_printed():
    torch.manual_seed(0)
    (block,) = blocks("docs/prioritized.md", "python")
    here = {}
    exec(compile(block, "docs/prioritized.md", "exec"), here)
    p = here["sampler"].probabilities
    assert p.max() > 1.2 * p.min()


@pytest.mark.slow
def test_backends_draw_the_same(trainer_of):
    """The slopes come from the loss's own gradient, whichever backend computed it."""
    options = {"pcrm_priority_alpha": 1.0, "max_steps": 6, "learning_rate": 0.5}
    ours = trainer_of("reward", **options)
    ours.train()
    with pcrm.backends.use_backend("torch"):
        reference = trainer_of("reward", **options)
        reference.train()
    assert distance(ours, reference) < 5e-6


def test_numbers_of_other_types():
    """Values that pass the check for numbers also work as numbers."""
    plain = PrioritizedSampler(4, alpha=0.5, epsilon=0.25, seed=3, num_samples=2)
    others = {"alpha": Decimal("0.5"), "epsilon": Decimal("0.25"), "seed": np.uint64(3), "num_samples": np.int64(2)}
    assert list(PrioritizedSampler(np.int64(4), **others)) == list(plain)
