"""The reward trainer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import RewardTrainer

from ..functional import pcrm_loss, pcrm_token_loss
from ..losses import delta_of
from ..tracing import Origin
from .common import PAPER, Constrained
from .configs import PCRMRewardConfig


class PCRMRewardTrainer(Constrained, RewardTrainer):
    """`trl.RewardTrainer` with the prior-constrained loss.

    The loss is that of `pcrm.PCRMLoss`, the batch mean, with `center_rewards_coefficient`
    as TRL has it, or with `pcrm_form="token"` that of `pcrm.functional.pcrm_token_loss` over the
    scores of all tokens. All of TRL's metrics stay, and these join them, means over the pairs:

        pcrm/prior      the similarity of the two responses
        pcrm/delta      the ceiling of their margin
        pcrm/target     delta / 2, the margin that the loss wants
        pcrm/residual   margin - delta / 2
        pcrm/violation  share of the pairs whose margin is over delta

    (of which the infinite ones are left out). `pcrm_sft_eta` adds eta times a demonstration term,

        NLL = -(1 / T) sum over the batch's T tokens y_t of the chosen responses of log p(y_t | what precedes it)

    logged as `pcrm/nll`, where p is the model's language-model head on the states that `score`
    gets, and a response begins where the two of its pair first differ (docs/sft.md). That head is
    the model's module `lm_head`, or its embeddings where its configuration ties them.

    A data set's `margin` column works as in TRL
    where delta is infinite, and is refused otherwise: the constraint bounds the margin that it
    would move.
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
        if self.settings.form == "token":
            self._check_token_form()
        self._eta: float = args.pcrm_sft_eta
        if self._eta:
            self._check_demonstrations()
        self._start()

    def _with_prior(self, dataset: Any, args: Any, name: str) -> Any:
        if "margin" in (dataset.column_names or ()):
            self._refuse_margin()
        return super()._with_prior(dataset, args, name)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self.constrained:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        prior = inputs.pop("prior", None)  # whatever stays reaches model(**inputs)
        drawn = self._drawn(inputs)
        margin_column = inputs.get("margin")
        if margin_column is not None:
            self._refuse_margin()
        with self._token_scores() as tokens, self._demonstrations(inputs) as nll:
            # TRL's own pass for its metrics; its loss is not used and costs no second forward.
            _, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        chosen, rejected = _upcast(outputs.logits.squeeze(-1)).chunk(2)  # pyright: ignore[reportAttributeAccessIssue]
        delta, origin = delta_of(self.constraint, prior)
        if self.settings.form == "token":
            loss = self._token_loss(tokens, inputs["input_ids"], delta, origin)
        else:
            # Half of the column each way moves their difference by all of it, and their sum,
            # which is centered, not at all.
            shift = 0.0 if margin_column is None else margin_column / 2
            loss = pcrm_loss(
                chosen - shift,
                rejected + shift,
                delta,
                label_smoothing=self.settings.label_smoothing,
                center_rewards_coefficient=self._center,
                reduction="mean" if drawn is None else "none",
                origin=origin,
            )
        if drawn is not None:
            # The centering adds the same to both, which their difference does not see.
            by_chosen, by_rejected = torch.autograd.grad(loss.sum(), (chosen, rejected), retain_graph=True)
            loss = self._weighted(loss, drawn, (by_chosen - by_rejected) / 2)
        for term in nll:
            loss = loss + self._eta * term
        self._log_constraint(chosen.detach() - rejected.detach(), delta, prior, *(x.detach() for x in nll))
        return (loss, outputs) if return_outputs else loss

    def _refuse_margin(self) -> None:
        if self.constraint.delta(1.0) < math.inf or self.settings.form == "token":
            raise ValueError(
                "the data set has a column 'margin', which moves the margin that the constraint bounds: "
                "remove it, or train with pcrm_prior='fixed', pcrm_delta=inf and pcrm_form='pair'"
            )

    def _check_token_form(self) -> None:
        if not _heads(self.model, "score"):
            raise ValueError(
                f"pcrm_form='token' needs a model whose module 'score' gives a score for each token; {type(self.model).__name__} has none"
            )
        if self.is_fsdp_enabled:
            # Its hooks sit on what the whole model returns, which the token loss does not use.
            raise ValueError("pcrm_form='token' does not work under FSDP: set pcrm_form='pair'")

    def _check_demonstrations(self) -> None:
        if not _heads(self.model, "score"):
            raise ValueError(
                f"pcrm_sft_eta needs a model whose module 'score' gets the states of all tokens; {type(self.model).__name__} has none"
            )
        _language_model_head(self.model)
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            # The head may hold a part of its weights there when it is called beside the model.
            raise ValueError("pcrm_sft_eta does not work under FSDP or ZeRO-3 for reward models: set it to 0")

    @contextlib.contextmanager
    def _demonstrations(self, inputs: dict[str, Any]) -> Iterator[list[torch.Tensor]]:
        """The NLL of the batch that goes through the model in this block, where it has a weight."""
        seen: list[torch.Tensor] = []
        if not self._eta:
            yield seen
            return
        (ids, others), (real, theirs) = inputs["input_ids"].chunk(2), inputs["attention_mask"].bool().chunk(2)
        inside = (((ids != others) | (real != theirs)).cumsum(1) > 0) & real
        inside, targets = inside[:, 1:], ids[:, 1:]
        head = _language_model_head(self.model)

        # In the forward pass, as the types of mixed precision are those of in there.
        def read(_: Any, arguments: tuple[torch.Tensor, ...], scores: torch.Tensor) -> torch.Tensor:
            logits = _upcast(head(arguments[0][: len(ids), :-1][inside]))
            # All pairs may be of equal responses, and the mean of nothing is NaN.
            term = F.cross_entropy(logits, targets[inside], reduction="sum") / max(1, len(logits))
            seen.append(term)
            return scores + 0 * term  # DDP takes what no output depends on for unused

        handle = _heads(self.model, "score")[0].register_forward_hook(read)
        try:
            yield seen
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _token_scores(self) -> Iterator[list[torch.Tensor]]:
        """What the model's head gives in this block, before the model picks the last token's."""
        seen: list[torch.Tensor] = []
        if self.settings.form != "token":
            yield seen
            return
        handle = _heads(self.model, "score")[0].register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            yield seen
        finally:
            handle.remove()

    def _token_loss(
        self, tokens: list[torch.Tensor], input_ids: torch.Tensor, delta: torch.Tensor | float, origin: Origin
    ) -> torch.Tensor:
        scores = [_upcast(x.squeeze(-1)) for x in tokens]
        if len(scores) != 1 or scores[0].shape != input_ids.shape:
            raise RuntimeError(
                f"pcrm_form='token' needs one score for each token, shape {tuple(input_ids.shape)}: the model's module "
                f"'score' gave {', '.join(str(tuple(x.shape)) for x in scores) or 'nothing'}"
            )
        pad: Any = self.processing_class.pad_token_id  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        (chosen, rejected), (chosen_ids, rejected_ids) = scores[0].chunk(2), input_ids.chunk(2)
        return pcrm_token_loss(chosen, rejected, chosen_ids, rejected_ids, delta, pad_token_id=pad, origin=origin)


def _heads(model: Any, kind: str) -> list[torch.nn.Module]:
    return [module for name, module in model.named_modules() if name.split(".")[-1] == kind]


def _language_model_head(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes logits of the model's last states.

    Raises:
        ValueError: the model has none, or one that does more than a linear map.
    """
    config = model.config.get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier"):
        if (value := getattr(config, name, None)) not in (None, 1):
            raise ValueError(
                f"pcrm_sft_eta needs logits that are linear in the last states; {type(model).__name__} has {name}={value}"
            )
    if heads := _heads(model, "lm_head"):
        return heads[0]
    if not getattr(config, "tie_word_embeddings", False):
        raise ValueError(
            f"pcrm_sft_eta needs a language-model head, and {type(model).__name__} has neither a module 'lm_head' nor "
            "tied embeddings: set model.lm_head to that of the language model it comes from"
        )
    embeddings = model.get_input_embeddings()
    return lambda states: F.linear(states, embeddings.weight)


def _upcast(rewards: torch.Tensor) -> torch.Tensor:
    """The difference of two bfloat16 scores has few digits left."""
    return rewards if rewards.dtype == torch.float64 else rewards.float()
