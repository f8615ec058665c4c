"""The methods that the experiment compares: each is a loss, and all else is the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from posts import Posts
from tiers import Loss
from torch import Tensor

import pcrm
from pcrm import Constraint, PCRMLoss

# What the fitted constraints ask of alike and of unlike responses: win probabilities of .73
# and .95. Of a fixed or random constraint, delta is between twice the one and twice the other.
TARGETS = {"target_alike": 1.0, "target_unlike": 3.0}


@dataclass(frozen=True)
class Data:
    """The pairs that a loss is made for: their priors by name, (pairs,) each."""

    posts: Posts
    priors: dict[str, Tensor]


def _constrained(constraint: Constraint, prior: Tensor | None = None, **settings: float) -> Loss:
    loss = PCRMLoss(constraint, **settings)
    if prior is None:
        return lambda chosen, rejected, pairs: loss(chosen, rejected)
    prior = prior.float()
    return lambda chosen, rejected, pairs: loss(chosen, rejected, prior[pairs])


def _plain(data: Data, **settings: float) -> Loss:
    return _constrained(Constraint.fixed(math.inf), **settings)


def _published(prior: str) -> Callable[[Data], Loss]:
    return lambda data: _constrained(Constraint.preset(f"tldr/{prior}"), data.priors[prior])


def _fitted(prior: str) -> Callable[[Data], Loss]:
    return lambda data: _constrained(Constraint.fit(data.priors[prior], **TARGETS), data.priors[prior])


def _random(constraint: Constraint) -> Callable[[Data], Loss]:
    def make(data: Data) -> Loss:
        ids = [list(text.encode()) for text in data.posts.responses]
        chosen, rejected = ([ids[i] for i in data.posts.pairs[:, side]] for side in (0, 1))
        return _constrained(constraint, pcrm.priors.random_uniform(chosen, rejected, seed=0))

    return make


def _llama2_margin(data: Data) -> Loss:
    """-log sigmoid(m - margin) (arXiv 2307.09288, equation 2), with the larger of the paper's two scales.

    Its four grades of preference, 0, 1, 2 and 3, are those of the ratings' difference: 1, 2, 3, 4 or more.
    """
    plain, margin = _plain(data), torch.from_numpy(data.posts.gap - 1).clamp(0, 3).float()
    return lambda chosen, rejected, pairs: plain(chosen - margin[pairs], rejected, pairs)


METHODS: dict[str, Callable[[Data], Loss]] = {
    "plain": _plain,
    "label smoothing .1": lambda data: _plain(data, label_smoothing=0.1),
    "centering .01": lambda data: _plain(data, center_rewards_coefficient=0.01),
    "Llama-2 margin": _llama2_margin,
    "fixed, published": lambda data: _constrained(Constraint.preset("tldr/fixed")),
    "fixed, fitted": lambda data: _constrained(Constraint.fixed(sum(TARGETS.values()))),
    "random, published": _random(Constraint.preset("tldr/random")),
    "random, fitted": _random(Constraint.random(2 * TARGETS["target_alike"], 2 * TARGETS["target_unlike"])),
    "length ratio, published": _published("length_ratio"),
    "length ratio, fitted": _fitted("length_ratio"),
    "cosine, published": _published("cosine"),
    "cosine, fitted": _fitted("cosine"),
}
