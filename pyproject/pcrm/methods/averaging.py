"""The mean of the weights of several checkpoints, which is a checkpoint itself.

    theta = sum_i w_i theta_i / sum_i w_i

"WARM: On the Benefits of Weight Averaged Reward Models" (arXiv 2401.12187). The numbers are
Go's, package checkpoint, which says how they are rounded; here is what else a checkpoint has.
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
    """What `average` did."""

    weights: list[float]  # w_i / sum_i w_i
    tensors: int
    bytes: int  # of all tensors of the average
    not_finite: int  # numbers of the average that are NaN or infinite
    first: str  # the tensor of the first of these


# Those of a module that sentence-transformers keeps in a folder of its own.
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth)")

# Keys of config.json that change nothing of what a model computes from its weights: where it came
# from, and dropout, which WARM's runs may choose differently. A tensor's dtype is in its file.
_CONFIG_FREE = re.compile(
    r"_name_or_path|transformers_version|(torch_)?dtype|use_cache|_?attn_implementation.*|.*drop.*"
)

# The files that make a tokenizer, and its chat templates; its keys that do not change the tokens of
# a text: how a batch is padded and cut, and where it came from.
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
    """Write the weighted mean of checkpoints as a checkpoint.

        theta = sum_i w_i theta_i / sum_i w_i

    in float64, rounded once, to nearest even, into the type of the theta_i: float64, float32,
    bfloat16 or float16. Tensors of integers and booleans have to be equal in all. A NaN or an
    infinity is averaged as any number; the result says how many there are.

    Files of weights, configuration, tokenizer, chat template and license are those of the first
    checkpoint; where it has no tokenizer, of the first that has one. `out` appears at once, when
    all of it is on the disk. Until then it is `out`.part, which an interrupt or an error removes
    and a kill leaves: the next call with this `out` begins it anew.

    Args:
        models: Folders, at least two, each with config.json and model.safetensors or the files of
            model.safetensors.index.json.
        out: The folder to make; it may exist if it is empty.
        weights: One for each model, finite and at least 0; 1 each by default.
        progress: Called with the bytes written of the average and all that there will be.

    Raises:
        ValueError: Checkpoints whose tensors differ in names, shapes, dtypes or integers, whose
            configurations differ in more than names and dropout, or whose tokenizers differ;
            a file that is truncated or hostile; an adapter; weights out of their range; an `out`
            that holds something or that another process writes. The message names file and tensor
            or key. Nothing has been written then.
        OSError: A file that cannot be read or written.
        RuntimeError: The native library is not there.

    Source: "WARM: On the Benefits of Weight Averaged Reward Models", arXiv 2401.12187.
    """
    library = native.library()
    folders, out = [Path(model) for model in models], Path(out)
    if len(folders) < 2:
        raise ValueError(f"models has {len(folders)} elements, must have at least 2")
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
            # After the weights: without a configuration nothing takes the folder for a model.
            for name, path in carried.items():
                (part / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, part / name)
    finally:
        found = json.loads(native.call(library.bridge_AverageClose, handle))
    return Averaged(info["weights"], info["tensors"], total, found["not_finite"], found["first"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        # NaN is not equal to itself: by name it is.
        value = json.loads(path.read_text("utf-8"), parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: is no JSON object")
    return value


def _check_same(paths: Sequence[Path], free: re.Pattern[str], *, deep: bool) -> None:
    """JSON files must say the same but for some keys, of whatever depth or of the first."""
    first = _without(_read_json(paths[0]), free, deep)
    for path in paths[1:]:
        other = _without(_read_json(path), free, deep)
        if (key := _difference(first, other)) is not None:
            was, now = (json.dumps(_at(x, key))[:80] for x in (first, other))
            raise ValueError(f"{path}: {'.'.join(key)} is {now}, that of {paths[0]} is {was}")


def _without(value: Any, free: re.Pattern[str], deep: bool) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, free, deep) if deep else v for k, v in value.items() if not free.fullmatch(k)}
    return value


def _difference(a: Any, b: Any) -> tuple[str, ...] | None:
    """The keys that lead to the first difference."""
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
                f"{folder}: is an adapter. The mean of its factors is not that of their products: merge it into its base first"
            )
    _check_same([folder / "config.json" for folder in folders], _CONFIG_FREE, deep=True)


def _check_modules(folders: Sequence[Path]) -> None:
    for folder in folders:
        for path in (path for module in module_folders(folder) for path in sorted(module.iterdir())):
            if _WEIGHTS.fullmatch(path.name):
                raise ValueError(f"{path}: weights of a module of their own are not averaged")


def _of_tokenizer(name: str) -> bool:
    return bool(_TOKENIZER.fullmatch(name) or _TEMPLATE.fullmatch(name))


def _checked_tokenizer(folders: Sequence[Path]) -> dict[str, Path]:
    """Compare the tokenizers of those that have one; return the files of the first."""
    tokenizers = [{n: p for n, p in files_of_model(folder).items() if _of_tokenizer(n)} for folder in folders]
    having = [i for i, files in enumerate(tokenizers) if any(map(_TOKENIZER.fullmatch, files))]
    if not having:
        return tokenizers[0]
    first = tokenizers[having[0]]
    for i in having[1:]:
        for name in sorted(first.keys() ^ tokenizers[i].keys()):
            there, other = (folders[j] for j in ((having[0], i) if name in first else (i, having[0])))
            raise ValueError(f"{other}: has no {name}, {there} has one: are their tokenizers the same?")
    for name in sorted(first):
        paths = [tokenizers[i][name] for i in having]
        if name in ("tokenizer.json", "tokenizer_config.json"):
            _check_same(paths, _TOKENIZER_FREE, deep=False)  # deeper there is the vocabulary
            continue
        content = paths[0].read_bytes()
        for path in paths[1:]:
            if path.read_bytes() != content:
                raise ValueError(f"{path}: is not that of {paths[0].parent}: are their tokenizers the same?")
    return first
