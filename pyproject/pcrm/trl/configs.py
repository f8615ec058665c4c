"""The trainers' configurations: TRL's own with the fields of the constraint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers.integrations import is_tensorboard_available
from trl import DPOConfig, DPOTrainer, RewardConfig

from .. import _check
from ..losses import warn_of_smoothing
from ..methods.prioritized import check_draws
from ..settings import Config, Constraint, Targets, Task
from ..training.arguments import ConstraintArguments, merged


@dataclass
class PCRMArguments(ConstraintArguments):
    __doc__ = f"""{(ConstraintArguments.__doc__ or "").rstrip()}
        pcrm_form:
            `"pair"`, the default, for the loss of each pair's scores; `"token"` for that of the authors' code,
            over the scores of all tokens, with a model whose module `score` gives them.
        pcrm_sft_eta:
            Weight eta of a demonstration term, the mean negative log-likelihood of the chosen
            responses' tokens, which joins the loss: L + eta * NLL (docs/sft.md; arXiv 2405.16436
            and 2406.06874). DPO gets TRL's loss `sft` with that weight; a reward model needs a
            language-model head beside its score.
        pcrm_priority_alpha:
            Where it is greater than 0, pairs are drawn by |dL/dm| ** alpha of when they were last
            seen, and weighted so that the gradient is that of the data: `pcrm.methods.prioritized.PrioritizedSampler`.
        pcrm_priority_epsilon:
            The share of uniform draws; the weights are at most 1 / epsilon.
        pcrm_priority_samples:
            Draws in an epoch, after which the priorities are looked at anew; as many as there are
            pairs where it is not said.
        pcrm_prefix_sharing:
            Whether what the rows of a batch begin with in common, such as the prompt of a pair, goes through the model
            once: `pcrm.prefix_sharing`. The results are the same to rounding.
        pcrm_ranking_weights:
            `"prompt"`, so that each prompt counts once however many comparisons it has, or `"pair"`, so that each
            comparison does. By default `"prompt"` for rankings, rows with `prompt`, `responses` and `ratings` or `ranks`, and
            `"pair"` for pairs.
        pcrm_group_by_prompt:
            Whether all pairs of a prompt follow one another, and the prompts are shuffled, so that `pcrm_prefix_sharing`
            computes each response once for the pairs of a batch. By default it is so for rankings and not for pairs.
        pcrm_log_margins:
            Whether each log writes to TensorBoard the histogram of the margins of all pairs since
            the last one, chosen minus rejected, for DPO z: `pcrm/margins` in training,
            `eval/pcrm/margins` in evaluation, `eval/NAME/pcrm/margins` where there are several
            evaluation sets. Needs `report_to="tensorboard"`.
    """

    pcrm_form: str | None = field(
        default=None,
        metadata={
            "help": "'pair' (the default) for the loss of each pair's scores, 'token' for that of all tokens' scores."
        },
    )
    pcrm_sft_eta: float = field(
        default=0.0, metadata={"help": "Weight of the chosen responses' mean negative log-likelihood in the loss."}
    )
    pcrm_priority_alpha: float = field(
        default=0.0, metadata={"help": "Draw pairs by this power of their loss's slope, weighted; 0 for TRL's order."}
    )
    pcrm_priority_epsilon: float = field(
        default=0.1, metadata={"help": "The share of uniform draws with 'pcrm_priority_alpha'."}
    )
    pcrm_priority_samples: int | None = field(
        default=None, metadata={"help": "Draws in an epoch with 'pcrm_priority_alpha': all pairs' number by default."}
    )
    pcrm_prefix_sharing: bool = field(
        default=False,
        metadata={"help": "Whether the prompt of a pair goes through the model once for both of its responses."},
    )
    pcrm_ranking_weights: str | None = field(
        default=None,
        metadata={
            "help": "'prompt' lets each prompt count once (the default for rankings), 'pair' each comparison (the default for pairs)."
        },
    )
    pcrm_group_by_prompt: bool | None = field(
        default=None,
        metadata={
            "help": "Whether batches hold the pairs of a prompt together: by default for rankings, and not for pairs."
        },
    )
    pcrm_log_margins: bool = field(
        default=False,
        metadata={"help": "Whether to write the histogram of the margins to TensorBoard, at each log."},
    )

    @property
    def pcrm_enabled(self) -> bool:
        """Whether the loss is pcrm's: not in a configuration behind TRL's name that asks for none of this."""
        return True

    def pcrm_settings(self) -> Config:
        self._check_training()
        settings = self._resolved(self.pcrm_form)
        if self.pcrm_priority_alpha and settings.form == "token":
            raise ValueError(
                f"pcrm_priority_alpha is {self.pcrm_priority_alpha}, but a pair has no one slope in the token form"
            )
        if self.pcrm_prefix_sharing and settings.form == "token":
            raise ValueError(
                "pcrm_prefix_sharing must be False with pcrm_form='token', got True: the token form also reads the scores of "
                "padding, which shared rows do not have"
            )
        return settings

    def _check_training(self) -> None:
        """The fields that are not the constraint's."""
        _check.at_least_0("pcrm_sft_eta", self.pcrm_sft_eta)
        if self.pcrm_ranking_weights is not None:
            _check.one_of("pcrm_ranking_weights", self.pcrm_ranking_weights, ("prompt", "pair"))
        if self.pcrm_group_by_prompt and (strategy := getattr(self, "train_sampling_strategy", "random")) != "random":
            raise ValueError(
                f"train_sampling_strategy must be 'random' with pcrm_group_by_prompt=True, got {strategy!r}"
            )
        alpha = self.pcrm_priority_alpha
        names = ("pcrm_priority_alpha", "pcrm_priority_epsilon", "pcrm_priority_samples")
        check_draws(alpha, self.pcrm_priority_epsilon, self.pcrm_priority_samples, names)
        if not alpha:
            return
        if self.pcrm_group_by_prompt or self.pcrm_ranking_weights == "prompt":
            raise ValueError(
                f"pcrm_priority_alpha must be 0 with pcrm_group_by_prompt=True or pcrm_ranking_weights='prompt', got {alpha}: "
                "each would draw and weight the pairs by itself"
            )
        # What the weights would not reach, and who else would draw.
        for name, allowed in (
            ("pcrm_sft_eta", 0.0),
            ("loss_type", ["pcrm"]),
            ("train_sampling_strategy", "random"),
        ):
            if (value := getattr(self, name, allowed)) != allowed:
                raise ValueError(
                    f"pcrm_priority_alpha is {alpha}, with which {name} must be {allowed!r}, not {value!r}"
                )

    def pcrm_constraint(self) -> Constraint:
        """The constraint of `pcrm_settings`.

        Raises:
            ValueError: there are targets, which are fitted to data: a trainer's attribute `constraint` has the result.
        """
        constraint = self.pcrm_settings().constraint
        if isinstance(constraint, Targets):
            raise ValueError(
                f"the constraint must be fitted to the training data first, got {constraint}: take the attribute `constraint` "
                "of the trainer"
            )
        return constraint

    def _check_log_margins(self) -> None:
        if not self.pcrm_log_margins:
            return
        report_to: Any = getattr(self, "report_to", None)
        if "tensorboard" not in report_to:
            raise ValueError(
                f"pcrm_log_margins is True, which writes to TensorBoard, but report_to is {report_to}: "
                "add 'tensorboard' to it"
            )
        if not is_tensorboard_available():
            raise ImportError(
                "pcrm_log_margins is True, which writes to TensorBoard, and it is not installed: pip install tensorboard"
            )

    def _merged(self, name: str, of_file: float, default: float | None) -> None:
        """Let the file's setting be that of TRL's field of this name, unless both are set."""
        value = getattr(self, name)
        contradiction = f"{name} is {value}, and {self.pcrm_config} says {of_file}"
        setattr(self, name, merged(value, of_file, default, contradiction))


