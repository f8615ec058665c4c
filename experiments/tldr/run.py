"""Reward models on human-rated summaries, with many seeds per method, in one command that can be interrupted and resumed.

    python experiments/tldr/run.py DATA --model ENCODER         # train what is missing, then the tables
    python experiments/tldr/run.py DATA --model ENCODER --choose  # choose the numbers of epochs
    python experiments/tldr/run.py DATA --model ENCODER --tables  # only the tables, from the saved scores
    python experiments/tldr/run.py DATA --model ENCODER --rows DIR  # score files of the models, for pcrm report

DATA is a folder with tldr_{train,test}_{pairs.jsonl.gz,ratings.jsonl}. ENCODER is the folder of
all-MiniLM-L6-v2. The scores of the test summaries by each run are a row of scores.parquet. From
this file come results.csv, with a row per run, and the tables and figures of docs/experiments.md.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from methods import ALL, METHODS, Data, Make
from numpy.typing import NDArray
from posts import Posts, embeddings, priors, read, states
from tiers import Head, TopLayers, score, train
from tqdm.auto import tqdm

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "experiments.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pcrm" / "experiments"


@dataclass(frozen=True)
class Tier:
    epochs: int  # by epochs.csv
    longest: int  # what --choose looks at
    learning_rate: float
    posts_per_step: int
    seeds: int


TIERS = {
    "A": Tier(epochs=6, longest=8, learning_rate=3e-4, posts_per_step=8, seeds=10),
    "B": Tier(epochs=3, longest=3, learning_rate=1e-4, posts_per_step=4, seeds=3),
}
CHOSEN_BY = ("plain", "length ratio, published", "length ratio, fitted")
HELD_OUT = 0.2  # of the train posts, to choose epochs


@functools.cache
def _posts(data: Path, split: str) -> Posts:
    return read(data, split)


@functools.cache
def data_of(data: Path, split: str, model: str) -> Data:
    posts = _posts(data, split)
    return Data(posts, priors(posts, model))


@functools.cache
def inputs_of(data: Path, split: str, tier: str, model: str) -> tuple[torch.Tensor, ...]:
    posts = _posts(data, split)
    return (embeddings(posts, model),) if tier == "A" else states(posts, model, CACHE)


def model_of(
    tier: str, model: str, inputs: tuple[torch.Tensor, ...], seed: int, dtype: torch.dtype | None = None
) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Head(inputs[0].shape[1]) if tier == "A" else TopLayers(model, dtype)


def trained(data: Path, model: str, tier: str, make: Make, seed: int) -> NDArray[np.float32]:
    """Train a model on all train posts, and return its scores of the test summaries."""
    torch.set_num_threads(1)  # a run a core: the same bits however many there are
    t, train_data, inputs = TIERS[tier], data_of(data, "train", model), inputs_of(data, "train", tier, model)
    network = model_of(tier, model, inputs, seed)
    train(
        network,
        inputs,
        train_data.posts,
        make(train_data),
        epochs=t.epochs,
        learning_rate=t.learning_rate,
        posts_per_step=t.posts_per_step,
        seed=seed,
    )
    return score(network, inputs_of(data, "test", tier, model)).astype(np.float32)


def one(data: Path, model: str, tier: str, method: str, seed: int) -> dict[str, Any]:
    """Compute a row of scores.parquet."""
    return {
        "tier": tier,
        "method": method,
        "seed": seed,
        "scores": trained(data, model, tier, ALL[method], seed).tolist(),
    }


def choose(data: Path, model: str, tier: str, method: str, seed: int) -> list[dict[str, Any]]:
    """Compute the rows of epochs.csv: pair accuracy on held-out train posts after each epoch of the longest training."""
    torch.set_num_threads(1)
    t, train_data, inputs = TIERS[tier], data_of(data, "train", model), inputs_of(data, "train", tier, model)
    posts = train_data.posts
    shuffled = np.random.default_rng(0).permutation(len(posts.prompts))
    held_out, use = np.split(shuffled, [int(HELD_OUT * len(shuffled))])
    responses = np.flatnonzero(np.isin(posts.post, held_out))
    pairs = np.searchsorted(responses, posts.pairs[np.isin(posts.pair_post, held_out)])
    held_inputs = tuple(x[torch.from_numpy(responses)] for x in inputs)
    network = model_of(tier, model, inputs, seed)
    rows: list[dict[str, Any]] = []

    def look(epoch: int) -> None:
        chosen, rejected = score(network, held_inputs)[pairs].T
        right = round(float((chosen > rejected).mean()), 4)
        rows.append({"tier": tier, "method": method, "seed": seed, "epoch": epoch, "held_out_accuracy": right})

    train(
        network,
        inputs,
        posts,
        ALL[method](train_data),
        epochs=t.longest,
        learning_rate=t.learning_rate,
        posts_per_step=t.posts_per_step,
        seed=seed,
        use=use,
        after_epoch=look,
    )
    return rows


def kept(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist() if file.exists() else []


def _keep(rows: list[dict[str, Any]], file: Path) -> None:
    order = list(ALL)
    rows = sorted(rows, key=lambda row: (row["tier"], order.index(row["method"]), row["seed"]))
    schema = pa.schema(
        [("tier", pa.string()), ("method", pa.string()), ("seed", pa.int32()), ("scores", pa.list_(pa.float32()))]
    )
    partial = file.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema), partial, compression="zstd")
    partial.replace(file)


def _write_rows(folder: Path, data: Data, rows: list[dict[str, Any]]) -> None:
    """Write the scores of the test pairs and pools by each method, for the last tier and seed 0, as `pcrm report` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    posts, tier = data.posts, max(row["tier"] for row in rows)
    lengths, offsets = posts.lengths, posts.offsets
    for row in rows:
        if (row["tier"], row["seed"]) != (tier, 0):
            continue
        scores = row["scores"]
        with (folder / f"{row['method']}.jsonl").open("w") as file:
            for (chosen, rejected), prior in zip(posts.pairs, data.priors["length_ratio"].tolist(), strict=True):
                pair = {"chosen_score": scores[chosen], "rejected_score": scores[rejected], "prior": prior}
                pair |= {"chosen_length": lengths[chosen], "rejected_length": lengths[rejected]}
                file.write(json.dumps(pair) + "\n")
        with (folder / f"{row['method']}-ratings.jsonl").open("w") as file:
            for a, b in itertools.pairwise(offsets):
                pool = {"scores": scores[a:b], "ratings": posts.ratings[a:b].tolist(), "lengths": lengths[a:b].tolist()}
                file.write(json.dumps(pool) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, help="folder of the encoder")
    parser.add_argument("--tiers", default="AB", help="tiers to run: A, B or both")
    parser.add_argument("--methods", nargs="+", choices=ALL, default=list(ALL), metavar="METHOD")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel runs, each on one core")
    parser.add_argument("--choose", action="store_true", help="write epochs.csv instead")
    parser.add_argument("--tables", action="store_true", help="only write the tables, without training")
    parser.add_argument("--rows", type=Path, metavar="DIR", help="only write DIR/METHOD.jsonl of seed 0")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of scores.parquet and results.csv")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="page whose tables are replaced; figures are written next to it"
    )
    arguments = parser.parse_args()
    if arguments.rows:
        _write_rows(
            arguments.rows, data_of(arguments.data, "test", arguments.model), kept(arguments.out / "scores.parquet")
        )
        return 0
    if not arguments.tables:
        _train(arguments)
    if not arguments.choose:
        import figures
        import tables

        train_data, test_data = (data_of(arguments.data, split, arguments.model) for split in ("train", "test"))
        rows, page = kept(arguments.out / "scores.parquet"), arguments.page
        found, estimates = tables.write(test_data.posts, rows, arguments.out / "results.csv", page)
        for tier, of_tier in estimates.items():
            figures.differences(page.with_name(f"{page.stem}-{tier.lower()}.svg"), of_tier)
        figures.optimization(page.with_name(f"{page.stem}-rl.svg"), found)
        figures.margins(page.with_name(f"{page.stem}-margins.png"), train_data, test_data, rows)
    return 0


def _train(arguments: argparse.Namespace) -> None:
    data, model = arguments.data, str(Path(arguments.model))
    for tier in arguments.tiers:  # once, before the processes that read it from disk
        for split in ("train", "test"):
            inputs_of(data, split, tier, model)
    data_of(data, "train", model)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "scores.parquet"
    rows = [] if arguments.choose else kept(file)
    done = {(row["tier"], row["method"], row["seed"]) for row in rows}
    # Seed by seed, so that an interrupted run has all methods of each finished seed.
    wanted = [
        (tier, method, seed)
        for tier in arguments.tiers
        for seed in range(TIERS[tier].seeds)
        for method in (CHOSEN_BY if arguments.choose else arguments.methods)
        if (tier, method, seed) not in done and (tier == "A" or method in METHODS)
    ]
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(choose if arguments.choose else one, data, model, *run) for run in wanted]
        for run in tqdm(as_completed(runs), total=len(runs), desc="runs", disable=None):
            if arguments.choose:
                rows += run.result()
            else:
                rows.append(run.result())
                _keep(rows, file)
    if arguments.choose:
        with (arguments.out / "epochs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: (row["tier"], row["method"], row["seed"])))


if __name__ == "__main__":
    sys.exit(main())
