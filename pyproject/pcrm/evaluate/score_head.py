"""A copy of a reward model with its scores divided by a number.

    score = w . h + b        divided: (w / T) . h + b / T

The last layer of `AutoModelForSequenceClassification` with one label is linear, so dividing its weight and bias divides
the scores. All other tensors are copied byte for byte. The Go package checkpoint does the work; torch is not needed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .._checkpoint_folder import files_of_model, new_folder
from .._engine import native

# The names of the last layer in transformers: "score" or "classifier" in nearly all architectures.
_HEADS = ("score", "classifier", "classifier.out_proj", "classification_head.out_proj", "logits_proj")
_MODEL, _ADAPTER = "model.safetensors", "adapter_model.safetensors"
_ADAPTER_PREFIX = "base_model.model."


@dataclass
class ScoreHead:
    """The location of a checkpoint's score head.

    Attributes:
        folder: The checkpoint.
        weights: The names of its weight files, and of their index if there are several.
        tensors: By file, the names of the head's weight and of its bias, if it has one.
    """

    folder: Path
    weights: list[str]
    tensors: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        return [name for names in self.tensors.values() for name in names]


def find_head(model: str | os.PathLike[str]) -> ScoreHead:
    """Find the score head, as `RewardModel` would load it.

    Args:
        model: A folder with model.safetensors, or with the files of model.safetensors.index.json, or the folder of a PEFT
            adapter with adapter_model.safetensors.

    Raises:
        OSError: The folder does not exist, or a file cannot be read.
        ValueError: A file is truncated or hostile; the checkpoint does not have exactly one layer with one label under the
            names that `RewardModel` reads; the adapter has no head of its own.
        RuntimeError: The native library is not available.
    """
    library, folder = native.library(), Path(model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. To copy a model from the hub, download it first: hf download NAME"
        )
    adapter = (folder / "adapter_config.json").is_file()
    single, prefix = (_ADAPTER, _ADAPTER_PREFIX) if adapter else (_MODEL, "")
    found = json.loads(native.call(library.bridge_CheckpointTensors, os.fspath(folder), single))
    tensors = {tensor["name"]: tensor for tensor in found}
    heads = [prefix + head for head in (_HEADS if adapter else _own_heads(folder))]
    named = [head for head in heads if f"{head}.weight" in tensors]
    if adapter and (factors := [name for name in tensors if ".lora_" in name and name.startswith(tuple(heads))]):
        raise ValueError(
            f"{folder / single}: an adapter must not have LoRA factors on the score head, got {factors[0]}. Merge the adapter "
            "into its base model and save the result"
        )
    if len(named) != 1:
        sought = ", ".join(f"{head}.weight" for head in heads)
        what = f"both {named[0]}.weight and {named[1]}.weight" if named else "none of them"
        remedy = (
            ". An adapter trained with modules_to_save has its own head. Otherwise merge it into its base model"
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
                f"{folder / tensors[name]['file']}: {name} must have the shape {wanted} of a reward model with 1 label, got "
                f"{shape}"
            )
    by_file: dict[str, list[str]] = {}
    for name in names:
        by_file.setdefault(tensors[name]["file"], []).append(name)
    weights = sorted({tensor["file"] for tensor in found})
    if single not in weights:
        weights.append(f"{single}.index.json")
    return ScoreHead(folder, weights, by_file)


def write_divided(head: ScoreHead, out: str | os.PathLike[str], divisor: float) -> None:
    """Write a copy of a checkpoint with its scores divided by a number.

    The numbers of the head are divided in float64 and rounded to nearest even in their own type. The files of
    configuration, tokenizer, chat template and license are copied as they are. Other files of a training run, such as
    optimizers and logs, are not copied. `out` appears in one step, when all of it is on the disk.

    Args:
        head: The result of `find_head`.
        out: The folder to create. It may exist if it is empty.
        divisor: Greater than 0 and finite.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: `out` is not empty, or another process writes it; a tensor of the head does not hold floating-point
            numbers, or a result is not finite; the divisor is out of range. Nothing has been written.
        RuntimeError: The native library is not available.
    """
    library = native.library()
    files = files_of_model(head.folder)
    copied = {name: head.folder / name for name in head.weights} | files
    with new_folder(Path(out), set(copied)) as part:
        # The weights first: without a configuration, the folder does not look like a model.
        for name, path in copied.items():
            (part / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, part / name)
            if name in head.tensors:
                names = json.dumps(head.tensors[name])
                native.call(library.bridge_DivideTensors, os.fspath(part / name), names, float(divisor))


def _own_heads(folder: Path) -> tuple[str, ...]:
    """The possible names of the head. OpenRLHF's configurations name it."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: must be JSON: {error}") from None
    prefix = config.get("value_head_prefix") if isinstance(config, dict) else None
    return (prefix,) if isinstance(prefix, str) else _HEADS
