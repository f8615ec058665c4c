"""What shared prefixes save: tokens and CPU seconds of TRL's trainers on real preferences.

    python benchmarks/prefix_sharing.py pairs.jsonl.gz [--kinds reward dpo] [--steps 8] [--rounds 3]

Trains a random Llama of six layers on the pairs of a file, stock batches and shared prefixes in turns. CPU seconds are
those of the steps after the first, which goes through the model both ways, and the median of the rounds' ratios is
printed. `limit` is the share of tokens that is left: what the ratio would be if nothing but tokens cost time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import islice

import torch
from datasets import Dataset
from pcrm.data.sources import read_rows
from pcrm.demo.model import make_tokenizer
from pcrm.trl import PCRMDPOConfig, PCRMDPOTrainer, PCRMRewardConfig, PCRMRewardTrainer
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback

SIZE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
}


class Clock(TrainerCallback):
    """CPU seconds of all steps but the first."""

    def on_step_end(self, args, state, control, **_):
        self.seconds = time.process_time() - self.start if state.global_step > 1 else 0.0
        if state.global_step == 1:
            self.start = time.process_time()


def run(kind: str, tokenizer, data: Dataset, steps: int, batch: int, shared: bool) -> tuple[float, int, float]:
    """CPU seconds, tokens that went through the model after the first step, and the last loss."""
    reward = kind == "reward"
    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**SIZE | ids, **({"num_labels": 1} if reward else {}))
    model = (LlamaForSequenceClassification if reward else LlamaForCausalLM)(config)
    others = {} if reward else {"ref_model": LlamaForCausalLM(config)}
    tokens: list[int] = []
    model.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = (PCRMRewardConfig if reward else PCRMDPOConfig)(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            logging_steps=steps,
            learning_rate=1e-3,
            max_length=1024,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            pcrm_prefix_sharing=shared,
        )
        trainer = (PCRMRewardTrainer if reward else PCRMDPOTrainer)(
            model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[clock], **others
        )
        trainer.train()
    first = len(tokens) - (steps - 1)
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return clock.seconds, sum(tokens[first:]), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="a file of rows with prompt, chosen and rejected")
    parser.add_argument("--kinds", nargs="+", choices=("reward", "dpo"), default=("reward", "dpo"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    columns = ("prompt", "chosen", "rejected")
    rows = [{c: row[c] for c in columns} for _, row in islice(read_rows(args.pairs), 20 * args.steps * args.batch_size)]
    tokenizer = make_tokenizer(row["prompt"] + row["chosen"] + row["rejected"] for row in rows)
    data = Dataset.from_list(rows[::20])
    print("| | tokens, stock | shared | limit | CPU seconds, stock | shared | ratio |\n|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        rounds = []
        for _ in range(args.rounds):
            (plain, before, a), (shared, after, b) = (
                run(kind, tokenizer, data, args.steps, args.batch_size, on) for on in (False, True)
            )
            if abs(a - b) > 1e-3 * abs(a):
                raise RuntimeError(f"the losses must be the same, got {a} and {b}")
            rounds.append((shared / plain, plain, shared))
        ratio, plain, shared = (statistics.median(x) for x in zip(*rounds, strict=True))
        print(
            f"| {kind} pairs | {before:,} | {after:,} | {after / before:.3f} | {plain:.1f} | {shared:.1f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
