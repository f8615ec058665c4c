"""The DPO trainer: `PCRMDPOTrainer._compute_loss` adds pcrm's loss to those that TRL computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import trl
from trl import DPOTrainer

from ..functional import pcrm_loss
from ..losses import delta_of
from .configs import PCRMDPOConfig
from .data_check import warn_of_faults
from .token_scores import upcast
from .trainer import PAPER, ConstrainedTrainer


class _Recorder(float):
    """A beta that remembers what it is multiplied with."""

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

    It is the loss of `pcrm.functional.pcrm_loss` of z = beta * (difference of the implicit
    rewards before beta), the batch mean, as TRL computes that difference: with `ld_alpha` and
    `f_divergence_type`, and from precomputed log probabilities where there are any. TRL's
    other losses join it by `loss_type` and `loss_weights`. All of TRL's metrics stay, and
    those of `PCRMRewardTrainer` join them, with z in the place of the margin.

    TRL computes the difference inside of one long method, so the trainer takes it from there:
    TRL computes its loss `sigmoid` first, with weight 0, and what it multiplies beta with is
    that difference. The first steps check it against what TRL computes its metrics from.
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
                f"trl {trl.__version__} computes its DPO loss in another way than pcrm knows: take trl>=1.0,<2"
            )
        names, weights = list(args.loss_type), list(args.loss_weights or [1.0] * len(args.loss_type))
        self._weight = weights.pop(names.index("pcrm"))
        others = [name for name in names if name != "pcrm"]
        args.loss_type, args.loss_weights, given = ["sigmoid", *others], [0.0, *weights], args.loss_weights
        try:
            super().__init__(model, ref_model, args, *rest, **kwargs)
        finally:
            args.loss_type, args.loss_weights = names, given
        if getattr(self, "_is_vision_dataset", False):  # TRL prepares none of these
            self._check_vision(self.train_dataset)
        self._label_smoothing: float = args._pcrm_label_smoothing
        self._finish(args)
        self._checked = False

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if not self.constrained:
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        warn_of_faults(dataset, dataset_name)
        dataset = self._prior_column.add(dataset, dataset_name)
        return self._make_drawable(super()._prepare_dataset(dataset, processing_class, args, dataset_name), args)

    def _check_vision(self, dataset: Any) -> None:
        kind = self.settings.prior
        if kind != "fixed" and (kind == "random" or "prior" not in (dataset.column_names or list(next(iter(dataset))))):
            raise ValueError(
                f"pcrm_prior={kind!r} is not there for data sets with images: give them a column 'prior', or set pcrm_prior='fixed'"
            )

    def _precompute_ref_logps(self, *arguments: Any) -> Any:
        self._share_prefixes()  # from trl 1.9 on its constructor computes them
        return super()._precompute_ref_logps(*arguments)

    def compute_ref_log_probs(self, *arguments: Any) -> Any:
        # (inputs) before trl 1.9, (model, inputs) since.
        *model, inputs = arguments
        compute: Callable[..., Any] = super().compute_ref_log_probs
        return compute(*model, self._unpack(inputs)[0])

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if not self.constrained:
            return super()._compute_loss(model, inputs, return_outputs)
        inputs, prior, drawn = self._unpack(inputs)
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
        delta, origin = delta_of(self.constraint, prior)
        reduction = "mean" if drawn is None else "none"
        smoothing = self._label_smoothing
        ours = pcrm_loss(z, torch.zeros_like(z), delta, label_smoothing=smoothing, reduction=reduction, origin=origin)
        if drawn is not None:
            ours = self._weighted(ours, drawn, *torch.autograd.grad(ours.sum(), z, retain_graph=True))
        loss = loss + self._weight * ours
        self._add_metrics(z.detach(), delta, prior)
        return (loss, outputs) if return_outputs else loss

    def _check(self, seen: list[Any]) -> None:
        """Refuse to go on where the first thing that beta was multiplied with is not the difference
        of the last two, which TRL multiplies for its metrics: bit for bit, as they are the same tensors.
        """
        if self.f_divergence_type != "reverse_kl":
            self._checked = True  # the metrics are of the rewards without it
            return
        with torch.no_grad():
            difference = seen[-2] - seen[-1] if len(seen) >= 3 else None
            if difference is None or not torch.equal(seen[0], difference):
                raise RuntimeError(
                    f"trl {trl.__version__} computes its DPO loss in another order than pcrm knows, so that the "
                    "difference of the rewards cannot be told: please report it"
                )
            # Before the first update policy and reference are equal, and zeros tell nothing.
            self._checked = bool(difference.any())
