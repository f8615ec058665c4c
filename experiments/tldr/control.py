"""Does the constraint calibrate better than a single temperature? The same models, with several readings of their scores.

    python experiments/tldr/control.py DATA --model ENCODER             # train what is missing, then the tables
    python experiments/tldr/control.py DATA --model ENCODER --tables    # the tables alone

DATA and ENCODER are those of run.py. A fifth of the train posts is held out from every model. Their pairs are used to fit a
temperature, and to select the variant of a method and the epoch of each reading, by the lowest negative log-likelihood (NLL).
Nothing is selected on test posts. Each finished run is kept in --out/runs. To resume an interrupted run, give the same command
again. The output is control.csv, with a row for each run and reading, and the tables in docs/experiments-temperature.md.

Conditions: all pairs; labels flipped at random, including the held-out ones, because a user would have no others; few pairs,
with a quarter as many held out; and training for 3 and 8 times the selected number of epochs.

Decided before any run: methods whose NLL and accuracy differ by less than .01, over the whole 95% interval, count as equal.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from methods import TARGETS, Data, Make, constrained, fit_now, fitted_now, ipo, plain
from numpy.typing import NDArray
from pcrm.evaluate import statistics
from posts import Posts
from run import HELD_OUT, HERE, TIERS, data_of, inputs_of, model_of
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import t as student
from tables import Floats, replaced
from tiers import Stop, score, train
from torch import nn
from tqdm.auto import tqdm

import pcrm
from pcrm import Constraint

PAGE = HERE.parent.parent / "docs" / "experiments-temperature.md"
MARGIN = 0.01  # of equivalence, in NLL and in accuracy


@dataclass(frozen=True)
class Condition:
    """The training data of a model.

    Attributes:
        flipped: The fraction of pairs with swapped labels.
        pairs: The number of pairs to train on; None for all.
        times: Multiplies the selected number of epochs.
        tiers: The tiers with this condition.
    """

    flipped: float = 0.0
    pairs: int | None = None
    times: int = 1
    tiers: str = "AB"


CONDITIONS = {
    "all pairs": Condition(),
    "10% flipped": Condition(flipped=0.1),
    "20% flipped": Condition(flipped=0.2),
    "30% flipped": Condition(flipped=0.3),
    "200 pairs": Condition(pairs=200),
    "500 pairs": Condition(pairs=500),
    "2,000 pairs": Condition(pairs=2000),
    # In B, these two would take most of the time of the command.
    "3 times the epochs": Condition(times=3, tiers="A"),
    "8 times the epochs": Condition(times=8, tiers="A"),
}
LONGEST = {"A": 8, "B": 4}  # epochs, without the multiples
# Training ends after this many epochs without a lower NLL.
PATIENCE = 3
SEEDS = 10

METHODS: dict[str, Make] = {
    "plain": plain(),
    **{f"label smoothing {e}": plain(label_smoothing=e) for e in (0.05, 0.1, 0.2)},
    **{f"IPO, target {target}": ipo(target) for target in (1, 2, 4)},
    "fixed": lambda data: constrained(Constraint.fixed(sum(TARGETS.values()))),
    "length ratio": fitted_now("length_ratio"),
    "lexical": fitted_now("lexical"),
    "cosine": fitted_now("cosine"),
}
# For each run, the variant with the lowest NLL is used.
TUNED = {"label smoothing, tuned": "label smoothing", "IPO, tuned": "IPO"}
PRIOR = {"length ratio": "length_ratio", "lexical": "lexical", "cosine": "cosine"}


class Labels(NamedTuple):
    """The pairs of a condition: training pairs and pairs of held-out posts, each with its row in the data."""

    trained: Data
    use: NDArray[np.int64]  # the posts that have pairs
    held: NDArray[np.int64]  # (H, 2)
    held_rows: NDArray[np.int64]


def labels(data: Data, condition: Condition, seed: int) -> Labels:
    """Draw the pairs and flip labels. All methods of a seed get the same."""
    posts, random = data.posts, np.random.default_rng([seed, 23])
    shuffled = np.random.default_rng(0).permutation(len(posts.prompts))
    of_held_out = np.isin(posts.pair_post, shuffled[: int(HELD_OUT * len(shuffled))])
    flips = random.random(len(posts.pairs)) < condition.flipped
    pairs = np.where(flips[:, None], posts.pairs[:, ::-1], posts.pairs)
    rows, held_rows = np.flatnonzero(~of_held_out), np.flatnonzero(of_held_out)
    if condition.pairs is not None:
        rows = np.sort(random.permutation(rows)[: condition.pairs])
        held_rows = np.sort(random.permutation(held_rows)[: condition.pairs // 4])
    of_rows = dataclasses.replace(posts, pairs=pairs[rows], gap=posts.gap[rows])
    trained = Data(of_rows, {name: prior[torch.from_numpy(rows)] for name, prior in data.priors.items()})
    return Labels(trained, np.unique(posts.pair_post[rows]), pairs[held_rows], held_rows)


def temperature(margins: Floats, feature: Floats | None = None) -> Floats:
    """The most likely temperature of each pair of held-out margins: one number T, or exp(a + b feature).

    Returns:
        log T, or (a, b).
    """
    columns = np.ones((len(margins), 1)) if feature is None else np.stack([np.ones(len(margins)), feature], 1)

    def nll(w: Floats) -> tuple[float, Floats]:
        scaled = margins * np.exp(-columns @ w)
        return float(np.logaddexp(0, -scaled).mean()), (expit(-scaled) * scaled) @ columns / len(margins)

    # For margins worse than chance, the best temperature is infinite.
    bounds = [(-5.0, 5.0)] * columns.shape[1]
    return minimize(nll, np.zeros(columns.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x


class Pairs(NamedTuple):
    """Margins, and what a reading may use about their pairs."""

    margin: Floats
    similarity: Floats  # lexical
    delta: Floats | float


# A reading turns margins into log odds, after it has seen the held-out ones.
Reading = Callable[[Pairs, Pairs], tuple[Floats, Floats]]


def raw(held: Pairs, test: Pairs) -> tuple[Floats, Floats]:
    return held.margin, test.margin


def with_temperature(held: Pairs, test: Pairs) -> tuple[Floats, Floats]:
    (log_t,) = temperature(held.margin)
    return held.margin * np.exp(-log_t), test.margin * np.exp(-log_t)


def by_similarity(held: Pairs, test: Pairs) -> tuple[Floats, Floats]:
    a, b = temperature(held.margin, held.similarity)
    return tuple(pairs.margin * np.exp(-a - b * pairs.similarity) for pairs in (held, test))  # type: ignore[return-value]


def own_link(held: Pairs, test: Pairs) -> tuple[Floats, Floats]:
    """The win probability at the optimum of the constrained loss: `pcrm.win_probability`, with odds of at most 1000."""
    log_odds = []
    for pairs in (held, test):
        p = np.asarray(pcrm.win_probability(pairs.margin, np.broadcast_to(pairs.delta, pairs.margin.shape).copy()))
        p = np.clip(p, 1 / 1001, 1000 / 1001)
        log_odds.append(np.log(p / (1 - p)))
    return log_odds[0], log_odds[1]


READINGS: dict[str, Reading] = {
    "": raw,
    " + temperature": with_temperature,
    " + temperature by similarity": by_similarity,
    ", its own link": own_link,
}


def nll(log_odds: Floats) -> float:
    return float(np.logaddexp(0, -log_odds).mean())


class Run(NamedTuple):
    """The scores of a model after each epoch."""

    held: NDArray[np.float32]  # margins of held-out pairs, (epochs, H)
    test: NDArray[np.float32]  # margins of test pairs, (epochs, P)
    deltas: tuple[Floats, Floats] | None  # of the constraint that it was trained with, of the same pairs


def constraint_of(method: str, trained: Data) -> Constraint | None:
    if method == "fixed":
        return Constraint.fixed(sum(TARGETS.values()))
    return fit_now(trained.priors[PRIOR[method]]) if method in PRIOR else None


def margins_of(model: nn.Module, inputs: tuple[torch.Tensor, ...], pairs: NDArray[np.int64]) -> Floats:
    """The margin of each pair, (N, 2). Each summary of the inputs is scored once."""
    wanted, place = np.unique(pairs, return_inverse=True)
    chosen, rejected = score(model, tuple(x[torch.from_numpy(wanted)] for x in inputs))[place.reshape(pairs.shape)].T
    return chosen - rejected


def run(data: Path, model: str, tier: str, condition: str, method: str, seed: int, file: Path) -> None:
    """Train one model, and keep its scores after each epoch."""
    torch.set_num_threads(1)
    t, inputs, test_inputs = (
        TIERS[tier],
        inputs_of(data, "train", tier, model),
        inputs_of(data, "test", tier, model),
    )
    drawn = labels(data_of(data, "train", model), CONDITIONS[condition], seed)
    test_pairs = data_of(data, "test", model).posts.pairs
    times = max(c.times for c in CONDITIONS.values() if tier in c.tiers) if condition == "all pairs" else 1
    # bfloat16, in which run.py computes, takes more than three times as long on CPUs without instructions for it.
    network = model_of(tier, model, inputs, seed, torch.float32)
    held, test, losses = [], [], []

    def look(epoch: int) -> None:
        margins = margins_of(network, inputs, drawn.held)
        held.append(margins.astype(np.float32))
        test.append(margins_of(network, test_inputs, test_pairs).astype(np.float32))
        losses.append([nll(margins), nll(margins * np.exp(-temperature(margins)[0]))])
        best = 1 + np.argmin(losses, 0)
        if epoch >= times * best[0] and epoch >= min(max(best) + PATIENCE, LONGEST[tier]):
            raise Stop

    train(
        network,
        inputs,
        drawn.trained.posts,
        METHODS[method](drawn.trained),
        epochs=times * LONGEST[tier],
        learning_rate=t.learning_rate,
        posts_per_step=t.posts_per_step,
        seed=seed,
        use=drawn.use,
        constant=True,
        after_epoch=look,
    )
    partial = file.with_suffix(".part.npz")
    np.savez(partial, held=np.stack(held), test=np.stack(test))
    partial.replace(file)


def file_of(out: Path, tier: str, condition: str, method: str, seed: int) -> Path:
    return out / "runs" / f"{tier}-{condition}-{method}-{seed}.npz".replace(" ", "_").replace(",", "")


class Read(NamedTuple):
    """A run in one reading: its log odds of the test pairs, and how it was selected."""

    name: str
    epoch: int
    held_nll: float
    log_odds: Floats  # of the test pairs, chosen against rejected


def readings(runs: dict[str, Run], similarities: tuple[Floats, Floats], times: int) -> Iterator[Read]:
    """All readings of the runs of one seed, each at the epoch with the lowest held-out NLL, times `times`."""
    for method, found in runs.items():
        for suffix, reading in READINGS.items():
            if (suffix == ", its own link" and found.deltas is None) or ("similarity" in suffix and method != "plain"):
                continue
            deltas = found.deltas or (np.inf, np.inf)
            tried = []
            for margins in zip(found.held.astype(np.float64), found.test.astype(np.float64), strict=True):
                tried.append(reading(*map(Pairs, margins, similarities, deltas)))
            best = int(np.argmin([nll(h) for h, _ in tried]))
            at = min((best + 1) * times, len(tried)) - 1
            yield Read(f"{method}{suffix}", at + 1, nll(tried[best][0]), tried[at][1])


def tuned(found: list[Read]) -> list[Read]:
    """The readings, with only the best variant of each method."""
    kept = [r for r in found if not r.name.startswith(tuple(TUNED.values()))]
    for name, family in TUNED.items():
        for suffix in ("", " + temperature"):
            # A name ends with its suffix, and no variant's name has a plus.
            variants = [r for r in found if r.name.startswith(family) and ("+" in r.name) == bool(suffix)]
            if variants:
                kept.append(min(variants, key=lambda r: r.held_nll)._replace(name=f"{name}{suffix}"))
    return kept


COLUMNS = ("NLL", "Brier", "ECE", "accuracy")
BASE = "plain + temperature"


def measures(log_odds: Floats) -> Floats:
    """NLL, Brier score, expected calibration error and accuracy."""
    share, confidence, right, *_ = statistics.reliability(log_odds)
    ece = float(np.nansum(share * np.abs(right - confidence)) / len(log_odds))
    accuracy = float(np.mean((log_odds > 0) + 0.5 * (log_odds == 0)))
    return np.array([nll(log_odds), float(np.mean(expit(-log_odds) ** 2)), ece, accuracy])


def half_width(by_seed: Floats, resampled: Floats, posts: int) -> Floats:
    """Half of the 95% interval of a mean over seeds, (columns,).

    Two things vary. For test posts: a bootstrap of the mean over seeds. For seeds: their sample variance divided by their number.
    The interval uses Student's t with Satterthwaite's degrees of freedom, because a few seeds estimate their variance poorly.

    Args:
        by_seed: (seeds, columns).
        resampled: (resamples, columns).
        posts: The number of resampled posts.
    """
    n = len(by_seed)
    of_posts = resampled.var(0, ddof=1)
    of_seeds = by_seed.var(0, ddof=1) / n if n > 1 else np.full(by_seed.shape[1], np.nan)
    with np.errstate(invalid="ignore"):  # where nothing varies, as the accuracies of two readings with the same order
        degrees = (of_posts + of_seeds) ** 2 / (of_seeds**2 / (n - 1) + of_posts**2 / (posts - 1))
    variance = of_posts + of_seeds
    return np.where(variance == 0, 0.0, student.ppf(0.975, degrees) * np.sqrt(variance))


def differences(
    posts: Posts,
    found: dict[str, list[Floats]],
    resamples: int = 1000,
    *,
    base: str = BASE,
    measure: Callable[[Floats], Floats] | None = None,
) -> dict[str, tuple[Floats, Floats]]:
    """The difference of each reading's measures from those of a base, and half of its 95% interval, (columns,) each.

    Args:
        posts: The post of each element of a run.
        found: The runs of each reading, one array per seed.
        measure: Applied to the elements of a run or of a resample; `measures` by default.
    """
    measure = measure or measures
    random = np.random.default_rng(0)
    of_post = [np.flatnonzero(posts.pair_post == p) for p in range(len(posts.prompts))]
    samples = [
        np.concatenate([of_post[p] for p in random.integers(len(of_post), size=len(of_post))]) for _ in range(resamples)
    ]
    of_base = np.array([measure(x) for x in found[base]])
    base_resampled = np.array([np.mean([measure(x[s]) for x in found[base]], 0) for s in samples])
    result = {}
    for name, runs in found.items():
        if name == base:
            continue
        by_seed = np.array([measure(x) for x in runs]) - of_base
        resampled = np.array([np.mean([measure(x[s]) for x in runs], 0) for s in samples]) - base_resampled
        result[name] = by_seed.mean(0), half_width(by_seed, resampled, len(of_post))
    return result


def table(
    title: str,
    found: dict[str, list[Floats]],
    less: dict[str, tuple[Floats, Floats]],
    *,
    base: str = BASE,
    columns: Sequence[str] = COLUMNS,
    measure: Callable[[Floats], Floats] | None = None,
) -> str:
    """A table of a condition: the base, then the difference of each other reading, in bold if the interval excludes 0. A
    single seed has no interval."""
    of_base = np.mean([(measure or measures)(x) for x in found[base]], 0)
    lines = [
        f"| {title}, {_seeds(len(found[base]))} | {' | '.join(columns)} |",
        f"|---{'|---' * len(columns)}|",
        f"| {base} | {' | '.join(f'{value:.3f}' for value in of_base)} |",
    ]
    for name, (value, half) in less.items():
        cells = []
        for v, h in zip(value, half, strict=True):
            if np.isnan(h):  # a single seed
                cells.append(f"{v:+.3f}")
                continue
            text = f"{v:+.3f}" if abs(v) <= h else f"**{v:+.3f}**"
            cells.append(f"{text} <small>{v - h:+.3f} to {v + h:+.3f}</small>")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def tables(arguments: argparse.Namespace) -> None:
    """Write control.csv and the tables of the page, from the finished runs."""
    train_data, test_data = (data_of(arguments.data, split, arguments.model) for split in ("train", "test"))
    rows, parts = [], []
    for tier, (name, condition) in itertools.product(arguments.tiers, CONDITIONS.items()):
        if tier not in condition.tiers:
            continue
        trained_as = "all pairs" if condition.times > 1 else name
        found: dict[str, list[Floats]] = {}
        for seed in range(SEEDS):
            files = {method: file_of(arguments.out, tier, trained_as, method, seed) for method in METHODS}
            if not all(file.is_file() for file in files.values()):
                continue
            drawn = labels(train_data, CONDITIONS[trained_as], seed)
            of_pairs = train_data.priors["lexical"].numpy()[drawn.held_rows], test_data.priors["lexical"].numpy()
            runs = {method: _loaded(file, method, drawn, train_data, test_data) for method, file in files.items()}
            for read in tuned(list(readings(runs, of_pairs, condition.times))):
                found.setdefault(read.name, []).append(read.log_odds)
                values = (f"{value:.5f}" for value in (read.held_nll, *measures(read.log_odds)))
                rows.append([tier, name, read.name, seed, read.epoch, *values])
        if found:
            parts.append(table(f"{tier}, {name}", found, differences(test_data.posts, found)))
            print(f"\n{parts[-1]}", flush=True)
    with (arguments.out / "control.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["tier", "condition", "reading", "seed", "epoch", "held_out_nll", *(c.lower() for c in COLUMNS)]
        )
        writer.writerows(rows)
    page = arguments.page
    page.write_text(replaced(page.read_text(), "control", "\n\n".join(parts)))


def _loaded(file: Path, method: str, drawn: Labels, train_data: Data, test_data: Data) -> Run:
    kept = np.load(file)
    constraint = constraint_of(method, drawn.trained)
    if constraint is None:
        return Run(kept["held"], kept["test"], None)
    deltas = []
    for data, which in ((train_data, drawn.held_rows), (test_data, slice(None))):
        similarities = data.priors[PRIOR.get(method, "lexical")].numpy()[which]
        deltas.append(np.asarray(constraint.delta(similarities)))
    return Run(kept["held"], kept["test"], (deltas[0], deltas[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, help="folder of the encoder")
    parser.add_argument("--tiers", default="AB", help="tiers to run: A, B or both")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS), metavar="CONDITION")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel runs, each on one core")
    parser.add_argument("--tables", action="store_true", help="only write the tables, without training")
    parser.add_argument("--out", type=Path, default=HERE / "control", help="folder for the runs and control.csv")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose tables are replaced")
    arguments = parser.parse_args()
    arguments.model = str(Path(arguments.model))
    if not arguments.tables:
        _train(arguments)
    tables(arguments)


def _train(arguments: argparse.Namespace) -> None:
    data, model = arguments.data, arguments.model
    for tier, split in itertools.product(arguments.tiers, ("train", "test")):
        inputs_of(data, split, tier, model)  # once, before the processes that read it from disk
    (arguments.out / "runs").mkdir(parents=True, exist_ok=True)
    trained = dict.fromkeys("all pairs" if CONDITIONS[c].times > 1 else c for c in arguments.conditions)
    # Seed by seed, so that an interrupted run has all methods of each finished seed.
    wanted = [
        (tier, condition, method, seed, file)
        for tier, seed, condition, method in itertools.product(
            arguments.tiers, range(arguments.seeds), trained, METHODS
        )
        if not (file := file_of(arguments.out, tier, condition, method, seed)).is_file()
    ]
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(run, data, model, *which) for which in wanted]
        for finished in tqdm(as_completed(runs), total=len(runs), desc="runs", disable=None):
            finished.result()


if __name__ == "__main__":
    main()
