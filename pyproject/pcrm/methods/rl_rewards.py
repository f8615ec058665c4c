"""What a reward becomes before reinforcement learning sees it, and reward functions for TRL.

These are single expressions over a few numbers for each rollout, made by torch where they lie;
nothing else computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch

from .. import _check
from .._engine import torch_reference
from .._engine.tensors import check_where
from ..data.preferences import RowError, inputs
from .principles import TEMPLATE, with_principles

Tensor = torch.Tensor
RewardFunction = Callable[..., list[float]]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Scorer(Protocol):
    """What a reward function needs of `pcrm.evaluate.reward_model.RewardModel`."""

    @property
    def end(self) -> str: ...
    def encode(self, name: str, value: str | list[dict[str, Any]]) -> list[int]: ...
    def score(self, sequences: Sequence[Sequence[int]]) -> np.ndarray: ...


def par(rewards: Tensor, reference_rewards: Tensor) -> Tensor:
    """Preference as reward: how likely the reward model holds a response for better than a reference.

        PAR(r) = mean over k of sigmoid(r - reference_k)

    The reward of RL is then bounded, grows fastest where the policy is as good as the references
    and pays ever less for rewards beyond them. (arXiv 2502.18770.)

    Args:
        rewards: Of the policy's responses, shape (B,), float32, float64, bfloat16 or float16.
        reference_rewards: Of responses of the reference policy to the same prompts by the same
            reward model, shape (B, K); or (K,), the same for all. Of the same dtype and device.

    Returns:
        Shape (B,), in (0, 1), but for rounding: float32 has 1 for differences from 17 on, and 0
        below -89. float32 of bfloat16 and float16. NaN stays NaN. The gradient is that of the formula.

    Raises:
        TypeError: no tensors of these dtypes, or of two.
        ValueError: another shape, another device, no rewards or no references.
    """
    for name, value in (("rewards", rewards), ("reference_rewards", reference_rewards)):
        if not isinstance(value, Tensor) or value.dtype not in _DTYPES:
            raise TypeError(f"{name} is {_described(value)}, must be a tensor of float32, float64, bfloat16 or float16")
    if rewards.dim() != 1 or not len(rewards):
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}, must be (B,) with B at least 1")
    shape, b = tuple(reference_rewards.shape), len(rewards)
    if len(shape) not in (1, 2) or not shape[-1] or (len(shape) == 2 and shape[0] != b):
        raise ValueError(f"reference_rewards has shape {shape}, must be (K,) or ({b}, K) with K at least 1")
    if rewards.dtype != reference_rewards.dtype:
        raise TypeError(f"reference_rewards is {reference_rewards.dtype}, rewards is {rewards.dtype}")
    if rewards.device != reference_rewards.device:
        raise ValueError(f"reference_rewards is on {reference_rewards.device}, rewards is on {rewards.device}")
    wide = torch.promote_types(rewards.dtype, torch.float32)  # before the difference, whose digits a half type drops
    return torch_reference.preference_as_reward(rewards.to(wide), reference_rewards.to(wide))


def length_bonus(
    lengths: Tensor,
    *,
    max_length: float,
    weight: float = 5.0,
    cap: float = 0.8,
    multiplier: Tensor | float = 1.0,
) -> Tensor:
    """What is added to the rewards of longer responses; less than 0 takes from them.

        bonus = weight * min(multiplier * length / max_length, cap)

    as in the code that SALMON's authors released (arXiv 2310.05910), with its settings as the
    defaults: there max_length is the most tokens that a response may have, and the multiplier 1,
    but -0.4 for prompts that ask for reasoning.

    Args:
        lengths: Of the responses, shape (B,), in tokens or any unit, at least 0.
        max_length: In the same unit, greater than 0.
        weight: In units of reward.
        cap: Where the bonus stops to grow, as a share of max_length.
        multiplier: One number, or one for each response, shape (B,).

    Returns:
        float32, or float64 of float64 lengths; shape (B,).

    Raises:
        TypeError: lengths are no tensor, or one of booleans or complex numbers; an option that
            is no number.
        ValueError: another shape; a length that is less than 0 or not finite; an option that is
            not finite; max_length not greater than 0.
    """
    if not isinstance(lengths, Tensor) or lengths.dtype == torch.bool or lengths.is_complex():
        raise TypeError(f"lengths is {_described(lengths)}, must be a tensor of numbers")
    if lengths.dim() != 1:
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}, must be (B,)")
    if isinstance(multiplier, Tensor):
        if multiplier.shape != lengths.shape:
            raise ValueError(f"multiplier has shape {tuple(multiplier.shape)}, lengths has {tuple(lengths.shape)}")
    else:
        multiplier = _check.finite("multiplier", multiplier)
    max_length, weight, cap = _bonus(max_length, weight, cap)
    wide = torch.float64 if lengths.dtype == torch.float64 else torch.float32
    lengths = lengths.to(wide)
    check_where("lengths", lengths, lengths.isfinite() & (lengths >= 0), "at least 0 and finite")
    return torch_reference.length_bonus(lengths, max_length, weight, cap, multiplier).to(wide)


def reward_function(
    model: Scorer,
    *,
    references: str | None = None,
    principles: Sequence[Any] | None = None,
    template: str = TEMPLATE,
    k: int | None = None,
    seed: int = 0,
) -> RewardFunction:
    """A reward function for TRL's RLOOTrainer and GRPOTrainer: scores of `pcrm score`, as preferences if you like.

        trainer = RLOOTrainer(policy, reward_funcs=reward_function(RewardModel("reward-model"), references="references"), ...)

    A completion is scored as a response in the training of the reward model: with the token that
    ends a text, also where the policy was cut off before it.

    Args:
        model: Whose scores they are, a `pcrm.evaluate.reward_model.RewardModel`.
        references: The column of the data set with the reference responses to each prompt, for
            `par`: a list, of responses as the completions are, texts or lists of messages, or
            of their rewards by the same model under the same principles. Without it the
            rewards are the scores.
        principles: What the model reads with each prompt and the policy does not: a list of
            texts or objects, see `pcrm.methods.principles`.
        template, k, seed: Of `pcrm.methods.principles.with_principles`: k of the principles for each
            prompt, the same ones in every step.

    Returns:
        A function of `prompts`, `completions` and the columns of the data set, each a list, by
        name; it gives a list of floats.

    Raises:
        ValueError: principles, a template or a `k` that is none. The function: there is no
            column of references; completions or references of another number than the prompts;
            references, a prompt or a completion that is none, or too long for the model, by its
            index in the batch.
        TypeError: principles, a `k` or `seed` of another kind.
    """
    if isinstance(principles, str):
        raise TypeError(f"principles is {principles!r:.80}, must be a list of texts or objects")
    if principles is not None:  # what is wrong with them is said before any rollout
        with_principles({"prompt": "", "principles": list(principles)}, template=template, k=k, seed=seed)

    def encoded(prompt: Any, responses: Mapping[str, Any]) -> list[list[int]]:
        if principles is not None:
            row = {"prompt": prompt, "principles": list(principles)}
            prompt = with_principles(row, template=template, k=k, seed=seed)["prompt"]
        values = inputs(prompt, responses, end=model.end)
        return [model.encode(name, value) for name, value in zip(responses, values, strict=True)]

    def rewards(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        if references is not None and references not in columns:
            raise ValueError(f"the data set has no column {references!r}; its columns are {', '.join(columns)}")
        _check_rows("completions", completions, "prompts", len(prompts))
        if references is not None:
            _check_rows(references, columns[references], "prompts", len(prompts))
        ids, known = [], []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            given = [] if references is None else _references(f"{references}[{i}]", columns[references][i])
            numbers = bool(given) and isinstance(given[0], Real)
            texts = {} if numbers else {f"{references}[{i}][{j}]": value for j, value in enumerate(given)}
            try:
                ids.append(encoded(prompt, {f"completions[{i}]": completion} | texts))
            except RowError as error:
                raise ValueError(f"completion {i} of the batch: {error.message}") from None
            known.append(given if numbers else None)
        scores = torch.from_numpy(model.score([one for row in ids for one in row])).split([len(row) for row in ids])
        if references is None:
            return [float(row) for row in scores]
        return [
            float(par(row[:1], row[1:] if numbers is None else torch.tensor(numbers, dtype=row.dtype)))
            for row, numbers in zip(scores, known, strict=True)
        ]

    rewards.__name__ = "reward" if references is None else "preference_as_reward"  # what TRL's metrics call it
    return rewards


def length_bonus_function(
    *, max_length: float, weight: float = 5.0, cap: float = 0.8, multiplier: float | str = 1.0
) -> RewardFunction:
    """`length_bonus` as a reward function for TRL, whose trainers add up what their functions give.

        reward_funcs=[reward_function(model), length_bonus_function(max_length=512)]

    Args:
        max_length: The most tokens of a completion.
        weight, cap: As in `length_bonus`.
        multiplier: A number, or the column of the data set that has one for each prompt.

    Raises:
        TypeError, ValueError: as in `length_bonus`. The function: there is no such column, it has
            another number of rows than the completions, or a row of it is no finite number.
    """
    max_length, weight, cap = _bonus(max_length, weight, cap)
    if not isinstance(multiplier, str):
        multiplier = _check.finite("multiplier", multiplier)

    def bonus(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        if isinstance(multiplier, str) and multiplier not in columns:
            raise ValueError(f"the data set has no column {multiplier!r}; its columns are {', '.join(columns)}")
        lengths = torch.tensor([len(ids) for ids in completion_ids])
        by: Tensor | float
        if isinstance(multiplier, str):
            _check_rows(multiplier, columns[multiplier], "completion_ids", len(lengths))
            values = [_check.finite(f"{multiplier}[{i}]", _scalar(v)) for i, v in enumerate(columns[multiplier])]
            by = torch.tensor(values, dtype=torch.float32)
        else:
            by = multiplier
        return length_bonus(lengths, max_length=max_length, weight=weight, cap=cap, multiplier=by).tolist()

    bonus.__name__ = "length_bonus"
    return bonus


def _references(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} is {value!r:.80}, must be a list of responses or of their rewards")
    numbers = [isinstance(v, Real) and not isinstance(v, bool) for v in value]
    if any(numbers) and not all(numbers):
        raise ValueError(f"{name}[{numbers.index(False)}] is {value[numbers.index(False)]!r:.80}, others are numbers")
    return list(value)


def _check_rows(name: str, value: Any, other: str, n: int) -> None:
    """Refuse a column that is none, or not of the n rows that the other one has."""
    if not isinstance(value, Sized) or isinstance(value, str):
        raise TypeError(f"{name} is {value!r:.80}, must be a list with a value for each of {other}")
    if len(value) != n:
        raise ValueError(f"{name} has {len(value)} rows, {other} has {n}")


def _scalar(value: Any) -> Any:
    """A data set in the format of NumPy or torch gives scalars of theirs."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _bonus(max_length: float, weight: float, cap: float) -> tuple[float, float, float]:
    max_length, weight, cap = (
        _check.finite("max_length", max_length),
        _check.finite("weight", weight),
        _check.finite("cap", cap),
    )
    if max_length <= 0:
        raise ValueError(f"max_length is {max_length:g}, must be greater than 0")
    return max_length, weight, cap


def _described(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{value!r:.80}"
