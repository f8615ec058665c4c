"""Scores by a trained reward model, the same as TRL's `RewardTrainer` computes of it.

Needs transformers; `pip install 'pcrm[trl]'` brings it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .rows import RowError, inputs
from .tokens import load_tokenizer

DTYPES = ("float32", "bfloat16", "float16")

# What a checkpoint's folder has beside these (logs, optimizers, scores) says nothing of the model.
_PARTS = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


class RewardModel:
    """A checkpoint of `AutoModelForSequenceClassification` with one label, or a PEFT adapter of one.

    Tokenization is TRL's: of a text as it is, of messages by the checkpoint's chat template;
    padding is on the right, with the pad token, or where there is none with the token that
    ends a text, and the model is told which it is.

    Args:
        model: The checkpoint's folder or its name on the hub, with its tokenizer.
        dtype: "float32" computes with float32 weights, whatever the checkpoint has. The others
            compute as TRL does with `bf16=True`, its default, or `fp16=True`: under autocast,
            with the weights as the checkpoint has them.
        device: A torch device; by default the GPU where there is one, else the CPU.
        batch_size: Sequences in a forward pass. Those of like length are put together.
        max_length: Tokens of a sequence; by default what the model and its tokenizer take.

    Raises:
        OSError: there is no such checkpoint, no tokenizer in it, or weights that are no safetensors.
        ValueError: the checkpoint has another number of labels, or lacks weights; its tokenizer
            has no token to pad with; an adapter without peft, or one that does not fit its base
            model; a device that is not there or holds no numbers, as "meta"; an argument out of
            its range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}, must be one of {', '.join(DTYPES)}")
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}, must be an integer of at least 1")
        self.name, self.batch_size = os.fspath(model), batch_size
        self._dtype = getattr(torch, dtype)
        self.tokenizer = load_tokenizer(self.name)
        self._model = _load(self.name, torch.float32 if dtype == "float32" else "auto", len(self.tokenizer)).eval()
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._model.to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch has either for what is not there
            raise ValueError(f"device is {device!r}: {error}") from None
        if self.device.type == "meta":  # torch moves the model there: it has shapes and no numbers
            raise ValueError(f"device is {str(device)!r}, on which nothing can be computed")
        config = self._model.config.get_text_config()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token is None:
            raise ValueError(f"{self.name}: its tokenizer has neither a pad token nor one that ends a text")
        config.pad_token_id = self.tokenizer.pad_token_id  # a decoder's score is that of the last token that is another
        config.use_cache = False
        positions = getattr(config, "max_position_embeddings", None)
        if max_length is not None and positions and max_length > positions:
            raise ValueError(f"max_length is {max_length}, {self.name} takes at most {positions} tokens")
        limit = self.tokenizer.model_max_length
        self.max_length: int = max_length or (min(limit, positions) if positions else limit)
        self._known = self._model.get_input_embeddings().weight.shape[0]

    @property
    def end(self) -> str:
        """What a plain response ends with: TRL adds it where it does not."""
        return self.tokenizer.eos_token or ""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells that it is the same model as before."""
        names = {self.name, getattr(self._model.base_model, "name_or_path", self.name)}
        return {name: identity_of(name, self._model.config) for name in sorted(names)}

    def encode(self, name: str, value: str | list[dict[str, Any]], tools: Any = None, options: Any = None) -> list[int]:
        """The token ids of a text or of messages, as `rows.inputs` gives them.

        Args:
            name: What errors call it.
            tools, options: The row's `tools`, which may be JSON, and `chat_template_kwargs`.

        Raises:
            RowError: it has too many tokens, or none, or one that the model does not know; the
                chat template does not take the messages.
            ValueError: the tokenizer has no chat template.
        """
        if isinstance(value, str):
            ids = self.tokenizer(text=value, verbose=False)["input_ids"]
        else:
            ids = self._templated(name, value, tools, options)
        if not ids:
            raise RowError(f"{name} has no tokens")
        if len(ids) > self.max_length:
            raise RowError(f"{name} has {len(ids)} tokens with its prompt, more than {self.max_length}")
        if max(ids) >= self._known:
            raise RowError(f"{name} has the token {max(ids)}, {self.name} knows {self._known}")
        return ids

    def _templated(self, name: str, messages: list[dict[str, Any]], tools: Any, options: Any) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{self.name}: its tokenizer has no chat template, and {name} is a list of messages")
        try:
            tools = json.loads(tools) if isinstance(tools, str) else tools
            encoded = self.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, tools=tools, **(options or {})
            )
        except Exception as error:  # a template is a program
            raise RowError(f"{name}: the chat template fails: {error}") from None
        return encoded["input_ids"]

    def __call__(self, prompts: Sequence[Any], responses: Sequence[Any]) -> np.ndarray:
        """The scores of responses to prompts, texts or messages as `rows.inputs` has them: float32, shape (N,).

        Raises:
            RowError: as `encode` and `rows.inputs`, with the place of the response.
        """
        encoded = []
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            name = f"responses[{i}]"
            (value,) = inputs(prompt, {name: response}, end=self.end)
            encoded.append(self.encode(name, value))
        return self.score(encoded)

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[Sequence[int]], progress: Callable[[float], object] | None = None
    ) -> np.ndarray:
        """The scores of sequences of token ids; equal ones are computed once and are equal.

        Args:
            progress: Called after each pass with the share that is done.

        Returns:
            float32, shape (N,).
        """
        # The longest first: what does not fit into memory says so at once.
        unique = sorted(dict.fromkeys(map(tuple, sequences)), key=len, reverse=True)
        scores: dict[tuple[int, ...], float] = {}
        for begin in range(0, len(unique), self.batch_size):
            part = unique[begin : begin + self.batch_size]
            pad = self.tokenizer.pad_token_id
            ids = pad_sequence([torch.tensor(s) for s in part], batch_first=True, padding_value=pad)
            mask = torch.arange(ids.shape[1]) < torch.tensor([[len(s)] for s in part])
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                output = self._model(input_ids=ids.to(self.device), attention_mask=mask.long().to(self.device))
            scores.update(zip(part, output.logits.squeeze(1).tolist(), strict=True))
            if progress is not None:
                progress(len(scores) / len(unique))
        return np.array([scores[tuple(s)] for s in sequences], np.float32)


def _load(name: str, dtype: Any, tokens: int) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(name) is not None:
        return _load_adapter(name, dtype, tokens)
    config = AutoConfig.from_pretrained(name)
    if config.num_labels != 1:
        raise ValueError(f"{name}: has {config.num_labels} labels, a reward model has 1")
    model, report = AutoModelForSequenceClassification.from_pretrained(
        name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    _check_complete(name, report["missing_keys"])
    return model


def _load_adapter(name: str, dtype: Any, tokens: int) -> Any:
    from transformers import AutoModelForSequenceClassification
    from transformers.utils.hub import cached_file

    try:
        from peft import PeftConfig, PeftModel, load_peft_weights
        from peft.utils import SAFETENSORS_WEIGHTS_NAME
    except ModuleNotFoundError:
        raise ValueError(f"{name}: is an adapter, which needs peft: pip install peft") from None
    # peft would take adapter_model.bin, which is a pickle, where this is not there.
    if cached_file(name, SAFETENSORS_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False) is None:
        raise ValueError(f"{name}: has no {SAFETENSORS_WEIGHTS_NAME}, and weights of another format are not read")
    config = PeftConfig.from_pretrained(name)
    base: str = config.base_model_name_or_path  # pyright: ignore[reportAssignmentType]
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            base, revision=config.revision, num_labels=1, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        if tokens > model.get_input_embeddings().weight.shape[0]:  # trained with tokens of its own
            model.resize_token_embeddings(tokens)
        adapted = PeftModel.from_pretrained(model, name)
    except RuntimeError as error:
        raise ValueError(f"{name}: does not fit its base model {base} with 1 label: {error}") from None
    own = {key.removeprefix("base_model.model.") for key in load_peft_weights(name, device="cpu")}
    _check_complete(name, set(report["missing_keys"]) - own)
    return adapted


def _check_complete(name: str, missing: Any) -> None:
    if missing:
        raise ValueError(f"{name}: is no trained reward model, it has no weights for {', '.join(sorted(missing))}")


def identity_of(name: str, config: Any) -> Any:
    """What tells that the checkpoint of that name is the same as before: its files, or the hub's commit."""
    if not os.path.isdir(name):
        return getattr(config, "_commit_hash", None)
    parts = sorted(p for p in Path(name).iterdir() if p.suffix in _PARTS and p.is_file())
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in parts]
