"""`pcrm reward` and `pcrm dpo`: TRL's own commands with the constrained loss."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml

from .._pretrained import loading
from .._printable import text_of
from ..data.prior_record import check_recorded
from ..data.sources import Source, open_source, read_rows
from ..training.arguments import hint
from .configs import PCRMDPOConfig, PCRMRewardConfig
from .data_check import check_columns
from .dpo import PCRMDPOTrainer
from .dry_run import DryRunDPOTrainer, DryRunRewardTrainer, Ended
from .patch import replace_in_trl
from .reward import PCRMRewardTrainer

# The endings of files that `--dataset_name` accepts.
_FILES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")

# The modules of transformers that find a checkpoint and read its configuration.
_LOADERS = ("transformers.utils.hub", "transformers.configuration_utils", "transformers.models.auto.configuration_auto")

_ABOUT = """\
Train {what} with the prior-constrained loss. Accept all flags of `trl {kind}`, and those of the constraint, --pcrm_*.
With --config, the flags may be in a YAML file; flags on the command line override it.
For several GPUs, run: accelerate launch -m pcrm {kind} --config {kind}.yaml

--dataset_name is a .jsonl, .jsonl.gz, .json, .csv or .parquet file, a folder written by `save_to_disk`, or a data set on
the hub. Rows have the columns chosen and rejected, and prompt unless both begin with it; or, for rankings, the columns
prompt, responses and ratings.
"""
_EXAMPLES = """\
examples:
  pcrm {kind} --model_name_or_path Qwen/Qwen3-0.6B --dataset_name pairs.jsonl --pcrm_prior lexical
  pcrm {kind} --config {kind}.yaml --dry-run
"""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """TRL's formatter, which shows defaults, but keeps the line breaks of the description and the examples."""


def _is_saved(name: Any, *markers: str) -> bool:
    """Whether `name` is a folder of `save_to_disk`: one data set (state.json) or several splits (dataset_dict.json)."""
    return isinstance(name, str) and any(os.path.isfile(os.path.join(name, marker)) for marker in markers)


@contextlib.contextmanager
def _more_formats_load() -> Iterator[None]:
    """Let `datasets.load_dataset`, which TRL's scripts call, also read CSV files, as pcrm does, and folders of `save_to_disk`."""
    import datasets

    load: Any = datasets.load_dataset

    def load_dataset(path: Any, *args: Any, split: Any = None, streaming: bool = False, **options: Any) -> Any:
        if isinstance(path, str) and path.endswith(".csv") and os.path.isfile(path):
            saved: Any = datasets.Dataset.from_list([row for _, row in read_rows(path)])
        elif _is_saved(path, "state.json", "dataset_dict.json"):
            saved = datasets.load_from_disk(path)
        else:
            try:
                return load(path, *args, split=split, streaming=streaming, **options)
            except (FileNotFoundError, ConnectionError) as error:  # a name that is not on the hub, or no connection
                raise OSError(f"data set {options.get('data_files') or path} cannot be loaded: {error}") from None
        if isinstance(saved, datasets.Dataset):
            saved = datasets.DatasetDict({"train": saved})
        if streaming:
            saved = datasets.IterableDatasetDict({name: part.to_iterable_dataset() for name, part in saved.items()})
        if split is not None and split not in saved:
            raise ValueError(f"split of {path} must be one of {', '.join(saved)}, got {split!r}")
        return saved if split is None else saved[split]

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = load


def _check_file(source: Source) -> None:
    """Check the columns of a file or folder before anything is loaded. JSON lines have those of the first row."""
    columns = source.columns
    if columns is None:
        columns = next((list(row) for _, row in read_rows(source.name)), [])
    check_columns(columns, source.name)


def _unusable(model: str) -> str | None:
    """Return why a local folder is not a checkpoint, or None. Names on the hub are not checked."""
    if not os.path.isdir(model):
        return None
    file = os.path.join(model, "config.json")
    if not os.path.isfile(file):
        adapter = os.path.isfile(os.path.join(model, "adapter_config.json"))
        return None if adapter else f"the folder {model} without config.json"
    try:
        with open(file, encoding="utf-8") as opened:
            json.load(opened)
    except ValueError as error:
        return f"{model}, whose config.json is not JSON: {error}"
    return None


