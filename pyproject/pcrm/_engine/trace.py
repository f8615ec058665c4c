"""Record the losses of a training run, so that `pcrm verify` can recompute them.

    with pcrm.trace("trace", every=10):
        trainer.train()

or set `PCRM_TRACE=trace` (and `PCRM_TRACE_EVERY=10`) in the environment. Then run `pcrm verify trace`.

Each recorded step is one safetensors file, `rank00000-run0123456789ab-step00000010.safetensors`.
The run is a random number that each process draws for each trace, so that processes never
overwrite each other's files, even if their ranks are wrong. A step is one call of one of pcrm's own
losses (not of `pcrm.baselines`) that needs a gradient. Calls under torch.func's transforms and calls
with wrapper tensors such as DTensor are not recorded. A step has the inputs and outputs as tensors:

    pair    chosen_rewards, rejected_rewards (B,)
    token   the same (B, L), and chosen_ids, rejected_ids
    dpo     policy_* and reference_*_logps (B,), and the implicit chosen_rewards, rejected_rewards
    all     delta (B,), loss, grad_chosen and grad_rejected: the gradient of the reduced loss with
            respect to the scores, before scaling by the incoming gradient; prior (B,), if delta
            comes from one

The metadata has the settings, the backend, the constraint and the versions. Each file is written
atomically, in a folder that only its owner can read.
"""

from __future__ import annotations

import itertools
import os
import platform
import secrets
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import _check
from .._version import __version__

current: Trace | None = None  # the active trace


class Origin(NamedTuple):
    """The origin of a delta: the prior and the `recorded` text of its constraint, or None and "" if unknown."""

    prior: torch.Tensor | None = None
    constraint: str = ""


UNKNOWN = Origin()


class Trace:
    """An active trace. It ends with `stop` or at the end of a `with` block."""

    def __init__(self, folder: str | os.PathLike[str], every: int) -> None:
        import safetensors.torch  # noqa: F401  # pyright: ignore[reportUnusedImport]  # an error now, not at the first step

        self.folder, self.every = Path(folder).absolute(), every  # absolute: a script may change its working directory
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.outer = current  # becomes active again when this trace stops
        self.is_stopped = False
        self._runs: dict[int, _Run] = {}  # by process: a forked child counts its own steps

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the trace. The trace that was active before becomes active again, unless it has been stopped."""
        global current
        self.is_stopped = True
        while current is not None and current.is_stopped:
            current = current.outer

    def next_step(self) -> Step | None:
        """Count a call of a loss. Return the step to record, or None to skip this call."""
        process = os.getpid()
        # setdefault: threads that arrive at the same time must get the same run.
        run = self._runs.get(process) or self._runs.setdefault(process, _Run())
        number = next(run.steps)
        return None if number % self.every else Step(self.folder, run, number)


class _Run:
    """The record of one process in one trace. Created at the first step: the process group may not exist earlier."""

    def __init__(self) -> None:
        self.rank = _rank()
        self.name = secrets.token_hex(6)
        self.steps = itertools.count()


class Step(NamedTuple):
    """A step to record."""

    folder: Path
    run: _Run
    number: int

    def record(
        self,
        form: str,
        tensors: dict[str, torch.Tensor],
        settings: dict[str, Any],
        prior: torch.Tensor | None,
        constraint: str,
    ) -> None:
        """Write the step.

        Args:
            form: The name of the loss.
            tensors: The inputs and outputs, the scores first.
            settings: The other arguments of the loss, and the backend.
            prior: The prior that delta comes from, if known.
            constraint: The `recorded` text of the constraint, if known.
        """
        from safetensors.torch import save_file

        scores = next(iter(tensors.values()))
        metadata = {
            "pcrm_trace": "2",
            "form": form,
            "dtype": str(scores.dtype).removeprefix("torch."),
            "rank": str(self.run.rank),
            "run": self.run.name,
            "step": str(self.number),
            "versions": f"pcrm {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
            **{name: str(value) for name, value in settings.items()},
        }
        if constraint:
            metadata["constraint"] = constraint
        if prior is not None:
            exact = prior.dtype in (torch.float32, torch.float64)
            tensors = tensors | {"prior": (prior if exact else prior.float()).expand_as(tensors["delta"])}
        # Copies, because safetensors refuses tensors that share memory.
        columns = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
        # A name that no reader mistakes for a step, and private to its owner from the first byte.
        handle, part = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        try:
            save_file(columns, part, metadata)
            os.chmod(part, 0o600)
            name = f"rank{self.run.rank:05d}-run{self.run.name}-step{self.number:08d}.safetensors"
            os.replace(part, self.folder / name)
        except BaseException:
            os.unlink(part)
            raise


def trace(folder: str | os.PathLike[str], every: int = 1) -> Trace:
    """Record every n-th step of this process from now on. `pcrm verify` checks the record.

    Args:
        folder: The folder to write to, created with private permissions if it does not exist. All
            ranks and several runs can share a folder: existing files are kept.
        every: Record every n-th call of a loss, at least 1.

    Returns:
        The trace. Call its `stop` to end it, or use it as a context manager.

    Raises:
        TypeError: `every` is not an integer.
        ValueError: `every` is less than 1.
        ImportError: safetensors is not installed: pip install 'pcrm[trace]'.
        OSError: The folder cannot be created. Later, the loss raises it if a file cannot be written.
    """
    global current
    current = Trace(folder, _check.integer("every", every, 1))
    return current


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


if os.environ.get("PCRM_TRACE"):
    _every = os.environ.get("PCRM_TRACE_EVERY", "1")
    if not _every.strip().isdecimal():
        raise ValueError(f"PCRM_TRACE_EVERY must be an integer of at least 1, got {_every!r}")
    trace(os.environ["PCRM_TRACE"], int(_every))