@dataclass
class PCRMRewardConfig(PCRMArguments, RewardConfig):
    """`trl.RewardConfig` with the constraint's fields, which are refused at construction
    where they make no constraint.
    """

    __doc__ = f"{__doc__}\n{PCRMArguments.__doc__}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pcrm_enabled:
            return
        self._check_log_margins()
        settings = self.pcrm_settings()
        coefficient = self.center_rewards_coefficient
        if coefficient is not None:
            _check.at_least_0("center_rewards_coefficient", coefficient)
        self._merged("center_rewards_coefficient", settings.center_rewards_coefficient, None)
        self._keep_forward_from_liger()
        if settings.form == "token" and self.center_rewards_coefficient:
            raise ValueError(
                f"center_rewards_coefficient is {self.center_rewards_coefficient}, which pcrm_form='token' does not use"
            )
        warn_of_smoothing(settings.label_smoothing, settings.constraint)

    def _keep_forward_from_liger(self) -> None:
        """Leave out the part of Liger that gives the model a language model's forward pass, as TRL does for DPO."""
        if not self.use_liger_kernel:
            return
        options: dict[str, Any] = dict(self.liger_kernel_config or {})
        if options.get("fused_linear_cross_entropy"):
            raise ValueError(
                "liger_kernel_config must not set 'fused_linear_cross_entropy' for a reward model, got True: it replaces the "
                "model's forward pass with that of a language model"
            )
        self.liger_kernel_config = options | {"fused_linear_cross_entropy": False}


