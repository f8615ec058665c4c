"""The reward model of the demo: a small one with random weights, or the user's checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from .. import _pretrained

_CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def make_tokenizer(texts: Iterable[str]) -> Any:
    """Train a byte-level BPE tokenizer with 2,000 tokens on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def small_llama(tokenizer: Any, max_length: int, **others: Any) -> LlamaConfig:
    """Return the configuration of a Llama with two layers of width 64."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **others,
    )


def make_model(tokenizer: Any, max_length: int, seed: int) -> Any:
    """Return a randomly initialized Llama with two layers of width 64 and a scalar head."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(small_llama(tokenizer, max_length, num_labels=1))


def load_tokenizer(path: str | Path) -> Any:
    tokenizer = _pretrained.load_tokenizer(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


class Encoder:
    """Encode prompt and response as at most `max_length` token ids. Long prompts lose their beginning."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def pair(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        prompt = self.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        if end is None:
            end = self.tokenizer.sep_token_id
        responses = [
            (self.tokenizer(row[key], add_special_tokens=False)["input_ids"] + ([] if end is None else [end]))[
                : self.max_length
            ]
            for key in ("chosen", "rejected")
        ]
        # Both keep the same piece of the prompt, so they differ only in the response.
        left = self.max_length - max(map(len, responses))
        prompt = prompt[max(0, len(prompt) - left) :]
        return prompt + responses[0], prompt + responses[1]


@torch.no_grad()
def score(
    model: Any, sequences: list[list[int]], pad_token_id: int, batch_size: int = 64, progress: str = ""
) -> torch.Tensor:
    """Return the reward of each sequence, float64, on the CPU."""
    model.eval()
    # Sorted by length, so that a batch needs little padding. Equal sequences are scored once.
    unique = sorted({tuple(s) for s in sequences}, key=len)
    scores: dict[tuple[int, ...], float] = {}
    for start in tqdm(range(0, len(unique), batch_size), desc=progress, leave=False, disable=None):
        batch = unique[start : start + batch_size]
        width = len(batch[-1])
        ids = torch.tensor([[*s, *[pad_token_id] * (width - len(s))] for s in batch])
        mask = torch.arange(width) < torch.tensor([[len(s)] for s in batch])
        rewards = model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1)
        scores.update(zip(batch, rewards.tolist(), strict=True))
    return torch.tensor([scores[tuple(s)] for s in sequences], dtype=torch.float64)
