"""What a trainer's arguments say about the constraint: one reading of them for every trainer."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import torch

from .config import Config, load_config
from .constraint import Constraint, check_similarities, presets

PRIORS = ("length_ratio", "cosine", "lexical", "fixed", "random", "column")
_CURVE = ("beta1", "beta2", "beta3", "floor", "cap")
# What each argument but prior, preset and config is of use to.
_USED_BY = {
    **dict.fromkeys(_CURVE, ("length_ratio", "cosine", "lexical", "column")),
    "delta": ("fixed",),
    "low": ("random",),
    "high": ("random",),
}


def settings_of(
    *,
    prior: str | None = None,
    preset: str | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    beta3: float | None = None,
    floor: float | None = None,
    cap: float | None = None,
    delta: float | None = None,
    low: float | None = None,
    high: float | None = None,
    config: str | os.PathLike[str] | None = None,
    form: str | None = None,
    seed: int = 0,
    paper: str = "alpaca",
    prefix: str = "pcrm_",
) -> Config:
    """The settings that a trainer's arguments describe; None for those that were not given.

    A preset's betas, each of which an argument overrides. Without a preset it is the one that
    `paper` has for the prior, such as `alpaca/length_ratio`; priors of which the paper has none
    take that of the length ratio. Or everything from the TOML file `config`.

    Args:
        prior: One of `PRIORS`; `length_ratio` where none is given.
        preset, beta1, beta2, beta3, floor, cap, delta, low, high, config: See above.
        form: "pair" or "token".
        seed: Of the random prior, where no file says another.
        paper: The first part of the default preset's name, `alpaca`, `tldr` or `dpo`.
        prefix: How messages spell an argument.

    Raises:
        ValueError: an argument is unknown, out of range or contradicts another one.
        OSError: there is no such file.
    """
    given: dict[str, Any] = {
        name: value
        for name, value in {
            "preset": preset,
            "beta1": beta1,
            "beta2": beta2,
            "beta3": beta3,
            "floor": floor,
            "cap": cap,
            "delta": delta,
            "low": low,
            "high": high,
        }.items()
        if value is not None
    }
    if prior is not None and prior not in PRIORS:
        raise ValueError(f"{prefix}prior is {prior!r}, must be one of {', '.join(PRIORS)}")
    if form is not None and form not in ("pair", "token"):
        raise ValueError(f"{prefix}form is {form!r}, must be pair or token")
    if config is not None:
        settings = load_config(config)
        for name, value, of_file in (("prior", prior, settings.prior), ("form", form, settings.form)):
            if value is not None and value != of_file:
                raise ValueError(f"{prefix}{name} is {value!r}, and {os.fspath(config)} says {of_file!r}")
        for name, value in given.items():
            raise ValueError(f"{prefix}{name} is {value!r} and {prefix}config is set: put all of it into the file")
        return settings
    prior = prior or "length_ratio"
    for name, value in given.items():
        if name != "preset" and prior not in _USED_BY[name]:
            instead = {"fixed": f"set {prefix}delta", "random": f"set {prefix}low and {prefix}high"}.get(
                prior, f"set {prefix}prior={_USED_BY[name][0]!r}"
            )
            raise ValueError(f"{prefix}{name} is {value}, which {prefix}prior={prior!r} does not use: {instead}")
    return Config(prior, _constraint(prior, given, seed, paper, prefix), form or "pair", 0.0, 0.0, 0.1)  # pyright: ignore[reportArgumentType]


def _constraint(prior: str, given: dict[str, Any], seed: int, paper: str, prefix: str) -> Constraint:
    preset = given.pop("preset", None)
    if preset is not None:
        Constraint.preset(preset)  # its own message where there is none of that name
        of = presets()[preset]["prior"]
        curve = of not in ("fixed", "random")
        if of != prior and not (curve and prior in ("column", "lexical")):
            raise ValueError(
                f"{prefix}preset is {preset!r}, which is for the prior {of!r}, and {prefix}prior is {prior!r}"
            )
        if prior in ("fixed", "random") and given:
            name, value = next(iter(given.items()))
            raise ValueError(f"{prefix}{name} is {value} and {prefix}preset is {preset!r}: set one of them")
    if prior == "fixed":
        if preset is None and "delta" not in given:
            raise ValueError(
                f"{prefix}delta is missing: {prefix}prior='fixed' needs it or a preset such as 'alpaca/fixed'"
            )
        return Constraint.preset(preset) if preset else Constraint.fixed(given["delta"])
    if prior == "random":
        if len(given) == 1:
            missing = "high" if "low" in given else "low"
            raise ValueError(
                f"{prefix}{missing} is missing: {prefix}{next(iter(given))} is {next(iter(given.values()))}"
            )
        bounds = given or presets()[preset or f"{paper if paper != 'dpo' else 'alpaca'}/random"]
        return Constraint.random(bounds["low"], bounds["high"], seed)
    if preset is None:
        if prior == "lexical" and not {"beta1", "beta3"} <= given.keys():
            warnings.warn(
                f"{prefix}prior='lexical' has no published betas: those of {paper}/length_ratio are used, "
                "which may bound nothing. `pcrm fit` finds betas on your data",
                stacklevel=4,
            )
        preset = f"{paper}/{'cosine' if prior == 'cosine' else 'length_ratio'}"
    return dataclasses.replace(Constraint.preset(preset), **given)


def prior_tensor(column: Iterable[Any]) -> torch.Tensor:
    """A data set's column of priors as float32.

    Raises:
        TypeError, ValueError: an element is no number in [0, 1], named by its index.
    """
    numbers = []
    for i, value in enumerate(column):
        # A data set in the format of NumPy or torch gives scalars of theirs.
        number = value.item() if getattr(value, "ndim", None) == 0 else value
        if isinstance(number, bool) or not isinstance(number, (int, float, Decimal)):
            raise TypeError(f"prior[{i}] is {value!r}, must be a number in [0, 1]")
        numbers.append(float(number))
    prior = torch.tensor(numbers, dtype=torch.float32)
    check_similarities(prior, "prior")
    return prior


def warn_of_smoothing(label_smoothing: float, constraint: Constraint) -> None:
    """Say that label smoothing does nothing to a constrained pair: see `pcrm.functional.pcrm_loss`."""
    if label_smoothing > 0 and constraint.delta(1.0) < math.inf:
        warnings.warn(
            f"label_smoothing is {label_smoothing}: where delta is finite it adds label_smoothing * delta to pcrm's "
            "loss and moves no gradient",
            stacklevel=4,
        )
