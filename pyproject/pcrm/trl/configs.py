"""The trainers' configurations: TRL's own plus the fields of the constraint."""

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
            `"pair"` (default) computes the loss from the scores of each pair. `"token"` computes the loss of the
            authors' code from the scores of all tokens; the model needs a module `score` that returns them.
        pcrm_sft_eta:
            Weight eta of a demonstration term: the mean negative log-likelihood of the chosen responses' tokens is added
            to the loss, L + eta * NLL (docs/sft.md; arXiv 2405.16436 and 2406.06874). DPO uses TRL's loss `sft` with
            that weight. A reward model needs a language-model head next to its score.
        pcrm_priority_alpha:
            If greater than 0, pairs are drawn with probability proportional to |dL/dm| ** alpha, as last computed, with
            importance weights that keep the gradient unbiased: `pcrm.methods.prioritized.PrioritizedSampler`.
        pcrm_priority_epsilon:
            Fraction of uniform draws; the weights are at most 1 / epsilon.
        pcrm_priority_samples:
            Number of draws per epoch; the priorities are updated after each epoch. The default is the number of pairs.
        pcrm_prefix_sharing:
            Whether to compute common beginnings of a batch's rows, such as the prompt of a pair, only once:
            `pcrm.prefix_sharing`. The results are the same up to rounding.
        pcrm_ranking_weights:
            `"prompt"` counts each prompt once, however many comparisons it has; `"pair"` counts each comparison once.
            The default is `"prompt"` for rankings (rows with `prompt`, `responses` and `ratings` or `ranks`) and
            `"pair"` for pairs.
        pcrm_group_by_prompt:
            Whether the pairs of a prompt are put into the same batch if they fit, with the prompts shuffled, so that
            `pcrm_prefix_sharing` computes each response once per batch. The default is True for rankings and False for pairs.
        pcrm_log_margins:
            Whether each log writes a histogram of the margins (chosen minus rejected; z for DPO) of all pairs since the
            last log to TensorBoard: `pcrm/margins` in training and `eval/pcrm/margins` in evaluation, or
            `eval/NAME/pcrm/margins` if there are several evaluation sets. Requires `report_to="tensorboard"`.
    """

    pcrm_form: str | None = field(
        default=None,
        metadata={
            "help": "'pair' (default): loss on the scores of each pair; 'token': loss on the scores of all tokens."
        },
    )
    pcrm_sft_eta: float = field(
        default=0.0,
        metadata={"help": "Weight of the chosen responses' mean negative log-likelihood in the loss (default: 0)."},
    )
    pcrm_priority_alpha: float = field(
        default=0.0,
        metadata={
            "help": "Draw pairs in proportion to this power of the slope of their loss, with importance weights (default: 0, TRL's order)."
        },
    )
    pcrm_priority_epsilon: float = field(
        default=0.1, metadata={"help": "Fraction of uniform draws with 'pcrm_priority_alpha'."}
    )
    pcrm_priority_samples: int | None = field(
        default=None, metadata={"help": "Draws per epoch with 'pcrm_priority_alpha' (default: the number of pairs)."}
    )
    pcrm_prefix_sharing: bool = field(
        default=False,
        metadata={"help": "Whether to compute the prompt of a pair once for both responses."},
    )
    pcrm_ranking_weights: str | None = field(
        default=None,
        metadata={
            "help": "'prompt' counts each prompt once (default for rankings), 'pair' counts each comparison once (default for pairs)."
        },
    )
    pcrm_group_by_prompt: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the pairs of a prompt are put into the same batch (default: True for rankings, False for pairs)."
        },
    )
    pcrm_log_margins: bool = field(
        default=False,
        metadata={"help": "Whether to write a histogram of the margins to TensorBoard at each log."},
    )

    @property
    def pcrm_enabled(self) -> bool:
        """Whether the loss is pcrm's. False only if `enable` put the class behind TRL's name and no constraint is asked for."""
        return True

    def pcrm_settings(self) -> Config:
        self._check_training()
        settings = self._resolved(self.pcrm_form)
        if self.pcrm_priority_alpha and settings.form == "token":
            raise ValueError(
                f"pcrm_priority_alpha must be 0 with pcrm_form='token', got {self.pcrm_priority_alpha}: a pair has no single "
                "slope in the token form"
            )
        if self.pcrm_prefix_sharing and settings.form == "token":
            raise ValueError(
                "pcrm_prefix_sharing must be False with pcrm_form='token', got True: the token form reads the scores of padding "
                "tokens too, which shared rows do not have"
            )
        return settings

    def _check_training(self) -> None:
        """Check the fields that do not define the constraint."""
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
                "each draws and weights the pairs in its own way"
            )
        # Losses that the weights would not reach, and another sampler.
        for name, allowed in (
            ("pcrm_sft_eta", 0.0),
            ("loss_type", ["pcrm"]),
            ("train_sampling_strategy", "random"),
        ):
            if (value := getattr(self, name, allowed)) != allowed:
                raise ValueError(f"{name} must be {allowed!r} with pcrm_priority_alpha={alpha}, got {value!r}")

    def pcrm_constraint(self) -> Constraint:
        """The constraint of `pcrm_settings`.

        Raises:
            ValueError: The settings contain targets, which must be fitted to data first. A trainer's attribute `constraint`
                holds the result.
        """
        constraint = self.pcrm_settings().constraint
        if isinstance(constraint, Targets):
            raise ValueError(
                f"the constraint must be fitted to the training data first, got {constraint}: use the trainer's attribute "
                "`constraint`"
            )
        return constraint

    def _check_log_margins(self) -> None:
        if not self.pcrm_log_margins:
            return
        report_to: Any = getattr(self, "report_to", None)
        if "tensorboard" not in report_to:
            raise ValueError(
                f"report_to must contain 'tensorboard' with pcrm_log_margins=True, which writes histograms to it, got {report_to}"
            )
        if not is_tensorboard_available():
            raise ImportError("pcrm_log_margins=True requires tensorboard: pip install tensorboard")

    def _merged(self, name: str, of_file: float, default: float | None) -> None:
        """Set TRL's field of this name from the file, unless both are set."""
        value = getattr(self, name)
        contradiction = f"{name} must be {of_file}, as in {self.pcrm_config}, or left out, got {value}"
        setattr(self, name, merged(value, of_file, default, contradiction))