@dataclass
class PCRMDPOConfig(PCRMArguments, DPOConfig):
    """`trl.DPOConfig` with the loss type `pcrm`, which is the default, and the constraint's
    fields, which are refused at construction where they make no constraint.

    `pcrm` mixes with TRL's other losses by `loss_type` and `loss_weights`: `["pcrm", "sft"]` with
    the weights `[1.0, eta]` is the SFT-regularized form, and `pcrm_sft_eta` writes that. `beta`,
    `ld_alpha` and `f_divergence_type` are those of TRL.

    `label_smoothing` makes `pcrm` conservative DPO where delta is infinite, unlike TRL's
    `sigmoid`, which ignores it. In a mix with `exo_pair` or `robust` it is theirs alone, and
    `pcrm` ignores it.

    `use_weighting` is refused, and so is `use_liger_kernel` where TRL's Liger path computes a
    loss of its own (before trl 1.14).
    """

    __doc__ = f"{__doc__}\n{PCRMArguments.__doc__}"

    loss_type: list[str] = field(
        default_factory=lambda: ["pcrm"],
        metadata={
            "help": "Type of loss to use: 'pcrm', alone or with those of TRL: 'sigmoid', 'hinge', 'ipo', 'exo_pair', "
            "'nca_pair', 'robust', 'bco_pair', 'sppo_hard', 'aot', 'aot_unpaired', 'apo_zero', 'apo_down', 'discopop', "
            "'sft', 'sigmoid_norm'. Several are combined with the weights in 'loss_weights'."
        },
    )

    _pcrm_task: ClassVar[Task] = "dpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pcrm_enabled:
            return
        count = self.loss_type.count("pcrm")
        if count != 1:
            raise ValueError(
                f"loss_type is {self.loss_type}, must have 'pcrm' once: for TRL's losses alone take its own DPOConfig"
            )
        self._check_log_margins()
        settings = self.pcrm_settings()
        self._add_sft()
        if settings.label_smoothing and self._smoothed_by_trl():
            raise ValueError(
                f"label_smoothing in {self.pcrm_config} must be 0 with loss_type {self.loss_type}, got "
                f"{settings.label_smoothing}: {' and '.join(self._smoothed_by_trl())} would take it too. Set the field "
                "label_smoothing instead"
            )
        if settings.form == "token":
            raise ValueError("pcrm_form is 'token', but DPO has no scores of tokens: set pcrm_form='pair'")
        self._merged("label_smoothing", settings.label_smoothing, 0.0)
        self._merged("beta", settings.dpo_beta, 0.1)
        _check.label_smoothing(self.label_smoothing)
        _check.positive("beta", self.beta)
        if self.use_weighting:
            raise ValueError("use_weighting is True, which weights TRL's losses inside of TRL and would miss pcrm's")
        if self.use_liger_kernel and hasattr(DPOTrainer, "_compute_loss_liger"):
            raise ValueError(
                "use_liger_kernel is True, but with this version of TRL it computes a loss of its own in the place of "
                "pcrm's: take trl 1.14 or newer, or leave it out"
            )
        warn_of_smoothing(self._pcrm_label_smoothing, settings.constraint)

    def _smoothed_by_trl(self) -> list[str]:
        """TRL's losses in the mix whose own parameter `label_smoothing` is."""
        return [name for name in ("exo_pair", "robust") if name in self.loss_type]

    @property
    def _pcrm_label_smoothing(self) -> float:
        """The label smoothing of the loss `pcrm`: `label_smoothing`, unless it belongs to a loss of TRL."""
        return 0.0 if self._smoothed_by_trl() else self.label_smoothing

    def _add_sft(self) -> None:
        """Make `pcrm_sft_eta` the weight of TRL's loss `sft`."""
        if not self.pcrm_sft_eta:
            return
        weights = list(self.loss_weights or [1.0] * len(self.loss_type))
        if "sft" not in self.loss_type:
            self.loss_type, self.loss_weights = [*self.loss_type, "sft"], [*weights, self.pcrm_sft_eta]
        elif weights[self.loss_type.index("sft")] != self.pcrm_sft_eta:  # equal where a configuration is copied
            raise ValueError(
                f"pcrm_sft_eta is {self.pcrm_sft_eta}, and loss_type is {self.loss_type} with the weights {weights}: "
                "set the weight of 'sft' in one place"
            )
