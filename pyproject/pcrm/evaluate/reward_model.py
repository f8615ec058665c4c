"""Scores by a trained reward model, the same as TRL's `RewardTrainer` computes of it.

Needs transformers; `pip install 'pcrm[trl]'` brings it.
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

# What a checkpoint's folder has beside these (logs, optimizers, scores) says nothing of the model.
_PARTS = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


class RewardModel:
    """A checkpoint of `AutoModelForSequenceClassification` with one label, or a PEFT adapter of one.

    Texts are tokenized as in training. TRL takes a text as it is and messages by the checkpoint's chat template.
    OpenRLHF, whose checkpoints have a `value_head_prefix` in their configuration, strips line ends from the end, adds a
    space and the token that ends a text, and adds no other special tokens.

    Padding is on the right. The score of a decoder is that of the last token that is not the pad token, as in transformers:
    the configuration's, else the tokenizer's, else the token that ends a text. An adapter has no configuration, so there
    the tokenizer's comes first. OpenRLHF reads the last token, whatever it is.

    Args:
        model: The checkpoint's folder or its name on the hub, with its tokenizer.
        dtype: "float32" computes with float32 weights, whatever the checkpoint has. The others
            compute as TRL does with `bf16=True`, its default, or `fp16=True`: under autocast,
            with the weights as the checkpoint has them.
        device: A torch device; by default the GPU where there is one, else the CPU.
        batch_size: Sequences in a forward pass. Those of similar length are put together.
        prefix_sharing: Whether what the sequences of a pass begin with in common goes through the model once
            (`pcrm.prefix_sharing`), where the model allows it. The scores are the same to rounding.
        max_length: Tokens of a sequence. By default what the model and its tokenizer say. A model with relative, rotary or
            scaled positions takes more, one with a table of positions does not.

    Raises:
        OSError: There is no such checkpoint, it has no tokenizer, its weights are not safetensors, it needs code of its
            own, or it cannot be read.
        TypeError: batch_size or max_length is not an integer.
        ValueError: The checkpoint's head has another number of labels, or no weights; its tokenizer
            has no token to pad with; an adapter without peft, or one that does not fit its base
            model; a device that is not there or holds no numbers, such as "meta"; an argument out of
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
        prefix_sharing: bool = True,
    ) -> None:
        self.dtype = _check.one_of("dtype", dtype, DTYPES)
        self.name, self.batch_size = os.fspath(model), _check.integer("batch_size", batch_size, 1)
        if max_length is not None:
            max_length = _check.integer("max_length", max_length, 1)
        self._compute_dtype = getattr(torch, dtype)
        self.tokenizer = load_tokenizer(self.name)
        self._model = _load(self.name, torch.float32 if dtype == "float32" else "auto", len(self.tokenizer)).eval()
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._model.to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch has either for what is not there
            raise ValueError(f"device is {device!r}: {error}") from None
        if self.device.type == "meta":  # torch moves the model there: it has shapes and no numbers
            raise ValueError(f"device is {str(device)!r}, on which nothing can be computed")
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
        # None: the score is that of the last token. Some configurations say -1, which no token is.
        self._pad = pad if 0 <= pad < self._known and not self._openrlhf else None

    @property
    def end(self) -> str:
        """What `preferences.inputs` has to put at the end of a plain response."""
        return "" if self._openrlhf else self.tokenizer.eos_token or ""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells that it is the same model as before."""
        names = {self.name, getattr(self._model.base_model, "name_or_path", self.name)}
        return {name: identity_of(name, self._model.config) for name in sorted(names)}

    def encode(self, name: str, value: str | list[dict[str, Any]], tools: Any = None, options: Any = None) -> list[int]:
        """The token ids of a text or of messages, as `preferences.inputs` gives them.

        Args:
            name: What errors call it.
            tools, options: The row's `tools`, which may be JSON, and `chat_template_kwargs`.

        Raises:
            RowError: it has too many tokens, or none, or one that the model does not know; the
                chat template does not take the messages.
            ValueError: the tokenizer has no chat template.
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
            raise RowError(f"{name} has no tokens")
        if len(ids) > self.max_length:
            raise RowError(f"{name} has {len(ids)} tokens with its prompt, more than {self.max_length}")
        if max(ids) >= self._known:
            raise RowError(f"{name} has the token {max(ids)}, {self.name} knows {self._known}")
        return ids

    def _output(self, **inputs: Any) -> Any:
        try:
            return self._model(**inputs)
        except PrefixSharingError as error:
            warnings.warn(f"{self.name} is scored without shared prefixes: {error}", RuntimeWarning, stacklevel=3)
            disable(self._model)
            self.shares_prefixes = False
            return self._model(**inputs)

    def _templated(self, name: str, messages: list[dict[str, Any]], tools: Any, options: Any, **how: Any) -> Any:
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{name} is a list of messages, and the tokenizer of {self.name} has no chat template. Save a tokenizer "
                "with its chat_template in the checkpoint, or give the rows as texts"
            )
        try:
            tools = json.loads(tools) if isinstance(tools, str) else tools
            return self.tokenizer.apply_chat_template(messages, tools=tools, **how, **(options or {}))
        except Exception as error:  # a template is a program
            raise RowError(f"{name}: the chat template fails: {error}") from None

    def __call__(self, prompts: Sequence[Any], responses: Sequence[Any]) -> np.ndarray:
        """The scores of responses to prompts, texts or messages as `preferences.inputs` has them: float32, shape (N,).

        Raises:
            RowError: as `encode` and `preferences.inputs`, with the place of the response.
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
        # What begins alike stands together, or else what is equally long.
        unique = sorted(dict.fromkeys(map(tuple, sequences)), key=None if self.shares_prefixes else len)
        scores: dict[tuple[int, ...], float] = {}
        size = min(self.batch_size, max(1, self._known - 1))  # so that a token is left that ends no row of a pass
        parts = [unique[begin : begin + size] for begin in range(0, len(unique), size)]
        # The longest first: what does not fit into memory says so at once.
        for part in sorted(parts, key=lambda part: max(map(len, part)), reverse=True):
            pad = self._pad
            if pad is None:
                ends = {ids[-1] for ids in part}
                pad = next(id for id in range(self._known) if id not in ends)
            self._config.pad_token_id = pad  # a decoder's score is that of the last token that is another
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
    # The number of labels is that of the head in the file: OpenRLHF's configurations do not say it, and then transformers
    # says 2.
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
            f"{name}: {key} has shape {tuple(found)}, that of a reward model with 1 label has shape {tuple(wanted)}"
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
    with loading(name):
        config = PeftConfig.from_pretrained(name)
        base = str(config.base_model_name_or_path)
    # peft imports the module that an adapter names there.
    if getattr(config, "megatron_config", None):
        raise ValueError(f"{name}: has a megatron_config, which names code to import, and pcrm runs no such code")
    model, report = load_model(
        AutoModelForSequenceClassification,
        base,
        revision=config.revision,
        num_labels=1,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # of a head that the adapter's takes the place of
    )
    try:
        if tokens > model.get_input_embeddings().weight.shape[0]:  # trained with tokens of its own
            model.resize_token_embeddings(tokens)
        adapted = PeftModel.from_pretrained(model, name)
    except Exception as error:  # of many types: peft does not check what an adapter says
        raise ValueError(f"{name}: does not fit its base model {base} with 1 label: {error}") from None
    own = {key.removeprefix("base_model.model.") for key in load_peft_weights(name, device="cpu")}
    random = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    _check_complete(name, random - own)
    return adapted


def _check_complete(name: str, missing: Any) -> None:
    if missing:
        raise ValueError(f"{name}: is not a trained reward model: it has no weights for {', '.join(sorted(missing))}")


def identity_of(name: str, config: Any) -> Any:
    """What tells that the checkpoint of that name is the same as before: its files, or the hub's commit."""
    if not os.path.isdir(name):
        return getattr(config, "_commit_hash", None)
    parts = sorted(p for p in Path(name).iterdir() if p.suffix in _PARTS and p.is_file())
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in parts]
