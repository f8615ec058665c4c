"""A copy of a reward model whose scores are divided by a number.

    score = w . h + b        divided: (w / T) . h + b / T

The last layer of `AutoModelForSequenceClassification` with one label is linear, so dividing its weight and bias divides
the scores. All other tensors are copied byte for byte. The numbers are Go's, package checkpoint; torch is not needed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .._checkpoint_folder import files_of_model, new_folder
from .._engine import native

# What transformers calls the last layer, for nearly all of its architectures "score" or "classifier".
_HEADS = ("score", "classifier", "classifier.out_proj", "classification_head.out_proj", "logits_proj")
_MODEL, _ADAPTER = "model.safetensors", "adapter_model.safetensors"
_ADAPTER_PREFIX = "base_model.model."


@dataclass
class ScoreHead:
    """Where a checkpoint has the layer that makes the score.

    Attributes:
        folder: The checkpoint.
        weights: The names of its files of weights, and of their index where there are several.
        tensors: The head's weight and, where it has one, its bias, by the file that holds them.
    """

    folder: Path
    weights: list[str]
    tensors: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        return [name for names in self.tensors.values() for name in names]


def find_head(model: str | os.PathLike[str]) -> ScoreHead:
    """Find the layer that makes the score, as `RewardModel` would load it.

    Args:
        model: A folder with model.safetensors, or the files of model.safetensors.index.json, or a PEFT adapter's folder
            with adapter_model.safetensors.

    Raises:
        OSError: There is no such folder, or a file cannot be read.
        ValueError: A file is truncated or hostile; there is no layer with one label under the names that `RewardModel`
            reads, or there are two; the adapter has no head of its own.
        RuntimeError: The native library is not there.
    """
    library, folder = native.library(), Path(model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. To copy a model of the hub, download it first: hf download NAME"
        )
    adapter = (folder / "adapter_config.json").is_file()
    single, prefix = (_ADAPTER, _ADAPTER_PREFIX) if adapter else (_MODEL, "")
    found = json.loads(native.call(library.bridge_CheckpointTensors, os.fspath(folder), single))
    tensors = {tensor["name"]: tensor for tensor in found}
    heads = [prefix + head for head in (_HEADS if adapter else _own_heads(folder))]
    named = [head for head in heads if f"{head}.weight" in tensors]
    if adapter and (factors := [name for name in tensors if ".lora_" in name and name.startswith(tuple(heads))]):
        raise ValueError(
            f"{folder / single}: {factors[0]} changes the head of the base model, and cannot be divided alone. Merge the "
            "adapter into its base model, and save that"
        )
    if len(named) != 1:
        sought = ", ".join(f"{head}.weight" for head in heads)
        what = f"both {named[0]}.weight and {named[1]}.weight" if named else "none of them"
        remedy = (
            ". An adapter has a head of its own if it was trained with modules_to_save; else merge it into its base model"
            if adapter
            else ""
        )
        raise ValueError(f"{folder}: must have one of the score heads {sought}, got {what}{remedy}")
    names = [name for name in (f"{named[0]}.weight", f"{named[0]}.bias") if name in tensors]
    for name, dimensions in zip(names, (2, 1), strict=False):
        shape = tensors[name]["shape"]
        if len(shape) != dimensions or shape[0] != 1:
            wanted = "[1, n]" if dimensions == 2 else "[1]"
            raise ValueError(
                f"{folder / tensors[name]['file']}: {name} must have shape {wanted}, that of a reward model with 1 label, "
                f"got {shape}"
            )
    by_file: dict[str, list[str]] = {}
    for name in names:
        by_file.setdefault(tensors[name]["file"], []).append(name)
    weights = sorted({tensor["file"] for tensor in found})
    if single not in weights:
        weights.append(f"{single}.index.json")
    return ScoreHead(folder, weights, by_file)


def write_divided(head: ScoreHead, out: str | os.PathLike[str], divisor: float) -> None:
    """Write a copy of a checkpoint whose scores are divided by a number.

    The numbers of the head are divided in float64 and rounded to nearest even into the type that they have. Files of
    configuration, tokenizer, chat template and license are copied as they are. What a training run leaves beside them,
    such as optimizers and logs, is not copied. `out` appears at once, when all of it is on the disk.

    Args:
        head: As `find_head` gives it.
        out: The folder to make; it may exist if it is empty.
        divisor: Greater than 0 and finite.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: `out` holds something, or another process writes it; a tensor of the head holds no floating-point
            numbers, or one that is not finite once divided; the divisor is out of its range. Nothing is written then.
        RuntimeError: The native library is not there.
    """
    library = native.library()
    files = files_of_model(head.folder)
    copied = {name: head.folder / name for name in head.weights} | files
    with new_folder(Path(out), set(copied)) as part:
        # The weights first: without a configuration nothing takes the folder for a model.
        for name, path in copied.items():
            (part / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, part / name)
            if name in head.tensors:
                names = json.dumps(head.tensors[name])
                native.call(library.bridge_DivideTensors, os.fspath(part / name), names, float(divisor))


def _own_heads(folder: Path) -> tuple[str, ...]:
    """OpenRLHF's configurations say what the head is called."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from None
    prefix = config.get("value_head_prefix") if isinstance(config, dict) else None
    return (prefix,) if isinstance(prefix, str) else _HEADS
