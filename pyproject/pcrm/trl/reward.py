"""The reward trainer: `PCRMRewardTrainer.compute_loss` replaces TRL's loss with pcrm's."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import RewardTrainer

from .._engine.dtypes import Reduction
from .._engine.trace import Origin
from ..functional import pcrm_loss, pcrm_token_loss
from ..losses import delta_of
from ..settings import Targets
from .configs import PCRMRewardConfig
from .token_scores import Seen, TokenScores, language_model_head, modules_named, upcast
from .trainer import PAPER, ConstrainedTrainer


class PCRMRewardTrainer(ConstrainedTrainer, RewardTrainer):
    """`trl.RewardTrainer` with the prior-constrained loss.

    The loss is the batch mean of `pcrm.PCRMLoss`, with TRL's `center_rewards_coefficient`. With `pcrm_form="token"` it is
    `pcrm.functional.pcrm_token_loss` on the scores of all tokens. All of TRL's metrics are logged, and also these means
    over the pairs:

        pcrm/prior          similarity of the two responses
        pcrm/delta          ceiling of the margin
        pcrm/target         delta / 2, the margin where the loss is smallest
        pcrm/residual       margin - delta / 2
        pcrm/over_target    fraction of pairs with a margin above delta / 2
        pcrm/violation      fraction of pairs with a margin above delta

    `pcrm/delta_median` and `pcrm/target_median` are logged too, and `pcrm/pull`, the strength of the constraint relative to
    the ranking: the sum of sigmoid(margin - delta) divided by the sum of sigmoid(-margin). Pairs with an infinite delta
    have no target, so they count only for `pcrm/violation`, `pcrm/pull` and `pcrm/prior`. If the constraint does not
    bind, the trainer warns about it once.

    `pcrm_sft_eta` adds eta times a demonstration term, which is logged as `pcrm/nll`:

        NLL = -(1 / T) sum over the batch's T tokens y_t of the chosen responses of log p(y_t | preceding tokens)

    Here p is the model's language-model head applied to the hidden states that `score` reads, and a response starts where
    the two responses of its pair first differ (docs/sft.md). The head is the model's module `lm_head`, or its embeddings
    if its configuration ties them.

    A data set's column `margin` works as in TRL if delta is infinite. Otherwise it is an error, because it would shift the
    margin that the constraint bounds.
    """

    _tag_names = ["trl", "reward-trainer", "pcrm"]  # noqa: RUF012  (TRL's own form)
    _name = "PCRM"
    config_class = PCRMRewardConfig
    _paper = PAPER

    def __init__(self, model: Any, args: Any = None, *rest: Any, **kwargs: Any) -> None:
        args = self._read(args, model)
        super().__init__(model, args, *rest, **kwargs)
        if not self.constrained:
            return
        self._center: float = args.center_rewards_coefficient or 0.0
        self._eta: float = args.pcrm_sft_eta
        if self.settings.form == "token":
            self._check_token_form()
        if self._eta:
            self._check_demonstrations()
        head = language_model_head(self.model) if self._eta else None
        self._token_scores = TokenScores(head) if self._eta or self.settings.form == "token" else None
        self._finish(args)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if self.constrained and "margin" in (dataset.column_names or ()) and "responses" not in dataset.column_names:
            self._refuse_margin()
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self.constrained:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs, added = self._unpack(inputs)  # whatever stays reaches model(**inputs)
        margin_column = inputs.get("margin")
        if margin_column is not None:
            self._refuse_margin()
        with self._reading(inputs) as seen:
            # TRL's own pass, for its metrics. Its loss is not used; there is no second forward pass.
            result: Any = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        outputs = result[1]
        chosen, rejected = upcast(outputs.logits.squeeze(-1)).chunk(2)
        delta, origin = delta_of(self.constraint, added.prior)
        if self.settings.form == "token":
            assert seen.scores is not None
            losses = self._token_loss(seen.scores, inputs, delta, added.reduction, origin)
        else:
            # Shifting each score by half of the margin changes their difference by all of it, and leaves their sum, which
            # is centered, unchanged.
            shift = 0.0 if margin_column is None else margin_column / 2
            losses = pcrm_loss(
                chosen - shift,
                rejected + shift,
                delta,
                label_smoothing=self.settings.label_smoothing,
                center_rewards_coefficient=self._center,
                reduction=added.reduction,
                origin=origin,
            )

        def slopes() -> torch.Tensor:
            # The centering term adds the same to both, so it cancels in the difference.
            by_chosen, by_rejected = torch.autograd.grad(losses.sum(), (chosen, rejected), retain_graph=True)
            return (by_chosen - by_rejected) / 2

        loss = self._mean(losses, added, slopes)
        if seen.demonstrations is not None:
            by_pair, tokens = seen.demonstrations
            # If all pairs have equal responses, there are no tokens: avoid NaN.
            loss = loss + self._eta * by_pair.sum() / tokens.sum().clamp(min=1)
        self._add_metrics(chosen.detach() - rejected.detach(), delta, added.prior, seen.demonstrations)
        return (loss, outputs) if return_outputs else loss

    def _reading(self, inputs: dict[str, Any]) -> contextlib.AbstractContextManager[Seen]:
        reader = self._token_scores
        return contextlib.nullcontext(Seen()) if reader is None else reader.reading(self.model, inputs)

    def _refuse_margin(self) -> None:
        constraint = self.settings.constraint
        if isinstance(constraint, Targets) or constraint.delta(1.0) < math.inf or self.settings.form == "token":
            raise ValueError(
                "the data set must not have a column 'margin', which would shift the margin that the constraint bounds, got one: "
                "remove it, or train with pcrm_prior='fixed', pcrm_delta=inf and pcrm_form='pair'"
            )

    def _check_token_form(self) -> None:
        if not modules_named(self.model, "score"):
            raise ValueError(
                f"model must have a module 'score' that scores each token with pcrm_form='token', got {type(self.model).__name__} "
                "without one"
            )
        if self.is_fsdp_enabled:
            # FSDP's hooks are on the output of the whole model, which the token loss does not use.
            raise ValueError("pcrm_form must be 'pair' with FSDP, got 'token'")

    def _check_demonstrations(self) -> None:
        if not modules_named(self.model, "score"):
            raise ValueError(
                f"model must have a module 'score' that reads the states of all tokens with pcrm_sft_eta={self._eta}, got "
                f"{type(self.model).__name__} without one"
            )
        language_model_head(self.model)
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            # The head may hold only a shard of its weights when it is called outside the model.
            raise ValueError(f"pcrm_sft_eta must be 0 for reward models with FSDP or ZeRO-3, got {self._eta}")

    def _token_loss(
        self,
        scores: torch.Tensor,
        inputs: dict[str, Any],
        delta: torch.Tensor | float,
        reduction: Reduction,
        origin: Origin,
    ) -> torch.Tensor:
        ids, scores = inputs["input_ids"], upcast(scores.squeeze(-1))
        if scores.shape != ids.shape:
            raise RuntimeError(
                f"the module 'score' must return one score per token, shape {tuple(ids.shape)}, got {tuple(scores.shape)}: "
                "pcrm_form='token' does not work with this model"
            )
        # Use the masks, not the pad token, which also ends turns if it equals eos.
        (chosen, rejected), (chosen_ids, rejected_ids) = scores.chunk(2), ids.chunk(2)
        chosen_mask, rejected_mask = inputs["attention_mask"].chunk(2)
        masks = {"chosen_mask": chosen_mask, "rejected_mask": rejected_mask}
        return pcrm_token_loss(
            chosen, rejected, chosen_ids, rejected_ids, delta, **masks, reduction=reduction, origin=origin
        )
