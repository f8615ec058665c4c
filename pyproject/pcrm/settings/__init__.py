"""The settings of a constraint: what users write, the rules for reading it, and the resulting constraint.

`presets` has the published settings and `rules` the rules that settings from every source follow
(files, trainer fields, flags, Python). `toml` reads the file, `constraint` has the curve,
`targets` the target margins that a curve is fitted to, `win` the meaning of a margin to the loss,
and `config` combines all settings of a run.
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
