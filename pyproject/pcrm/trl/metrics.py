"""The metrics `pcrm/*` of the trainers: means over the pairs of all processes since the last log."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

Tensor = torch.Tensor
Mode = Literal["train", "eval"]


class Demonstrations(NamedTuple):
    """The negative log-likelihood of the chosen responses of a batch."""

    nll: Tensor  # the sum over each pair's tokens, shape (B,)
    tokens: Tensor  # how many there are, shape (B,)


class ConstraintMetrics:
    """Sums over the pairs since the last log, of training and of evaluation apart.

    A mean is over the pairs, however these come in batches, accumulated steps and processes.

    Args:
        log_prior: Whether `pcrm/prior` is a similarity, and so a metric.
        keep_margins: Whether the margins are kept, for their histogram.
    """

    def __init__(self, *, log_prior: bool = True, keep_margins: bool = False) -> None:
        self.log_prior = log_prior
        self.keep_margins = keep_margins
        self._sums: dict[Mode, dict[str, tuple[float, int]]] = {"train": {}, "eval": {}}
        self._margins: dict[Mode, list[Tensor]] = {"train": [], "eval": []}
        self._evaluation = "eval"

    def begin_evaluation(self, name: str) -> None:
        """Start the evaluation of this name: `eval`, or `eval_NAME` of one of several sets."""
        self._evaluation = name
        # Drop what a `predict` left, which logs nothing.
        self._sums["eval"].clear()
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
            mode: Whether the batch trains.
            margin: Chosen minus rejected, shape (B,).
            delta: The ceilings, shape (B,), or one number for all.
            prior: The similarities, shape (B,).
            demonstrations: Of the demonstration term.
            gather: What makes the rows of all processes, shape (N, columns), of those of this one.
        """
        with torch.no_grad():
            columns = [margin, torch.as_tensor(delta, dtype=margin.dtype, device=margin.device).expand_as(margin)]
            if prior is not None:
                columns.append(prior.to(margin))
            if demonstrations is not None:
                columns += [x.to(margin) for x in demonstrations]
            margin, ceiling, *rest = gather(torch.stack(columns, 1)).cpu().double().unbind(1)
        # An infinite delta has no target to be off from.
        bounded = ceiling < math.inf
        values = {
            "pcrm/delta": ceiling[bounded],
            "pcrm/target": ceiling[bounded] / 2,
            "pcrm/residual": (margin - ceiling / 2)[bounded],
            "pcrm/violation": torch.where(margin.isnan(), margin, (margin > ceiling).to(margin)),
        }
        if prior is not None and self.log_prior:
            values["pcrm/prior"] = rest[0]
        for name, x in values.items():
            self._count(mode, name, x.sum().item(), len(x))
        if demonstrations is not None:
            self._count(mode, "pcrm/nll", rest[-2].sum().item(), int(rest[-1].sum()))
        if self.keep_margins:
            self._margins[mode].append(margin)

    def _count(self, mode: Mode, name: str, total: float, count: int) -> None:
        before, so_far = self._sums[mode].get(name, (0.0, 0))
        self._sums[mode][name] = (before + total, so_far + count)

    def take_means(self, mode: Mode) -> dict[str, float]:
        """Return the means by the metrics' names, and begin anew."""
        means = {name: total / count for name, (total, count) in self._sums[mode].items() if count}
        self._sums[mode].clear()
        return means

    def take_margins(self, mode: Mode) -> Tensor:
        """Return the finite margins, shape (N,), float64, and begin anew."""
        margins = torch.cat([torch.empty(0, dtype=torch.float64), *self._margins[mode]])
        self._margins[mode].clear()
        return margins[margins.isfinite()]

    def histogram_tag(self, mode: Mode) -> str:
        """What TensorBoard calls the histogram: `pcrm/margins`, `eval/pcrm/margins` or `eval/NAME/pcrm/margins`."""
        return "pcrm/margins" if mode == "train" else f"{self._evaluation.replace('_', '/', 1)}/pcrm/margins"

    def write_histogram(self, mode: Mode, callbacks: Iterable[TrainerCallback], step: int) -> None:
        """Write the histogram of the margins to TensorBoard, in the main process, and begin anew."""
        margins = self.take_margins(mode)
        if not len(margins):
            return
        for callback in callbacks:
            # Only the main process has a writer.
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_histogram(self.histogram_tag(mode), margins, step)
                callback.tb_writer.flush()
