"""Scores of a trained reward model, equal to those that TRL's `RewardTrainer` computes.

Needs transformers: `pip install 'pcrm[trl]'`.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .. import _check
from .._pretrained import load_config, load_model, load_tokenizer, loading, longest, pad_token_id
from ..data.preferences import RowError, inputs
from ..prefix_sharing import PrefixSharingError, disable, enable, why_not
from . import DTYPES

# Other files in a checkpoint's folder (logs, optimizers, scores) do not affect the model.
_PARTS = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


class RewardModel:
    """A checkpoint of `AutoModelForSequenceClassification` with one label, or a PEFT adapter of one.

    Texts are tokenized as in training. TRL uses a text as it is, and applies the checkpoint's chat template to messages.
    OpenRLHF, whose checkpoints have a `value_head_prefix` in their configuration, strips line ends at the end, appends a
    space and the EOS token, and adds no other special tokens.

    Padding is on the right. The score of a decoder is read at the last token that is not the pad token, as in transformers.
    The pad token is that of the configuration, else of the tokenizer, else the EOS token. For an adapter the tokenizer
    comes first, because an adapter has no configuration of its own. OpenRLHF reads the last token, whatever it is.

    Args:
        model: The folder of the checkpoint or its name on the hub, with its tokenizer.
        dtype: "float32" computes with float32 weights, whatever the checkpoint has. "bfloat16" and "float16" compute like
            TRL with `bf16=True` (its default) and `fp16=True`: under autocast, with the weights of the checkpoint.
        device: A torch device. By default the GPU if there is one, else the CPU.
        batch_size: Sequences per forward pass. Sequences of similar length are batched together.
        prefix_sharing: Whether the common beginnings of the sequences of a pass go through the model only once
            (`pcrm.prefix_sharing`), if the model allows it. The scores are the same to rounding.
        max_length: Maximum tokens of a sequence. By default the limit of the model and its tokenizer. Models with relative,
            rotary or scaled positions accept more; models with a table of positions do not.

    Raises:
        OSError: The checkpoint does not exist, has no tokenizer, has weights that are not safetensors, needs custom code,
            or cannot be read.
        TypeError: batch_size or max_length is not an integer.
        ValueError: The head has more than one label, or no weights; the tokenizer has no token to pad with; peft is not
            installed for an adapter, or the adapter does not fit its base model; the device does not exist or cannot
            compute, such as "meta"; an argument is out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        prefix_sharing: bool = True,
    ) -> None:
        self.dtype = _check.one_of("dtype", dtype, DTYPES)
        self.name, self.batch_size = _check.path("model", model), _check.integer("batch_size", batch_size, 1)
        if max_length is not None:
            max_length = _check.integer("max_length", max_length, 1)
        self._compute_dtype = getattr(torch, dtype)
        self.tokenizer = load_tokenizer(self.name)
        self._model = _load(self.name, torch.float32 if dtype == "float32" else "auto", len(self.tokenizer)).eval()
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._model.to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch raises either for a device that does not exist
            raise ValueError(f"device must be a torch device of this machine, got {device!r}: {error}") from None
        if self.device.type == "meta":  # torch accepts it, but its tensors have no numbers
            raise ValueError(f"device must be able to compute, got {str(device)!r}")
        self._config = self._model.config.get_text_config()
        self._config.use_cache = False
        self.max_length = longest(self.name, self._model, self.tokenizer.model_max_length, max_length)
        self._known = self._model.get_input_embeddings().weight.shape[0]
        self._openrlhf = hasattr(self._config, "value_head_prefix")
        ids = [self._config.pad_token_id, self.tokenizer.pad_token_id]
        pad = pad_token_id(self.name, self.tokenizer, *(reversed(ids) if is_adapter(self.name) else ids))
        self.shares_prefixes = prefix_sharing and why_not(self._model, self.max_length) is None
        if self.shares_prefixes:
            enable(self._model)
        # None: the score is read at the last token. Some configurations have -1, which is not a token.
        self._pad = pad if 0 <= pad < self._known and not self._openrlhf else None

    @property
    def end(self) -> str:
        """The text that `preferences.inputs` must append to a plain response."""
        return "" if self._openrlhf else self.tokenizer.eos_token or ""

    @property
    def identity(self) -> dict[str, Any]:
        """A fingerprint of the model, by which a resumed run notices a changed model."""
        names = {self.name, getattr(self._model.base_model, "name_or_path", self.name)}
        return {name: identity_of(name, self._model.config) for name in sorted(names)}

    def encode(self, name: str, value: str | list[dict[str, Any]], tools: Any = None, options: Any = None) -> list[int]:
        """The token ids of a text or of messages from `preferences.inputs`.

        Args:
            name: The name of the response in errors.
            tools, options: The row's `tools`, which may be JSON, and `chat_template_kwargs`.

        Raises:
            RowError: The value has too many tokens, none, or one that is not in the model's vocabulary; the chat template
                fails for the messages.
            ValueError: The tokenizer has no chat template.
        """
        if self._openrlhf:
            text = value if isinstance(value, str) else self._templated(name, value, tools, options, tokenize=False)
            text, end = text.rstrip("\n"), self.tokenizer.eos_token or ""
            text = text if text.endswith(end) else f"{text} {end}"
            ids = self.tokenizer(text=text, verbose=False, add_special_tokens=False)["input_ids"]
        elif isinstance(value, str):
            ids = self.tokenizer(text=value, verbose=False)["input_ids"]
        else:
            ids = self._templated(name, value, tools, options, tokenize=True, return_dict=True)["input_ids"]
        if not ids:
            raise RowError(f"{name} must have at least one token, got none")
        if len(ids) > self.max_length:
            raise RowError(f"{name} with its prompt must have at most {self.max_length} tokens, got {len(ids)}")
        if max(ids) >= self._known:
            raise RowError(
                f"{name} must have token ids below {self._known}, the vocabulary of {self.name}, got {max(ids)}"
            )
        return ids

    def _output(self, **inputs: Any) -> Any:
        try:
            return self._model(**inputs)
        except PrefixSharingError as error:
            warnings.warn(
                f"{self.name} is scored without prefix sharing, which is slower: {error}", RuntimeWarning, stacklevel=3
            )
            disable(self._model)
            self.shares_prefixes = False
            return self._model(**inputs)

    def _templated(self, name: str, messages: list[dict[str, Any]], tools: Any, options: Any, **how: Any) -> Any:
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{name} must be a text because the tokenizer of {self.name} has no chat template, got a list of messages. "
                "Save a tokenizer with a chat_template in the checkpoint, or write the rows as texts"
            )
        try:
            tools = json.loads(tools) if isinstance(tools, str) else tools
            return self.tokenizer.apply_chat_template(messages, tools=tools, **how, **(options or {}))
        except Exception as error:  # a template is a program
            raise RowError(f"{name} must fit the chat template, which fails: {error}") from None

    def __call__(self, prompts: Sequence[Any], responses: Sequence[Any]) -> np.ndarray:
        """Score responses to prompts, which are texts or messages as in `preferences.inputs`.

        Returns:
            float32, shape (N,).

        Raises:
            RowError: As from `encode` and `preferences.inputs`, with the index of the response.
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
        """Score sequences of token ids. Equal sequences are computed once and get equal scores.

        Args:
            progress: Called after each pass with the fraction that is done.

        Returns:
            float32, shape (N,).
        """
        # Sequences with the same beginning are adjacent, or without prefix sharing, sequences of similar length.
        unique = sorted(dict.fromkeys(map(tuple, sequences)), key=None if self.shares_prefixes else len)
        scores: dict[tuple[int, ...], float] = {}
        size = min(self.batch_size, max(1, self._known - 1))  # so that some token ends no row of a pass
        parts = [unique[begin : begin + size] for begin in range(0, len(unique), size)]
        # The longest first, so that running out of memory shows at once.
        for part in sorted(parts, key=lambda part: max(map(len, part)), reverse=True):
            pad = self._pad
            if pad is None:
                ends = {ids[-1] for ids in part}
                pad = next(id for id in range(self._known) if id not in ends)
            self._config.pad_token_id = pad  # a decoder's score is read at the last token that differs from it
            ids = pad_sequence([torch.tensor(s) for s in part], batch_first=True, padding_value=pad)
            mask = torch.arange(ids.shape[1]) < torch.tensor([[len(s)] for s in part])
            with torch.autocast(self.device.type, self._compute_dtype, enabled=self._compute_dtype != torch.float32):
                output = self._output(input_ids=ids.to(self.device), attention_mask=mask.long().to(self.device))
            scores.update(zip(part, output.logits.squeeze(1).tolist(), strict=True))
            if progress is not None:
                progress(len(scores) / len(unique))
        return np.array([scores[tuple(s)] for s in sequences], np.float32)


def is_adapter(name: str) -> bool:
    from transformers.utils import find_adapter_config_file

    return find_adapter_config_file(name) is not None


def _load(name: str, dtype: Any, tokens: int) -> Any:
    from transformers import AutoModelForSequenceClassification

    if is_adapter(name):
        return _load_adapter(name, dtype, tokens)
    # The head in the file decides the number of labels. OpenRLHF's configurations do not have it, and transformers then
    # assumes 2.
    prefix = getattr(load_config(name), "value_head_prefix", "score")
    model, report = load_model(
        AutoModelForSequenceClassification,
        name,
        num_labels=1,
        dtype=dtype,
        key_mapping=None if prefix == "score" else {rf"^{re.escape(prefix)}\.": "score."},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for key, found, wanted in report["mismatched_keys"]:
        raise ValueError(
            f"{name}: {key} must have the shape {tuple(wanted)} of a reward model with 1 label, got {tuple(found)}"
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
        raise ValueError(f"{name}: peft must be installed to load an adapter: pip install peft") from None
    # Without this file peft would load adapter_model.bin, which is a pickle.
    if cached_file(name, SAFETENSORS_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False) is None:
        raise ValueError(
            f"{name}: must have weights in {SAFETENSORS_WEIGHTS_NAME}, got none. Other formats are not read"
        )
    with loading(name):
        config = PeftConfig.from_pretrained(name)
        base = str(config.base_model_name_or_path)
    # peft imports the module that megatron_config names.
    if getattr(config, "megatron_config", None):
        raise ValueError(
            f"{name}: must not have a megatron_config, which names code to import. pcrm does not run such code"
        )
    model, report = load_model(
        AutoModelForSequenceClassification,
        base,
        revision=config.revision,
        num_labels=1,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # for a head that the adapter replaces
    )
    try:
        if tokens > model.get_input_embeddings().weight.shape[0]:  # trained with additional tokens
            model.resize_token_embeddings(tokens)
        adapted = PeftModel.from_pretrained(model, name)
    except Exception as error:  # many types: peft does not validate adapters
        raise ValueError(f"{name}: the adapter must fit its base model {base} with 1 label: {error}") from None
    own = {key.removeprefix("base_model.model.") for key in load_peft_weights(name, device="cpu")}
    random = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    _check_complete(name, random - own)
    return adapted


def _check_complete(name: str, missing: Any) -> None:
    if missing:
        raise ValueError(f"{name}: must be a trained reward model, got no weights for {', '.join(sorted(missing))}")


def identity_of(name: str, config: Any) -> Any:
    """A fingerprint of a checkpoint: its files, or the commit on the hub."""
    if not os.path.isdir(name):
        return getattr(config, "_commit_hash", None)
    parts = sorted(p for p in Path(name).iterdir() if p.suffix in _PARTS and p.is_file())
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in parts]
