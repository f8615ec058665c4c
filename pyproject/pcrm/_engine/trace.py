"""A record of what a training run computed, which `pcrm verify` recomputes.

    with pcrm.trace("trace", every=10):
        trainer.train()

or `PCRM_TRACE=trace` (and `PCRM_TRACE_EVERY=10`) in the environment. Then `pcrm verify trace`.

Each recorded step is one safetensors file, `rank00000-run0123456789ab-step00000010.safetensors`.
The run is a random number that each process draws for each trace, so that no process can write
over the files of another, whatever rank it believes to be. A step is one call of a loss of pcrm's
own (not of `pcrm.baselines`) that needs a gradient. Calls under torch.func's transforms and calls
with wrapper tensors such as DTensor are not recorded. The tensors of a step are what went in and
what came out:

    pair    chosen_rewards, rejected_rewards (B,)
    token   the same (B, L), and chosen_ids, rejected_ids
    dpo     policy_* and reference_*_logps (B,), and the implicit chosen_rewards, rejected_rewards
    all     delta (B,), loss, grad_chosen and grad_rejected: the gradient of the reduced loss by
            the scores, before what comes from above; prior (B,) where delta was made from one

Its metadata are the settings, the backend, the constraint and the versions. A file is
written whole or not at all, in a folder that only its owner can read.
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

current: Trace | None = None  # the trace that is being written


class Origin(NamedTuple):
    """What a delta was made from: the prior, and what its constraint calls `recorded`; None and "" where unknown."""

    prior: torch.Tensor | None = None
    constraint: str = ""


UNKNOWN = Origin()


class Trace:
    """A trace that is being written, until `stop` or the end of a `with` block."""

    def __init__(self, folder: str | os.PathLike[str], every: int) -> None:
        import safetensors.torch  # noqa: F401  # pyright: ignore[reportUnusedImport]  # an error now, not at the first step

        self.folder, self.every = Path(folder).absolute(), every  # a script may change its working directory
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.outer = current  # goes on when this one stops
        self.is_stopped = False
        self._runs: dict[int, _Run] = {}  # by process: a forked child numbers its own steps

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Write nothing more. The trace that went on before goes on, unless it was stopped meanwhile."""
        global current
        self.is_stopped = True
        while current is not None and current.is_stopped:
            current = current.outer

    def next_step(self) -> Step | None:
        """Count a call of a loss; return where to record it, None if it is not to be recorded."""
        process = os.getpid()
        # setdefault, so that threads that come here at once agree.
        run = self._runs.get(process) or self._runs.setdefault(process, _Run())
        number = next(run.steps)
        return None if number % self.every else Step(self.folder, run, number)


class _Run:
    """What one process records in one trace. Made at its first step: earlier there may be no process group."""

    def __init__(self) -> None:
        self.rank = _rank()
        self.name = secrets.token_hex(6)
        self.steps = itertools.count()


class Step(NamedTuple):
    """A step that is to be recorded."""

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
            tensors: What went in and what came out, the scores first.
            settings: The other arguments of the loss, and the backend.
            prior: What delta was made from, if that is known.
            constraint: What the constraint that made it calls `recorded`, if that is known.
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
        # Each a copy of its own: safetensors refuses shared memory.
        columns = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
        # A name that no reader takes for a step, private to its owner from its first byte.
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
    """Record every n-th step of this process from now on, to be checked by `pcrm verify`.

    Args:
        folder: Where to write, created with private permissions if it does not exist. One folder
            serves all ranks and several runs: files that are there stay as they are.
        every: Record every n-th call of a loss, at least 1.

    Returns:
        The trace. Call `stop` to end it, or use it as a context manager.

    Raises:
        TypeError, ValueError: `every` is not an integer, or less than 1.
        ImportError: safetensors is not installed: pip install 'pcrm[trace]'.
        OSError: the folder cannot be created; later, from the loss, a file cannot be written.
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
