"""The metrics `pcrm/*` of every trainer: how the constraint affects the pairs since the last log."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Tensor = torch.Tensor
Mode = Literal["train", "eval"]

# Quantiles of up to this many values are exact. Beyond it they are those of a random sample of this size: a median is
# then off by 0.2% of the ranks (one standard error).
KEPT_VALUES = 2**16


class Sample:
    """Keep values for their quantiles in bounded memory: all of them, then a uniform sample (Vitter's algorithm R)."""

    def __init__(self) -> None:
        self.seen = 0
        self._values = array("d")

    @property
    def values(self) -> Floats:
        """A copy of the kept values."""
        return np.array(self._values)

    def add(self, values: Floats) -> None:
        fill, rest = np.split(values, [KEPT_VALUES - len(self._values)])
        self._values.frombytes(fill.tobytes())
        if len(rest):
            # A separate generator: training draws the same numbers with and without metrics, and so do all processes.
            draws = np.random.default_rng(self.seen).random(len(rest))
            slots = (draws * np.arange(self.seen + len(fill) + 1, self.seen + len(values) + 1)).astype(np.int64)
            kept = slots < KEPT_VALUES
            np.frombuffer(self._values)[slots[kept]] = rest[kept]
        self.seen += len(values)


@dataclass
class PairSums:
    """Sums over pairs, from which the metrics of a period are computed, regardless of the batches.

    The loss of a pair with margin m and ceiling delta has the slope sigmoid(m - delta) - sigmoid(-m). Its first term
    pushes the margin up by sigmoid(-m). Its second term pulls it down by sigmoid(m - delta), which is 0 for an infinite
    delta.
    """

    pairs: int = 0
    over_ceiling: float = 0.0
    push: float = 0.0
    pull: float = 0.0
    # Over the pairs with a finite delta; the others have no target.
    bounded: int = 0
    margin: float = 0.0
    delta: float = 0.0
    residual: float = 0.0
    over_target: float = 0.0
    deltas: Sample = field(default_factory=Sample)

    def add(self, margin: Floats, delta: Floats) -> None:
        """Add pairs, shape (N,) each."""
        bounded = delta < math.inf
        m, d = margin[bounded], delta[bounded]
        self.pairs += len(margin)
        # A NaN margin compares as False, so it must be made visible.
        self.over_ceiling += math.nan if np.isnan(margin).any() else int((m > d).sum())
        self.push += float(_sigmoid(-margin).sum())
        self.pull += float(_sigmoid(m - d).sum())
        self.bounded += len(m)
        self.margin += float(m.sum())
        self.delta += float(d.sum())
        self.residual += float((m - d / 2).sum())
        self.over_target += math.nan if np.isnan(m).any() else int((m > d / 2).sum())
        self.deltas.add(d)

    def merge(self, other: PairSums) -> None:
        """Add the pairs of other sums. If those kept only a sample of their ceilings, only the sample is added."""
        for f in dataclasses.fields(self):
            if f.name != "deltas":
                setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
        self.deltas.add(other.deltas.values)

    @property
    def relative_pull(self) -> float:
        """The sum of the pulls divided by the sum of the pushes.

        The mean of the pairs' ratios would not do: a ratio grows as exp(m) above the ceiling, so a single pair with a large
        margin would decide it. The ratio of the sums weights each pair as the gradient does.
        """
        if self.push:
            return self.pull / self.push
        return math.inf if self.pull else 0.0  # the push of a margin above 709 is 0 in float64

    def metrics(self) -> dict[str, float]:
        """The metrics by name; those without any pair are left out."""
        if not self.pairs:
            return {}
        found = {"pcrm/violation": self.over_ceiling / self.pairs, "pcrm/pull": self.relative_pull}
        if self.bounded:
            mean, median = self.delta / self.bounded, float(np.median(self.deltas.values))
            found |= {
                "pcrm/delta": mean,
                "pcrm/delta_median": median,
                "pcrm/target": mean / 2,
                "pcrm/target_median": median / 2,
                "pcrm/residual": self.residual / self.bounded,
                "pcrm/over_target": self.over_target / self.bounded,
            }
        return found


def _sigmoid(x: Floats) -> Floats:
    # Accurate for small values too, unlike 1 - sigmoid(-x).
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


class Demonstrations(NamedTuple):
    """The negative log-likelihood of the chosen responses of a batch."""

    nll: Tensor  # sum over the tokens of each pair, shape (B,)
    tokens: Tensor  # number of those tokens, shape (B,)


class ConstraintMetrics:
    """Accumulate metrics over the pairs since the last log, separately for training and evaluation.

    Each metric is a mean over pairs, regardless of batches, accumulation steps and processes.

    Args:
        log_prior: Whether the prior is a similarity, so that `pcrm/prior` is logged.
        keep_margins: Whether to keep the margins for their histogram.

    Attributes:
        sums: Sums over the pairs since the last `take_means`.
        evaluation: Name of the last evaluation: `eval`, or `eval_NAME` if there are several sets.
    """

    def __init__(self, *, log_prior: bool = True, keep_margins: bool = False) -> None:
        self.log_prior = log_prior
        self.keep_margins = keep_margins
        self.sums: dict[Mode, PairSums] = {"train": PairSums(), "eval": PairSums()}
        self.evaluation = "eval"
        self._others: dict[Mode, dict[str, tuple[float, float]]] = {"train": {}, "eval": {}}
        self._margins: dict[Mode, list[Floats]] = {"train": [], "eval": []}

    def begin_evaluation(self, name: str = "eval") -> None:
        """Start an evaluation of this name."""
        self.evaluation = name
        # Drop what a `predict` left behind, since it logs nothing.
        self.take_means("eval")
        self._margins["eval"].clear()

    def add(
        self,
        mode: Mode,
        margin: Tensor,
        delta: Tensor | float,
        prior: Tensor | None = None,
        demonstrations: Demonstrations | None = None,
        *,
        gather: Callable[[Tensor], Tensor],
    ) -> None:
        """Add the pairs of a batch.

        Args:
            mode: Whether the batch is from training or from evaluation.
            margin: Chosen minus rejected, shape (B,).
            delta: Ceilings, shape (B,), or one number for all pairs.
            prior: Similarities, shape (B,).
            demonstrations: Values of the demonstration term, if it is used.
            gather: Collects rows, shape (n, columns), from all processes.
        """
        with torch.no_grad():
            columns = [margin, torch.as_tensor(delta, dtype=margin.dtype, device=margin.device).expand_as(margin)]
            if prior is not None:
                columns.append(prior.to(margin))
            if demonstrations is not None:
                columns += [x.to(margin) for x in demonstrations]
            of_all, ceiling, *rest = gather(torch.stack(columns, 1)).cpu().double().numpy().T
        self.sums[mode].add(of_all, ceiling)
        if prior is not None and self.log_prior:
            self._count(mode, "pcrm/prior", rest[0].sum(), len(rest[0]))
        if demonstrations is not None:
            self._count(mode, "pcrm/nll", rest[-2].sum(), rest[-1].sum())
        if self.keep_margins:
            self._margins[mode].append(of_all.copy())  # without the other columns

    def _count(self, mode: Mode, name: str, total: float, count: float) -> None:
        before, so_far = self._others[mode].get(name, (0.0, 0.0))
        self._others[mode][name] = (before + float(total), so_far + float(count))

    def take_means(self, mode: Mode) -> dict[str, float]:
        """Return the metrics by name, and reset them."""
        others = {name: total / count for name, (total, count) in self._others[mode].items() if count}
        means = self.sums[mode].metrics() | others
        self.sums[mode] = PairSums()
        self._others[mode].clear()
        return means

    def take_margins(self, mode: Mode) -> Floats:
        """Return the finite margins, shape (N,), and reset them."""
        margins = np.concatenate([np.empty(0), *self._margins[mode]])
        self._margins[mode].clear()
        return margins[np.isfinite(margins)]
