"""How long each prior takes for a million pairs, from Python.

    python benchmarks/priors.py [--pairs 1000000]

Responses are made up: 20 to 60 words of a vocabulary of 5,000, the second one a copy of the
first with a third of its words changed.
"""

from __future__ import annotations

import argparse
import time

import torch

import pcrm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="default: %(default)s")
    n = parser.parse_args().pairs
    g = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (5000, 8), generator=g)
    words = ["".join(map(chr, row[: 3 + i % 5])) for i, row in enumerate(letters.tolist())]
    ids = torch.randint(1, 5000, (n, 60), generator=g)
    other = torch.where(torch.rand(n, 60, generator=g) < 1 / 3, ids.flip(0), ids)
    for side in (ids, other):
        side[torch.arange(60) >= torch.randint(20, 61, (n, 1), generator=g)] = 0
    # A tenth of the texts ten times: making a million of them takes longer than comparing them.
    part = max(1, n // 10)
    texts = [[" ".join(words[i] for i in row if i) for row in side[:part].tolist()] * 10 for side in (ids, other)]
    a, b = (torch.randn(n, 384, generator=g) for _ in range(2))
    halves = a.half(), b.half()
    for name, prior in {
        "length ratio, (B, 60) int64": lambda: pcrm.priors.length_ratio(ids, other, pad_token_id=0),
        "random, (B, 60) int64": lambda: pcrm.priors.random_uniform(ids, other, pad_token_id=0),
        "cosine, (B, 384) float32": lambda: pcrm.priors.cosine(a, b),
        "cosine, (B, 384) float16": lambda: pcrm.priors.cosine(*halves),
        f"lexical, {sum(map(len, texts[0])) // len(texts[0])} characters": lambda: pcrm.priors.lexical(*texts),
    }.items():
        begin = time.perf_counter()
        pairs = len(prior())
        seconds = time.perf_counter() - begin
        print(f"{name:32}{seconds:8.2f} s for {pairs:,} pairs", flush=True)


if __name__ == "__main__":
    main()
