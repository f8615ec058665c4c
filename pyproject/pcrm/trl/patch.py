"""The trainers behind TRL's own names, for scripts that stay as they are."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NoReturn

import torch
import trl
import trl.trainer
from trl import DPOTrainer, RewardTrainer

from .configs import PCRMDPOConfig, PCRMRewardConfig
from .dpo import PCRMDPOTrainer
from .reward import PCRMRewardTrainer
from .trainer import ConstrainedTrainer


def _given(config: Any) -> list[str]:
    """The names of the fields of the constraint that are not as they are by default."""
    return [
        f.name
        for f in dataclasses.fields(config)
        if f.name.startswith("pcrm_") and getattr(config, f.name) != f.default
    ]


@dataclass
class _EnabledRewardConfig(PCRMRewardConfig):
    __doc__ = PCRMRewardConfig.__doc__

    @property
    def pcrm_enabled(self) -> bool:
        return bool(_given(self))


@dataclass
class _EnabledDPOConfig(PCRMDPOConfig):
    __doc__ = PCRMDPOConfig.__doc__

    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata=dict(PCRMDPOConfig.__dataclass_fields__["loss_type"].metadata),
    )

    @property
    def pcrm_enabled(self) -> bool:
        return "pcrm" in self.loss_type

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pcrm_enabled and (given := _given(self)):
            raise ValueError(f"{given[0]} is set, but loss_type is {self.loss_type}: add 'pcrm' to it")


class _Enabled(ConstrainedTrainer):
    # What tags, model card, citation and default output folder say: TRL's own until the constraint is asked for.
    _ours: ClassVar[type[Any]]

    def _read(self, args: Any, model: Any) -> Any:
        if args is None or isinstance(args, self.config_class):
            args = super()._read(args, model)
        else:
            self.constrained = False  # TRL's own, from before `enable`
        if self.constrained:
            for name in ("_name", "_tag_names", "_paper"):
                setattr(self, name, getattr(self._ours, name))
        return args


class _EnabledRewardTrainer(_Enabled, PCRMRewardTrainer):
    __doc__ = PCRMRewardTrainer.__doc__
    config_class = _EnabledRewardConfig
    _ours = PCRMRewardTrainer
    _name, _tag_names, _paper = RewardTrainer._name, RewardTrainer._tag_names, RewardTrainer._paper


class _EnabledDPOTrainer(_Enabled, PCRMDPOTrainer):
    __doc__ = PCRMDPOTrainer.__doc__
    config_class = _EnabledDPOConfig
    _ours = PCRMDPOTrainer
    _name, _tag_names, _paper = DPOTrainer._name, DPOTrainer._tag_names, DPOTrainer._paper


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
    return f": did you mean {near[0]}?" if near else ""


class _Parser(trl.TrlParser):
    __doc__ = trl.TrlParser.__doc__

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        # TRL ignores what it does not know, and a misspelt constraint would train another loss.
        remaining = super().set_defaults_with_config(**kwargs)
        known = {action.dest for action in self._actions}
        ours = sorted(name for name in known if name.startswith("pcrm"))
        for key in kwargs.keys() - known:
            if key.startswith("pcrm"):
                hint = _hint(key, ours) or f": the keys are {', '.join(ours) or 'none here'}"
                raise ValueError(f"{key} is not a key of this configuration{hint}")
            if hint := _hint(key, known):
                warnings.warn(f"{key} is not a key of this configuration, and TRL ignores it{hint}", stacklevel=2)
        return remaining


def _put(**behind: type) -> None:
    for module in (trl, trl.trainer):
        for name, ours in behind.items():
            setattr(module, name, ours)
    trl.TrlParser = _Parser


def enable() -> None:
    """Put pcrm's trainers and configurations behind TRL's names, in this process.

    From then on `trl.DPOTrainer` trains with the constrained loss where its configuration says
    `loss_type: [pcrm]`, and `trl.RewardTrainer` where its configuration sets a field `pcrm_*`.
    Otherwise both do what they did, and `trl.TrlParser` refuses an unknown key `pcrm*` in a YAML
    file. Call it before the script imports them by name; `pcrm run script.py` does that.
    """
    _put(
        RewardConfig=_EnabledRewardConfig,
        RewardTrainer=_EnabledRewardTrainer,
        DPOConfig=_EnabledDPOConfig,
        DPOTrainer=_EnabledDPOTrainer,
    )
    # Where some scripts import them from. Not so the configurations: one that the script made before
    # could not be pickled under a name that is another's, and TRL's own refuse what they do not know.
    for module, ours in (("reward_trainer", _EnabledRewardTrainer), ("dpo_trainer", _EnabledDPOTrainer)):
        setattr(importlib.import_module(f"trl.trainer.{module}"), ours.__name__.removeprefix("_Enabled"), ours)


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


def train(kind: Literal["reward", "dpo"], argv: list[str]) -> None:
    """TRL's own command of that name, always with the constrained loss.

    It takes all of its flags and its YAML file and those of the constraint. A data set may also be
    a folder of `save_to_disk`, and `--dataset_name` a .jsonl, .jsonl.gz or .parquet file.
    """
    if kind == "reward":
        _put(RewardConfig=PCRMRewardConfig, RewardTrainer=PCRMRewardTrainer)
    else:
        _put(DPOConfig=PCRMDPOConfig, DPOTrainer=PCRMDPOTrainer)
    script = importlib.import_module(f"trl.scripts.{kind}")
    parser = script.make_parser(prog=f"pcrm {kind}")

    def fail(message: object) -> NoReturn:
        """argparse's own `error` prints all flags before the message, some hundreds of lines."""
        print(f"{parser.prog}: error: {message}\n{parser.prog} --help lists the flags", file=sys.stderr)
        raise SystemExit(2)

    parser.error = fail
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for flag in (word.split("=")[0] for word in argv if word.startswith("--pcrm")):
        if flag not in flags:
            fail(f"there is no flag {flag}{_hint(flag, flags)}")
    try:
        arguments = parser.parse_args_and_config(argv, fail_with_unknown_args=False)
    except (ValueError, OSError) as error:
        fail(error)
    script_arguments, training_arguments, _, dataset_arguments = arguments
    name = script_arguments.dataset_name
    if name is not None and name.endswith((".jsonl", ".jsonl.gz", ".parquet")) and not os.path.isfile(name):
        fail(f"there is no file {name}")
    is_file = name is not None and os.path.isfile(name)
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
    with _saved_folders_load():
        script.main(*arguments)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # TRL's script leaves it to the end of the process, where its threads may still be running.
        torch.distributed.destroy_process_group()
