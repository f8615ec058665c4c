"""The settings of a constraint: what users write, the rules that read it, and what it becomes.

`presets` has the published settings, `rules` the rules for settings from every door (files,
trainers' fields, flags, Python), `toml` reads the file, `constraint` has the curve, `targets` what one
is fitted to, `win` what margins mean to the loss, and `config` puts all of a run's settings together.
"""

from .config import Config, load_config, settings_of
from .constraint import Constraint, constraint_of
from .presets import presets
from .rules import COMPUTED_PRIORS, PRIORS, SETTINGS, Task, resolve
from .targets import Targets, margin_of
from .win import win_probability

__all__ = [
    "COMPUTED_PRIORS",
    "PRIORS",
    "SETTINGS",
    "Config",
    "Constraint",
    "Targets",
    "Task",
    "constraint_of",
    "load_config",
    "margin_of",
    "presets",
    "resolve",
    "settings_of",
    "win_probability",
]
