"""Distribute work among the processes that torchrun started, on one machine or several.

    with Processes() as processes:
        if processes.rank:
            return processes.serve()                            # until the first process ends
        models = processes.everywhere(load, names)              # each process loads them
        parts = processes.share_out(score, [rows, other_rows])  # score(models, rows), each process with its own rows

The first process runs the command. Only it reads, writes, shows progress and prints. The others do the work that it sends
them, and send back results and errors. So each error is reported once, and the output does not depend on the number of
processes. Without torchrun there is only the first process, which does all of the work. torch is loaded only for several
processes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")

# A share of the work may take hours on a CPU, and all processes wait for the slowest. A crash does not take this long:
# when a process ends, its connections close, and torchrun stops the others.
_PATIENCE = timedelta(days=7)


class _Task(NamedTuple):
    """A task for a process: `work(given)`, whose result it keeps, or `work(kept, given)`."""

    work: Callable[..., Any]
    given: Any
    keep: bool


class _Failure(NamedTuple):
    """An error on its way to the first process."""

    type: type[Exception]
    message: str


class Processes:
    """The processes that a launcher such as torchrun started. A context manager that connects them.

    Attributes:
        count: The number of processes. 1 without a launcher.
        rank: The rank of this process. Process 0 distributes the work.

    Raises:
        ConnectionError: From every method, if one of several processes is gone.
    """

    def __init__(self) -> None:
        self.count = _count()
        self.rank = int(os.environ["RANK"]) if self.count > 1 else 0
        self._kept: Any = None
        self._others_work = False

    def __enter__(self) -> Processes:
        if self.count > 1:
            import torch.distributed as dist

            try:  # rows and scores are sent between CPUs, even if models are on GPUs
                dist.init_process_group("gloo", timeout=_PATIENCE)
            except RuntimeError as error:
                raise ConnectionError(f"The {self.count} processes could not connect: {error}") from error
            # Not in __exit__, see there. gloo's threads would abort the process if Python ended before them.
            atexit.register(dist.destroy_process_group)
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        # After an error the others are not notified: torchrun stops all processes when one fails, and this one must
        # print its message first. When it ends, its connections close, and then the others end.
        failed = error is not None and not (isinstance(error, SystemExit) and not error.code)
        if self.count == 1 or failed or self._others_work:
            return
        import torch.distributed as dist

        with contextlib.suppress(RuntimeError, ConnectionError):  # if other processes were interrupted, too
            if self.rank == 0:
                _scattered([None] * self.count)
            dist.barrier()  # no process ends before all have received the end

    def serve(self) -> int:
        """Do the tasks of the first process until it is done, and return the exit status.

        This prints nothing: the first process prints for all. An interrupt ends this process at once.

        Raises:
            SystemExit: The first process failed.
        """
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        warnings.simplefilter("ignore")
        # Read by transformers and tqdm when `work` first imports them.
        os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
        try:
            while (task := _scattered(None)) is not None:
                try:
                    result = self._done(task)
                except Exception as error:
                    result = _failure(error)
                _gathered(result, self.rank, self.count)
        except ConnectionError:
            raise SystemExit(1) from None
        return 0

    def everywhere(self, make: Callable[[Given], Result], given: Given) -> Result:
        """Call `make(given)` in each process, keep the result there for `share_out`, and return the result of this process.

        Args:
            make: A function at the top level of a module.

        Raises:
            OSError, ValueError, RuntimeError: From `make` in another process.
        """
        self._hand_out([_Task(make, given, keep=True)] * self.count)
        return self._kept

    def share_out(
        self, work: Callable[..., Result], shares: Sequence[Any], progress: Callable[[float], object]
    ) -> list[Result]:
        """Call `work(kept, share)` in each process, where `kept` is from `everywhere`, and return the results in order.

        Args:
            work: A function at the top level of a module.
            shares: One share for each process.
            progress: A third argument of `work` in this process.

        Raises:
            OSError, ValueError, RuntimeError: From `work` in another process.
        """
        return self._hand_out([_Task(work, share, keep=False) for share in shares], progress)

    def _hand_out(self, tasks: list[_Task], *own: Any) -> list[Any]:
        if self.count == 1:
            return [self._done(tasks[0], *own)]
        self._others_work = True
        _scattered([None, *tasks[1:]])
        results = _gathered(self._done(tasks[0], *own), 0, self.count)
        self._others_work = False
        for rank, failure in enumerate(results):
            if isinstance(failure, _Failure):
                raise failure.type(f"In process {rank} of {self.count}: {failure.message}")
        return results

    def _done(self, task: _Task, *own: Any) -> Any:
        if not task.keep:
            return task.work(self._kept, task.given, *own)
        self._kept = task.work(task.given)
        return None


def device_of_process(asked: str | None) -> str | None:
    """The device for this process. With several processes, each gets its own GPU of its machine.

    Args:
        asked: A torch device, or None for a GPU if there is one.

    Returns:
        None for torch's default GPU, or for the CPU without a GPU.

    Raises:
        ValueError: Several processes ask for one GPU, or the machine has fewer GPUs than processes.
    """
    if _count() == 1 or asked == "cpu":
        return asked
    if asked is not None:
        raise ValueError(
            f"--device must be cpu with {_count()} processes, got {asked!r}. Omit it to give each process its own GPU"
        )
    import torch

    if not torch.cuda.is_available():
        return None
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= there:
        raise ValueError(
            f"LOCAL_RANK must be less than the number of GPUs, {there}, got {local}. Start one process per GPU, or compute "
            "on the CPU with --device cpu"
        )
    torch.cuda.set_device(local)  # some kernels run on the current device, not on that of their tensors
    return f"cuda:{local}"


def _count() -> int:
    # Some clusters set WORLD_SIZE for processes that no launcher started. Only launchers set LOCAL_RANK.
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def _failure(error: Exception) -> _Failure:
    """An error as a value that can always be sent."""
    from torch import OutOfMemoryError

    for kind in (OutOfMemoryError, OSError, ValueError):
        if isinstance(error, kind):
            return _Failure(kind, str(error))
    return _Failure(RuntimeError, traceback.format_exc())


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo raises it for every failure
        raise ConnectionError("Another process ended early. Give the same command again to resume") from error


def _scattered(tasks: list[Any] | None) -> Any:
    """The task of this process. The first process passes the tasks of all processes."""
    import torch.distributed as dist

    received: list[Any] = [None]
    with _connected():
        dist.scatter_object_list(received, tasks, src=0)
    return received[0]


def _gathered(result: Any, rank: int, count: int) -> list[Any]:
    """The results of all processes in the first process, else an empty list."""
    import torch.distributed as dist

    results = [None] * count if rank == 0 else None
    with _connected():
        dist.gather_object(result, results, dst=0)
    return results or []
