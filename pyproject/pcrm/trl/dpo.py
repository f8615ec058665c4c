"""The DPO trainer: `PCRMDPOTrainer._compute_loss` adds pcrm's loss to the losses that TRL computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import trl
from trl import DPOTrainer

from ..functional import pcrm_loss
from ..losses import delta_of
from .configs import PCRMDPOConfig
from .token_scores import upcast
from .trainer import PAPER, ConstrainedTrainer


class _Recorder(float):
    """A beta that records its factors in multiplications."""

    seen: list[Any]

    def __new__(cls, value: float) -> _Recorder:
        recorder = super().__new__(cls, value)
        recorder.seen = []
        return recorder

    def __mul__(self, other: Any) -> Any:
        self.seen.append(other)
        return float(self) * other


class PCRMDPOTrainer(ConstrainedTrainer, DPOTrainer):
    """`trl.DPOTrainer` with the prior-constrained loss, the loss type `pcrm`.

    The loss is the batch mean of `pcrm.functional.pcrm_loss` for z = beta * (difference of the unscaled implicit
    rewards). TRL computes that difference, with `ld_alpha` and `f_divergence_type`, and from precomputed log
    probabilities if there are any. `loss_type` and `loss_weights` mix in TRL's other losses. All of TRL's metrics are
    logged, and also those of `PCRMRewardTrainer`, with z instead of the margin.

    TRL computes the difference inside one long method, so the trainer intercepts it there: TRL computes its loss
    `sigmoid` first, with weight 0, and multiplies beta by that difference. The first steps check it against the
    values from which TRL computes its metrics.
    """

    _tag_names = ["trl", "dpo", "pcrm"]  # noqa: RUF012  (TRL's own form)
    _name = "PCRM-DPO"
    config_class = PCRMDPOConfig
    _paper = PAPER

    def __init__(self, model: Any, ref_model: Any = None, args: Any = None, *rest: Any, **kwargs: Any) -> None:
        args = self._read(args, model)
        if not self.constrained:
            super().__init__(model, ref_model, args, *rest, **kwargs)
            return
        if not hasattr(DPOTrainer, "_compute_loss"):
            raise RuntimeError(
                f"trl must be >=1.0,<2, got {trl.__version__}, which computes its DPO loss in a way that pcrm does not support"
            )
        names, weights = list(args.loss_type), list(args.loss_weights or [1.0] * len(args.loss_type))
        self._weight = weights.pop(names.index("pcrm"))
        others = [name for name in names if name != "pcrm"]
        args.loss_type, args.loss_weights, given = ["sigmoid", *others], [0.0, *weights], args.loss_weights
        try:
            super().__init__(model, ref_model, args, *rest, **kwargs)
        finally:
            args.loss_type, args.loss_weights = names, given
        if getattr(self, "_is_vision_dataset", False):  # TRL does not prepare these
            self._check_vision(self.train_dataset)
        self._label_smoothing: float = args._pcrm_label_smoothing
        self._finish(args)
        self._checked = False

    def _check_vision(self, dataset: Any) -> None:
        kind = self.settings.prior
        if kind != "fixed" and (kind == "random" or "prior" not in (dataset.column_names or list(next(iter(dataset))))):
            raise ValueError(
                f"pcrm_prior must be 'fixed' or read from a column 'prior' for data sets with images, got {kind!r}: add a column "
                "'prior', or set pcrm_prior='fixed'"
            )

    def _precompute_ref_logps(self, *arguments: Any) -> Any:
        self._share_prefixes()  # since trl 1.9 the constructor computes them
        return super()._precompute_ref_logps(*arguments)

    def compute_ref_log_probs(self, *arguments: Any) -> Any:
        # (inputs) before trl 1.9, (model, inputs) since.
        *model, inputs = arguments
        compute: Callable[..., Any] = super().compute_ref_log_probs
        return compute(*model, self._unpack(inputs)[0])

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if not self.constrained:
            return super()._compute_loss(model, inputs, return_outputs)
        inputs, added = self._unpack(inputs)
        beta, recorder = self.beta, _Recorder(self.beta)
        self.beta = recorder
        try:
            result = super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.beta = beta
        loss, outputs = result if return_outputs else (result, None)
        score = recorder.seen[0]
        z = beta * upcast(score)
        if not self._checked:
            self._check(recorder.seen)
        delta, origin = delta_of(self.constraint, added.prior)
        losses = pcrm_loss(
            z,
            torch.zeros_like(z),
            delta,
            label_smoothing=self._label_smoothing,
            reduction=added.reduction,
            origin=origin,
        )
        ours = self._mean(losses, added, lambda: torch.autograd.grad(losses.sum(), z, retain_graph=True)[0])
        loss = loss + self._weight * ours
        self._add_metrics(z.detach(), delta, added.prior)
        return (loss, outputs) if return_outputs else loss

    def _check(self, seen: list[Any]) -> None:
        """Check that beta's first factor is the difference of its last two, which TRL multiplies for its metrics.

        They must agree bit for bit, because they are computed from the same tensors.

        Raises:
            RuntimeError: They differ.
        """
        if self.f_divergence_type != "reverse_kl":
            self._checked = True  # the metrics use the rewards without the divergence
            return
        with torch.no_grad():
            difference = seen[-2] - seen[-1] if len(seen) >= 3 else None
            if difference is None or not torch.equal(seen[0], difference):
                raise RuntimeError(
                    f"trl {trl.__version__} computes its DPO loss in an unknown order, so pcrm cannot find the difference of the "
                    "rewards: please report this"
                )
            # Before the first update, policy and reference are equal and all differences are 0.
            self._checked = bool(difference.any())
