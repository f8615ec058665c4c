"""Best of n against a gold reward model, as in arXiv 2210.10760: how far can each proxy be optimized?

    python experiments/smollm2/best_of_n.py DATA --gguf FILE --encoder ENCODER --out DIR [--gold MODEL]
    python experiments/smollm2/best_of_n.py DATA --encoder ENCODER --out DIR --tables

DATA is the folder of experiments/tldr/run.py. ENCODER is the folder of all-MiniLM-L6-v2, for the cosine prior. MODEL is the
gold reward model, `final` in the folder of benchmarks/rankings_epoch.py: SmolLM2 with all weights, trained for an epoch on
all human ratings of the train posts. Without --gold, the command first trains it in DIR/gold, which takes hours. To resume
an interrupted run, give the same command again. The output is best_of_n.csv, with a row for each run and reading, the tables
and figures of docs/experiments-smollm2.md, and best_of_n.npz. It has gold's scores of the answers to each test post, (posts, answers),
and for each run, CONDITION/METHOD/SEED, the proxy's scores of them (`pools`) and its held-out margins (`held`).

The policy answers each train post four times and each test post 64 times, and the gold model scores all answers. A proxy is
trained on the comparisons between the four answers, labeled by the sign of the difference in gold scores, as in
arXiv 2310.02743. Labels drawn from gold's own probabilities would add noise that depends on gold's unknown scale. 0% or 25%
of the labels are flipped, including the held-out ones. A fifth of the train posts is held out. Their pairs select the
temperature of each model and its epoch. The epoch has the lowest NLL after the temperature, so that the scale of a method
has no influence. Nothing is selected on test posts.

A temperature does not change the order of the answers, so best of n is the same with and without it. It changes the softmax
policy at a given coefficient b, but not the curve of gold against KL. NLL, Brier score, ECE and accuracy are measured on
disjoint pairs of answers to a test post, with labels that are not flipped.

Hypotheses, stated before any run:
1. At equal KL, no method's gold differs from that of plain, because the constraint changes scale more than order.
2. At equal b, the constrained proxies move the policy less; plain + temperature moves it equally little.
3. With 25% flipped labels, plain's gold falls at large n; with label smoothing, fixed and fitted priors it falls less.
4. Raw NLL of constrained models is lower than plain's, and not lower than that of plain + temperature.
Methods whose NLL and accuracy differ by less than .01, over the whole 95% interval, count as equal. So do policies
whose gold differs by less than a tenth of gold's standard deviation within a post.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import models
import numpy as np
import torch
from control import (
    BASE,
    COLUMNS,
    Condition,
    differences,
    half_width,
    labels,
    margins_of,
    measures,
    nll,
    table,
    temperature,
)
from control import METHODS as ALL_METHODS
from methods import Data
from models import BENCHMARKS, HERE, TopLayers, fingerprint, make_each, policy_of, replace, same_experiment
from numpy.typing import NDArray
from pcrm.evaluate.optimization import best_of_n, figures, softmax_policy
from pcrm.evaluate.pages import style
from pcrm.evaluate.reward_model import RewardModel
from posts import Posts, priors, read
from safetensors.torch import load_file, save_file
from tables import COEFFICIENTS, replaced
from tiers import score, train

Floats = NDArray[np.float64]

PAGE = HERE.parents[1] / "docs" / "experiments-smollm2.md"
CONDITIONS = {"0% flipped": Condition(), "25% flipped": Condition(flipped=0.25)}
METHODS = {
    name: ALL_METHODS[name] for name in ("plain", "label smoothing 0.1", "fixed", "length ratio", "lexical", "cosine")
}
# How scores are read: unchanged, or divided by the temperature fitted to the held-out pairs.
READINGS = ("", " + temperature")


@dataclass(frozen=True)
class Sizes:
    """The sizes of the experiment. Time in minutes on one core: 50 to sample for test posts, 40 to sample for train posts
    (where few answers share a pass), 20 for states, 20 for gold scores, and 1.5 for each of the 36 proxies.

    Attributes:
        test_posts: All test posts.
        train_posts: More than half of all train posts.
        test_samples: Answers to each test post. Best of 64 has a KL divergence of 3.2 nats.
        train_samples: Answers to each train post, which give six comparisons: 1,536 to train on, 384 held out.
        new_tokens: Maximum tokens of a response.
        epochs: Epochs of training; the best one is used.
        posts_per_step, learning_rate: For AdamW, as for the top layers of experiments/tldr, whose steps have half the posts.
        seeds: Seeds of the order, the score head and the flips.
        resamples: Bootstrap resamples of test posts.
    """

    test_posts: int = 102
    train_posts: int = 320
    test_samples: int = 64
    train_samples: int = 4
    new_tokens: int = models.NEW_TOKENS
    epochs: int = 4
    posts_per_step: int = 8
    learning_rate: float = 1e-4
    seeds: int = 3
    resamples: int = 1000


SIZES = Sizes()
# Points shown in the tables: n of best of n, KL and b of the softmax policies.
COUNTS = tuple(2**i for i in range(7))
SHOWN_COUNTS, SHOWN_KL, SHOWN_B = (4, 16, 64), (0.5, 1.0, 2.0), 0.5


@dataclass(frozen=True)
class Setup:
    data: Path
    out: Path
    gold: Path
    sizes: Sizes

    @property
    def policy(self) -> Path:
        return self.out / "policy"


@functools.cache
def posts_of(data: Path, split: str) -> Posts:
    return read(data, split)


def prompts(setup: Setup, split: str) -> list[str]:
    n = setup.sizes.test_posts if split == "test" else setup.sizes.train_posts
    return posts_of(setup.data, split).prompts[:n]


@functools.cache
def gold_of(folder: Path) -> RewardModel:
    return RewardModel(folder, batch_size=64)


def place(setup: Setup, what: str, split: str, i: int) -> Path:
    ending = {"samples": "json", "gold-scores": "npy", "states": "safetensors"}[what]
    return setup.out / what / split / f"{i:04}.{ending}"


def sampled(setup: Setup, split: str, i: int, file: Path) -> None:
    """Answers of the policy to a post, as token ids and texts."""
    policy, n = models.policy(setup.policy), setup.sizes.test_samples if split == "test" else setup.sizes.train_samples
    (ids,) = policy.sample([prompts(setup, split)[i]], n, (split == "test", i), setup.sizes.new_tokens)
    found = {"ids": ids, "responses": [policy.response(row) for row in ids]}
    replace(file, lambda partial: partial.write_text(json.dumps(found)))


def answers(setup: Setup, split: str, i: int) -> list[str]:
    return json.loads(place(setup, "samples", split, i).read_text())["responses"]


def gold_scored(setup: Setup, split: str, i: int, file: Path) -> None:
    texts = answers(setup, split, i)
    scores = gold_of(setup.gold)([prompts(setup, split)[i]] * len(texts), texts)
    replace(file, lambda partial: np.save(partial, scores.astype(np.float64)))


def frozen_states(setup: Setup, split: str, i: int, file: Path) -> None:
    states, mask = models.frozen(setup.policy).states(prompts(setup, split)[i], answers(setup, split, i))
    replace(file, lambda partial: save_file({"states": states, "mask": mask}, partial))


def gold_scores(setup: Setup, split: str) -> list[Floats]:
    return [np.load(place(setup, "gold-scores", split, i)) for i in range(len(prompts(setup, split)))]


@functools.cache
def inputs_of(setup: Setup, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = [load_file(place(setup, "states", split, i)) for i in range(len(prompts(setup, split)))]
    return torch.cat([x["states"] for x in found]), torch.cat([x["mask"] for x in found])


@functools.cache
def train_posts(setup: Setup) -> Posts:
    """The answers to the train posts with their gold scores, and all comparisons of each post."""
    gold = np.concatenate(gold_scores(setup, "train"))
    texts = [answers(setup, "train", i) for i in range(len(prompts(setup, "train")))]
    post = np.repeat(np.arange(len(texts)), [len(row) for row in texts])
    pairs = []
    for p in range(len(texts)):
        for i, j in itertools.combinations(np.flatnonzero(post == p), 2):
            if gold[i] != gold[j]:  # equal texts
                pairs.append((i, j) if gold[i] > gold[j] else (j, i))
    found = np.array(pairs)
    gap = gold[found[:, 0]] - gold[found[:, 1]]
    return Posts(prompts(setup, "train"), [text for row in texts for text in row], post, gold, found, gap)


@functools.cache
def data_of(setup: Setup) -> Data:
    kept = np.load(setup.out / "priors.npz")
    return Data(train_posts(setup), {name: torch.from_numpy(kept[name]) for name in kept})


def run(setup: Setup, condition: str, method: str, seed: int, file: Path) -> None:
    """Train a proxy; keep the epoch with the lowest held-out NLL, its scores of the pools, and its weights."""
    sizes, drawn = setup.sizes, labels(data_of(setup), CONDITIONS[condition], seed)
    inputs = inputs_of(setup, "train")
    torch.manual_seed(seed)
    model = TopLayers(setup.policy)
    losses: list[float] = []
    best: dict[str, Any] = {}

    def look(epoch: int) -> None:
        margins = margins_of(model, inputs, drawn.held)
        losses.append(nll(margins * np.exp(-temperature(margins)[0])))
        if losses[-1] == min(losses):
            best["held"] = margins
            best["weights"] = {name: weight.clone() for name, weight in model.state_dict().items()}

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
        constant=True,
        after_epoch=look,
    )
    model.load_state_dict(best["weights"])
    pools = score(model, inputs_of(setup, "test")).reshape(sizes.test_posts, sizes.test_samples)
    replace(weights_of(file), lambda partial: save_file(best["weights"], partial))
    replace(file, lambda partial: np.savez(partial, held=best["held"], losses=losses, pools=pools))


def weights_of(file: Path) -> Path:
    return file.with_suffix(".safetensors")


def file_of(setup: Setup, condition: str, method: str, seed: int) -> Path:
    return setup.out / "runs" / f"{condition}-{method}-{seed}.npz".replace(" ", "_")


class Read(NamedTuple):
    """A proxy in one reading."""

    name: str
    log_temperature: float
    log_odds: Floats  # of disjoint pairs of answers to test posts, the one that gold prefers first
    curves: Floats  # (posts, 2 counts + 3 coefficients): see `curves_of`


def curves_of(scores: Floats, gold: Sequence[Floats]) -> Floats:
    """The results of `pcrm optimize` per pool: gold and proxy gain of best of n; KL, proxy and gold gain of softmax policies."""
    counts = [n for n in COUNTS if n <= scores.shape[1]]
    rows = []
    for one, values in zip(scores, gold, strict=True):
        best, soft = best_of_n([one], [values], counts), softmax_policy([one], [values], COEFFICIENTS)
        found = (best.gold_gain, best.proxy_gain, soft.kl, soft.proxy_gain, soft.gold_gain)
        rows.append(np.concatenate([x[:, 0] for x in found]))
    return np.array(rows)


def optimization(curves: Floats) -> Floats:
    """The columns of `OPTIMIZATION` for the mean over posts."""
    mean = curves.mean(0)
    k = (len(mean) - 3 * len(COEFFICIENTS)) // 2
    gold = mean[:k]
    kl, proxy, soft = np.split(mean[2 * k :], 3)
    log_b = np.log(COEFFICIENTS[::-1])
    at_b = [float(np.interp(np.log(SHOWN_B), log_b, x[::-1])) for x in (kl, proxy, soft)]
    shown = [gold[min(COUNTS.index(n), k - 1)] for n in SHOWN_COUNTS]
    return np.array([*shown, gold.max() - gold[-1], *np.interp(SHOWN_KL, kl, soft, right=np.nan), *at_b])


OPTIMIZATION = (
    *(f"gold, best of {n}" for n in SHOWN_COUNTS),
    "gold lost after its peak",
    *(f"gold, KL = {kl:g}" for kl in SHOWN_KL),
    *(f"{what}, b = {SHOWN_B:g}" for what in ("KL", "proxy", "gold")),
)


# What depends only on the order of the scores, and what depends on their scale.
ORDER, SCALE = OPTIMIZATION[:-3], OPTIMIZATION[-3:]


def columns_of(which: Sequence[str], curves: Floats) -> Floats:
    return optimization(curves)[[OPTIMIZATION.index(name) for name in which]]


def readings(kept: Mapping[str, Floats], method: str, gold: Sequence[Floats]) -> list[Read]:
    pools = kept["pools"].astype(np.float64)
    sign = np.concatenate([np.sign(g[0::2] - g[1::2]) for g in gold])
    margins = np.concatenate([row[0::2] - row[1::2] for row in pools]) * sign
    found = []
    for name in READINGS:
        log_t = float(temperature(kept["held"])[0]) if name else 0.0
        scale = math.exp(-log_t)
        found.append(Read(f"{method}{name}", log_t, margins * scale, curves_of(pools * scale, gold)))
    return found


def tables(setup: Setup, results: Path, page: Path) -> None:
    """Write best_of_n.csv, and the tables and figures of the page, from the finished runs."""
    gold = gold_scores(setup, "test")
    half = [len(g) // 2 for g in gold]
    by_pair: Any = SimpleNamespace(prompts=range(len(gold)), pair_post=np.repeat(np.arange(len(gold)), half))
    by_post: Any = SimpleNamespace(prompts=range(len(gold)), pair_post=np.arange(len(gold)))
    rows, parts = [], []
    scores: dict[str, Any] = {"gold": np.array(gold, np.float32)}
    results.mkdir(parents=True, exist_ok=True)
    for condition in CONDITIONS:
        found: dict[str, list[Read]] = {}
        for seed in range(setup.sizes.seeds):
            files = {method: file_of(setup, condition, method, seed) for method in METHODS}
            if not all(file.is_file() for file in files.values()):
                continue
            for method, file in files.items():
                kept = dict(np.load(file))
                epoch = int(np.argmin(kept["losses"])) + 1
                for what in ("pools", "held"):
                    scores[f"{condition}/{method}/{seed}/{what}"] = kept[what].astype(np.float32)
                for one in readings(kept, method, gold):
                    found.setdefault(one.name, []).append(one)
                    values = [*measures(one.log_odds), *optimization(one.curves)]
                    numbers = [f"{value:.5f}" for value in (math.exp(one.log_temperature), *values)]
                    rows.append([condition, one.name, seed, epoch, *numbers])
        if not found:
            continue
        odds = {name: [one.log_odds for one in runs] for name, runs in found.items()}
        parts.append(table(condition, odds, differences(by_pair, odds, setup.sizes.resamples)))
        curves = {name: [one.curves for one in runs] for name, runs in found.items()}
        ranked = {name: curves[name] for name in METHODS}  # a temperature changes nothing here
        for base, which, shown in (("plain", ORDER, ranked), (BASE, SCALE, curves)):
            measure = functools.partial(columns_of, which)
            less = differences(by_post, shown, setup.sizes.resamples, base=base, measure=measure)
            parts.append(table(condition, shown, less, base=base, columns=which, measure=measure))
        picture = page.with_name(f"{page.stem}-{condition.split('%')[0]}.svg")
        picture.write_text(style.standalone(_figure(condition, curves, setup.sizes.resamples)))
    np.savez_compressed(results / "best_of_n.npz", **scores)
    with (results / "best_of_n.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["condition", "reading", "seed", "epoch", "temperature", *COLUMNS, *OPTIMIZATION])
        writer.writerows(rows)
    page.write_text(replaced(page.read_text(), "best of n", "\n\n".join([spread(gold), *parts])))


def spread(gold: Sequence[Floats]) -> str:
    """The unit of the gains in gold reward."""
    sd = math.sqrt(np.mean([g.var(ddof=1) for g in gold]))
    return f"Gold's standard deviation within a test post is {sd:.3f}."


def _figure(condition: str, curves: dict[str, list[Floats]], resamples: int) -> str:
    """Plot best of n of each method, with intervals over test posts and seeds."""
    random, shown = np.random.default_rng(0), {}
    for method in METHODS:
        runs = curves[method]
        k = (runs[0].shape[1] - 3 * len(COEFFICIENTS)) // 2
        by_seed = np.array([x[:, : 2 * k].mean(0) for x in runs])
        mean_run, posts = np.mean(runs, 0)[:, : 2 * k], len(runs[0])
        resampled = np.array([mean_run[random.integers(posts, size=posts)].mean(0) for _ in range(resamples)])
        value, half = by_seed.mean(0), half_width(by_seed, resampled, posts)
        half = np.where(np.isnan(half), 0, half)  # of n = 1, which gains nothing, and of a single seed
        gold, proxy = np.split(np.stack([value, value - half, value + half], 1), 2)
        n = np.array(COUNTS[:k])
        shown[method] = np.repeat((np.log(n) - (n - 1) / n)[:, None], 3, 1), proxy, gold
    title = f"Best of n, {condition} labels"
    with style.style():
        return figures.policies(
            "best-of-n", title, "", shown, [str(n) for n in COUNTS[: len(next(iter(shown.values()))[0])]]
        ).svg


def make(setup: Setup, encoder: str, jobs: int) -> None:
    """Compute everything that is missing: answers, their gold scores and states, priors, proxies."""
    for what, of_post in (("samples", sampled), ("gold-scores", gold_scored), ("states", frozen_states)):
        for split in ("train", "test"):
            posts = range(len(prompts(setup, split)))
            wanted = [(setup, split, i, place(setup, what, split, i)) for i in posts]
            make_each(of_post, wanted, jobs, f"{what}, {split}")
    if not (setup.out / "priors.npz").is_file():
        found = {name: prior.numpy() for name, prior in priors(train_posts(setup), encoder).items()}
        replace(setup.out / "priors.npz", lambda partial: np.savez(partial, **found))
    # Seed by seed, so that an interrupted run has all methods of each finished seed.
    wanted = [
        (setup, condition, method, seed, file_of(setup, condition, method, seed))
        for seed, condition, method in itertools.product(range(setup.sizes.seeds), CONDITIONS, METHODS)
    ]
    make_each(run, wanted, jobs, "proxies")


def gold_model(data: Path, gguf: Path | None, out: Path) -> Path:
    """Train the gold model with benchmarks/rankings_epoch.py, or resume its training."""
    final = out / "gold" / "final"
    if not (out / "gold" / "done").is_file():
        if gguf is None:
            raise ValueError("--gguf must be the file of the language model to train a gold reward model, got none")
        files = [data / f"tldr_{split}_ratings.jsonl" for split in ("train", "test")]
        command = [sys.executable, BENCHMARKS / "rankings_epoch.py", *files, "--gguf", gguf, "--out", out / "gold"]
        subprocess.run(list(map(str, command)), check=True)
        (out / "gold" / "done").touch()
    return final


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that the SmolLM2 experiments share."""
    parser.add_argument("data", type=Path)
    parser.add_argument("--gguf", type=Path, help="weights of the policy; needed only for the first run")
    parser.add_argument("--gold", type=Path, help="gold reward model (default: train one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for all intermediate results")
    parser.add_argument("--results", type=Path, default=HERE, help="folder for the CSV files")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="page whose tables are replaced; figures are written next to it"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of processes, each on one core")
    parser.add_argument("--tables", action="store_true", help="only write the tables, without training")


def setup_of(arguments: argparse.Namespace) -> Setup:
    data, out = arguments.data, arguments.out
    policy_of(arguments.gguf, out / "policy")
    gold = arguments.gold or gold_model(data, arguments.gguf, out)
    sizes = dataclasses.replace(
        SIZES,
        test_posts=min(SIZES.test_posts, len(posts_of(data, "test").prompts)),
        train_posts=min(SIZES.train_posts, len(posts_of(data, "train").prompts)),
    )
    setup = Setup(data, out, gold, sizes)
    recipe = dataclasses.asdict(sizes) | {split: fingerprint(prompts(setup, split)) for split in ("train", "test")}
    # The number of runs does not affect any single run.
    del recipe["seeds"], recipe["resamples"]
    with (gold / "model.safetensors").open("rb") as weights:
        same_experiment(out, recipe | {"gold": hashlib.file_digest(weights, "sha256").hexdigest()})
    return setup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--encoder", required=True, help="folder of the encoder for the cosine prior")
    arguments = parser.parse_args()
    setup = setup_of(arguments)
    if not arguments.tables:
        make(setup, arguments.encoder, arguments.jobs)
    tables(setup, arguments.results, arguments.page)


if __name__ == "__main__":
    main()
