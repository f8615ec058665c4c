"""RLOO against two reward models of `pcrm demo`, on its generated prompts, where every text has a known true reward.

    pcrm demo --out demo-out
    python experiments/rloo/run.py plain=demo-out/plain constrained=demo-out/constrained --out rloo-out

TRL's SFTTrainer first trains a small policy on generated responses. TRL's RLOO then starts from this policy, once with each
reward model, with the same prompts and seed. All results are written to --out. The repository keeps a part of them in
results.csv and docs/experiments.md. To resume an interrupted run, give the same command again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import Dataset
from pcrm.demo import world
from pcrm.evaluate.optimization import rl, summary
from pcrm.evaluate.optimization.cached import make_once
from pcrm.evaluate.optimization.pools import Pools
from pcrm.evaluate.optimization.sampling import Policy
from pcrm.evaluate.reward_model import RewardModel
from pcrm.evaluate.scores import named
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

# The longest generated responses have about 110 tokens of the demo's tokenizer.
MAX_NEW_TOKENS = 112
# A seed whose rows the reward models were not trained on: the demo's seed is 0.
SFT_SEED, TRAIN_SEED, EVAL_SEED = 1, 2, 3
EVAL_PROMPTS, EVAL_SAMPLES = 64, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "proxies", metavar="NAME=MODEL", nargs="+", help="reward models written by pcrm demo, as NAME=FOLDER"
    )
    parser.add_argument("--out", type=Path, required=True)
    here = Path(__file__).resolve().parent
    figure = here.parent.parent / "docs" / "experiments-rloo.svg"
    parser.add_argument("--results", type=Path, default=here / "results.csv", help="output: the rows of the steps")
    parser.add_argument("--figure", type=Path, default=figure, help="output: the figure of the steps")
    parser.add_argument("--steps", type=int, default=80, help="RLOO steps (default: %(default)s)")
    parser.add_argument("--sft-pairs", type=int, default=4000, help="pairs of responses for SFT (default: %(default)s)")
    args = parser.parse_args()
    logging.disable_progress_bar()
    settings = rl.Settings(
        steps=args.steps, prompts=8, generations=4, max_new_tokens=MAX_NEW_TOKENS, learning_rate=3e-4, beta=0.05
    )
    proxies = {name: RewardModel(path) for name, path in named(args.proxies)}
    policy = args.out / "policy"
    first = next(iter(proxies.values()))
    recipe = {"pairs": args.sft_pairs, "seed": SFT_SEED, "tokenizer of": first.identity}
    make_once(policy, recipe, lambda: sft(first.tokenizer, args.sft_pairs, policy))
    prompts = sorted({row["prompt"] for row in world.generate(2000, TRAIN_SEED)})
    held_out = sorted({row["prompt"] for row in world.generate(5 * EVAL_PROMPTS, EVAL_SEED)})

    before = sampled(policy, held_out)
    models, runs = [], {}
    for name, proxy in proxies.items():
        steps = rl.train(policy, prompts, proxy, gold, args.out / name, settings, name=name)
        after = sampled(args.out / name / "policy", held_out)
        models.append(scored(name, proxy, held_out, before))
        runs[name] = summary.Run(settings, steps, scored(name, proxy, held_out, after))
    found = summary.write(models, args.out, runs=runs)
    shutil.copy(args.out / "rl.csv", args.results)
    shutil.copy(args.out / "rl.svg", args.figure)
    print(settings, *summary.lines(found), sep="\n")


def gold(prompts: Any, responses: Any) -> list[float]:
    return [world.gold(p, r) for p, r in zip(prompts, responses, strict=True)]


def sampled(policy: Path, prompts: list[str]) -> list[list[str]]:
    return Policy(policy, max_new_tokens=MAX_NEW_TOKENS, batch_size=128).sample(prompts, EVAL_SAMPLES, (EVAL_SEED,))


def scored(name: str, proxy: RewardModel, prompts: list[str], pools: list[list[str]]) -> Pools:
    pairs = [(p, r) for p, pool in zip(prompts, pools, strict=True) for r in pool]
    scores = np.asarray(proxy(*zip(*pairs, strict=True)), np.float64).reshape(len(pools), -1)
    values = np.array(gold(*zip(*pairs, strict=True))).reshape(len(pools), -1)
    return Pools(name, list(scores), list(values))


def sft(tokenizer: Any, pairs: int, out: Path) -> None:
    """Train a Llama with two layers of width 128 on generated responses, both good and bad."""
    rows = {(r["prompt"], r[side]) for r in world.generate(pairs, SFT_SEED) for side in ("chosen", "rejected")}
    set_seed(SFT_SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that TRL and transformers change between them
        args = SFTConfig(
            output_dir=str(out) + ".run",
            num_train_epochs=2,
            per_device_train_batch_size=16,
            learning_rate=4e-3,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            logging_steps=50,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
            seed=SFT_SEED,
        )
        data = Dataset.from_list([{"prompt": p, "completion": r} for p, r in sorted(rows)])
        trainer = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(out))
    shutil.rmtree(args.output_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
