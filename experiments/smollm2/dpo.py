"""Stock and constrained DPO of SmolLM2 on human comparisons: a plain loop with `pcrm.PCRMLoss`, as in experiments/tldr.

    python experiments/smollm2/dpo.py DATA --gold MODEL --out DIR
    python experiments/smollm2/dpo.py DATA --gold MODEL --out DIR --tables

DATA, MODEL and DIR are those of best_of_n.py. If its answers to the test posts are missing, they are computed first. To resume
an interrupted run after its last finished policy, give the same command again. The output is dpo.csv, with a row for each run
and reading, and the tables of docs/experiments-smollm2.md.

The implicit reward of a response is beta times the log ratio of policy and reference. Stock DPO is the plain loss of the
margins of these rewards, and cDPO is the same loss with smoothed labels. PCRM-DPO is the constrained loss with the length
ratio in the policy's tokens, once with the published curve and once with a curve fitted to the default targets of the
trainers. A step has all comparisons of some posts; prompts and summaries go through the model once each. Only the top layers
are trained, for one epoch. A fifth of the train posts is held out for temperatures. The trained policy then answers 51
test posts.

Hypotheses, stated before any run:
1. Accuracy on test pairs is equal, and so is NLL after a temperature.
2. With the fitted constraint, the KL from the reference and the drop of chosen log probabilities are smaller than with stock
   DPO; the same holds for cDPO. The published constraint does not bind: within an epoch, margins stay below its targets.
3. Answers grow longer under every loss.
Methods whose NLL and accuracy differ by less than .01, over the whole 95% interval, count as equal.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import best_of_n
import models
import numpy as np
import torch
from best_of_n import Setup, add_arguments, gold_of, gold_scores, place, posts_of, prompts, setup_of
from control import COLUMNS, Condition, differences, fitted_now, labels, margins_of, measures, table, temperature
from methods import METHODS as PUBLISHED
from methods import Data, plain
from models import make_each, padded, replace
from numpy.typing import NDArray
from posts import Posts
from rl import means
from tables import replaced
from tiers import score, train
from torch import Tensor, nn

import pcrm

Floats = NDArray[np.float64]

METHODS = {
    "DPO": plain(),
    "cDPO 0.1": plain(label_smoothing=0.1),
    "PCRM-DPO, fitted": fitted_now("length_ratio"),
    "PCRM-DPO, published": PUBLISHED["length ratio, published"],
}
BASE = "DPO + temperature"


@dataclass(frozen=True)
class Sizes:
    """The sizes of the experiment. A run takes half an hour on one core: 16 minutes to train, the rest to sample and score answers.

    Attributes:
        layers: Number of top layers to train. All thirty would take twice the time.
        beta: TRL's default.
        learning_rate: For AdamW; a tenth of the rate of reward models, as is usual for policies.
        posts_per_step: About 35 comparisons.
        test_posts, answers: The first test posts, and the answers to each of them. All test posts count for the rewards.
    """

    layers: int = 6
    beta: float = 0.1
    learning_rate: float = 1e-5
    posts_per_step: int = 2
    epochs: int = 1
    test_posts: int = 51
    answers: int = 8
    seeds: int = 2
    resamples: int = 1000


SIZES = Sizes()


class ImplicitReward(nn.Module):
    """Implicit rewards (N,) from ids (N, T), their mask, the starts of the responses and their reference log probabilities."""

    def __init__(self, folder: Path, layers: int, beta: float) -> None:
        super().__init__()
        self.policy = models.Policy(folder)
        self.model, self.beta = self.policy.model, beta
        self.model.requires_grad_(False)
        for part in (*self.model.base_model.layers[-layers:], self.model.base_model.norm):
            part.requires_grad_(True)

    def forward(self, ids: Tensor, mask: Tensor, starts: Tensor, reference: Tensor) -> Tensor:
        longest = int(mask.sum(1).max())
        found = models.log_probabilities(self.model, ids[:, :longest], mask[:, :longest], starts)
        return self.beta * (found - reference)


def rated(setup: Setup, split: str) -> Posts:
    """The posts of the experiment with their human-rated summaries."""
    posts, n = posts_of(setup.data, split), len(prompts(setup, split))
    some = int(posts.offsets[n])
    of_some = posts.pair_post < n
    return Posts(
        posts.prompts[:n],
        posts.responses[:some],
        posts.post[:some],
        posts.ratings[:some],
        posts.pairs[of_some],
        posts.gap[of_some],
    )


def reference_of(setup: Setup, split: str, i: int, file: Path) -> None:
    """The log probabilities of a post's summaries under the policy before training."""
    posts, policy = rated(setup, split), models.policy(setup.policy)
    texts = posts.responses[posts.offsets[i] : posts.offsets[i + 1]]
    found = policy.log_probabilities(posts.prompts[i], [policy.summary(text) for text in texts])
    replace(file, lambda partial: np.save(partial, found))


