"""The posts, their human-rated summaries, and the features of both backbones."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pcrm.priors.encoders import Encoder, content_hash
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

import pcrm

PROMPT_TOKENS, RESPONSE_TOKENS = 72, 55  # what tier B reads of each; [CLS] and [SEP] are among them
FROZEN_LAYERS = 4


@dataclass(frozen=True)
class Posts:
    """Posts and their summaries, flat: summary i belongs to post `post[i]`.

    `pairs` has the indices of the chosen and the rejected summary, and `gap` the difference of
    their ratings (1 to 6).
    """

    prompts: list[str]
    responses: list[str]
    post: NDArray[np.int64]
    ratings: NDArray[np.float64]
    pairs: NDArray[np.int64]
    gap: NDArray[np.float64]

    def __post_init__(self) -> None:
        assert (np.diff(self.post) >= 0).all(), "the summaries of a post lie together"

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Summaries of post i are [offsets[i], offsets[i + 1])."""
        return np.searchsorted(self.post, np.arange(len(self.prompts) + 1))

    @property
    def pair_post(self) -> NDArray[np.int64]:
        return self.post[self.pairs[:, 0]]

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Characters of each summary."""
        return np.array([len(text) for text in self.responses], np.float64)


def read(folder: Path, split: str) -> Posts:
    """The posts of `tldr_{split}_ratings.jsonl` with the pairs of `tldr_{split}_pairs.jsonl.gz`."""
    with (folder / f"tldr_{split}_ratings.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    post = np.repeat(np.arange(len(rows)), [len(row["responses"]) for row in rows])
    responses = [text for row in rows for text in row["responses"]]
    ratings = np.array([rating for row in rows for rating in row["ratings"]], np.float64)
    place = {
        (rows[p]["prompt"], text): i for i, (p, text) in reversed(list(enumerate(zip(post, responses, strict=True))))
    }
    with gzip.open(folder / f"tldr_{split}_pairs.jsonl.gz", "rt") as file:
        pairs = [json.loads(line) for line in file]
    return Posts(
        prompts=[row["prompt"] for row in rows],
        responses=responses,
        post=post,
        ratings=ratings,
        pairs=np.array([[place[pair["prompt"], pair[k]] for k in ("chosen", "rejected")] for pair in pairs]),
        gap=np.array([pair["rating_chosen"] - pair["rating_rejected"] for pair in pairs], np.float64),
    )


def priors(posts: Posts, model: str) -> dict[str, torch.Tensor]:
    """The similarities of each pair in [0, 1], float64: length ratio in the encoder's tokens, lexical, angular cosine."""
    chosen, rejected = ([posts.responses[i] for i in posts.pairs[:, side]] for side in (0, 1))
    return {
        "length_ratio": pcrm.priors.of_texts(chosen, rejected, prior="length_ratio", tokenizer=model).double(),
        "lexical": pcrm.priors.of_texts(chosen, rejected, prior="lexical").double(),
        "cosine": pcrm.priors.of_texts(chosen, rejected, prior="cosine", model=model).double(),
    }


def embeddings(posts: Posts, model: str) -> torch.Tensor:
    """The inputs of tier A for each summary, shape (summaries, 4 * width), float32.

    With p and r the encoder's mean-pooled embeddings of post and summary: [p, r, p * r, |p - r|],
    each scaled to a variance of about 1 (an embedding has length 1).
    """
    encoder = Encoder(model)
    p, r = encoder.embed(posts.prompts)[posts.post], encoder.embed(posts.responses)
    width = r.shape[1]
    return torch.cat([p * width**0.5, r * width**0.5, p * r * width, (p - r).abs() * width**0.5], 1).float()


def states(posts: Posts, model: str, cache: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs of tier B: the encoder's hidden states after its fourth layer, bfloat16, and their mask.

    The tokens of a summary are [CLS], the beginning of the post and [SEP] in 72 positions, then
    the summary and [SEP] in 55 positions; shorter texts are padded at the end. The shapes are
    (summaries, 127, width) and (summaries, 127). Computed once and kept in `cache`.
    """
    key = hashlib.sha256(json.dumps([content_hash(Path(model)), posts.prompts, posts.responses]).encode()).hexdigest()[
        :16
    ]
    file = cache / f"states-{key}.safetensors"
    if not file.exists():
        computed = _states(posts, model)
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        save_file(computed, partial)
        partial.replace(file)
    kept = load_file(file)
    return kept["states"], kept["mask"]


@torch.inference_mode()
def _states(posts: Posts, model: str) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    encoder: Any = AutoModel.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    encoder.encoder.layer = encoder.encoder.layer[:FROZEN_LAYERS]

    def ids(texts: list[str], room: int) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]

    first, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    prompts = [[first, *i, end] for i in ids(posts.prompts, PROMPT_TOKENS - 2)]
    rows = [prompts[p] + [*r, end] for p, r in zip(posts.post, ids(posts.responses, RESPONSE_TOKENS - 1), strict=True)]
    width = PROMPT_TOKENS + RESPONSE_TOKENS
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    tokens = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    types = torch.tensor([[0] * len(prompts[p]) + [1] * (width - len(prompts[p])) for p in posts.post])
    out = []
    for i in tqdm(range(0, len(rows), 64), desc="layers 1 to 4", disable=None):
        part = slice(i, i + 64)
        hidden = encoder(input_ids=tokens[part], attention_mask=mask[part].long(), token_type_ids=types[part])
        out.append(hidden.last_hidden_state.bfloat16())
    return {"states": torch.cat(out), "mask": mask}
