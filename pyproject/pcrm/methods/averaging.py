"""Average the weights of several checkpoints into a new checkpoint.

    theta = sum_i w_i theta_i / sum_i w_i

"WARM: On the Benefits of Weight Averaged Reward Models" (arXiv 2401.12187). The Go package
checkpoint computes the numbers and documents their rounding. This module handles the other files
of a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .._checkpoint_folder import files_of_model, module_folders, new_folder
from .._engine import native

Progress = Callable[[int, int], object]


class Averaged(NamedTuple):
    """The result of `average`."""

    weights: list[float]  # the normalized weights, w_i / sum_i w_i
    tensors: int
    bytes: int  # the size of all tensors of the average
    not_finite: int  # the number of elements of the average that are NaN or infinite
    first: str  # the tensor with the first of these


# Weights of a module that sentence-transformers keeps in its own folder.
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth)")

# Keys of config.json that do not change what a model computes from its weights: its origin, and
# dropout, which may differ between WARM's runs. A tensor's dtype is in its file.
_CONFIG_FREE = re.compile(
    r"_name_or_path|transformers_version|(torch_)?dtype|use_cache|_?attn_implementation.*|.*drop.*"
)

# The files of a tokenizer, its chat templates, and its keys that do not change the tokens of a text:
# padding, truncation and origin.
_TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|(vocab|merges)\.txt|.*\.(model|tiktoken)"
)
_TEMPLATE = re.compile(r".*\.jinja")
_TOKENIZER_FREE = re.compile(
    r"padding|truncation|(padding|truncation)_(side|strategy)|pad_to_.*|pad_token_type_id|stride|(model_)?max_length"
    r"|name_or_path|tokenizer_file|processor_class|is_local|backend|local_files_only"
)


def average(
    models: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Averaged:
    """Write the weighted mean of several checkpoints as a new checkpoint.

        theta = sum_i w_i theta_i / sum_i w_i

    The mean is computed in float64 and rounded once, to nearest even, to the dtype of the theta_i:
    float64, float32, bfloat16 or float16. Integer and boolean tensors must be equal in all
    checkpoints. NaN and infinities are averaged like other numbers; the result counts them.

    The layout of the weight files, the configuration, the tokenizer, the chat template and the
    license come from the first checkpoint. If the first has no tokenizer, the tokenizer comes from
    the first checkpoint that has one. `out` appears only when it is complete and on disk. Until
    then the files are in `out`.part. An interrupt or an error removes that folder. A kill leaves it
    behind, and the next call with the same `out` starts over.

    Source: "WARM: On the Benefits of Weight Averaged Reward Models", arXiv 2401.12187.

    Args:
        models: At least two folders, each with config.json and either model.safetensors or the files
            listed in model.safetensors.index.json.
        out: The folder to create. It may exist if it is empty.
        weights: One weight per model, finite and at least 0. The default is 1 for each.
        progress: Called with the number of bytes written so far and the total.

    Returns:
        An `Averaged` with the normalized weights, the number of tensors, their size in bytes, and
        the count of NaN and infinite elements.

    Raises:
        ValueError: The tensors differ in names, shapes, dtypes or integer values; the configurations
            differ in more than names and dropout; the tokenizers differ; a file is truncated or
            hostile; a checkpoint is an adapter; a weight is out of range; or `out` is not empty or
            is being written by another process. The message names the file and the tensor or key.
            Nothing has been written.
        OSError: A file cannot be read or written.
        RuntimeError: The native library is not available.
    """
    library = native.library()
    folders, out = [Path(model) for model in models], Path(out)
    if len(folders) < 2:
        raise ValueError(f"models must have at least 2 elements, got {len(folders)}")
    _check_configs(folders)
    _check_modules(folders)
    tokenizer = _checked_tokenizer(folders)
    numbers = array("d", weights or ())
    info = json.loads(
        native.call(
            library.bridge_AverageNew,
            json.dumps([os.fspath(folder) for folder in folders]),
            native.address(numbers),
            -1 if weights is None else len(numbers),
        )
    )
    handle, total = info["handle"], info["bytes"]
    found: dict[str, Any] = {}
    try:
        carried = {n: p for n, p in files_of_model(folders[0]).items() if not _of_tokenizer(n)} | tokenizer
        with new_folder(out, {*info["files"], *carried}) as part:
            native.call(library.bridge_AverageCreate, handle, os.fspath(part))
            done = 0
            while written := native.call(library.bridge_AverageNext, handle):
                done += written
                if progress is not None:
                    progress(done, total)
            # After the weights: without a configuration, nothing treats the folder as a model.
            for name, path in carried.items():
                (part / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, part / name)
    finally:
        found = json.loads(native.call(library.bridge_AverageClose, handle))
    return Averaged(info["weights"], info["tensors"], total, found["not_finite"], found["first"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        # Parse NaN as a string, because NaN does not equal itself.
        value = json.loads(path.read_text("utf-8"), parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: must be JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be a JSON object, got {type(value).__name__}")
    return value


def _check_same(paths: Sequence[Path], free: re.Pattern[str], *, deep: bool) -> None:
    """Check that JSON files are equal except for the keys that match `free`, at any depth or only at the top."""
    first = _without(_read_json(paths[0]), free, deep)
    for path in paths[1:]:
        other = _without(_read_json(path), free, deep)
        if (key := _difference(first, other)) is not None:
            was, now = (json.dumps(_at(x, key))[:80] for x in (first, other))
            raise ValueError(f"{path}: {'.'.join(key)} must be {was}, as in {paths[0]}, got {now}")


def _without(value: Any, free: re.Pattern[str], deep: bool) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, free, deep) if deep else v for k, v in value.items() if not free.fullmatch(k)}
    return value


def _difference(a: Any, b: Any) -> tuple[str, ...] | None:
    """Return the path of keys to the first difference, or None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if (key in a) != (key in b):
                return (key,)
            if (inner := _difference(a[key], b[key])) is not None:
                return (key, *inner)
        return None
    return None if a == b else ()


