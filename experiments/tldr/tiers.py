"""The two reward models of the experiment, and the loop that trains them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from posts import FROZEN_LAYERS, Posts
from torch import Tensor, nn
from transformers import AutoModel

# (chosen rewards, rejected rewards, indices of the pairs) -> loss
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Stop(Exception):
    """Raised to end training after this epoch."""


class Head(nn.Module):
    """Tier A: a multilayer perceptron with one hidden layer on frozen embeddings, (N, D) -> (N,)."""

    def __init__(self, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


class TopLayers(nn.Module):
    """Tier B: the layers of a BERT encoder that lie above the frozen ones, then a linear head on [CLS].

    (N, T, width) states and their (N, T) mask -> (N,) rewards in float32. The layers compute in
    `dtype`, by default that of the states, with float32 master weights. The last layer computes only [CLS],
    because nothing else is used. Attention is written out, because the backward pass of torch's
    fused attention takes twice as long on a CPU.
    """

    def __init__(self, model: str, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        encoder: Any = AutoModel.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        self.layers = encoder.encoder.layer[FROZEN_LAYERS:]
        self.heads, self.dropout = encoder.config.num_attention_heads, encoder.config.hidden_dropout_prob
        self.head = nn.Linear(encoder.config.hidden_size, 1)
        nn.init.normal_(self.head.weight, std=encoder.config.initializer_range)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.hidden(states, mask).float()).squeeze(-1)

    def hidden(self, states: Tensor, mask: Tensor) -> Tensor:
        """The last layer's state of [CLS], (N, width)."""
        states = states.to(self.dtype or states.dtype)
        away = torch.zeros(mask.shape, dtype=states.dtype).masked_fill(~mask, -math.inf)[:, None, None, :]
        for layer in self.layers[:-1]:
            states = self._layer(layer, states, states, away)
        return self._layer(self.layers[-1], states[:, :1], states, away).squeeze(1)

    def _layer(self, layer: Any, asking: Tensor, states: Tensor, away: Tensor) -> Tensor:
        """A layer of BERT for the tokens `asking`, which attend to `states`."""

        def linear(module: Any, x: Tensor) -> Tensor:
            return F.linear(x, module.weight.to(x.dtype), module.bias.to(x.dtype))

        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

        def added(block: Any, x: Tensor, before: Tensor) -> Tensor:
            out = F.dropout(linear(block.dense, x), self.dropout, self.training)
            norm = block.LayerNorm
            return F.layer_norm(
                before + out, before.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps
            )

        attention = layer.attention.self
        q = heads(linear(attention.query, asking))
        k, v = heads(linear(attention.key, states)), heads(linear(attention.value, states))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + away, -1)
        found = (weights @ v).transpose(1, 2).flatten(2)
        between = added(layer.attention.output, found, asking)
        return added(layer.output, F.gelu(linear(layer.intermediate.dense, between)), between)


def train(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    posts: Posts,
    loss: Loss,
    *,
    epochs: int,
    learning_rate: float,
    posts_per_step: int,
    seed: int,
    use: np.ndarray | None = None,
    constant: bool = False,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train on all pairs of the posts `use` (all by default), each summary encoded once per step.

    AdamW with a weight decay of 0.01; the learning rate rises over the first tenth of the steps
    and then falls linearly to 0. With `constant`, it rises over half of the first epoch and then stays constant, so that
    any epoch can be the last. The loss of a step is the mean over its pairs. `after_epoch` may raise `Stop`.
    """
    order = np.random.default_rng(seed)
    torch.manual_seed(seed)
    use = np.arange(len(posts.prompts)) if use is None else use
    steps_per_epoch = math.ceil(len(use) / posts_per_step)
    steps = epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    rise = math.ceil(steps_per_epoch / 2 if constant else steps / 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, 1.0 if constant else (steps - step) / steps)
    )
    offsets = posts.offsets
    pairs_of = [torch.from_numpy(np.flatnonzero(posts.pair_post == p)) for p in range(len(posts.prompts))]
    pairs = torch.from_numpy(posts.pairs)
    place = torch.empty(len(posts.responses), dtype=torch.long)
    for epoch in range(epochs):
        model.train()
        for chunk in np.array_split(order.permutation(use), steps_per_epoch):
            responses = torch.cat([torch.arange(offsets[p], offsets[p + 1]) for p in chunk])
            which = torch.cat([pairs_of[p] for p in chunk])
            if len(which) == 0:
                continue
            place[responses] = torch.arange(len(responses))
            rewards = model(*(x[responses] for x in inputs))
            chosen, rejected = rewards[place[pairs[which]]].T
            value = loss(chosen, rejected, which)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        try:
            after_epoch(epoch + 1)
        except Stop:
            return


@torch.inference_mode()
def score(model: nn.Module, inputs: tuple[Tensor, ...]) -> np.ndarray:
    """The reward of every summary, float64."""
    model.eval()
    parts = [model(*(x[i : i + 256] for x in inputs)) for i in range(0, len(inputs[0]), 256)]
    return torch.cat(parts).double().numpy()
