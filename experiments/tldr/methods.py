"""The methods of the experiment. They differ only in their loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pcrm.functional import ipo_loss, l2_reward_loss, llama2_margin_loss, odpo_loss, rdpo_loss, rpo_distance_loss
from posts import Posts
from tiers import Loss
from torch import Tensor

import pcrm
from pcrm import Constraint, PCRMLoss

# The targets of the fitted constraints for similar and dissimilar responses: win probabilities of .73 and .95. The delta
# of a fixed or random constraint is between twice the first and twice the second target.
TARGETS = {"target_alike": 1.0, "target_unlike": 3.0}


@dataclass(frozen=True)
class Data:
    """The pairs of a loss: their priors by name, (pairs,) each."""

    posts: Posts
    priors: dict[str, Tensor]


Make = Callable[[Data], Loss]


def constrained(constraint: Constraint, prior: Tensor | None = None, **settings: float) -> Loss:
    loss = PCRMLoss(constraint, **settings)
    if prior is None:
        return lambda chosen, rejected, pairs: loss(chosen, rejected)
    prior = prior.float()
    return lambda chosen, rejected, pairs: loss(chosen, rejected, prior[pairs])


def plain(**settings: float) -> Make:
    return lambda data: constrained(Constraint.fixed(math.inf), **settings)


def _fixed(constraint: Constraint) -> Make:
    return lambda data: constrained(constraint)


def _published(prior: str) -> Make:
    return lambda data: constrained(Constraint.preset(f"tldr/{prior}"), data.priors[prior])


def fit_two_points(similarities: Tensor) -> Constraint:
    """The curve of `TARGETS` at the 5 % and 95 % quantiles with the published beta2.

    This was `Constraint.fit` when the results were computed. Since then it also fits beta2.
    """
    alike, unlike = TARGETS.values()
    beta2 = 0.001
    low, high = np.quantile(similarities.double().numpy(), (0.05, 0.95)) + beta2
    beta1 = 2 * (unlike - alike) / (1 / low - 1 / high)
    return Constraint(beta1, beta2, 2 * alike - beta1 / high, floor=2 * alike, cap=2 * unlike)


def _fitted(prior: str) -> Make:
    return lambda data: constrained(fit_two_points(data.priors[prior]), data.priors[prior])


def fit_now(similarities: Tensor) -> Constraint:
    """The default of the trainers: `Constraint.fit` on the training data."""
    alike, unlike = TARGETS.values()
    return Constraint.fit(similarities.numpy(), target_alike=alike, target_unlike=unlike)


def fitted_now(prior: str) -> Make:
    return lambda data: constrained(fit_now(data.priors[prior]), data.priors[prior])


def _random(constraint: Constraint) -> Make:
    def make(data: Data) -> Loss:
        ids = [list(text.encode()) for text in data.posts.responses]
        chosen, rejected = ([ids[i] for i in data.posts.pairs[:, side]] for side in (0, 1))
        return constrained(constraint, pcrm.priors.random_uniform(chosen, rejected, seed=0))

    return make


def _by_pair(loss: Callable[..., Tensor], *numbers: Callable[[Posts], Any]) -> Make:
    """A loss of the scores and of one number per pair."""

    def make(data: Data) -> Loss:
        columns = [torch.as_tensor(of(data.posts)).float() for of in numbers]
        return lambda chosen, rejected, pairs: loss(chosen, rejected, *(x[pairs] for x in columns))

    return make


def _dpo(loss: Callable[..., tuple[Tensor, Tensor, Tensor]], **settings: Any) -> Callable[..., Tensor]:
    """A DPO loss applied to scores: they act as the policy's log probabilities, and those of the reference are 0."""

    def of_scores(chosen: Tensor, rejected: Tensor, *numbers: Tensor) -> Tensor:
        zeros = torch.zeros_like(chosen)
        return loss(chosen, rejected, zeros, zeros, *numbers, **settings)[0]

    return of_scores


def ipo(target: float) -> Make:
    """IPO's squared loss of m, whose target is the same margin for each pair."""
    return _by_pair(_dpo(ipo_loss, beta=1 / (2 * target)))


METHODS: dict[str, Make] = {
    "plain": plain(),
    "label smoothing .1": plain(label_smoothing=0.1),
    "centering .01": plain(center_rewards_coefficient=0.01),
    # The larger of the paper's two scales. Its four grades correspond to rating differences of 1, 2, 3, and 4 or more.
    "Llama-2 margin": _by_pair(llama2_margin_loss, lambda posts: (posts.gap - 1).clip(0, 3)),
    "fixed, published": _fixed(Constraint.preset("tldr/fixed")),
    "fixed, fitted": _fixed(Constraint.fixed(sum(TARGETS.values()))),
    "random, published": _random(Constraint.preset("tldr/random")),
    "random, fitted": _random(Constraint.random(*(2 * target for target in TARGETS.values()))),
    "length ratio, published": _published("length_ratio"),
    "length ratio, fitted": _fitted("length_ratio"),
    "cosine, published": _published("cosine"),
    "cosine, fitted": _fitted("cosine"),
}

# Losses of other papers, for tier A only. Losses of DPO's z use m instead. Their target, if any, is 2 or half of the rating
# difference, which is in the range of the fitted constraints.
BASELINES: dict[str, Make] = {
    "L2 .01": _by_pair(functools.partial(l2_reward_loss, coefficient=0.01)),
    "IPO, target 2": ipo(2),
    "ODPO, log gap": _by_pair(_dpo(odpo_loss, beta=1.0), lambda posts: np.log(posts.gap)),
    "RPO squared, gap / 2": _by_pair(
        _dpo(rpo_distance_loss, beta=1.0, eta=0.5, distance="squared"), lambda posts: posts.gap
    ),
    "RPO KL, gap / 2": _by_pair(_dpo(rpo_distance_loss, beta=1.0, eta=0.5), lambda posts: posts.gap),
    # In hundreds of characters: a summary that is 100 characters longer gets a margin of 1 for its length alone.
    "R-DPO, 1 of 100 characters": _by_pair(
        _dpo(rdpo_loss, beta=1.0, alpha=0.01),
        *(lambda posts, side=side: posts.lengths[posts.pairs[:, side]] for side in (0, 1)),
    ),
}
ALL = METHODS | BASELINES