@functools.cache
def inputs_of(setup: Setup, split: str) -> tuple[Tensor, ...]:
    """The inputs of `ImplicitReward` for each summary."""
    posts, policy = rated(setup, split), models.policy(setup.policy)
    pairs = [
        policy.row(posts.prompts[p], policy.summary(text)) for p, text in zip(posts.post, posts.responses, strict=True)
    ]
    rows, starts = zip(*pairs, strict=True)
    ids, mask = padded(rows, policy.tokenizer.pad_token_id)
    found = [np.load(reference_file(setup, split, i)) for i in range(len(posts.prompts))]
    return ids, mask, torch.tensor(starts), torch.from_numpy(np.concatenate(found)).float()


def reference_file(setup: Setup, split: str, i: int) -> Path:
    return setup.out / "reference" / split / f"{i:04}.npy"


@functools.cache
def data_of(setup: Setup) -> Data:
    posts = rated(setup, "train")
    chosen, rejected = ([posts.responses[i] for i in posts.pairs[:, side]] for side in (0, 1))
    prior = pcrm.priors.of_texts(chosen, rejected, prior="length_ratio", tokenizer=str(setup.policy))
    return Data(posts, {"length_ratio": prior.double()})


def run(setup: Setup, sizes: Sizes, method: str, seed: int, file: Path) -> None:
    """Train a policy; keep its implicit rewards of the human-rated summaries, and its answers with their measurements."""
    drawn = labels(data_of(setup), Condition(), seed)
    inputs, test_inputs = inputs_of(setup, "train"), inputs_of(setup, "test")
    model = ImplicitReward(setup.policy, sizes.layers, sizes.beta)
    train(
        model,
        inputs,
        drawn.trained.posts,
        METHODS[method](drawn.trained),
        epochs=sizes.epochs,
        learning_rate=sizes.learning_rate,
        posts_per_step=sizes.posts_per_step,
        seed=seed,
        use=drawn.use,
    )
    held = margins_of(model, inputs, drawn.held)
    of_test = score(model, test_inputs)
    policy, reference, gold = model.policy, models.policy(setup.policy), gold_of(setup.gold)
    posts, rows = prompts(setup, "test")[: sizes.test_posts], []
    answers = policy.answers(posts, sizes.answers, (3, seed), setup.sizes.new_tokens)
    for post, ids in zip(posts, answers, strict=True):
        texts = [policy.response(row) for row in ids]
        ratio = policy.log_probabilities(post, ids) - reference.log_probabilities(post, ids)
        scores = gold([post] * len(texts), texts).tolist()
        tokens = [len(row) for row in ids]
        rows.append({"texts": texts, "tokens": tokens, "kl": ratio.tolist(), "gold": scores})
    kept = {"held": held.tolist(), "rewards": of_test.tolist(), "posts": rows}
    replace(file, lambda partial: partial.write_text(json.dumps(kept)))


POLICY_COLUMNS = ("KL", "log ratio of chosen", "log ratio of rejected", "tokens", "tokens gained", "gold gain")


