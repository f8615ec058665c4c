"""Convert AlpacaFarm's data to the formats of TRL and OpenRLHF.

    python recipes/prepare/alpaca_farm.py

Reads https://huggingface.co/datasets/tatsu-lab/alpaca_farm, whose loading script recent versions of
`datasets` do not run. Writes three folders of JSON lines to runs/data/alpaca-farm:

    sft           prompt, completion: the instructions reserved for supervised fine-tuning
    preferences   prompt, chosen, rejected: the human preferences; about one prompt in 20 is held out for testing
    prompts       prompt: the unlabeled instructions, for PPO

Prompts have the format of the authors of PCRM, with `Human:` and `Assistant:`. The authors join an
instruction and its input with nothing in between; this script inserts a line break.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import load_dataset

SOURCE = "hf://datasets/tatsu-lab/alpaca_farm"


def prompt(row: dict[str, Any]) -> str:
    instruction, given = row["instruction"], row["input"]
    # Some instructions already contain their input.
    question = instruction if instruction.endswith(given) else f"{instruction}\n{given}"
    return f"\n\nHuman: {question}\n\nAssistant:"


def pair(row: dict[str, Any], place: str) -> dict[str, str]:
    """Return the preference of a row; `place` names the row in errors."""
    preference = row["preference"]
    if preference not in (1, 2):
        raise ValueError(f"{place}: preference must be 1 or 2, got {preference!r}")
    chosen, rejected = row[f"output_{preference}"], row[f"output_{3 - preference}"]
    return {"prompt": prompt(row), "chosen": f" {chosen}", "rejected": f" {rejected}"}


def is_for_testing(text: str) -> bool:
    """Decide by the prompt alone, so that no prompt is in both splits."""
    return zlib.crc32(text.encode()) % 20 == 0


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=SOURCE, help="a copy of the data set (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/data/alpaca-farm"), help="default: %(default)s")
    args = parser.parse_args()

    def read(name: str) -> Any:
        return load_dataset("json", data_files=f"{args.source}/{name}", split="train")

    preferences = "alpaca_human_preference.json"
    pairs = [pair(row, f"{preferences}, row {i}") for i, row in enumerate(read(preferences))]
    sft = [{"prompt": prompt(row), "completion": f" {row['output']}"} for row in read("alpaca_instructions/sft.json")]
    prompts = [{"prompt": prompt(row)} for row in read("alpaca_instructions/unlabeled.json")]
    write(args.out / "preferences" / "train.jsonl", (row for row in pairs if not is_for_testing(row["prompt"])))
    write(args.out / "preferences" / "test.jsonl", (row for row in pairs if is_for_testing(row["prompt"])))
    write(args.out / "sft" / "train.jsonl", sft)
    write(args.out / "prompts" / "train.jsonl", prompts)
    print(f"{args.out}: {len(pairs)} preferences, {len(sft)} demonstrations, {len(prompts)} prompts")


if __name__ == "__main__":
    main()
