"""Prioritized sampling of pairs, with importance weights that keep the gradient unbiased."""

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
    """Check the settings of a `PrioritizedSampler`. Messages use the caller's names for them.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range.
    """
    if not 0 <= _check.number(names[0], alpha) < math.inf:
        raise ValueError(f"{names[0]} must be finite and at least 0, got {alpha}")
    if not 0 < _check.number(names[1], epsilon) <= 1:
        raise ValueError(f"{names[1]} must be greater than 0 and at most 1, got {epsilon}")
    if num_samples is not None:
        _check.integer(names[2], num_samples, low=1)


class PrioritizedSampler(Sampler[int]):
    """Sampler that draws pairs with replacement, in proportion to their priorities.

    Pair i of n has the probability

        p_i = (1 - epsilon) * a_i / (a_1 + ... + a_n) + epsilon / n        a_i = priority_i ** alpha

    If you multiply a pair's loss by the weight 1 / (n * p_i), the loss over the draws has the same
    expectation and gradient as the plain mean over the data, whatever the priorities are. The
    intended priority is |dL/dm|, the absolute slope of the pair's loss in its margin. epsilon keeps
    every pair reachable and the weights at most 1 / epsilon.

    The probabilities stay constant during a round of `num_samples` draws, so that `weights` match
    the draws even if a loader prefetches. `set_round` begins the next round. The draws depend only
    on the seed, the round and the priorities: processes with the same priorities draw the same
    pairs.

        for r in range(rounds):
            sampler.set_round(r)
            for batch in DataLoader(data, batch_size, sampler=sampler):
                loss = (sampler.weights(batch["index"]) * losses(batch)).mean()
                ...
                sampler.update(batch["index"], slopes)

    The idea comes from prioritized replay (arXiv 1511.05952, whose weights only approach these) and
    from the correction of the shifted distribution in DALAP (arXiv 2311.14390). DALAP estimates the
    correction with an attention network. None is needed here, because the correction is known exactly.

    Args:
        size: n, the number of pairs, at least 1.
        alpha: Finite and at least 0. 0 gives uniform draws, 1 draws in proportion to the priorities.
        epsilon: The fraction of uniform draws, greater than 0 and at most 1.
        seed: The seed of the draws, an integer in `[-2**63, 2**63)`.
        num_samples: The number of draws in a round, at least 1. The default is n.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
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
        # |dL/dm| is at most 1, so a pair that was never drawn has the highest priority.
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
        # The last end may be less than 1 because of rounding.
        yield from torch.searchsorted(ends, points * ends[-1], right=True).clamp_(max=len(ends) - 1).tolist()

    def set_round(self, number: int) -> None:
        """Begin a round with the current priorities. Does nothing if this round has already begun.

        Args:
            number: The number of the round, at least 0.

        Raises:
            TypeError: The number is not an integer.
            ValueError: The number is negative.
        """
        _check.integer("number", number, low=0)
        if number != self._round:
            self._round = number
            self._refresh()

    def update(self, indices: Tensor, priorities: Tensor) -> None:
        """Set the priorities of pairs for the next round. For a pair that occurs twice, the larger one counts.

        Args:
            indices: The indices of the pairs, shape (B,), integers in [0, n).
            priorities: Their priorities, shape (B,), real numbers, finite and at least 0.

        Raises:
            TypeError: An argument is not a tensor of integers or real numbers.
            ValueError: The shape is wrong, or an index or a priority is out of range.
        """
        indices, priorities = self._index(indices), _doubles("priorities", priorities)
        if priorities.shape != indices.shape:
            raise ValueError(
                f"priorities must have the shape of indices, {tuple(indices.shape)}, got {tuple(priorities.shape)}"
            )
        _check_priorities("priorities", priorities)
        self._priorities[indices] = 0.0
        self._priorities.scatter_reduce_(0, indices, priorities, "amax")

    def weights(self, indices: Tensor) -> Tensor:
        """Return the weights 1 / (n * p_i) of pairs drawn in this round.

        Args:
            indices: The indices of the pairs, shape (B,), integers in [0, n).

        Returns:
            A float64 tensor of shape (B,) on the device of the indices.

        Raises:
            TypeError: `indices` is not a tensor of integers.
            ValueError: The shape is wrong, or an index is out of range.
        """
        drawn = self._probabilities[self._index(indices)]
        return (1 / (len(self._probabilities) * drawn)).to(indices.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to continue with the same draws."""
        return {"round": self._round, "priorities": self._priorities.clone(), "probabilities": self.probabilities}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`, including its round. An invalid state changes nothing.

        Raises:
            TypeError: The state is not a mapping, or one of its values has the wrong type.
            ValueError: The state is for another number of pairs, lacks a key, or has a value out of range.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping from state_dict(), got {state!r:.80}")
        if missing := [key for key in ("round", "priorities", "probabilities") if key not in state]:
            raise ValueError(f"state[{missing[0]!r}] is missing")
        _check.integer("state['round']", state["round"])
        names, n = ("state['priorities']", "state['probabilities']"), len(self._priorities)
        priorities, probabilities = _doubles(names[0], state["priorities"]), _doubles(names[1], state["probabilities"])
        for name, values in zip(names, (priorities, probabilities), strict=True):
            if values.dim() != 1:
                raise ValueError(f"{name} must have shape ({n},), got {tuple(values.shape)}")
            if len(values) != n:
                raise ValueError(
                    f"{name} must have shape ({n},), got {tuple(values.shape)}: the state is for {len(values)} pairs, "
                    f"and this sampler has {n}"
                )
        _check_priorities(names[0], priorities)
        for i in (~((probabilities > 0) & (probabilities <= 1))).nonzero()[:1, 0].tolist():
            raise ValueError(f"{names[1]}[{i}] must be greater than 0 and at most 1, got {probabilities[i].item():g}")
        self._round, self._priorities, self._probabilities = state["round"], priorities.clone(), probabilities.clone()

    def _refresh(self) -> None:
        greatest = self._priorities.max()
        # If all priorities are 0, draw uniformly. Otherwise the quotient keeps the power from overflowing.
        a = (self._priorities / greatest) ** self.alpha if greatest > 0 else torch.ones_like(self._priorities)
        self._probabilities = (1 - self.epsilon) * a / a.sum() + self.epsilon / len(a)

    def _index(self, indices: Tensor) -> Tensor:
        _check_tensor("indices", indices, "integers")
        if indices.is_floating_point():
            raise TypeError(f"indices must be a tensor of integers, got dtype {indices.dtype}")
        if indices.dim() != 1:
            raise ValueError(f"indices must have shape (B,), got {tuple(indices.shape)}")
        indices, n = indices.to("cpu", torch.int64), len(self._priorities)
        for i in ((indices < 0) | (indices >= n)).nonzero()[:1, 0].tolist():
            raise ValueError(f"indices[{i}] must be in [0, {n}), got {indices[i].item()}")
        return indices


def _doubles(name: str, values: Tensor) -> Tensor:
    _check_tensor(name, values, "real numbers")
    return values.detach().to("cpu", torch.float64)


def _check_tensor(name: str, values: Any, wanted: str) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor of {wanted}, got {values!r:.80}")
    if values.dtype == torch.bool or values.is_complex():  # a mask would be read as the indices 0 and 1
        raise TypeError(f"{name} must be a tensor of {wanted}, got dtype {values.dtype}")


def _check_priorities(name: str, priorities: Tensor) -> None:
    for i in (~((priorities >= 0) & (priorities < math.inf))).nonzero()[:1, 0].tolist():
        raise ValueError(f"{name}[{i}] must be finite and at least 0, got {priorities[i].item():g}")
