"""A record of what a training run computed, which `pcrm verify` recomputes.

    with pcrm.trace("trace", every=10):
        trainer.train()

or `PCRM_TRACE=trace` (and `PCRM_TRACE_EVERY=10`) in the environment. Then `pcrm verify trace`.

One safetensors file per rank and recorded step, `rank00000-step00000010.safetensors`. A step
is one call of a loss of pcrm's own (not of `pcrm.rivals`) that needs a gradient. Its tensors are
what went in and what came out:

    pair    chosen_rewards, rejected_rewards (B,)
    token   the same (B, L), and chosen_ids, rejected_ids
    dpo     policy_* and reference_*_logps (B,), and the implicit chosen_rewards, rejected_rewards
    all     delta (B,), loss, grad_chosen and grad_rejected: the gradient of the reduced loss by
            the scores, before what comes from above; prior (B,) where the loss was called with one

Its metadata are the settings, the backend, the constraint and the versions. A file is
written whole or not at all, in a folder that only its owner can read.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .settings import Constraint

_FILE = re.compile(r"rank(\d{5})-step(\d{8})\.safetensors")

current: Trace | None = None  # the trace that is being written


class Trace:
    """A trace that is being written, until `stop` or the end of a `with` block."""

    def __init__(self, folder: str | os.PathLike[str], every: int) -> None:
        import safetensors.torch  # noqa: F401  # pyright: ignore[reportUnusedImport]  # an error now, not at the first step

        self.folder, self.every = Path(folder), every
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.calls: int | None = None
        self.outer = current  # goes on when this one stops
        self.noted: Any = None  # the delta that prior and constraint made
        self.prior: torch.Tensor | None = None
        self.constraint: Constraint | None = None

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Write nothing more."""
        global current
        if current is self:
            current = self.outer

    def confirm(self, delta: Any) -> None:
        """Forget what was noted, unless it was for this delta: its own call never came."""
        if self.noted is not delta:
            self.prior = self.constraint = None
        self.noted = None

    def wants(self) -> bool:
        """Whether the call that is about to be made is to be recorded: asked once a call."""
        if self.calls is None:  # now, as at the start there may be no process group yet
            self.rank = _rank()
            steps = [
                int(m[2]) for f in self.folder.iterdir() if (m := _FILE.fullmatch(f.name)) and int(m[1]) == self.rank
            ]
            self.calls = max(steps, default=-1) + 1  # go on after what an earlier run wrote
        self.calls += 1
        wanted = (self.calls - 1) % self.every == 0
        if not wanted:
            self.prior = self.constraint = None
        return wanted

    def record(self, form: str, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
        """Write one step. `tensors` has the scores first."""
        from safetensors.torch import save_file

        assert self.calls is not None
        step = self.calls - 1
        scores = next(iter(tensors.values()))
        metadata = {
            "pcrm_trace": "1",
            "form": form,
            "dtype": str(scores.dtype).removeprefix("torch."),
            "rank": str(self.rank),
            "step": str(step),
            "versions": f"pcrm {_version()}, torch {torch.__version__}, Python {platform.python_version()}",
            **{name: str(value) for name, value in settings.items()},
        }
        if self.constraint is not None:
            metadata["constraint"] = json.dumps(
                {
                    name: str(value) if isinstance(value, float) and math.isinf(value) else value
                    for name in ("beta1", "beta2", "beta3", "floor", "cap", "low", "high", "seed")
                    for value in (getattr(self.constraint, name),)
                }
            )
        if self.prior is not None:
            exact = self.prior.dtype in (torch.float32, torch.float64)
            prior = self.prior if exact else self.prior.float()
            tensors = tensors | {"prior": prior.expand_as(tensors["delta"])}
        self.prior = self.constraint = None
        # Each a copy of its own: safetensors refuses shared memory.
        columns = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
        # A name that no reader takes for a step, private to its owner from its first byte.
        handle, part = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        try:
            save_file(columns, part, metadata)
            os.chmod(part, 0o600)
            os.replace(part, self.folder / f"rank{self.rank:05d}-step{step:08d}.safetensors")
        except BaseException:
            os.unlink(part)
            raise


def trace(folder: str | os.PathLike[str], every: int = 1) -> Trace:
    """Record every so many steps of this process from now on, to be checked by `pcrm verify`.

    Args:
        folder: Where to, made if it is not there and then private; one folder serves all
            ranks. Files of an earlier run stay, and the count of steps goes on after them.
        every: Record each so-manieth call of a loss, at least 1.

    Returns:
        The trace, to be stopped by `stop` or as a context manager.

    Raises:
        TypeError, ValueError: every is no integer, or less than 1.
        ImportError: there is no safetensors: pip install 'pcrm[trace]'.
        OSError: the folder cannot be made; later, from the loss, a file cannot be written.
    """
    global current
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every is {every!r}, must be an integer")
    if every < 1:
        raise ValueError(f"every is {every}, must be at least 1")
    current = Trace(folder, every)
    return current


def note(prior: torch.Tensor | None, constraint: Constraint, delta: torch.Tensor | float) -> None:
    """What made the delta that a loss is about to be called with."""
    if current is not None:
        current.prior, current.constraint, current.noted = None if constraint.is_fixed else prior, constraint, delta


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def _version() -> str:
    from . import __version__

    return __version__


if os.environ.get("PCRM_TRACE"):
    trace(os.environ["PCRM_TRACE"], int(os.environ.get("PCRM_TRACE_EVERY", "1")))
