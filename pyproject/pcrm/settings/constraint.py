"""The constraint: how large a margin two responses may have, given how alike they are.

Commands that never see a tensor use it without torch. So floats and arrays are computed here, and
what tensors need is in `_engine.deltas`, imported with the first tensor.
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
    """delta(s) = beta1 / (s + beta2) + beta3, clipped to [floor, cap].

    s in [0, 1] is the prior similarity of the two responses and delta, in units of the
    score, the ceiling of their margin; the margin's target is delta / 2. Alike responses
    get a small ceiling, unlike ones a large one (arXiv 2404.00978, section 3.2).

    Args:
        beta1: Scale of the curve. Finite.
        beta2: Offset of the similarity, at least 0 and finite.
        beta3: Offset of delta; +inf makes every pair unconstrained.
        floor: Least delta, greater than 0; None for none.
        cap: Greatest delta, greater than 0; None for none.
        low, high, seed: Of a random constraint: see `random`, which sets them.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of its range, or delta is not greater than 0
            somewhere on [0, 1] (the curve is monotone, so both ends are looked at): a
            ceiling of 0 or less rewards ties and reversals.
    """

    beta1: float
    beta2: float
    beta3: float
    floor: float | None = None
    cap: float | None = None
    low: float | None = field(default=None, kw_only=True)
    high: float | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    recorded: ClassVar[str]  # of each constraint: its numbers as JSON, which `pcrm.trace` records

    def __repr__(self) -> str:
        names = ("low", "high", "seed") if self.is_random else ("beta1", "beta2", "beta3", "floor", "cap")
        values = {name: value for name in names if (value := getattr(self, name)) is not None}
        return f"Constraint{'.random' if self.is_random else ''}({', '.join(f'{k}={v!r}' for k, v in values.items())})"

    def __post_init__(self) -> None:
        self._check()
        # Now, as torch.compile can read a text but cannot make one of numbers.
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
                raise ValueError(f"{name} is {value}, must be finite")
            object.__setattr__(self, name, value)
        if self.is_random:
            self._check_random()
            return
        if self.beta2 < 0:
            raise ValueError(f"beta2 is {self.beta2:g}, must be at least 0")
        for name in ("floor", "cap"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is {value:g}, must be greater than 0")
        if self.floor is not None and self.cap is not None and self.floor > self.cap:
            raise ValueError(f"floor is {self.floor:g}, must not be greater than cap, which is {self.cap:g}")
        for s in (0, 1):
            if not (delta := self._of_float(s)) > 0:
                raise ValueError(
                    f"delta is {delta:g} at similarity {s}, must be greater than 0 on all of [0, 1]: "
                    "a ceiling of zero or less rewards ties and reversals"
                )

    def _check_random(self) -> None:
        low, high = _check.not_nan("low", self.low), _check.not_nan("high", self.high)
        if not 0 < low < math.inf:
            raise ValueError(f"low is {low:g}, must be finite and greater than 0")
        if not low <= high < math.inf:
            raise ValueError(f"high is {high:g}, must be finite and at least low, which is {low:g}")
        for name, value in (("low", low), ("high", high)):
            object.__setattr__(self, name, value)

    @classmethod
    def fixed(cls, delta: float) -> Constraint:
        """The same delta for every pair; `math.inf` gives the Bradley-Terry loss."""
        delta = _check.number("delta", delta)
        if not delta > 0:  # NaN too
            raise ValueError(f"delta is {delta:g}, must be greater than 0")
        # beta2 = 1 keeps 0 / (s + beta2) from being 0 / 0 at s = 0.
        return cls(0.0, 1.0, delta)

    @classmethod
    def preset(cls, name: str) -> Constraint:
        """A published setting, such as `alpaca/length_ratio`.

        Raises:
            ValueError: there is no preset of that name; the message lists them.
        """
        return _made_of({key: value for key, value in lookup(name).items() if key != "prior"})

    @classmethod
    def random(cls, low: float, high: float, seed: int = 0) -> Constraint:
        """A delta that is uniform in [low, high), drawn for each pair from what the pair is.

        delta(u) = low + (high - low) * u, where u in [0, 1) stands in the place of the
        similarity: `pcrm.priors.random_uniform` makes it of the seed and both responses'
        ids, so that a pair has the same delta in every epoch, batch and process.

        Raises:
            ValueError: not 0 < low <= high < inf, or a seed outside [0, 2**64).
        """
        return cls(0.0, 0.0, 0.0, low=_check.not_nan("low", low), high=_check.not_nan("high", high), seed=seed)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], task: Task = "reward") -> Constraint:
        """The constraint of a `pcrm.toml`, which `pcrm.settings.load_config` describes.

        Args:
            path: The file.
            task: "reward" or "dpo": the published setting that fills in missing values.

        Raises:
            OSError: the file cannot be read, or is not a regular file, such as a pipe.
            ValueError: the file is malformed, or has targets that are not fitted yet; the message names file, line
                and key.
        """
        document = toml.read(path)
        with document.located():
            constraint = constraint_of(document.constraint, task)[1]
            if isinstance(constraint, Targets):
                name = next((name for name in document.constraint if name in TARGETS), None)
                raise ValueError(
                    f"{name or 'preset'} {'must be fitted to data first' if name else 'is missing, and so are betas'}: take the "
                    "pcrm.toml that training writes into its output folder, or that of `pcrm fit`"
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
        """The constraint with the margins that you want on the data that you have.

        Its target delta / 2 is `target_alike` at the upper quantile of the similarities,
        `target_unlike` at the lower one, and midway between the two at the median s_mid of the
        similarities between these quantiles. So half of the pairs get more than
        (target_alike + target_unlike) / 2, and half get less. With d = s_high - s_low and
        e = s_mid - s_low:

            s_low + beta2 = e d / (d - 2 e), at most 10 d; beta2 at least 1e-6
            beta1 = 2 (target_unlike - target_alike) (s_low + beta2) (s_high + beta2) / d
            beta3 = 2 target_alike - beta1 / (s_high + beta2)

        floor = 2 target_alike and cap = 2 target_unlike keep delta positive and bounded outside
        the quantiles. Where s_mid is at or above the middle of the quantiles, the curve is nearly
        a straight line, and its target at s_mid is below midway. For targets in win
        probabilities, `target_alike=pcrm.margin_of(0.7)`.

        Warns where most pairs get nearly one target, within 10 % of the range of either end.

        Args:
            similarities: The priors of the training pairs, in [0, 1]: a sequence, an array
                or a tensor of one dimension.
            target_alike: The margin wanted for alike pairs, greater than 0.
            target_unlike: The margin wanted for unlike pairs, greater than `target_alike`.
            quantiles: Which similarities count as unlike and as alike; between two of them
                interpolated linearly.

        Raises:
            TypeError: a similarity, a target or a quantile that is no number, which a truth
                value, a text, a complex number and what is masked or missing are not.
            ValueError: no similarities, or one outside [0, 1] (named by its index); targets
                or quantiles out of order; similarities that are less than 1e-6 apart at the
                two quantiles: no curve has two targets there.
        """
        s = vector(similarities)
        try:
            low, high = (_check.number("quantiles", q) for q in quantiles)
        except (TypeError, ValueError):
            raise TypeError(f"quantiles are {quantiles!r}, must be two numbers") from None
        wanted = Targets(target_alike, target_unlike)
        if not 0 <= low < high <= 1:
            raise ValueError(f"quantiles are ({low}, {high}), must be 0 <= low < high <= 1")
        if len(s) == 0:
            raise ValueError("similarities are empty, must be at least one number")
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
        """Warn where the median pair's target is as good as one of the two of a fit."""
        target, near = self.target(middle), (wanted.unlike - wanted.alike) / 10
        if wanted.alike + near < target < wanted.unlike - near:
            return
        half, end = ("least", wanted.alike) if target <= wanted.alike + near else ("most", wanted.unlike)
        warnings.warn(
            f"most pairs get a target near {end:.4g}, as half of them have a similarity of at {half} {middle:.4g}: this prior "
            "hardly tells them apart. Take another prior, other quantiles or a fixed delta",
            stacklevel=3,
        )

    @property
    def is_fixed(self) -> bool:
        """Whether delta is the same for every pair, so that no prior is needed."""
        return self.beta1 == 0 and not self.is_random

    @property
    def is_random(self) -> bool:
        """Whether `delta` wants the numbers of `pcrm.priors.random_uniform`."""
        return self.low is not None or self.high is not None

    @overload
    def delta(self, s: float) -> float: ...
    @overload
    def delta(self, s: torch.Tensor) -> torch.Tensor: ...
    @overload
    def delta(self, s: Any) -> Any: ...
    def delta(self, s: Any) -> Any:
        """delta(s), of the type of s.

        Args:
            s: Similarities in [0, 1]: a float, a NumPy array or a tensor of any shape.
                A tensor of float16 or bfloat16 gives float32, as delta needs more digits
                than these have. No gradient flows through it.

        Raises:
            TypeError: s holds no floating-point numbers.
            ValueError: a similarity is NaN or outside [0, 1], named by its index (checked on
                the CPU; elsewhere the check would stall the device, and torch.func's transforms,
                torch.jit.trace and torch.compile allow no look at values).
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
            raise TypeError(f"s is a {type(s).__name__}, must be a float, a NumPy array or a tensor")
        result = self._of_array(_check.array("similarities", s))
        return result if isinstance(s, np.ndarray) else result[()]

    @overload
    def target(self, s: float) -> float: ...
    @overload
    def target(self, s: torch.Tensor) -> torch.Tensor: ...
    @overload
    def target(self, s: Any) -> Any: ...
    def target(self, s: Any) -> Any:
        """delta(s) / 2, the margin at which the loss of such a pair is least."""
        return self.delta(s) / 2

    def _curve(self, s: Any, at_least: Callable[..., Any], at_most: Callable[..., Any]) -> Any:
        """delta of a float or an array in range. `at_least` and `at_most` are `max` and `min` for it."""
        if self.low is not None and self.high is not None:
            return self.low + (self.high - self.low) * s
        delta = self.beta1 / (s + self.beta2) + self.beta3
        delta = delta if self.floor is None else at_least(delta, self.floor)
        return delta if self.cap is None else at_most(delta, self.cap)

    def _of_float(self, s: float) -> float:
        if s + self.beta2 or self.is_random:
            return self._curve(s, max, min)
        import numpy as np

        return float(self._of_array(np.asarray(s, np.float64)))  # which divides by 0 as IEEE 754 has it

    def _of_array(self, s: np.ndarray) -> np.ndarray:
        """In float64, rounded once, as Go does it."""
        import numpy as np

        if s.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"similarities have dtype {s.dtype}, must be floating point of at most 64 bits")
        check_range(s.ravel())
        with np.errstate(divide="ignore", invalid="ignore"):
            delta = self._curve(s.astype(np.float64), np.maximum, np.minimum)
        # Even for one number an array. float16 has too few digits for delta.
        return np.asarray(delta).astype(np.float64 if s.dtype == np.float64 else np.float32)

    @functools.cached_property
    def numbers(self) -> array[float]:
        """What the bridge reads; 0 is Go's word for none."""
        return array("d", [getattr(self, n) or 0.0 for n in _NUMBERS])


def constraint_of(
    given: Mapping[str, Any], task: Task = "reward", prefix: str = ""
) -> tuple[str, Constraint | Targets]:
    """The prior and the constraint that settings describe, by the rules of `pcrm.settings.resolve`.

    Targets are not a constraint yet: `Config.fitted` makes one of them.

    Args:
        given: Values by name; None counts as not given.
        task: What is trained, "reward" or "dpo".
        prefix: What messages put before a setting's name, such as `pcrm_`.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: settings that break a rule, or a value out of range.
    """
    prior, values = resolve(given, task, prefix)
    try:
        return prior, Targets.of(values) if TARGETS & values.keys() else _made_of(values)
    except (TypeError, ValueError) as error:
        # A message begins with the setting's name, or with delta, which the betas may have made.
        own = str(error).split(" ")[0] in given
        raise type(error)(f"{prefix if own else ''}{error}") from None


def _made_of(values: Mapping[str, Any]) -> Constraint:
    if "delta" in values:
        return Constraint.fixed(**values)
    return Constraint.random(**values) if "low" in values else Constraint(**values)
