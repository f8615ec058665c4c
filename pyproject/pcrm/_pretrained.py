"""Load the configurations, weights and tokenizers of checkpoints without running any of their code.

Every `from_pretrained` of transformers is here, with `trust_remote_code=False`. Without that argument, transformers asks
on stdin whether to run a checkpoint's code. Weights are safetensors, never pickles. `priors/encoders.py` loads encoders
of sentence-transformers, and `evaluate/reward_model.py` loads PEFT adapters, by the same rules.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

# Names of tables of absolute positions. Tables of relative positions, such as DeBERTa's `rel_embeddings`, do not match.
_POSITIONS = re.compile(r".*position_embeddings?|embed_positions|wpe")

# A checkpoint's folder has at least one of these files.
_OF_CHECKPOINTS = ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json")


class Positions(NamedTuple):
    """The maximum number of tokens of a model. None means no limit."""

    made_for: int | None  # from its configuration
    most: int | None  # the size of its table of positions


@contextlib.contextmanager
def loading(name: str | os.PathLike[str], what: str = "it") -> Iterator[None]:
    """Turn any error in the block into an OSError with a one-line message that names the checkpoint.

    A checkpoint may hold anything, and transformers, tokenizers and safetensors raise many types of errors.
    """
    name = os.fspath(name)
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise OSError(
                f"{name}: {what} requires Python code from the checkpoint, which pcrm never runs. "
                "Use a checkpoint that transformers loads without trust_remote_code"
            ) from None
        text = " ".join(str(error).split())
        if not isinstance(error, (OSError, ValueError)):
            text = f"{type(error).__name__}: {text}"
        where = ""
        if not os.path.isdir(name):
            where = "not a local folder, and not loaded from the hub: "
        elif not any(os.path.isfile(os.path.join(name, file)) for file in _OF_CHECKPOINTS):
            text = f"the folder must contain a checkpoint ({', '.join(_OF_CHECKPOINTS)}), got none of its files"
        raise OSError(f"{name}: {what} cannot be loaded: {where}{text:.1000}") from None


def load_model(
    auto: Any,
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    num_labels: int | None = None,
    **options: Any,
) -> Any:
    """Call `auto.from_pretrained`, with safetensors only and without code from the checkpoint.

    Args:
        auto: `AutoModel` or another of transformers' auto classes.
        name: A checkpoint's folder or hub name.
        revision: The revision of the hub's repository.
        num_labels: Overrides the number in the configuration.
        options: Other options of `from_pretrained`.

    Raises:
        OSError: The checkpoint does not exist, it needs its own code, or its configuration or weights cannot be read.
            Only safetensors weights can be read.
    """
    given = {"revision": revision, "num_labels": num_labels}
    config = load_config(name, **{key: value for key, value in given.items() if value is not None})
    with loading(name):
        return auto.from_pretrained(
            name, config=config, revision=revision or "main", use_safetensors=True, trust_remote_code=False, **options
        )


def load_config(name: str | os.PathLike[str], **options: Any) -> Any:
    """Call `AutoConfig.from_pretrained` without code from the checkpoint.

    Raises:
        OSError: The checkpoint does not exist, it needs its own code or a kernel from the hub, or its configuration
            cannot be read.
    """
    from transformers import AutoConfig

    with loading(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
        for key in ("_attn_implementation", "_experts_implementation"):
            if "/" in str(asked := getattr(config, key, None)):  # transformers would fetch it from the hub and run it
                raise ValueError(f"its configuration asks for the kernel {asked!r:.80}, which pcrm does not run")
    return config


def positions(model: Any) -> Positions:
    """Return the maximum number of tokens of a transformers model.

    A model with a table of absolute positions fails beyond it. RoBERTa's table begins with rows that no token uses:
    of its 514 rows, 512 are usable. Relative, rotary and scaled positions have no table, and `made_for` is only advice.
    """
    made_for = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(made_for, int) or made_for < 1:  # XLNet says -1
        made_for = None
    limits = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and _POSITIONS.fullmatch(name.rpartition(".")[2]):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first - int(getattr(module, "offset", 0)))
    for name, buffer in model.named_buffers():  # GPT-J's sinusoids
        if buffer.dim() == 2 and buffer.is_floating_point() and _POSITIONS.fullmatch(name.rpartition(".")[2]):
            limits.append(buffer.shape[0])
    if limits and made_for is not None:
        limits.append(made_for)
    return Positions(made_for, min(limits, default=None))


def longest(name: str, model: Any, tokenizer_limit: int | None, max_length: int | None) -> int:
    """Return the maximum number of tokens to use: `max_length`, else the limit of model and tokenizer.

    Raises:
        ValueError: `max_length` exceeds the model's table of positions.
    """
    made_for, most = positions(model)
    if max_length is not None:
        if most is not None and max_length > most:
            raise ValueError(f"max_length must be at most {most} for {name}, got {max_length}")
        return max_length
    return min((limit for limit in (tokenizer_limit, made_for, most) if limit), default=0)


def load_tokenizer(name: str | os.PathLike[str], **options: Any) -> Any:
    """Call `AutoTokenizer.from_pretrained` without code from the checkpoint.

    For a checkpoint without a tokenizer, transformers makes up an empty one. Here that is an error.

    Args:
        name: A checkpoint's folder or hub name.
        options: Other options of `from_pretrained`.

    Raises:
        OSError: The checkpoint does not exist, has no tokenizer, or its tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    name = os.fspath(name)
    with loading(name, "its tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise OSError(
            f"{name}: the checkpoint must have a tokenizer. Save one with it: tokenizer.save_pretrained(folder)"
        )
    return tokenizer


def pad_token_id(name: str | os.PathLike[str], tokenizer: Any, *ids: int | None) -> int:
    """Return the id to pad with: the first of `ids` that is not None, else that of the end-of-text token.

    Raises:
        ValueError: The tokenizer has no end-of-text token either.
    """
    for found in (*ids, tokenizer.eos_token_id):
        if found is not None:
            return found
    raise ValueError(
        f"{os.fspath(name)}: the tokenizer must have a pad token or an end-of-text token (eos). "
        "Set tokenizer.pad_token and save the tokenizer with the checkpoint"
    )
