"""Measure the savings of prefix sharing in TRL's trainers and in scoring: tokens, CPU seconds and memory.

    python benchmarks/prefix_sharing.py train_pairs.jsonl.gz train_ratings.jsonl [--kinds reward dpo rankings scoring] [--gguf FILE]

A random Llama with six layers, or with --gguf the language model of that file, computes the same batches of real
preferences with and without shared prefixes, in turns. CPU seconds exclude the first batch, which runs both ways. The
printed ratio is the median over rounds. For rankings, the figures are per comparison: without sharing in shuffled batches
of pairs, with sharing in larger batches by prompt. `limit` is the fraction of tokens that remains, which would be the time
ratio if only tokens took time. Memory is the peak that a run adds to its own process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from gguf_model import load
from pcrm.data.sources import read_rows
from pcrm.demo.model import make_tokenizer
from pcrm.evaluate.reward_model import RewardModel
from pcrm.trl import PCRMDPOConfig, PCRMDPOTrainer, PCRMRewardConfig, PCRMRewardTrainer
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback
from transformers.trainer_callback import PrinterCallback

SIZE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
}
KINDS = ("reward", "dpo", "rankings", "scoring")
# Pairs per step. Shared rankings may have more, because they have fewer tokens.
BATCH, RANKINGS_BATCH = 8, 32

Rows = list[dict[str, Any]]
Models = Callable[[Any, int], tuple[Any, Any]]  # (class, seed) -> (model, tokenizer)


class Cost(NamedTuple):
    """The cost of one item, a pair or a response."""

    seconds: float
    tokens: float
    megabytes: float
    result: float


class Clock(TrainerCallback):
    """CPU seconds of all steps except the first."""

    def on_step_end(self, args, state, control, **_):
        self.seconds = time.process_time() - self.start if state.global_step > 1 else 0.0
        if state.global_step == 1:
            self.start = time.process_time()


class Memory:
    """Peak memory of this process in a block minus the memory before it, in megabytes. Linux only."""

    def __enter__(self) -> Memory:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *exception: Any) -> None:
        self.megabytes = (self._read("VmHWM") - self._before) / 1024

    @staticmethod
    def _read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


def counted(model: Any) -> list[int]:
    """Return a list that records the number of tokens, with padding, of each later pass through the model."""
    tokens: list[int] = []
    model.base_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    return tokens


def train(kind: str, models: Models, data: Dataset, steps: int, batch: int, shared: bool) -> Cost:
    reward = kind != "dpo"
    model, tokenizer = models(LlamaForSequenceClassification if reward else LlamaForCausalLM, 0)
    others = {} if reward else {"ref_model": models(LlamaForCausalLM, 1)[0]}
    tokens, clock = counted(model), Clock()
    with tempfile.TemporaryDirectory() as folder, Memory() as memory:
        args = (PCRMRewardConfig if reward else PCRMDPOConfig)(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            logging_steps=steps,
            learning_rate=1e-5,
            max_length=1024,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            pcrm_prefix_sharing=shared,
            pcrm_group_by_prompt=shared if kind == "rankings" else None,
        )
        trainer = (PCRMRewardTrainer if reward else PCRMDPOTrainer)(
            model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[clock], **others
        )
        trainer.remove_callback(PrinterCallback)  # print only the table
        trainer.train()
    pairs = (steps - 1) * batch
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return Cost(clock.seconds / pairs, sum(tokens[len(tokens) - (steps - 1) :]) / pairs, memory.megabytes, loss)


def score(models: Models, rankings: Rows, shared: bool) -> Cost:
    model, tokenizer = models(LlamaForSequenceClassification, 0)
    prompts = [row["prompt"] for row in rankings for _ in row["responses"]]
    responses = [text for row in rankings for text in row["responses"]]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        scorer = RewardModel(folder, prefix_sharing=shared)
        scorer(prompts[:2], responses[:2])  # compares with the plain pass
        tokens = counted(scorer._model)
        with Memory() as memory:
            start = time.process_time()
            scores = scorer(prompts, responses)
            seconds = time.process_time() - start
    n = len(scores)
    return Cost(seconds / n, sum(tokens) / n, memory.megabytes, float(scores.sum()))


def random_llama(texts: list[str], model_class: Any, seed: int) -> tuple[Any, Any]:
    tokenizer = make_tokenizer(texts)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(seed)
    return model_class(LlamaConfig(**SIZE | ids | {"num_labels": 1})), tokenizer


def from_file(file: Path, model_class: Any, seed: int) -> tuple[Any, Any]:
    return load(file, model_class, num_labels=1)


def cost(kind: str, models: Models, rows: Rows, steps: int, shared: bool) -> Cost:
    torch.set_num_threads(1)
    if kind == "scoring":
        return score(models, rows, shared)
    batch = RANKINGS_BATCH if kind == "rankings" and shared else BATCH
    return train(kind, models, Dataset.from_list(rows), steps, batch, shared)


def in_a_process(*arguments: Any) -> Cost:
    """`cost` in a fresh process, because memory freed by an earlier run would hide the memory that this run takes."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(cost, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="file of rows with prompt, chosen and rejected")
    parser.add_argument("rankings", help="file of rows with prompt, responses and ratings")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--gguf", type=Path, help="language model to use instead of the random one")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--prompts", type=int, default=12, help="number of rankings to score; eight times as many are trained on"
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    columns = ("prompt", "chosen", "rejected")
    # Use every 20th pair, because pairs of the same prompt are adjacent in the file.
    rows = [row for _, row in islice(read_rows(args.pairs), 0, 20 * BATCH * args.steps, 20)]
    pairs = [{name: row[name] for name in columns} for row in rows]
    rankings = [row for _, row in islice(read_rows(args.rankings), 8 * args.prompts)]
    texts = [row["prompt"] + row["chosen"] + row["rejected"] for row in rows]
    models = partial(random_llama, texts) if args.gguf is None else partial(from_file, args.gguf)

    print("| | tokens, stock | shared | limit | CPU seconds, stock | shared | ratio | MB, stock | shared |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        rows = {"reward": pairs, "dpo": pairs, "rankings": rankings, "scoring": rankings[: args.prompts]}[kind]
        rounds = [
            tuple(in_a_process(kind, models, rows, args.steps, shared) for shared in (False, True))
            for _ in range(args.rounds)
        ]
        for plain, shared in rounds:
            # Rankings use different batches.
            if kind != "rankings" and abs(plain.result - shared.result) > 1e-3 * abs(plain.result):
                raise RuntimeError(f"the results must be the same, got {plain.result} and {shared.result}")
        ratio = statistics.median(shared.seconds / plain.seconds for plain, shared in rounds)
        plain, shared = (
            Cost(*(statistics.median(values) for values in zip(*some, strict=True)))
            for some in zip(*rounds, strict=True)
        )
        name = {"reward": "reward, a pair", "dpo": "DPO, a pair", "rankings": "rankings, a comparison"}.get(
            kind, "scoring, a response"
        )
        print(
            f"| {name} | {plain.tokens:,.0f} | {shared.tokens:,.0f} | {shared.tokens / plain.tokens:.3f} | {plain.seconds:.3f} | "
            f"{shared.seconds:.3f} | {ratio:.2f} | {plain.megabytes:,.0f} | {shared.megabytes:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
