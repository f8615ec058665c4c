"""All settings of a training run, from a file or from a trainer's fields and a command's flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .. import _check
from . import toml
from .constraint import Constraint, constraint_of
from .rules import Task
from .targets import Targets


@dataclass(frozen=True)
class Config:
    """The settings of a training run with every default filled in.

    `constraint` is `Targets` until `fitted` makes a constraint of them.
    """

    prior: str
    constraint: Constraint | Targets
    form: Literal["pair", "token"] = "pair"
    label_smoothing: float = 0.0
    center_rewards_coefficient: float = 0.0
    dpo_beta: float = 0.1

    def fitted(self, similarities: Any) -> Config:
        """These settings, with the constraint that targets want on these similarities: `Constraint.fit`."""
        if isinstance(self.constraint, Constraint):
            return self
        wanted = self.constraint
        fitted = Constraint.fit(similarities, target_alike=wanted.alike, target_unlike=wanted.unlike)
        return dataclasses.replace(self, constraint=fitted)


def load_config(path: str | os.PathLike[str], task: Task = "reward") -> Config:
    """Read a TOML file; every key is optional.

        [constraint]               # see pcrm.settings.resolve for the rules
        prior = "length_ratio"     # or cosine, lexical, column, fixed, random
        preset = "alpaca/length_ratio"
        beta1 = 10.0               # each overrides the preset's
        beta2 = 0.001
        beta3 = -5.0
        floor = 2.0
        cap = 12.0                 # inf for none
        target_alike = 1.0         # in the place of betas, floor and cap, which are then
        target_unlike = 3.0        # fitted to the training data
        win_alike = 0.73           # the same as win probabilities
        win_unlike = 0.95
        delta = 4.5                # for prior = "fixed"
        low = 4.0                  # for prior = "random"
        high = 5.0
        seed = 0

        [loss]
        form = "pair"              # or token
        label_smoothing = 0.0
        center_rewards_coefficient = 0.0

        [dpo]
        beta = 0.1

    Args:
        path: The file.
        task: What is trained. The published setting that fills in missing values of a curve is
            `alpaca/<prior>` for "reward" and `dpo/<prior>` for "dpo".

    Raises:
        OSError: the file cannot be read, or is not a regular file, such as a pipe.
        ValueError: malformed TOML, an unknown key, a value of the wrong type or out of range, or
            settings that contradict each other; the message names file, line and key.
    """
    document = toml.read(path)
    with document.located():
        prior, constraint = constraint_of(document.constraint, task)
    return Config(
        prior,
        constraint,
        document.form,
        document.label_smoothing,
        document.center_rewards_coefficient,
        document.dpo_beta,
    )


def settings_of(
    given: Mapping[str, Any],
    task: Task = "reward",
    *,
    config: str | os.PathLike[str] | None = None,
    form: str | None = None,
    prefix: str = "",
) -> Config:
    """The settings of a trainer or a command, which may name a file instead of values.

    Args:
        given: Values by name, as in `resolve`; None counts as not given.
        task: What is trained.
        config: A `pcrm.toml` with all settings; see `load_config`.
        form: "pair" or "token"; "pair" where neither this nor the file says one.
        prefix: What messages put before a setting's name, such as `pcrm_`.

    Raises:
        TypeError, ValueError: as in `constraint_of`; values beside a file, or a prior or form
            that contradicts it.
        OSError: the file cannot be read.
    """
    if form is not None:
        _check.one_of(f"{prefix}form", form, toml.FORMS)
    if config is None:
        prior, constraint = constraint_of(given, task, prefix)
        return Config(prior, constraint, "token" if form == "token" else "pair")
    settings = load_config(config, task)
    for name, value in (*given.items(), ("form", form)):
        if value is None:
            continue
        if name not in ("prior", "form"):
            raise ValueError(f"{prefix}{name} is {value!r} and {prefix}config is set: put all settings into the file")
        if value != (of_file := getattr(settings, name)):
            raise ValueError(f"{prefix}{name} is {value!r}, and {os.fspath(config)} says {of_file!r}")
    return settings
