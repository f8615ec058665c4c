"""The constraint: how large the margin of two responses may be, given how similar they are.

Floats and arrays are computed here, so that commands without tensors do not need torch. The code for
tensors is in `_engine.deltas`, imported with the first tensor.
"""

from __future__ import annotations

import functools
import json
import math
import os
import warnings
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, overload

from .. import _check
from . import toml
from .presets import lookup
from .rules import TARGETS, Task, resolve
from .similarities import check_range, is_tensor, median, vector
from .targets import Targets

if TYPE_CHECKING:
    import numpy as np
    import torch

_NUMBERS = ("beta1", "beta2", "beta3", "floor", "cap", "low", "high")


@dataclass(frozen=True, repr=False)
class Constraint:
    """A curve from the prior of a pair to the ceiling of its margin.

        delta(s) = beta1 / (s + beta2) + beta3, clipped to [floor, cap]

    s in [0, 1] is the prior similarity of the two responses. delta, in units of the score, is
    the ceiling of their margin, and delta / 2 is the target margin. Alike responses get a small
    ceiling, unlike responses a large one. Source: arXiv 2404.00978, section 3.2.

    Args:
        beta1: Scale of the curve, finite.
        beta2: Offset of the similarity, finite and at least 0.
        beta3: Offset of delta; +inf leaves every pair unconstrained.
        floor: The smallest delta, greater than 0, or None for no floor.
        cap: The largest delta, greater than 0, or None for no cap.
        low, high, seed: Parameters of a random constraint. Use `Constraint.random` to set them.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range, or delta is not greater than 0 everywhere on
            [0, 1]. (The curve is monotone, so only the two ends are checked.) A ceiling of 0 or
            less would reward ties and reversals.
    """

    beta1: float
    beta2: float
    beta3: float
    floor: float | None = None
    cap: float | None = None
    low: float | None = field(default=None, kw_only=True)
    high: float | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    recorded: ClassVar[str]  # set on each instance: its numbers as JSON, which `pcrm.trace` records

    def __repr__(self) -> str:
        names = ("low", "high", "seed") if self.is_random else ("beta1", "beta2", "beta3", "floor", "cap")
        values = {name: value for name in names if (value := getattr(self, name)) is not None}
        return f"Constraint{'.random' if self.is_random else ''}({', '.join(f'{k}={v!r}' for k, v in values.items())})"

    def __post_init__(self) -> None:
        self._check()
        # Built here because torch.compile can read a string but cannot format one from numbers.
        numbers = {name: getattr(self, name) for name in (*_NUMBERS, "seed")}
        text = {n: str(x) if isinstance(x, float) and math.isinf(x) else x for n, x in numbers.items()}
        object.__setattr__(self, "recorded", json.dumps(text))

    def _check(self) -> None:
        object.__setattr__(self, "seed", _check.integer("seed", self.seed, 0, 2**64))
        for name in ("beta1", "beta2", "beta3", "floor", "cap"):
            value: Any = getattr(self, name)
            if value is None and name in ("floor", "cap"):
                continue
            value = _check.not_nan(name, value)
            if value == -math.inf or (value == math.inf and name not in ("beta3", "cap")):
                raise ValueError(f"{name} must be finite, got {value}")
            object.__setattr__(self, name, value)
        if self.is_random:
            self._check_random()
            return
        if self.beta2 < 0:
            raise ValueError(f"beta2 must be at least 0, got {self.beta2:g}")
        for name in ("floor", "cap"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} must be greater than 0, got {value:g}")
        if self.floor is not None and self.cap is not None and self.floor > self.cap:
            raise ValueError(f"floor must be at most cap, which is {self.cap:g}, got {self.floor:g}")
        for s in (0, 1):
            if not (delta := self._of_float(s)) > 0:
                raise ValueError(
                    f"delta must be greater than 0 on all of [0, 1], got {delta:g} at similarity {s}: "
                    "a ceiling of 0 or less would reward ties and reversals"
                )

    def _check_random(self) -> None:
        low, high = _check.not_nan("low", self.low), _check.not_nan("high", self.high)
        if not 0 < low < math.inf:
            raise ValueError(f"low must be finite and greater than 0, got {low:g}")
        if not low <= high < math.inf:
            raise ValueError(f"high must be finite and at least low, which is {low:g}, got {high:g}")
        for name, value in (("low", low), ("high", high)):
            object.__setattr__(self, name, value)

    @classmethod
    def fixed(cls, delta: float) -> Constraint:
        """Return a constraint with the same delta for every pair.

        Args:
            delta: The ceiling, greater than 0. `math.inf` gives the Bradley-Terry loss.

        Raises:
            TypeError: `delta` is not a number.
            ValueError: `delta` is not greater than 0.
        """
        delta = _check.number("delta", delta)
        if not delta > 0:  # NaN too
            raise ValueError(f"delta must be greater than 0, got {delta:g}")
        # beta2 = 1 keeps 0 / (s + beta2) from being 0 / 0 at s = 0.
        return cls(0.0, 1.0, delta)

    @classmethod
    def preset(cls, name: str) -> Constraint:
        """Return a published setting, such as `alpaca/length_ratio`.

        Raises:
            ValueError: There is no preset of that name. The message lists the presets.
        """
        return _made_of({key: value for key, value in lookup(name).items() if key != "prior"})

    @classmethod
    def random(cls, low: float, high: float, seed: int = 0) -> Constraint:
        """Return a constraint with a random delta for each pair, uniform in [low, high).

            delta(u) = low + (high - low) * u

        u in [0, 1) takes the place of the similarity. `pcrm.priors.random_uniform` computes it
        from the seed and the token ids of both responses, so a pair has the same delta in every
        epoch, batch and process.

        Args:
            low: The smallest delta, finite and greater than 0.
            high: The upper end, finite and at least `low`.
            seed: An integer in [0, 2**64).

        Raises:
            TypeError: An argument is not a number, or the seed is not an integer.
            ValueError: Not 0 < low <= high < inf, or the seed is outside [0, 2**64).
        """
        return cls(0.0, 0.0, 0.0, low=_check.not_nan("low", low), high=_check.not_nan("high", high), seed=seed)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], task: Task = "reward") -> Constraint:
        """Read the constraint in a `pcrm.toml`. See `pcrm.settings.load_config` for the format.

        Args:
            path: The file.
            task: "reward" or "dpo": selects the published setting that fills in missing values.

        Raises:
            OSError: The file cannot be read, or is not a regular file (for example, a pipe).
            ValueError: The file is malformed, or its targets are not fitted to data yet. The message names
                file, line and key.
        """
        document = toml.read(path)
        with document.located():
            constraint = constraint_of(document.constraint, task)[1]
            if isinstance(constraint, Targets):
                name = next((name for name in document.constraint if name in TARGETS), None)
                raise ValueError(
                    f"{name or 'preset'} {'must be fitted to data first' if name else 'is missing, and so are the betas'}: use "
                    "the pcrm.toml that training writes to its output folder, or one written by `pcrm fit`"
                )
            return constraint

    @classmethod
    def fit(
        cls,
        similarities: Any,
        *,
        target_alike: float,
        target_unlike: float,
        quantiles: tuple[float, float] = (0.05, 0.95),
    ) -> Constraint:
        """Fit a constraint to target margins and the priors of your data.

        The target delta / 2 is `target_alike` at the upper quantile of the similarities,
        `target_unlike` at the lower quantile, and midway between the two at s_mid, the median of
        the similarities between these quantiles. Half of the pairs then get a target above
        (target_alike + target_unlike) / 2, and half below. With d = s_high - s_low and
        e = s_mid - s_low:

            s_low + beta2 = e d / (d - 2 e), at most 10 d; beta2 at least 1e-6
            beta1 = 2 (target_unlike - target_alike) (s_low + beta2) (s_high + beta2) / d
            beta3 = 2 target_alike - beta1 / (s_high + beta2)

        floor = 2 target_alike and cap = 2 target_unlike keep delta positive and bounded outside
        the quantiles. If s_mid is at or above the middle of the quantiles, the curve is nearly a
        straight line and its target at s_mid is below midway. To give targets as win
        probabilities, use `target_alike=pcrm.margin_of(0.7)`.

        Warns if most pairs get almost the same target, within 10% of the range of either end.

        Args:
            similarities: The priors of the training pairs, in [0, 1]: a one-dimensional sequence,
                array or tensor.
            target_alike: The target margin of similar pairs, greater than 0, in units of the score.
            target_unlike: The target margin of dissimilar pairs, finite and greater than `target_alike`.
            quantiles: The quantiles of the similarities that count as unlike and as alike,
                interpolated linearly between elements.

        Returns:
            The fitted constraint.

        Raises:
            TypeError: A similarity, a target or a quantile is not a real number (bool, str, complex,
                masked and missing values are rejected).
            ValueError: There are no similarities; one is outside [0, 1] (the message names its
                index); targets or quantiles are out of order; or the similarities at the two
                quantiles are less than 1e-6 apart, so that no curve can have two targets there.
        """
        s = vector(similarities)
        try:
            low, high = (_check.number("quantiles", q) for q in quantiles)
        except (TypeError, ValueError):
            raise TypeError(f"quantiles must be two numbers, got {quantiles!r}") from None
        wanted = Targets(target_alike, target_unlike)
        if not 0 <= low < high <= 1:
            raise ValueError(f"quantiles must satisfy 0 <= low < high <= 1, got ({low}, {high})")
        if len(s) == 0:
            raise ValueError("similarities must have at least one number, got none")
        check_range(s)
        from .._engine.native import address, call, chosen_library

        targets = (wanted.alike, wanted.unlike, low, high)
        native = None if is_tensor(s) else chosen_library()
        if native is None:
            from .._engine import deltas

            constraint = cls(*deltas.fit(s, *targets))
        else:
            fitted = array("d", bytes(5 * 8))
            call(native.bridge_Fit, len(s), address(fitted), address(s), *targets)
            constraint = cls(*fitted)
        constraint._warn_if_one_sided(median(s), wanted)
        return constraint

    def _warn_if_one_sided(self, middle: float, wanted: Targets) -> None:
        """Warn if the median pair's target nearly equals one of the two targets of the fit."""
        target, near = self.target(middle), (wanted.unlike - wanted.alike) / 10
        if wanted.alike + near < target < wanted.unlike - near:
            return
        half, end = ("least", wanted.alike) if target <= wanted.alike + near else ("most", wanted.unlike)
        warnings.warn(
            f"most pairs get a target near {end:.4g}, because half of them have a similarity of at {half} {middle:.4g}: this "
            "prior hardly tells pairs apart. Use another prior, other quantiles or a fixed delta",
            stacklevel=3,
        )

    @property
    def is_fixed(self) -> bool:
        """Whether delta is the same for every pair, so that no prior is needed."""
        return self.beta1 == 0 and not self.is_random

    @property
    def is_random(self) -> bool:
        """Whether `delta` takes the numbers of `pcrm.priors.random_uniform` instead of similarities."""
        return self.low is not None or self.high is not None

    @overload
    def delta(self, s: float) -> float: ...
    @overload
    def delta(self, s: torch.Tensor) -> torch.Tensor: ...
    @overload
    def delta(self, s: Any) -> Any: ...
    def delta(self, s: Any) -> Any:
        """Return delta(s), the ceiling of the margin.

        Args:
            s: Similarities in [0, 1]: a float, a NumPy array or a tensor of any shape. No
                gradient flows through it.

        Returns:
            The same type and shape as `s`. Arrays and tensors of float16 and bfloat16 give float32,
            because delta needs more digits than these dtypes have.

        Raises:
            TypeError: `s` is not floating point.
            ValueError: A similarity is NaN or outside [0, 1]; the message names its index. Values
                are checked on the CPU only, to avoid a synchronization, and not under torch.func's
                transforms, torch.jit.trace or torch.compile.
        """
        if is_tensor(s):
            from .._engine import deltas

            return deltas.delta(s, lambda: self.numbers, **{name: getattr(self, name) for name in _NUMBERS})
        if isinstance(s, (int, float)):
            s = _check.number("s", s)
            check_range((s,))
            return self._of_float(s)
        import numpy as np

        if not isinstance(s, (np.ndarray, np.generic)):
            raise TypeError(f"s must be a float, a NumPy array or a tensor, got {type(s).__name__}")
        result = self._of_array(_check.array("similarities", s))
        return result if isinstance(s, np.ndarray) else result[()]

    @overload
    def target(self, s: float) -> float: ...
    @overload
    def target(self, s: torch.Tensor) -> torch.Tensor: ...
    @overload
    def target(self, s: Any) -> Any: ...
    def target(self, s: Any) -> Any:
        """Return delta(s) / 2, the margin at which the loss of a pair is minimal. See `delta` for `s`."""
        return self.delta(s) / 2

    def _curve(self, s: Any, at_least: Callable[..., Any], at_most: Callable[..., Any]) -> Any:
        """Return delta of a float or an array in range, given the matching `max` and `min` functions."""
        if self.low is not None and self.high is not None:
            return self.low + (self.high - self.low) * s
        delta = self.beta1 / (s + self.beta2) + self.beta3
        delta = delta if self.floor is None else at_least(delta, self.floor)
        return delta if self.cap is None else at_most(delta, self.cap)

    def _of_float(self, s: float) -> float:
        if s + self.beta2 or self.is_random:
            return self._curve(s, max, min)
        import numpy as np

        return float(self._of_array(np.asarray(s, np.float64)))  # divides by 0 as in IEEE 754

    def _of_array(self, s: np.ndarray) -> np.ndarray:
        """Compute in float64 and round once, as in Go."""
        import numpy as np

        if s.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"similarities must be floating point of at most 64 bits, got dtype {s.dtype}")
        check_range(s.ravel())
        with np.errstate(divide="ignore", invalid="ignore"):
            delta = self._curve(s.astype(np.float64), np.maximum, np.minimum)
        # asarray: a single number stays an array. float16 has too few digits for delta.
        return np.asarray(delta).astype(np.float64 if s.dtype == np.float64 else np.float32)

    @functools.cached_property
    def numbers(self) -> array[float]:
        """The numbers for the bridge. Go reads 0 as "not set"."""
        return array("d", [getattr(self, n) or 0.0 for n in _NUMBERS])


def constraint_of(
    given: Mapping[str, Any], task: Task = "reward", prefix: str = ""
) -> tuple[str, Constraint | Targets]:
    """Return the prior and the constraint that settings describe, by the rules of `pcrm.settings.resolve`.

    Args:
        given: Values by name. None counts as not given.
        task: "reward" or "dpo": selects the published setting that fills in missing values.
        prefix: Prefix of a setting's name in messages, such as `pcrm_`.

    Returns:
        The name of the prior, and a `Constraint`, or `Targets` that still have to be fitted to data
        (`Config.fitted` does it).

    Raises:
        TypeError: A value has the wrong type.
        ValueError: Settings break a rule, or a value is out of range.
    """
    prior, values = resolve(given, task, prefix)
    try:
        return prior, Targets.of(values) if TARGETS & values.keys() else _made_of(values)
    except (TypeError, ValueError) as error:
        # A message begins with the setting's name, or with delta, which may follow from the betas.
        own = str(error).split(" ")[0] in given
        raise type(error)(f"{prefix if own else ''}{error}") from None


def _made_of(values: Mapping[str, Any]) -> Constraint:
    if "delta" in values:
        return Constraint.fixed(**values)
    return Constraint.random(**values) if "low" in values else Constraint(**values)
