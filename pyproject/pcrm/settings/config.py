"""All settings of a training run, from a file, a trainer's fields or a command's flags."""

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
    """The settings of a training run, with every default filled in.

    `constraint` may hold `Targets`; `fitted` replaces them with a fitted constraint.
    """

    prior: str
    constraint: Constraint | Targets
    form: Literal["pair", "token"] = "pair"
    label_smoothing: float = 0.0
    center_rewards_coefficient: float = 0.0
    dpo_beta: float = 0.1

    def fitted(self, similarities: Any) -> Config:
        """Return these settings with any targets replaced by a constraint, fitted with `Constraint.fit`."""
        if isinstance(self.constraint, Constraint):
            return self
        wanted = self.constraint
        fitted = Constraint.fit(similarities, target_alike=wanted.alike, target_unlike=wanted.unlike)
        return dataclasses.replace(self, constraint=fitted)


def load_config(path: str | os.PathLike[str], task: Task = "reward") -> Config:
    """Read the settings in a TOML file. Every key is optional.

        [constraint]               # see pcrm.settings.resolve for the rules
        prior = "length_ratio"     # or cosine, lexical, column, fixed, random
        preset = "alpaca/length_ratio"
        beta1 = 10.0               # each value overrides the preset's
        beta2 = 0.001
        beta3 = -5.0
        floor = 2.0
        cap = 12.0                 # inf for no cap
        target_alike = 1.0         # instead of betas, floor and cap, which are
        target_unlike = 3.0        # then fitted to the training data
        win_alike = 0.73           # the targets as win probabilities
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
        task: "reward" or "dpo". Missing values of a curve come from the published setting
            `alpaca/<prior>` for "reward" and `dpo/<prior>` for "dpo".

    Returns:
        A `Config` with all defaults filled in.

    Raises:
        OSError: The file cannot be read, or is not a regular file (for example, a pipe).
        ValueError: The TOML is malformed, a key is unknown, a value has the wrong type or is out
            of range, or settings contradict each other. The message names file, line and key.
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
    """Return the settings of a trainer or a command, given as values or as a file.

    Args:
        given: Values by name, as in `resolve`. None counts as not given.
        task: "reward" or "dpo".
        config: A `pcrm.toml` with all settings; see `load_config`.
        form: "pair" or "token". The default is the file's form, else "pair".
        prefix: Prefix of a setting's name in messages, such as `pcrm_`.

    Raises:
        TypeError, ValueError: As in `constraint_of`. Also if there are values as well as a file,
            or a prior or form that contradicts the file.
        OSError: The file cannot be read.
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
            raise ValueError(
                f"{prefix}{name} must not be set together with {prefix}config, got {value!r}: put all settings into the file"
            )
        if value != (of_file := getattr(settings, name)):
            raise ValueError(f"{prefix}{name} must be {of_file!r}, as in {os.fspath(config)}, got {value!r}")
    return settings