def _is_of_loading(error: BaseException) -> bool:
    """Whether transformers raised the error because it did not find a checkpoint or did not know its kind."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_globals.get("__name__") in _LOADERS


def _use_record(arguments: Any, source: Source) -> None:
    """Tell the arguments which prior the column is recorded as; reject the betas of another prior."""
    record = source.prior if source.columns is None or "prior" in source.columns else None
    if record is None:
        return
    # Without any of these, the default accepts any column.
    said = next(
        (f"--{n} {value}" for n in ("pcrm_config", "pcrm_prior", "pcrm_preset") if (value := getattr(arguments, n))),
        None,
    )
    if said is not None:
        check_recorded(record, arguments.pcrm_settings().prior, said, source.name)
    arguments._pcrm_recorded = record["prior"]


def _unknown_flag(argv: Sequence[str], flags: set[str]) -> str | None:
    """Return a message about the first unknown flag. The parser also accepts unique beginnings of flags."""
    for flag in (word.split("=")[0] for word in argv if word.startswith("--") and word != "--"):
        if not any(known.startswith(flag) for known in flags):
            return f"{flag} is not a flag of this command{hint(flag, flags)}"
    return None


def _how_to_resume(output_dir: str) -> str:
    """Return the end of the message about an interrupted run."""
    # The trainer's state is written last: without it, saving was interrupted.
    complete = [path.parent for path in Path(output_dir).glob("checkpoint-[0-9]*/trainer_state.json")]
    checkpoint = max(complete, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)
    if checkpoint is None:
        return " before the first checkpoint was saved (--save_steps). To start again, run the same command"
    return f". To resume, run the same command with --resume_from_checkpoint {checkpoint}"


def train(kind: Literal["reward", "dpo"], argv: list[str]) -> int:
    """Run TRL's command of that name with the constrained loss, and return the exit status.

    It accepts all of TRL's flags, its YAML file, and the flags of the constraint. A data set may also be
    a folder written by `save_to_disk`, and `--dataset_name` may be a file. With `--dry-run`
    it prints what it would train, and trains nothing.
    """
    if kind == "reward":
        replace_in_trl(RewardConfig=PCRMRewardConfig, RewardTrainer=PCRMRewardTrainer)
    else:
        replace_in_trl(DPOConfig=PCRMDPOConfig, DPOTrainer=PCRMDPOTrainer)
    script = importlib.import_module(f"trl.scripts.{kind}")
    parser = script.make_parser(prog=f"pcrm {kind}")
    parser.usage = f"pcrm {kind} [--config FILE] [FLAGS ...]"
    parser.description = _ABOUT.format(kind=kind, what="a reward model" if kind == "reward" else "a policy with DPO")
    parser.epilog = _EXAMPLES.format(kind=kind)
    parser.formatter_class = _HelpFormatter
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="Print what would be trained, including the first pair as the model reads it, and train nothing.",
    )

    def fail(message: object) -> NoReturn:
        """argparse's own `error` prints hundreds of lines of flags before the message."""
        print(f"{parser.prog}: error: {message}\nSee {parser.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    parser.error = fail
    flags = {flag for action in parser._actions for flag in action.option_strings} | {"--config"}
    if (message := _unknown_flag(argv, flags)) is not None:
        fail(message)
    try:
        arguments = parser.parse_args_and_config(argv, fail_with_unknown_args=False)
    except yaml.YAMLError as error:
        fail(f"--config must be a YAML file: {' '.join(str(error).split())}")
    except (ValueError, OSError) as error:
        fail(f"{error} Add --use_cpu true" if "assign use_cpu" in str(error) else text_of(error))
    *arguments, others = arguments
    script_arguments, training_arguments, model_arguments, dataset_arguments = arguments
    if others.dry_run:
        replace_in_trl(RewardTrainer=DryRunRewardTrainer, DPOTrainer=DryRunDPOTrainer)
    name = script_arguments.dataset_name
    if model_arguments.model_name_or_path is None:
        fail("--model_name_or_path must be a checkpoint's folder or its name on the hub, got none")
    if name is None and not dataset_arguments.datasets:
        fail("--dataset_name must be a file, a folder or the name of a data set on the hub, got none")
    if name is not None and name.endswith(_FILES) and not os.path.isfile(name):
        fail(f"--dataset_name must be an existing file, got {name}")
    is_file = name is not None and os.path.isfile(name)
    if name is not None and (is_file or _is_saved(name, "state.json")):
        if is_file and os.path.getsize(name) == 0:
            fail(f"{name} must have at least one row, got an empty file")
        try:
            source = open_source(name)
            if not dataset_arguments.datasets:
                _check_file(source)
            _use_record(training_arguments, source)
        except (ValueError, OSError) as error:
            fail(text_of(error))
    if (message := _unusable(model_arguments.model_name_or_path)) is not None:
        fail(f"--model_name_or_path must be a checkpoint's folder or its name on the hub, got {message}")
    # With both, TRL warns and uses the mixture.
    if name is not None and (is_file or _is_saved(name, "state.json")) and not dataset_arguments.datasets:
        from trl.scripts.utils import DatasetConfig

        if training_arguments.eval_strategy != "no" and dataset_arguments.test_split_size is None:
            fail(
                f"--test_split_size must be set with --eval_strategy, because {name} is a single split, got none: add "
                "--test_split_size 0.1 to hold out 10% of its rows"
            )
        if is_file and not name.endswith(".csv"):
            reader = "parquet" if name.endswith(".parquet") else "json"
            dataset_arguments.datasets = [DatasetConfig(path=reader, data_files=name)]
        else:
            dataset_arguments.datasets = [DatasetConfig(path=name)]
        dataset_arguments.streaming = script_arguments.dataset_streaming
        script_arguments.dataset_name = None
    try:
        with _more_formats_load(), contextlib.suppress(Ended):
            script.main(*arguments)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            resume = "" if others.dry_run else _how_to_resume(training_arguments.output_dir)
            print(f"{parser.prog}: interrupted{resume}", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        if not _is_of_loading(error):
            raise
        with loading(model_arguments.model_name_or_path, "the model"):
            raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # TRL's script does not do this. At the end of the process, threads of the group may still be running.
        torch.distributed.destroy_process_group()
    return 0
