"""Pairs drawn by how much the loss still wants of them, and the weights that keep the gradient that of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

Tensor = torch.Tensor


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
        seed: Of the draws.
        num_samples: Draws in a round, at least 1; n where it is not said.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, size: int, *, alpha: float = 1.0, epsilon: float = 0.1, seed: int = 0, num_samples: int | None = None
    ) -> None:
        num_samples = size if num_samples is None else num_samples
        for name, value in (("size", size), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha is {alpha}, must be at least 0 and finite")
        if not 0 < epsilon <= 1:
            raise ValueError(f"epsilon is {epsilon}, must be greater than 0 and at most 1")
        self.alpha, self.epsilon, self.seed, self.num_samples = alpha, epsilon, seed, num_samples
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
        """Begin the round of this number, with the priorities as they are by now; nothing where it has begun."""
        if number != self._round:
            self._round = number
            self._refresh()

    def update(self, indices: Tensor, priorities: Tensor) -> None:
        """Note the priorities of pairs, for the next round; of a pair named twice the greater one.

        Args:
            indices: Which pairs, shape (B,), integers in [0, n).
            priorities: Shape (B,), at least 0 and finite.

        Raises:
            ValueError: another shape, an index or a priority out of its range.
        """
        indices, priorities = self._index(indices), priorities.detach().to("cpu", torch.float64)
        if priorities.shape != indices.shape:
            raise ValueError(f"priorities has shape {tuple(priorities.shape)}, indices has {tuple(indices.shape)}")
        for i in (~((priorities >= 0) & (priorities < math.inf))).nonzero()[:1, 0].tolist():
            raise ValueError(f"priorities[{i}] is {priorities[i].item():g}, must be at least 0 and finite")
        self._priorities[indices] = 0.0
        self._priorities.scatter_reduce_(0, indices, priorities, "amax")

    def weights(self, indices: Tensor) -> Tensor:
        """1 / (n * p_i) of pairs that this round drew, shape (B,), float64, on the indices' device.

        Raises:
            ValueError: an index is out of its range.
        """
        drawn = self._probabilities[self._index(indices)]
        return (1 / (len(self._probabilities) * drawn)).to(indices.device)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw what this one would have drawn."""
        return {"round": self._round, "priorities": self._priorities.clone(), "probabilities": self.probabilities}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, in its round.

        Raises:
            ValueError: it is of another number of pairs.
        """
        if len(state["priorities"]) != len(self._priorities):
            raise ValueError(f"the state is of {len(state['priorities'])} pairs, these are {len(self._priorities)}")
        self._round = state["round"]
        self._priorities, self._probabilities = state["priorities"].clone(), state["probabilities"].clone()

    def _refresh(self) -> None:
        greatest = self._priorities.max()
        # Where all are 0 none comes first; elsewhere the quotient keeps the power from overflowing.
        a = (self._priorities / greatest) ** self.alpha if greatest > 0 else torch.ones_like(self._priorities)
        self._probabilities = (1 - self.epsilon) * a / a.sum() + self.epsilon / len(a)

    def _index(self, indices: Tensor) -> Tensor:
        if indices.dim() != 1:
            raise ValueError(f"indices has shape {tuple(indices.shape)}, must be (B,)")
        indices, n = indices.to("cpu", torch.int64), len(self._priorities)
        for i in ((indices < 0) | (indices >= n)).nonzero()[:1, 0].tolist():
            raise ValueError(f"indices[{i}] is {indices[i].item()}, must be in [0, {n})")
        return indices
