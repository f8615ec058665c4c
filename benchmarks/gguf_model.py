"""Load a language model from a GGUF file as a transformers model that can be trained and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pcrm._pretrained import load_tokenizer
from transformers import AutoModelForCausalLM


def load(file: Path, model_class: Any, **settings: Any) -> tuple[Any, Any]:
    """Return a model of the given class with the weights of the file in float32, and its tokenizer.

    transformers marks a model from a GGUF file as quantized, although its weights are not, and then neither trains nor saves it.

    Args:
        settings: Of the configuration, such as `num_labels`.
    """
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    tokenizer = load_tokenizer(file.parent, gguf_file=file.name)
    tokenizer.pad_token = tokenizer.unk_token  # not the token that ends a response, because that one is scored
    described = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    config = type(read.config)(**described | settings | {"pad_token_id": tokenizer.pad_token_id})
    torch.manual_seed(0)
    model = model_class(config)
    model.model.load_state_dict(read.model.state_dict())
    return model, tokenizer
