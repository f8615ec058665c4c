"""Responses sampled from a policy with transformers, and their scores, in files that survive a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import _check
from ..._pretrained import load_model, load_tokenizer, longest
from ...data.preferences import RowError, listed
from ...data.row_pipeline import BadRowError, ParsedRows, RowPipeline
from ...data.sources import open_source
from ...data.writers import Columns
from ..reward_model import RewardModel, identity_of
from ..score_rows import add_scores
from ..shared_out import Processes
from ..statistics import Floats
from .cached import make_once
from .pools import columns

# Prompts that are in memory at once, and that a kill loses. Lines of a file are read in at least this many.
_SHARD_PROMPTS = 64


class Policy:
    """A causal language model with its tokenizer. It samples like TRL's online trainers: from the full distribution of the
    model, without top-k or nucleus sampling.

    Args:
        model: The folder of the checkpoint or its name on the hub.
        max_new_tokens: Maximum tokens of a response.
        temperature: Sampling temperature, greater than 0.
        batch_size: Responses that are sampled at once. The samples depend on it.
        device: A torch device. By default the GPU if there is one, else the CPU.

    Raises:
        OSError: The checkpoint does not exist, or has no tokenizer.
        TypeError: A number has the wrong type.
        ValueError: The tokenizer has no EOS token; an argument is out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig

        max_new_tokens = _check.integer("max_new_tokens", max_new_tokens, 1)
        temperature = _check.positive("temperature", temperature)
        self.name, self.batch_size = _check.path("model", model), _check.integer("batch_size", batch_size, 1)
        self.tokenizer = load_tokenizer(self.name, padding_side="left")
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"{self.name}: the tokenizer must have an eos_token, got none")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        loaded: Any = load_model(AutoModelForCausalLM, self.name)
        self._model = loaded.eval().to(self.device)
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        # Set on the model: generate() would otherwise fill unset options from the checkpoint's configuration.
        self._model.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=sorted({self.tokenizer.eos_token_id, *ends}),
        )
        positions = longest(self.name, self._model, None, None)
        self._longest_prompt = positions - max_new_tokens if positions else None
        self.settings: dict[str, Any] = {
            "--policy": identity_of(self.name, self._model.config),
            "--max-new-tokens": max_new_tokens,
            "--temperature": temperature,
            "--batch-size": self.batch_size,
        }

    @torch.inference_mode()
    def sample(self, prompts: Sequence[Any], samples: int, seed: Sequence[int]) -> list[list[Any]]:
        """Sample `samples` responses to each prompt: texts for text prompts, lists with one message for lists of messages.

        Args:
            seed: Integers, at least 0. The same seed and prompts give the same responses on the same machine.

        Raises:
            RowError: A prompt is neither a text nor a list of messages, is empty, or is too long. `row` is its index.
        """
        ids = []
        for i, prompt in enumerate(prompts):
            try:
                ids += [self._encoded(prompt)] * samples
            except RowError as error:
                raise RowError(error.message, i) from None
        texts: list[str] = []
        devices = [self.device] if self.device.type == "cuda" else []
        for begin in range(0, len(ids), self.batch_size):
            batch = self.tokenizer.pad({"input_ids": ids[begin : begin + self.batch_size]}, return_tensors="pt")
            with torch.random.fork_rng(devices):
                torch.manual_seed(int(np.random.SeedSequence((*seed, begin)).generate_state(1)[0]))
                new = self._model.generate(**batch.to(self.device))[:, batch["input_ids"].shape[1] :]
            texts += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        responses = [
            text if isinstance(prompts[i // samples], str) else [{"role": "assistant", "content": text}]
            for i, text in enumerate(texts)
        ]
        return [responses[i : i + samples] for i in range(0, len(responses), samples)]

    def _encoded(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            ids = self.tokenizer(text=prompt, verbose=False)["input_ids"]
        elif isinstance(prompt, list) and prompt and all(isinstance(m, dict) and "role" in m for m in prompt):
            if self.tokenizer.chat_template is None:
                raise RowError(
                    f"prompt must be a text because the tokenizer of {self.name} has no chat template, got a list of messages"
                )
            ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        else:
            raise RowError(f"prompt must be a text or a list of messages, got {prompt!r:.80}")
        if not ids:
            raise RowError("prompt must have at least one token, got none")
        if self._longest_prompt is not None and len(ids) > self._longest_prompt:
            raise RowError(
                f"prompt must have at most {self._longest_prompt} tokens, so that {self.name} can add a response, got {len(ids)}"
            )
        return ids


def sample(
    policy: Policy, source: str, out: str | os.PathLike[str], *, samples: int, seed: int = 0, split: str = "train"
) -> None:
    """Write the rows of a file with `responses` sampled for each `prompt`, unless this was done before.

    After a kill, the same call resumes, and samples the same responses.

    Raises:
        OSError, ValueError: As from `pcrm score`; a row has no prompt, or already has responses.
    """
    samples, seed = _check.integer("samples", samples, 1), _check.integer("seed", seed)
    opened = open_source(source, split)
    settings = policy.settings | {"--samples": samples, "--seed": seed}

    def compute(rows: ParsedRows[Any]) -> Columns:
        try:
            return {"responses": policy.sample(list(rows.values.values()), samples, (seed, rows.batch.start))}
        except RowError as error:
            raise BadRowError(f"{rows.batch.place(rows.kept[error.row or 0])}: {error.message}") from None

    def make() -> None:
        RowPipeline(
            opened,
            out,
            parse=_prompt,
            adds=("responses",),
            settings=settings,
            input_name="POOL",
            batch_rows=_SHARD_PROMPTS,
            unit="prompts",
        ).run(compute, "sampling")

    make_once(Path(out), settings | opened.identity, make)


def _prompt(row: dict[str, Any]) -> Any:
    if row.get("prompt") is None:
        raise RowError(f"must have a key 'prompt', got {listed(row)}")
    return row["prompt"]


def score_responses(
    model: RewardModel, source: str, out: Path, split: str = "train", processes: Processes | None = None
) -> list[Floats]:
    """Score the `responses` of each row of a file, unless `out` has their scores.

    Args:
        processes: See `add_scores`.

    Returns:
        The scores of each row.

    Raises:
        OSError, ValueError: As from `pcrm score`.
    """
    rows = open_source(source, split)
    recipe = {"model": model.identity, "rows": rows.identity, "dtype": model.dtype, "max_length": model.max_length}
    make_once(out, recipe, lambda: add_scores(rows, out, model, ("responses",), processes=processes))
    return columns(str(out), ("scores",))[0]
