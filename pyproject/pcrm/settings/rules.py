"""How a user's settings are read: one set of rules for files, fields, flags and Python.

The rules are those of Go's `Settings.Resolve` (pcrm/settings.go), and pcrm/testdata/settings.json
tests both with the same cases. They exist in Python too because they must work without the native
library.

1. The prior is the given one, else the preset's, else `length_ratio`.
2. A preset must be for that prior. Only `column` may use a curve of another prior, because
   you know what the column holds.
3. A given value is used. A missing value comes from the preset or, without a preset, from the published
   setting for the task and the prior (`alpaca/<prior>` for reward models, `dpo/<prior>` for DPO).
   If there is neither a preset nor any value of a curve, the default is target margins: 1 for similar
   and 3 for dissimilar pairs.
4. A value without a published setting must be given: `beta1` and `beta3` for a curve of `lexical`
   and `column`, `delta` for `fixed`, `low` and `high` for `random`. The other defaults are `beta2` 0.001,
   no `floor`, no `cap` and `seed` 0.
5. A value that the prior does not use is an error.
6. Targets stand for a curve that is fitted to the training data. They are a margin or a win probability
   for similar pairs and one for dissimilar pairs. Both sides must be given, without a preset or a value of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .. import _check
from .presets import lookup, presets

Task = Literal["reward", "dpo"]

# The priors that `pcrm.priors` computes from the responses. The others are given or need no responses.
COMPUTED_PRIORS = ("length_ratio", "cosine", "lexical")
PRIORS = (*COMPUTED_PRIORS, "column", "fixed", "random")
# The names of the values, and the priors that use them.
_CURVES = (*COMPUTED_PRIORS, "column")
_OF_CURVES = ("beta1", "beta2", "beta3", "floor", "cap")
_SIDES = ("alike", "unlike")
# Win probabilities of .73 and .95, about the rates at which annotators agree.
_DEFAULT_TARGETS = {"target_alike": 1.0, "target_unlike": 3.0}
TARGETS = {f"{kind}_{side}" for kind in ("target", "win") for side in _SIDES}
_USED_BY = {
    **dict.fromkeys(_OF_CURVES, _CURVES),
    **dict.fromkeys(("target_alike", "target_unlike", "win_alike", "win_unlike"), _CURVES),
    "delta": ("fixed",),
    **dict.fromkeys(("low", "high", "seed"), ("random",)),
}
_NEEDED = {**dict.fromkeys(_CURVES, ("beta1", "beta3")), "fixed": ("delta",), "random": ("low", "high")}
# Used when no value is published and none is given.
_DEFAULTS = {"beta2": 0.001, "seed": 0}
_PUBLISHED: dict[Task, str] = {"reward": "alpaca", "dpo": "dpo"}
_TASKS: dict[Task, str] = {"reward": "reward models", "dpo": "DPO"}

SETTINGS = ("prior", "preset", *_USED_BY)


def resolve(given: Mapping[str, Any], task: Task = "reward", prefix: str = "") -> tuple[str, dict[str, Any]]:
    """Return the prior and the values of its constraint, by the rules above.

    The values are `beta1`, `beta2`, `beta3`, `floor` and `cap`, or `delta`, or `low`, `high` and
    `seed`, or targets: `target_alike` or `win_alike`, and `target_unlike` or `win_unlike`.
    `Constraint`, which is made from them, checks their ranges.

    Args:
        given: Values of `SETTINGS` by name. None counts as not given.
        task: "reward" or "dpo": selects the published setting that fills in missing values.
        prefix: Prefix of a setting's name in messages, such as `pcrm_`.

    Raises:
        ValueError: A task, setting, prior or preset is unknown, or settings break a rule.
    """
    _check.one_of("task", task, _TASKS)
    for name in given:
        _check.one_of("a setting", name, SETTINGS)
    given = {name: value for name, value in given.items() if value is not None}
    preset = given.pop("preset", None)
    row = None if preset is None else lookup(preset, prefix)
    prior = _check.one_of(f"{prefix}prior", given.pop("prior", row["prior"] if row else "length_ratio"), PRIORS)
    if row and prior != row["prior"] and not (prior == "column" and row["prior"] in _CURVES):
        raise ValueError(
            f"{prefix}preset must be one for {prefix}prior={prior!r}, got {preset!r}, which is for {row['prior']!r}"
        )
    for name, value in given.items():
        if prior not in _USED_BY[name]:
            raise ValueError(f"{prefix}{name} must not be set, got {value}: {prefix}prior={prior!r} does not use it")
    if asked := [name for name in SETTINGS if name in TARGETS and name in given]:
        for name, value in (("preset", preset), *given.items()):
            if value is not None and name not in TARGETS:
                raise ValueError(
                    f"{prefix}{name} must not be set together with {prefix}{asked[0]}, got {value!r}: the curve is fitted "
                    "to the targets and your data. Remove one of them"
                )
        for side in _SIDES:
            if f"target_{side}" in given and f"win_{side}" in given:
                raise ValueError(
                    f"{prefix}win_{side} must not be set together with {prefix}target_{side}, got "
                    f"{given[f'win_{side}']} and {given[f'target_{side}']}: set one of them"
                )
            if f"target_{side}" not in given and f"win_{side}" not in given:
                raise ValueError(
                    f"{prefix}target_{side} is missing: {prefix}{asked[0]} is set, so set {prefix}target_{side} or "
                    f"{prefix}win_{side} too"
                )
        return prior, given
    if row is None and prior in _CURVES and not given:
        return prior, dict(_DEFAULT_TARGETS)
    if row is None:
        row = presets().get(f"{_PUBLISHED[task]}/{prior}", {})
    values = {name: value for name, value in row.items() if name != "prior"} | given
    for name in _NEEDED[prior]:
        if name not in values:
            hint = (
                f", or set {prefix}target_alike and {prefix}target_unlike to fit the betas to your data"
                if prior in _CURVES
                else ""
            )
            raise ValueError(
                f"{prefix}{name} is missing: {prefix}prior={prior!r} has no published setting for {_TASKS[task]}. Set "
                f"{' and '.join(f'{prefix}{n}' for n in _NEEDED[prior])}{hint}"
            )
    return prior, {name: value for name, value in _DEFAULTS.items() if prior in _USED_BY[name]} | values
