"""`pcrm reward` and `pcrm dpo`: TRL's own commands with the constrained loss."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

import torch

from ..data.prior_record import check_recorded
from ..data.sources import open_source
from ..training.arguments import hint
from .configs import PCRMDPOConfig, PCRMRewardConfig
from .dpo import PCRMDPOTrainer
from .dry_run import DryRunDPOTrainer, DryRunRewardTrainer, Ended
from .patch import replace_in_trl
from .reward import PCRMRewardTrainer


def _is_saved(name: Any, *markers: str) -> bool:
    """Whether it is a folder of `save_to_disk`, of one data set (state.json) or of several splits (dataset_dict.json)."""
    return isinstance(name, str) and any(os.path.isfile(os.path.join(name, marker)) for marker in markers)


@contextlib.contextmanager
def _saved_folders_load() -> Iterator[None]:
    """Let `datasets.load_dataset`, by which TRL's scripts read, also take folders of `save_to_disk`."""
    import datasets

    load: Any = datasets.load_dataset

    def load_dataset(path: Any, *args: Any, split: Any = None, streaming: bool = False, **options: Any) -> Any:
        if not _is_saved(path, "state.json", "dataset_dict.json"):
            return load(path, *args, split=split, streaming=streaming, **options)
        saved: Any = datasets.load_from_disk(path)
        if isinstance(saved, datasets.Dataset):
            saved = datasets.DatasetDict({"train": saved})
        if streaming:
            saved = datasets.IterableDatasetDict({name: part.to_iterable_dataset() for name, part in saved.items()})
        if split is not None and split not in saved:
            raise ValueError(f"split must be one of those of {path}, {', '.join(saved)}, got {split!r}")
        return saved if split is None else saved[split]

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = load


def _use_record(arguments: Any, name: str) -> None:
    """Let the arguments know what prior the file's column is recorded as; refuse betas of another one."""
    source = open_source(name)
    record = source.prior if source.columns is None or "prior" in source.columns else None
    if record is None:
        return
    # Not the default's, which takes any column.
    said = next(
        (f"--{n} {value}" for n in ("pcrm_config", "pcrm_prior", "pcrm_preset") if (value := getattr(arguments, n))),
        None,
    )
    if said is not None:
        check_recorded(record, arguments.pcrm_settings().prior, said, name)
    arguments._pcrm_recorded = record["prior"]


def train(kind: Literal["reward", "dpo"], argv: list[str]) -> None:
    """TRL's own command of that name, always with the constrained loss.

    It takes all of its flags and its YAML file and those of the constraint. A data set may also be
    a folder of `save_to_disk`, and `--dataset_name` a .jsonl, .jsonl.gz or .parquet file. With `--dry-run`
    it prints what would be trained in the place of training it.
    """
    if kind == "reward":
        replace_in_trl(RewardConfig=PCRMRewardConfig, RewardTrainer=PCRMRewardTrainer)
    else:
        replace_in_trl(DPOConfig=PCRMDPOConfig, DPOTrainer=PCRMDPOTrainer)
    script = importlib.import_module(f"trl.scripts.{kind}")
    parser = script.make_parser(prog=f"pcrm {kind}")
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="Print what would be trained, with the first pair as the model reads it, and train nothing.",
    )

    def fail(message: object) -> NoReturn:
        """argparse's own `error` prints all flags before the message, some hundreds of lines."""
        print(f"{parser.prog}: error: {message}\n{parser.prog} --help lists the flags", file=sys.stderr)
        raise SystemExit(2)

    parser.error = fail
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for flag in (word.split("=")[0] for word in argv if word.startswith("--pcrm")):
        if flag not in flags:
            fail(f"there is no flag {flag}{hint(flag, flags)}")
    try:
        arguments = parser.parse_args_and_config(argv, fail_with_unknown_args=False)
    except (ValueError, OSError) as error:
        fail(error)
    *arguments, others = arguments
    script_arguments, training_arguments, _, dataset_arguments = arguments
    if others.dry_run:
        replace_in_trl(RewardTrainer=DryRunRewardTrainer, DPOTrainer=DryRunDPOTrainer)
    name = script_arguments.dataset_name
    if name is not None and name.endswith((".jsonl", ".jsonl.gz", ".parquet")) and not os.path.isfile(name):
        fail(f"there is no file {name}")
    is_file = name is not None and os.path.isfile(name)
    if name is not None and (is_file or _is_saved(name, "state.json")):
        try:
            _use_record(training_arguments, name)
        except (ValueError, OSError) as error:
            fail(error)
    # Both: TRL warns, and takes the mixture.
    if name is not None and (is_file or _is_saved(name, "state.json")) and not dataset_arguments.datasets:
        from trl.scripts.utils import DatasetConfig

        if is_file and os.path.getsize(name) == 0:
            fail(f"{name} holds no rows")
        if training_arguments.eval_strategy != "no" and dataset_arguments.test_split_size is None:
            fail(
                f"--eval_strategy wants rows to evaluate on, which {name} has none of: --test_split_size 0.1 takes a "
                "tenth of it for that"
            )
        reader = "parquet" if name.endswith(".parquet") else "json"
        source = DatasetConfig(path=reader, data_files=name) if is_file else DatasetConfig(path=name)
        dataset_arguments.datasets = [source]
        dataset_arguments.streaming = script_arguments.dataset_streaming
        script_arguments.dataset_name = None
    with _saved_folders_load(), contextlib.suppress(Ended):
        script.main(*arguments)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # TRL's script leaves it to the end of the process, where its threads may still be running.
        torch.distributed.destroy_process_group()
