"""The histogram of the margins in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..training.metrics import ConstraintMetrics, Mode


def tag(metrics: ConstraintMetrics, mode: Mode) -> str:
    """The histogram's tag in TensorBoard: `pcrm/margins`, `eval/pcrm/margins` or `eval/NAME/pcrm/margins`."""
    return "pcrm/margins" if mode == "train" else f"{metrics.evaluation.replace('_', '/', 1)}/pcrm/margins"


def write(metrics: ConstraintMetrics, mode: Mode, callbacks: Iterable[TrainerCallback], step: int) -> None:
    """Write a histogram of the margins since the last one, in the main process, and reset them."""
    margins = metrics.take_margins(mode)
    if not len(margins):
        return
    for callback in callbacks:
        # Only the main process has a writer.
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_histogram(tag(metrics, mode), margins, step)
            callback.tb_writer.flush()