@dataclass
class PCRMRewardConfig(PCRMArguments, RewardConfig):
    """`trl.RewardConfig` plus the fields of the constraint, which are validated at construction."""

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
                f"center_rewards_coefficient must be 0 with pcrm_form='token', which does not use it, got "
                f"{self.center_rewards_coefficient}"
            )
        warn_of_smoothing(settings.label_smoothing, settings.constraint)

    def _keep_forward_from_liger(self) -> None:
        """Disable the part of Liger that replaces the forward pass with a language model's, as TRL does for DPO."""
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
    """`trl.DPOConfig` with the loss type `pcrm` as default, plus the fields of the constraint, which are validated at
    construction.

    Mix `pcrm` with TRL's other losses through `loss_type` and `loss_weights`: `["pcrm", "sft"]` with the weights
    `[1.0, eta]` is the SFT-regularized form, and `pcrm_sft_eta` is a shorthand for it. `beta`, `ld_alpha` and
    `f_divergence_type` are TRL's.

    With `label_smoothing` and an infinite delta, `pcrm` is conservative DPO, whereas TRL's `sigmoid` ignores
    `label_smoothing`. In a mix with `exo_pair` or `robust`, only these use it, and `pcrm` ignores it.

    `use_weighting` is an error, and so is `use_liger_kernel` before trl 1.14, where TRL's Liger path computes its own
    loss.
    """

    __doc__ = f"{__doc__}\n{PCRMArguments.__doc__}"

    loss_type: list[str] = field(
        default_factory=lambda: ["pcrm"],
        metadata={
            "help": "Type of loss to use: 'pcrm', alone or mixed with TRL's losses: 'sigmoid', 'hinge', 'ipo', 'exo_pair', "
            "'nca_pair', 'robust', 'bco_pair', 'sppo_hard', 'aot', 'aot_unpaired', 'apo_zero', 'apo_down', 'discopop', "
            "'sft', 'sigmoid_norm'. Several losses are combined with the weights in 'loss_weights'."
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
                f"loss_type must contain 'pcrm' exactly once, got {self.loss_type}: to use only TRL's losses, use trl.DPOConfig"
            )
        self._check_log_margins()
        settings = self.pcrm_settings()
        self._add_sft()
        if settings.label_smoothing and self._smoothed_by_trl():
            raise ValueError(
                f"label_smoothing in {self.pcrm_config} must be 0 with loss_type {self.loss_type}, got "
                f"{settings.label_smoothing}: {' and '.join(self._smoothed_by_trl())} would use it too. Set the field "
                "label_smoothing instead"
            )
        if settings.form == "token":
            raise ValueError("pcrm_form must be 'pair' for DPO, which has no token scores, got 'token'")
        self._merged("label_smoothing", settings.label_smoothing, 0.0)
        self._merged("beta", settings.dpo_beta, 0.1)
        _check.label_smoothing(self.label_smoothing)
        _check.positive("beta", self.beta)
        if self.use_weighting:
            raise ValueError(
                "use_weighting must be False with loss_type 'pcrm', got True: it weights only TRL's losses"
            )
        if self.use_liger_kernel and hasattr(DPOTrainer, "_compute_loss_liger"):
            raise ValueError(
                "use_liger_kernel must be False with this version of TRL, where it replaces pcrm's loss, got True: upgrade to "
                "trl 1.14 or newer, or leave it out"
            )
        warn_of_smoothing(self._pcrm_label_smoothing, settings.constraint)

    def _smoothed_by_trl(self) -> list[str]:
        """The losses in the mix for which TRL's `label_smoothing` is a parameter of their own."""
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
                f"pcrm_sft_eta must equal the weight of 'sft' in loss_weights, got {self.pcrm_sft_eta} with loss_type "
                f"{self.loss_type} and the weights {weights}: set it in one place"
            )
