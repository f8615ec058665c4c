"""The fields `pcrm_*` of the constraint, for the configuration of any trainer."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..settings import COMPUTED_PRIORS, SETTINGS, Config, Task, settings_of


@dataclass
class ConstraintArguments:
    """The constraint of a trainer, delta(s) = beta1 / (s + beta2) + beta3: where s comes from, and the betas.

    Parameters:
        pcrm_prior:
            What the similarity of two responses is. By default it is the preset's, or without a
            preset `"length_ratio"`: `"length_ratio"` of their token ids, in the
            collator; `"cosine"` of their embeddings by `pcrm_prior_model` and `"lexical"` of their
            n-grams, both before training; `"column"` for the data set's column `prior`, numbers
            in [0, 1]; `"fixed"` for a delta that is the same for all; `"random"` for one drawn
            for each pair. Where this is not set, a data set that has a column `prior` uses that.
            Prefer `"lexical"` or `"cosine"` where the data have texts: the length ratio needs nothing, but
            makes models favor long responses more.
            A column beside `"length_ratio"`, `"cosine"` or `"lexical"` is refused, unless `pcrm prior`
            recorded that it is this prior and `pcrm reward` or `pcrm dpo` read the file.
        pcrm_prior_model:
            The encoder of the cosine: a checkpoint of sentence-transformers, transformers or model2vec. Static
            encoders are the fast ones.
        pcrm_preset:
            A published setting, such as `"alpaca/length_ratio"`.
        pcrm_beta1, pcrm_beta2, pcrm_beta3:
            The betas. Each value that is given overrides the preset's; without a preset, that of
            `"alpaca/<prior>"` for reward models and `"dpo/<prior>"` for DPO. The priors `"lexical"` and
            `"column"` have no published betas, so beta1 and beta3 are given together.
        pcrm_floor, pcrm_cap:
            Least and greatest delta.
        pcrm_target_alike, pcrm_target_unlike:
            The margins wanted for alike and for unlike pairs, in the place of betas, floor and cap; 1 and
            3 by default, where there is no preset and no value of a curve. The trainer fits these to the training data with `pcrm.Constraint.fit`, logs the curve and
            writes it into `pcrm.toml` in the output folder.
        pcrm_win_alike, pcrm_win_unlike:
            The same as win probabilities: 0.73 is a margin of 1.
        pcrm_delta:
            The delta of the fixed prior; `inf` trains the stock loss.
        pcrm_low, pcrm_high:
            The bounds of the random prior's delta.
        pcrm_seed:
            The seed of the random prior, 0 by default. The seed and the pair's token ids alone
            determine a delta, so the trainer's own `seed` does not change it.
        pcrm_config:
            A TOML file with all of these settings, as `pcrm fit` writes it and
            `pcrm.settings.load_config` reads it.
    """

    pcrm_prior: str | None = field(
        default=None,
        metadata={
            "help": "Similarity of two responses: 'length_ratio' (the default) of their token ids, 'cosine' of their embeddings, "
            "'lexical' of their n-grams, 'column' for the data set's column 'prior', 'fixed' for one delta, 'random' "
            "for a random one. Prefer 'lexical' or 'cosine': models trained with 'length_ratio' favor long responses more.",
        },
    )
    pcrm_prior_model: str | None = field(
        default=None,
        metadata={"help": "The encoder of pcrm_prior='cosine': a checkpoint's path or name, such as a static one."},
    )
    pcrm_preset: str | None = field(
        default=None,
        metadata={"help": "A published setting, such as 'alpaca/length_ratio' or 'dpo/length_ratio'."},
    )
    pcrm_beta1: float | None = field(default=None, metadata={"help": "beta1 of delta = beta1 / (s + beta2) + beta3."})
    pcrm_beta2: float | None = field(default=None, metadata={"help": "beta2 of delta = beta1 / (s + beta2) + beta3."})
    pcrm_beta3: float | None = field(default=None, metadata={"help": "beta3 of delta = beta1 / (s + beta2) + beta3."})
    pcrm_floor: float | None = field(default=None, metadata={"help": "Least delta."})
    pcrm_cap: float | None = field(default=None, metadata={"help": "Greatest delta."})
    pcrm_target_alike: float | None = field(
        default=None,
        metadata={
            "help": "Margin wanted for alike pairs, 1 by default: betas, floor and cap are fitted to the training data."
        },
    )
    pcrm_target_unlike: float | None = field(
        default=None, metadata={"help": "Margin wanted for unlike pairs, 3 by default."}
    )
    pcrm_win_alike: float | None = field(
        default=None, metadata={"help": "'pcrm_target_alike' as a win probability, such as 0.73."}
    )
    pcrm_win_unlike: float | None = field(
        default=None, metadata={"help": "'pcrm_target_unlike' as a win probability, such as 0.95."}
    )
    pcrm_delta: float | None = field(
        default=None, metadata={"help": "The delta of pcrm_prior='fixed'; inf trains the stock loss."}
    )
    pcrm_low: float | None = field(default=None, metadata={"help": "Least delta of pcrm_prior='random'."})
    pcrm_high: float | None = field(default=None, metadata={"help": "Greatest delta of pcrm_prior='random'."})
    pcrm_seed: int | None = field(default=None, metadata={"help": "Seed of pcrm_prior='random', 0 by default."})
    pcrm_config: str | None = field(
        default=None, metadata={"help": "A TOML file with the settings of the constraint, as 'pcrm fit' writes it."}
    )
    _pcrm_task: ClassVar[Task] = "reward"
    # What `pcrm prior` recorded that the column `prior` of the training data is, which our commands read.
    _pcrm_recorded: ClassVar[str | None] = None

    @property
    def pcrm_asked_prior(self) -> str | None:
        """The field that asks for a prior that is computed, with its value; None where a column would do."""
        if self.pcrm_config is not None or (prior := self.pcrm_settings().prior) not in COMPUTED_PRIORS:
            return None
        if prior == self._pcrm_recorded:
            return None
        for name in ("pcrm_prior", "pcrm_preset"):
            if (value := getattr(self, name)) is not None:
                return f"{name}={value!r}"
        return None

    def pcrm_settings(self) -> Config:
        """The settings that the fields describe.

        Raises:
            TypeError: a field is of another kind.
            ValueError: a field is unknown, out of range or contradicts another one.
            OSError: `pcrm_config` cannot be read.
        """
        settings = self._resolved()
        if settings.form != "pair":
            raise ValueError(f"form in {self.pcrm_config} must be 'pair' here, got {settings.form!r}")
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
                f"pcrm_prior_model is {self.pcrm_prior_model!r}, which pcrm_prior={settings.prior!r} does not use: set {where}"
            )
        return settings


def given(config: Any) -> list[str]:
    """The names of the fields `pcrm_*` of a configuration that are not as they are by default."""
    return [
        f.name
        for f in dataclasses.fields(config)
        if f.name.startswith("pcrm_") and getattr(config, f.name) != f.default
    ]


def hint(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the known one that is near it, or nothing."""
    scores = {other: difflib.SequenceMatcher(None, name, other).ratio() for other in known}
    # Of several that are as near the first: of pcrm_betal it is beta1, not beta3.
    near = min(scores, key=lambda other: (-scores[other], other), default="")
    return f": did you mean {near}?" if scores.get(near, 0) >= 0.8 else ""


def merged(value: Any, of_file: float, default: float | None, contradiction: str) -> Any:
    """The value of a setting that a trainer's own arguments and a `pcrm.toml` have: the file's, unless only they set it.

    Args:
        value: That of the arguments.
        of_file: That of the file, or its default.
        default: That of the arguments; None counts as 0.
        contradiction: The message where both are set.

    Raises:
        ValueError: both are set, and differ.
    """
    if of_file in (default or 0.0, value):
        return value
    if value != default:
        raise ValueError(contradiction)
    return of_file