def columns_of(setup: Setup, sizes: Sizes, kept: dict[str, Any]) -> Floats:
    """The columns of each test post, (posts, columns)."""
    posts = rated(setup, "test")
    ratios = np.array(kept["rewards"]) / sizes.beta
    rows, n = [], len(kept["posts"])
    for i, (of_post, gold) in enumerate(zip(kept["posts"], gold_scores(setup, "test")[:n], strict=True)):
        before = json.loads(place(setup, "samples", "test", i).read_text())["ids"]
        pairs = ratios[posts.pairs[posts.pair_post == i]]
        tokens = float(np.mean(of_post["tokens"]))
        gained = tokens - np.mean([len(row) for row in before])
        chosen, rejected = pairs.mean(0) if len(pairs) else (np.nan, np.nan)
        rows.append([np.mean(of_post["kl"]), chosen, rejected, tokens, gained, np.mean(of_post["gold"]) - gold.mean()])
    return np.array(rows)


def tables(setup: Setup, sizes: Sizes, results: Path, page: Path) -> None:
    posts = rated(setup, "test")
    rows = []
    odds: dict[str, list[Floats]] = {}
    found: dict[str, list[Floats]] = {}
    for seed in range(sizes.seeds):
        files = {method: file_of(setup, method, seed) for method in METHODS}
        if not all(file.is_file() for file in files.values()):
            continue
        for method, file in files.items():
            kept = json.loads(file.read_text())
            chosen, rejected = np.array(kept["rewards"])[posts.pairs].T
            of_posts = columns_of(setup, sizes, kept)
            found.setdefault(method, []).append(of_posts)
            for suffix in ("", " + temperature"):
                log_t = float(temperature(np.array(kept["held"]))[0]) if suffix else 0.0
                margins = (chosen - rejected) * math.exp(-log_t)
                odds.setdefault(f"{method}{suffix}", []).append(margins)
                values = (math.exp(log_t), margins.std(), *measures(margins), *means(of_posts))
                rows.append([f"{method}{suffix}", seed, *(f"{value:.5f}" for value in values)])
    results.mkdir(parents=True, exist_ok=True)
    with (results / "dpo.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["reading", "seed", "temperature", "margin_sd", *COLUMNS, *POLICY_COLUMNS], *rows])
    if not rows:
        return
    less = differences(posts, odds, sizes.resamples, base=BASE)
    parts = [table("test pairs", odds, less, base=BASE)]
    n = len(next(iter(found.values()))[0])
    by_post: Any = SimpleNamespace(prompts=range(n), pair_post=np.arange(n))
    how: dict[str, Any] = {"base": "DPO", "measure": means}
    less = differences(by_post, found, sizes.resamples, **how)
    parts.append(table("test posts", found, less, columns=POLICY_COLUMNS, **how))
    page.write_text(replaced(page.read_text(), "DPO", "\n\n".join(parts)))


def file_of(setup: Setup, method: str, seed: int) -> Path:
    return setup.out / "dpo" / f"{method}-{seed}.json".replace(", ", "_").replace(" ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    setup, sizes = setup_of(arguments), SIZES
    if not arguments.tables:
        for what, of_post in (("samples", best_of_n.sampled), ("gold-scores", best_of_n.gold_scored)):
            n = range(len(prompts(setup, "test")))
            wanted = [(setup, "test", i, place(setup, what, "test", i)) for i in n]
            make_each(of_post, wanted, arguments.jobs, f"{what}, test")
        for split in ("train", "test"):
            n = range(len(prompts(setup, split)))
            wanted = [(setup, split, i, reference_file(setup, split, i)) for i in n]
            make_each(reference_of, wanted, arguments.jobs, f"reference, {split}")
        runs = [
            (setup, sizes, method, seed, file_of(setup, method, seed))
            for seed, method in itertools.product(range(sizes.seeds), METHODS)
        ]
        make_each(run, runs, arguments.jobs, "policies")
    tables(setup, sizes, arguments.results, arguments.page)


if __name__ == "__main__":
    main()