def _at(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        value = value.get(key)
    return value


def _check_configs(folders: Sequence[Path]) -> None:
    for folder in folders:
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder}: must be a full model, got an adapter: merge it into its base model first. (Averaging the factors "
                "of adapters does not average their products)"
            )
    _check_same([folder / "config.json" for folder in folders], _CONFIG_FREE, deep=True)


def _check_modules(folders: Sequence[Path]) -> None:
    for folder in folders:
        for path in (path for module in module_folders(folder) for path in sorted(module.iterdir())):
            if _WEIGHTS.fullmatch(path.name):
                raise ValueError(f"{path}: separate weights of a module cannot be averaged")


def _of_tokenizer(name: str) -> bool:
    return bool(_TOKENIZER.fullmatch(name) or _TEMPLATE.fullmatch(name))


def _checked_tokenizer(folders: Sequence[Path]) -> dict[str, Path]:
    """Compare the tokenizers of the checkpoints that have one, and return the files of the first."""
    tokenizers = [{n: p for n, p in files_of_model(folder).items() if _of_tokenizer(n)} for folder in folders]
    having = [i for i, files in enumerate(tokenizers) if any(map(_TOKENIZER.fullmatch, files))]
    if not having:
        return tokenizers[0]
    first = tokenizers[having[0]]
    for i in having[1:]:
        for name in sorted(first.keys() ^ tokenizers[i].keys()):
            there, other = (folders[j] for j in ((having[0], i) if name in first else (i, having[0])))
            raise ValueError(
                f"{other}: {name} is missing, but {there} has one: all checkpoints must have the same tokenizer"
            )
    for name in sorted(first):
        paths = [tokenizers[i][name] for i in having]
        if name in ("tokenizer.json", "tokenizer_config.json"):
            _check_same(paths, _TOKENIZER_FREE, deep=False)  # deeper levels hold the vocabulary
            continue
        content = paths[0].read_bytes()
        for path in paths[1:]:
            if path.read_bytes() != content:
                raise ValueError(
                    f"{path}: must be the same file as in {paths[0].parent}, got a different one: all checkpoints must "
                    "have the same tokenizer"
                )
    return first
