"""The settings of a training run in a `pcrm.toml`, which Go reads."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from typing import Literal

from . import backends
from .constraint import Constraint


@dataclass(frozen=True)
class Config:
    """What a `pcrm.toml` says, with every default filled in."""

    prior: str
    constraint: Constraint
    form: Literal["pair", "token"]
    label_smoothing: float
    center_rewards_coefficient: float
    dpo_beta: float


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read a TOML file; every key is optional.

        [constraint]
        prior = "length_ratio"     # or cosine, lexical, column, fixed, random
        preset = "alpaca/length_ratio"
        beta1 = 10.0               # each overrides the preset's
        beta2 = 0.001
        beta3 = -5.0
        floor = 2.0
        cap = 12.0                 # inf for none
        delta = 4.5                # of prior = "fixed"
        low = 4.0                  # of prior = "random"
        high = 5.0
        seed = 0

        [loss]
        form = "pair"              # or token
        label_smoothing = 0.0
        center_rewards_coefficient = 0.0

        [dpo]
        beta = 0.1

    Raises:
        OSError: the file cannot be read, or is no regular one, such as a pipe.
        ValueError: no TOML, an unknown key, a value of the wrong type or out of range, or
            settings that contradict each other; the message names file, line and key.
        RuntimeError: the native library is not there, or this is a forked child of a process
            that used it: the file is read by Go, so read it before.
    """
    native = backends.library()
    numbers, seed = array("d", bytes(80)), array("Q", [0])
    prior, form = backends.call(
        native.bridge_LoadConfig, os.fspath(path), numbers.buffer_info()[0], seed.buffer_info()[0]
    ).split()
    beta1, beta2, beta3, floor, cap, low, high, *rest = numbers
    if prior == "random":
        constraint = Constraint.random(low, high, seed[0])
    else:
        constraint = Constraint(beta1, beta2, beta3, floor or None, cap or None)
    return Config(prior, constraint, form, *rest)
