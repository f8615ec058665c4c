"""Transform rewards before reinforcement learning, and reward functions for TRL.

The transforms are single expressions over a few numbers per rollout. Torch computes them under every
backend, on the tensors' own device.
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
    """The part of `pcrm.evaluate.reward_model.RewardModel` that a reward function uses."""

    @property
    def end(self) -> str: ...
    def encode(self, name: str, value: str | list[dict[str, Any]]) -> list[int]: ...
    def score(self, sequences: Sequence[Sequence[int]]) -> np.ndarray: ...


def par(rewards: Tensor, reference_rewards: Tensor) -> Tensor:
    """Preference as reward (PAR): the probability that the reward model prefers a response to a reference.

        PAR(r) = mean over k of sigmoid(r - reference_k)

    The resulting reward is bounded. It grows fastest where the policy is as good as the references,
    and flattens out beyond them. Source: arXiv 2502.18770.

    Args:
        rewards: The rewards of the policy's responses, shape (B,), float32, float64, bfloat16 or
            float16.
        reference_rewards: Rewards by the same reward model of the reference policy's responses to
            the same prompts, shape (B, K), or shape (K,) to use the same for all. The same dtype and
            device as `rewards`.

    Returns:
        Shape (B,), in (0, 1) up to rounding: in float32 the result is 1 for differences of 17 and
        more, and 0 below -89. float32 for bfloat16 and float16 rewards. NaN stays NaN. Gradients flow
        through the formula.

    Raises:
        TypeError: The arguments are not tensors of these dtypes, or their dtypes differ.
        ValueError: A shape is wrong, the devices differ, or there are no rewards or no references.
    """
    for name, value in (("rewards", rewards), ("reference_rewards", reference_rewards)):
        if not isinstance(value, Tensor) or value.dtype not in _DTYPES:
            raise TypeError(
                f"{name} must be a tensor of float32, float64, bfloat16 or float16, got {_described(value)}"
            )
    if rewards.dim() != 1 or not len(rewards):
        raise ValueError(f"rewards must have shape (B,) with B at least 1, got {tuple(rewards.shape)}")
    shape, b = tuple(reference_rewards.shape), len(rewards)
    if len(shape) not in (1, 2) or not shape[-1] or (len(shape) == 2 and shape[0] != b):
        raise ValueError(f"reference_rewards must have shape (K,) or ({b}, K) with K at least 1, got {shape}")
    if rewards.dtype != reference_rewards.dtype:
        raise TypeError(
            f"reference_rewards must have the dtype of rewards, {rewards.dtype}, got {reference_rewards.dtype}"
        )
    if rewards.device != reference_rewards.device:
        raise ValueError(
            f"reference_rewards must be on the device of rewards, {rewards.device}, got {reference_rewards.device}"
        )
    wide = torch.promote_types(rewards.dtype, torch.float32)  # before subtracting: 16-bit differences lose digits
    return torch_reference.preference_as_reward(rewards.to(wide), reference_rewards.to(wide))


def length_bonus(
    lengths: Tensor,
    *,
    max_length: float,
    weight: float = 5.0,
    cap: float = 0.8,
    multiplier: Tensor | float = 1.0,
) -> Tensor:
    """Length bonus to add to the rewards of responses. A negative bonus is a length penalty.

        bonus = weight * min(multiplier * length / max_length, cap)

    The formula and the default settings are those of the code released by SALMON's authors
    (arXiv 2310.05910). There, max_length is the maximum number of tokens of a response, and the
    multiplier is 1, or -0.4 for prompts that ask for reasoning.

    Args:
        lengths: The lengths of the responses, shape (B,), in tokens or any other unit, finite and at
            least 0.
        max_length: The maximum length in the same unit, finite and greater than 0.
        weight: The scale of the bonus, in units of the reward. Finite.
        cap: The fraction of max_length at which the bonus stops growing. Finite.
        multiplier: One number, or one for each response, shape (B,).

    Returns:
        The bonus, shape (B,), float64 for float64 lengths, else float32.

    Raises:
        TypeError: `lengths` is not a tensor of real numbers, or an option is not a number.
        ValueError: The shape is wrong; a length is negative or not finite; an option is not finite;
            or `max_length` is not greater than 0.
    """
    if not isinstance(lengths, Tensor) or lengths.dtype == torch.bool or lengths.is_complex():
        raise TypeError(f"lengths must be a tensor of real numbers, got {_described(lengths)}")
    if lengths.dim() != 1:
        raise ValueError(f"lengths must have shape (B,), got {tuple(lengths.shape)}")
    if isinstance(multiplier, Tensor):
        if multiplier.shape != lengths.shape:
            raise ValueError(
                f"multiplier must have the shape of lengths, {tuple(lengths.shape)}, got {tuple(multiplier.shape)}"
            )
    else:
        multiplier = _check.finite("multiplier", multiplier)
    max_length, weight, cap = _bonus(max_length, weight, cap)
    wide = torch.float64 if lengths.dtype == torch.float64 else torch.float32
    lengths = lengths.to(wide)
    check_where("lengths", lengths, lengths.isfinite() & (lengths >= 0), "finite and at least 0")
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
    """Make a reward function for TRL's RLOOTrainer and GRPOTrainer, from scores or from `par`.

        trainer = RLOOTrainer(policy, reward_funcs=reward_function(RewardModel("reward-model"), references="references"), ...)

    A completion is scored like a response in the training of the reward model: with the end-of-text
    token, even if the policy was cut off before it.

    Args:
        model: The reward model, a `pcrm.evaluate.reward_model.RewardModel`.
        references: The column of the data set with the reference responses to each prompt, for
            `par`. Each entry is a list of responses in the format of the completions (texts or lists
            of messages), or of their rewards by the same model under the same principles. Without
            this argument the rewards are the scores.
        principles: Principles that the reward model reads with each prompt and the policy does not
            see: a list of texts or objects, see `pcrm.methods.principles`.
        template, k, seed: As in `pcrm.methods.principles.with_principles`. k of the principles are
            drawn for each prompt, the same ones in every step.

    Returns:
        A function that takes `prompts`, `completions` and the columns of the data set as keyword
        arguments, each a list, and returns a list of floats.

    Raises:
        ValueError: The principles, the template or `k` are invalid. The returned function raises it
            if the column of references is missing; if the number of completions or references
            differs from the number of prompts; or if references, a prompt or a completion are
            invalid or too long for the model. The message names the index in the batch.
        TypeError: The principles, `k` or `seed` have the wrong type.
    """
    if isinstance(principles, str):
        raise TypeError(f"principles must be a list of texts or objects, got {principles!r:.80}")
    if principles is not None:  # report errors in them before any rollout
        with_principles({"prompt": "", "principles": list(principles)}, template=template, k=k, seed=seed)

    def encoded(prompt: Any, responses: Mapping[str, Any]) -> list[list[int]]:
        if principles is not None:
            row = {"prompt": prompt, "principles": list(principles)}
            prompt = with_principles(row, template=template, k=k, seed=seed)["prompt"]
        values = inputs(prompt, responses, end=model.end)
        return [model.encode(name, value) for name, value in zip(responses, values, strict=True)]

    def rewards(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        if references is not None and references not in columns:
            raise ValueError(f"references must be a column of the data set ({', '.join(columns)}), got {references!r}")
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
    """Make a reward function for TRL from `length_bonus`. TRL's trainers add up their reward functions.

        reward_funcs=[reward_function(model), length_bonus_function(max_length=512)]

    Args:
        max_length: The maximum number of tokens of a completion.
        weight, cap: As in `length_bonus`.
        multiplier: A number, or the name of a data set column with one number for each prompt.

    Returns:
        A function that takes `completion_ids` and the columns of the data set as keyword arguments,
        each a list, and returns a list of floats.

    Raises:
        TypeError, ValueError: As in `length_bonus`. The returned function raises them if the column
            is missing, has a different number of rows than the completions, or holds anything but
            finite numbers.
    """
    max_length, weight, cap = _bonus(max_length, weight, cap)
    if not isinstance(multiplier, str):
        multiplier = _check.finite("multiplier", multiplier)

    def bonus(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        if isinstance(multiplier, str) and multiplier not in columns:
            raise ValueError(
                f"multiplier must be a number or a column of the data set ({', '.join(columns)}), got {multiplier!r}"
            )
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
        raise ValueError(f"{name} must be a list of responses or of their rewards, got {value!r:.80}")
    numbers = [isinstance(v, Real) and not isinstance(v, bool) for v in value]
    if any(numbers) and not all(numbers):
        i = numbers.index(False)
        raise ValueError(f"{name}[{i}] must be a number, like other elements of the list, got {value[i]!r:.80}")
    return list(value)


def _check_rows(name: str, value: Any, other: str, n: int) -> None:
    """Refuse a column that is not a list, or does not have the n rows of another column."""
    if not isinstance(value, Sized) or isinstance(value, str):
        raise TypeError(f"{name} must be a list with one value for each of {other}, got {value!r:.80}")
    if len(value) != n:
        raise ValueError(f"{name} must have as many rows as {other}, {n}, got {len(value)}")


def _scalar(value: Any) -> Any:
    """Unwrap the scalars of a data set in NumPy or torch format."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _bonus(max_length: float, weight: float, cap: float) -> tuple[float, float, float]:
    max_length, weight, cap = (
        _check.finite("max_length", max_length),
        _check.finite("weight", weight),
        _check.finite("cap", cap),
    )
    if max_length <= 0:
        raise ValueError(f"max_length must be greater than 0, got {max_length:g}")
    return max_length, weight, cap


def _described(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{value!r:.80}"
