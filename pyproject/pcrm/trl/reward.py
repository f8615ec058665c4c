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

from .._engine.trace import Origin
from ..functional import pcrm_loss, pcrm_token_loss
from ..losses import delta_of
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

    Pairs with an infinite delta have no target: they count for `pcrm/violation` and `pcrm/prior`
    only. `pcrm_sft_eta` adds eta times a demonstration term,

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
        self._eta: float = args.pcrm_sft_eta
        if self.settings.form == "token":
            self._check_token_form()
        if self._eta:
            self._check_demonstrations()
        head = _language_model_head(self.model) if self._eta else None
        self._read_out = _ReadOut(head) if self._eta or self.settings.form == "token" else None
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
        with self._reading(inputs) as seen:
            # TRL's own pass for its metrics; its loss is not used and costs no second forward.
            _, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        chosen, rejected = _upcast(outputs.logits.squeeze(-1)).chunk(2)  # pyright: ignore[reportAttributeAccessIssue]
        delta, origin = delta_of(self.constraint, prior)
        if self.settings.form == "token":
            loss = self._token_loss(seen["scores"], inputs, delta, origin)
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
        nll = None
        if self._eta:
            by_pair, tokens = seen["nll"], seen["tokens"]
            # All pairs may have equal responses, and the mean of nothing is NaN.
            loss = loss + self._eta * by_pair.sum() / tokens.sum().clamp(min=1)
            nll = by_pair.detach(), tokens
        self._log_constraint(chosen.detach() - rejected.detach(), delta, prior, nll)
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
    def _reading(self, inputs: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
        """What `_read_out` computes in this block, which is there at its end.

        It takes the place of the model's module `score` and calls it. A hook would not do:
        torch.compile reuses a graph that it compiled without the hook, and the hook is never
        called. The other module's type makes torch.compile compile anew.
        """
        seen: dict[str, torch.Tensor] = {}
        if self._read_out is None:
            yield seen
            return
        name, score = _heads(self.model, "score")[0]
        model: Any = self.model
        parent = model.get_submodule(name.rpartition(".")[0])
        self._read_out.begin(score, inputs)
        parent.score = self._read_out
        try:
            yield seen
        finally:
            parent.score = score
            seen |= self._read_out.end()
        if not seen:
            raise RuntimeError(
                f"the module {name!r} of {type(model).__name__} must compute the scores, got a forward pass that "
                "does not call it: pcrm_form='token' and pcrm_sft_eta do not work with this model"
            )

    def _token_loss(
        self, scores: torch.Tensor, inputs: dict[str, Any], delta: torch.Tensor | float, origin: Origin
    ) -> torch.Tensor:
        ids, scores = inputs["input_ids"], _upcast(scores.squeeze(-1))
        if scores.shape != ids.shape:
            raise RuntimeError(
                f"the module 'score' must give one score for each token, shape {tuple(ids.shape)}, got "
                f"{tuple(scores.shape)}: pcrm_form='token' does not work with this model"
            )
        # The masks, not the pad token: it also ends turns where it equals eos.
        (chosen, rejected), (chosen_ids, rejected_ids) = scores.chunk(2), ids.chunk(2)
        chosen_mask, rejected_mask = inputs["attention_mask"].chunk(2)
        masks = {"chosen_mask": chosen_mask, "rejected_mask": rejected_mask}
        return pcrm_token_loss(chosen, rejected, chosen_ids, rejected_ids, delta, **masks, origin=origin)


class _ReadOut(torch.nn.Module):
    """A reward model's `score` that also keeps the scores of all tokens and, with a
    language-model head, the likelihood of the chosen responses.

    It runs inside the model's forward pass: there the types are those of mixed precision, and DDP
    sees which parameters are used.
    """

    def __init__(self, head: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        super().__init__()
        # In tuples, so that the model's modules do not become this module's.
        self._head = (head,)

    def begin(self, score: torch.nn.Module, inputs: dict[str, Any]) -> None:
        """Take the place of `score` for a batch."""
        self._score = (score,)
        self._scores = self._nll = self._inside = self._targets = None
        if self._head[0] is None:
            return
        (ids, others), (real, theirs) = inputs["input_ids"].chunk(2), inputs["attention_mask"].bool().chunk(2)
        inside = (((ids != others) | (real != theirs)).cumsum(1) > 0) & real
        self._inside, self._targets = inside[:, 1:], ids[:, 1:]

    def end(self) -> dict[str, torch.Tensor]:
        """The scores of all tokens, the sum of each pair's NLL, and its number of tokens."""
        seen = {"scores": self._scores, "nll": self._nll}
        if self._inside is not None:
            seen["tokens"] = self._inside.sum(1)
        self._score = self._scores = self._nll = self._inside = self._targets = None
        return {name: x for name, x in seen.items() if x is not None} if seen["scores"] is not None else {}

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        assert self._score is not None
        self._scores = scores = self._score[0](states)
        head, inside, targets = self._head[0], self._inside, self._targets
        if head is None or inside is None or targets is None:
            return scores
        logits = _upcast(head(states[: len(inside), :-1][inside]))
        by_token = F.cross_entropy(logits, targets[inside], reduction="none")
        self._nll = by_token.new_zeros(inside.shape).masked_scatter(inside, by_token).sum(1)
        return scores + 0 * self._nll.sum()  # DDP takes what no output depends on for unused


def _heads(model: Any, kind: str) -> list[tuple[str, torch.nn.Module]]:
    """The names and modules whose last name is `kind`."""
    return [(name, module) for name, module in model.named_modules() if name.split(".")[-1] == kind]


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
        return heads[0][1]
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
