"""Pairs drawn by how much the loss still wants of them, and the weights that keep the gradient that of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import Sampler

from .. import _check

Tensor = torch.Tensor


def check_draws(
    alpha: Any,
    epsilon: Any,
    num_samples: Any,
    names: tuple[str, str, str] = ("alpha", "epsilon", "num_samples"),
) -> None:
    """Refuse settings of a `PrioritizedSampler`, by the names that the caller has for them.

    Raises:
        TypeError: one is of another kind.
        ValueError: one is out of its range.
    """
    if not 0 <= _check.number(names[0], alpha) < math.inf:
        raise ValueError(f"{names[0]} is {alpha}, must be at least 0 and finite")
    if not 0 < _check.number(names[1], epsilon) <= 1:
        raise ValueError(f"{names[1]} is {epsilon}, must be greater than 0 and at most 1")
    if num_samples is not None:
        _check.integer(names[2], num_samples, low=1)


class PrioritizedSampler(Sampler[int]):
    """Draws pairs, with replacement, by their priorities.

    Pair i of n has the probability

        p_i = (1 - epsilon) * a_i / (a_1 + ... + a_n) + epsilon / n        a_i = priority_i ** alpha

    and a loss that is multiplied by the weight 1 / (n * p_i) has, over the draws, the expectation
    and the gradient of the plain mean over the data, whatever the priorities are. They are meant
    to be |dL/dm|, the steepness of the pair's loss in its margin. epsilon keeps every pair
    reachable and the weights at most 1 / epsilon.

    The probabilities stay the same for a round, `num_samples` draws, so that `weights` are those
    of the draw although a loader fetches ahead. `set_round` begins the next one. The draws depend
    on the seed, the round and the priorities alone: each of several processes, told the same
    priorities, draws the same pairs.

        for r in range(rounds):
            sampler.set_round(r)
            for batch in DataLoader(data, batch_size, sampler=sampler):
                loss = (sampler.weights(batch["index"]) * losses(batch)).mean()
                ...
                sampler.update(batch["index"], slopes)

    It is the idea of prioritized replay (arXiv 1511.05952, there with weights that only approach
    these), and of its correction of the shifted distribution in DALAP (arXiv 2311.14390), whose
    attention network, which estimates the correction, is not here: it is known exactly.

    Args:
        size: n, the number of pairs, at least 1.
        alpha: 0 for uniform draws, 1 for draws in proportion to the priorities; at least 0.
        epsilon: The share of uniform draws, greater than 0 and at most 1.
        seed: Of the draws, an integer in `[-2**63, 2**63)`.
        num_samples: Draws in a round, at least 1; n where it is not said.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, size: int, *, alpha: float = 1.0, epsilon: float = 0.1, seed: int = 0, num_samples: int | None = None
    ) -> None:
        size = _check.integer("size", size, low=1)
        self.seed = _check.integer("seed", seed, -(2**63))
        check_draws(alpha, epsilon, num_samples)
        self.alpha, self.epsilon = float(alpha), float(epsilon)
        self.num_samples = size if num_samples is None else int(num_samples)
        self._round = 0
        # No |dL/dm| is greater than 1: a pair that was never seen comes before those that were.
        self._priorities = torch.ones(size, dtype=torch.float64)
        self._refresh()

    @property
    def probabilities(self) -> Tensor:
        """p_i of this round, shape (n,), float64."""
        return self._probabilities.clone()

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self._round)
        points = torch.rand(self.num_samples, dtype=torch.float64, generator=generator)
        ends = self._probabilities.cumsum(0)
        # The last end may be less than 1 by rounding.
        yield from torch.searchsorted(ends, points * ends[-1], right=True).clamp_(max=len(ends) - 1).tolist()

    def set_round(self, number: int) -> None:
        """Begin the round of this number, with the priorities as they are by now; nothing where it has begun.

        Raises:
            TypeError: the number is no integer.
            ValueError: it is less than 0.
        """
        _check.integer("number", number, low=0)
        if number != self._round:
            self._round = number
            self._refresh()

    def update(self, indices: Tensor, priorities: Tensor) -> None:
        """Note the priorities of pairs, for the next round; of a pair named twice the greater one.

        Args:
            indices: Which pairs, shape (B,), integers in [0, n).
            priorities: Shape (B,), real numbers, at least 0 and finite.

        Raises:
            TypeError: one is no tensor, or not of integers or real numbers.
            ValueError: another shape, an index or a priority out of its range.
        """
        indices, priorities = self._index(indices), _doubles("priorities", priorities)
        if priorities.shape != indices.shape:
            raise ValueError(f"priorities has shape {tuple(priorities.shape)}, indices has {tuple(indices.shape)}")
        _check_priorities("priorities", priorities)
        self._priorities[indices] = 0.0
        self._priorities.scatter_reduce_(0, indices, priorities, "amax")

    def weights(self, indices: Tensor) -> Tensor:
        """1 / (n * p_i) of pairs that this round drew, shape (B,), float64, on the indices' device.

        Raises:
            TypeError: indices are no tensor of integers.
            ValueError: another shape, an index out of its range.
        """
        drawn = self._probabilities[self._index(indices)]
        return (1 / (len(self._probabilities) * drawn)).to(indices.device)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw what this one would have drawn."""
        return {"round": self._round, "priorities": self._priorities.clone(), "probabilities": self.probabilities}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, in its round; one that is refused changes nothing.

        Raises:
            TypeError: it is no mapping, or one of its values is of another kind.
            ValueError: it is of another number of pairs, lacks a key or has a value out of its range.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state is {state!r:.80}, must be a mapping as state_dict gives it")
        if missing := [key for key in ("round", "priorities", "probabilities") if key not in state]:
            raise ValueError(f"state has no {missing[0]!r}")
        _check.integer("state['round']", state["round"])
        names, n = ("state['priorities']", "state['probabilities']"), len(self._priorities)
        priorities, probabilities = _doubles(names[0], state["priorities"]), _doubles(names[1], state["probabilities"])
        for name, values in zip(names, (priorities, probabilities), strict=True):
            if values.dim() != 1:
                raise ValueError(f"{name} has shape {tuple(values.shape)}, must be ({n},)")
            if len(values) != n:
                raise ValueError(
                    f"{name} has shape {tuple(values.shape)}: the state is of {len(values)} pairs, these are {n}"
                )
        _check_priorities(names[0], priorities)
        for i in (~((probabilities > 0) & (probabilities <= 1))).nonzero()[:1, 0].tolist():
            raise ValueError(f"{names[1]}[{i}] is {probabilities[i].item():g}, must be greater than 0 and at most 1")
        self._round, self._priorities, self._probabilities = state["round"], priorities.clone(), probabilities.clone()

    def _refresh(self) -> None:
        greatest = self._priorities.max()
        # Where all are 0 none comes first; elsewhere the quotient keeps the power from overflowing.
        a = (self._priorities / greatest) ** self.alpha if greatest > 0 else torch.ones_like(self._priorities)
        self._probabilities = (1 - self.epsilon) * a / a.sum() + self.epsilon / len(a)

    def _index(self, indices: Tensor) -> Tensor:
        _check_tensor("indices", indices, "integers")
        if indices.is_floating_point():
            raise TypeError(f"indices has dtype {indices.dtype}, must be a tensor of integers")
        if indices.dim() != 1:
            raise ValueError(f"indices has shape {tuple(indices.shape)}, must be (B,)")
        indices, n = indices.to("cpu", torch.int64), len(self._priorities)
        for i in ((indices < 0) | (indices >= n)).nonzero()[:1, 0].tolist():
            raise ValueError(f"indices[{i}] is {indices[i].item()}, must be in [0, {n})")
        return indices


def _doubles(name: str, values: Tensor) -> Tensor:
    _check_tensor(name, values, "real numbers")
    return values.detach().to("cpu", torch.float64)


def _check_tensor(name: str, values: Any, wanted: str) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is {values!r:.80}, must be a tensor of {wanted}")
    if values.dtype == torch.bool or values.is_complex():  # a mask would be taken for the indices 0 and 1
        raise TypeError(f"{name} has dtype {values.dtype}, must be a tensor of {wanted}")


def _check_priorities(name: str, priorities: Tensor) -> None:
    for i in (~((priorities >= 0) & (priorities < math.inf))).nonzero()[:1, 0].tolist():
        raise ValueError(f"{name}[{i}] is {priorities[i].item():g}, must be at least 0 and finite")
