"""The configuration fields `pcrm_*`, for any trainer."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..settings import COMPUTED_PRIORS, SETTINGS, Config, Task, settings_of


@dataclass
class ConstraintArguments:
    """Configure the constraint of a trainer, delta(s) = beta1 / (s + beta2) + beta3: the similarity s and the betas.

    Parameters:
        pcrm_prior:
            Similarity of the two responses of a pair. The default is the preset's prior, or `"length_ratio"` without
            a preset. `"length_ratio"` compares token counts, in the collator. `"cosine"` compares embeddings by
            `pcrm_prior_model`, and `"lexical"` compares n-grams; both are computed before training. `"column"` reads
            the data set's column `prior`, numbers in [0, 1]. `"fixed"` uses one delta for all pairs, `"random"` draws
            one for each pair. If this is not set and the data set has a column `prior`, that column is used.
            Prefer `"lexical"` or `"cosine"` if your data are texts: `"length_ratio"` needs nothing, but models
            trained with it favor long responses more.
            A column `prior` together with `"length_ratio"`, `"cosine"` or `"lexical"` is an error, unless `pcrm prior`
            recorded that the column holds this prior and `pcrm reward` or `pcrm dpo` read the file.
        pcrm_prior_model:
            Encoder for `"cosine"`: a checkpoint of sentence-transformers, transformers or model2vec. Static encoders
            are the fastest.
        pcrm_preset:
            A published setting, such as `"alpaca/length_ratio"`.
        pcrm_beta1, pcrm_beta2, pcrm_beta3:
            The betas. Each given value overrides the preset's. Without a preset, missing values come from
            `"alpaca/<prior>"` for reward models and `"dpo/<prior>"` for DPO. `"lexical"` and `"column"` have no
            published betas, so give both beta1 and beta3.
        pcrm_floor, pcrm_cap:
            Smallest and largest delta.
        pcrm_target_alike, pcrm_target_unlike:
            Target margins for similar and for dissimilar pairs, instead of betas, floor and cap. The default is 1 and
            3 if there is no preset and no value of a curve. The trainer fits a curve to the training data with
            `pcrm.Constraint.fit`, logs it, and writes it to `pcrm.toml` in the output folder.
        pcrm_win_alike, pcrm_win_unlike:
            The same targets as win probabilities: 0.73 is a margin of 1.
        pcrm_delta:
            Delta of the prior `"fixed"`; `inf` trains the stock loss.
        pcrm_low, pcrm_high:
            Bounds of delta for the prior `"random"`.
        pcrm_seed:
            Seed of the prior `"random"`, 0 by default. A delta depends only on this seed and the pair's token ids,
            so the trainer's own `seed` does not change it.
        pcrm_config:
            A TOML file with all of these settings, as `pcrm fit` writes it and `pcrm.settings.load_config` reads it.
    """

    pcrm_prior: str | None = field(
        default=None,
        metadata={
            "help": "Similarity of the two responses: 'length_ratio' (default; token counts), 'cosine' (embeddings), 'lexical' "
            "(n-grams), 'column' (the data set's column 'prior'), 'fixed' (one delta for all pairs) or 'random'. "
            "Prefer 'lexical' or 'cosine': models trained with 'length_ratio' favor long responses more.",
        },
    )
    pcrm_prior_model: str | None = field(
        default=None,
        metadata={
            "help": "Encoder for pcrm_prior='cosine': path or name of a checkpoint. Static encoders are the fastest."
        },
    )
    pcrm_preset: str | None = field(
        default=None,
        metadata={"help": "Published setting, such as 'alpaca/length_ratio' or 'dpo/length_ratio'."},
    )
    pcrm_beta1: float | None = field(default=None, metadata={"help": "beta1 of delta = beta1 / (s + beta2) + beta3."})
    pcrm_beta2: float | None = field(default=None, metadata={"help": "beta2 of delta = beta1 / (s + beta2) + beta3."})
    pcrm_beta3: float | None = field(default=None, metadata={"help": "beta3 of delta = beta1 / (s + beta2) + beta3."})
    pcrm_floor: float | None = field(default=None, metadata={"help": "Smallest delta."})
    pcrm_cap: float | None = field(default=None, metadata={"help": "Largest delta."})
    pcrm_target_alike: float | None = field(
        default=None,
        metadata={
            "help": "Target margin for similar pairs (default: 1). Betas, floor and cap are fitted to the training data."
        },
    )
    pcrm_target_unlike: float | None = field(
        default=None, metadata={"help": "Target margin for dissimilar pairs (default: 3)."}
    )
    pcrm_win_alike: float | None = field(
        default=None, metadata={"help": "'pcrm_target_alike' as a win probability, such as 0.73."}
    )
    pcrm_win_unlike: float | None = field(
        default=None, metadata={"help": "'pcrm_target_unlike' as a win probability, such as 0.95."}
    )
    pcrm_delta: float | None = field(
        default=None, metadata={"help": "Delta of pcrm_prior='fixed'; inf trains the stock loss."}
    )
    pcrm_low: float | None = field(default=None, metadata={"help": "Smallest delta of pcrm_prior='random'."})
    pcrm_high: float | None = field(default=None, metadata={"help": "Largest delta of pcrm_prior='random'."})
    pcrm_seed: int | None = field(default=None, metadata={"help": "Seed of pcrm_prior='random' (default: 0)."})
    pcrm_config: str | None = field(
        default=None, metadata={"help": "TOML file with the settings of the constraint, as written by 'pcrm fit'."}
    )
    _pcrm_task: ClassVar[Task] = "reward"
    _pcrm_encoder: ClassVar[str] = "pcrm_prior_model"  # its name in messages
    # The prior that `pcrm prior` recorded for the column `prior` of the training data. Only our commands read it.
    _pcrm_recorded: ClassVar[str | None] = None

    @property
    def pcrm_asked_prior(self) -> str | None:
        """The field that asks for a computed prior, with its value; None if a column `prior` would be accepted."""
        if self.pcrm_config is not None or (prior := self.pcrm_settings().prior) not in COMPUTED_PRIORS:
            return None
        if prior == self._pcrm_recorded:
            return None
        for name in ("pcrm_prior", "pcrm_preset"):
            if (value := getattr(self, name)) is not None:
                return f"{name}={value!r}"
        return None

    def pcrm_settings(self) -> Config:
        """Return the settings that the fields describe.

        Raises:
            TypeError: A field has the wrong type.
            ValueError: A field is unknown, out of range or contradicts another one.
            OSError: `pcrm_config` cannot be read.
        """
        settings = self._resolved()
        if settings.form != "pair":
            raise ValueError(f"form in {self.pcrm_config} must be 'pair' for this trainer, got {settings.form!r}")
        return settings

    def _resolved(self, form: str | None = None) -> Config:
        settings = settings_of(
            {name: getattr(self, f"pcrm_{name}") for name in SETTINGS},
            self._pcrm_task,
            config=self.pcrm_config,
            form=form,
            prefix="pcrm_",
        )
        if self.pcrm_prior_model is not None and settings.prior != "cosine":
            where = "pcrm_prior='cosine'" if self.pcrm_config is None else f"prior = 'cosine' in {self.pcrm_config}"
            raise ValueError(
                f"{self._pcrm_encoder} must not be set with the prior {settings.prior!r}, got {self.pcrm_prior_model!r}: remove it, "
                f"or set {where}"
            )
        return settings


def given(config: Any) -> list[str]:
    """The names of the fields `pcrm_*` of a configuration that differ from their defaults."""
    return [
        f.name
        for f in dataclasses.fields(config)
        if f.name.startswith("pcrm_") and getattr(config, f.name) != f.default
    ]


def hint(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the most similar known name, or an empty string."""
    scores = {other: difflib.SequenceMatcher(None, name, other).ratio() for other in known}
    # Ties go to the alphabetically first name: pcrm_betal suggests beta1, not beta3.
    near = min(scores, key=lambda other: (-scores[other], other), default="")
    return f": did you mean {near}?" if scores.get(near, 0) >= 0.8 else ""


def merged(value: Any, of_file: float, default: float | None, contradiction: str) -> Any:
    """Merge a setting that both the trainer's own arguments and a `pcrm.toml` may contain.

    Args:
        value: Value in the arguments.
        of_file: Value in the file, or its default.
        default: Default of the arguments; None counts as 0.
        contradiction: Error message if both are set and differ.

    Returns:
        The value of the file, unless only the arguments set one.

    Raises:
        ValueError: Both are set, and differ.
    """
    if of_file in (default or 0.0, value):
        return value
    if value != default:
        raise ValueError(contradiction)
    return of_file
