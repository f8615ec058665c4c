"""How much reward models favor the longer summary, by the prior of their constraint.

    python experiments/tldr/length_bias.py DATA --model ENCODER

DATA and ENCODER are those of run.py. Two quantities are measured on the test pairs and compared with plain: the Spearman
correlation of the margin with the difference in length (chosen minus rejected, in characters), and the accuracy where human
raters prefer the shorter or the longer summary.

Both are measured for the scores in scores.parquet, whose constraints were fitted to two points. They are also measured for
models of tier A that this command trains, with the constraints that the trainers fit by default; these include the lexical
prior and the cosine of a static encoder. The training takes about four minutes on one core. The output is length_bias.csv with
a row per run, tables with intervals as in tables.py, and how far the priors agree on the train pairs.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from methods import ALL, fitted_now
from numpy.typing import NDArray
from pcrm.evaluate import statistics
from posts import Posts, read
from run import HERE, TIERS, data_of, kept, trained
from tables import Floats, bootstrap, interval
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

import pcrm

COLUMNS = ("margin and length", "shorter", "longer")  # the last two are accuracies
PRIORS = {"length ratio": "length_ratio", "lexical": "lexical", "cosine": "cosine", "cosine, static": "static"}
NOW = {"plain": ALL["plain"]} | {f"{name}, fitted": fitted_now(prior) for name, prior in PRIORS.items()}


@torch.inference_mode()
def static_cosine(posts: Posts, model: str) -> torch.Tensor:
    """The angular cosine of each pair by a static encoder, float64, (pairs,).

    The vector of a token is its embedding by ENCODER on its own, centered over all tokens here and weighted by its rank
    in the vocabulary. This is close to the distillation of model2vec, which also applies a PCA.
    """
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    encoder = AutoModel.from_pretrained(model, use_safetensors=True, trust_remote_code=False).eval()
    ids = [torch.tensor(row) for row in tokenizer(posts.responses, add_special_tokens=False)["input_ids"]]
    tokens = torch.cat(ids).unique()
    first, end = (torch.full_like(tokens, i) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    rows = torch.stack([first, tokens, end], 1).split(1024)
    vectors = torch.cat([encoder(part).last_hidden_state.mean(1) for part in rows])
    vectors -= vectors.mean(0)
    shares = 1 / (1 + torch.arange(len(tokenizer))) / np.log(len(tokenizer))  # Zipf's law
    vectors *= (1e-4 / (1e-4 + shares[tokens]))[:, None]
    means = torch.stack([vectors[torch.searchsorted(tokens, row)].mean(0) for row in ids])
    chosen, rejected = (means[torch.from_numpy(posts.pairs[:, side])] for side in (0, 1))
    return pcrm.priors.cosine(chosen, rejected).double()


class Bias:
    """The columns of one model's scores on any resample of posts."""

    def __init__(self, posts: Posts, scores: Floats) -> None:
        self.margins, self.longer = (v[posts.pairs[:, 0]] - v[posts.pairs[:, 1]] for v in (scores, posts.lengths))

    def columns(self, sample: NDArray[np.int64], pairs: NDArray[np.int64], responses: NDArray[np.int64]) -> list[float]:
        margins, longer = self.margins[pairs], self.longer[pairs]
        return [
            statistics.spearman(margins, longer),
            float((margins[longer < 0] > 0).mean()),
            float((margins[longer > 0] > 0).mean()),
        ]


def table(posts: Posts, runs: dict[str, list[Bias]]) -> list[str]:
    """The first column of each method, and the differences of all columns from plain, in bold if the interval excludes 0."""

    def cell(form: str, value: float, low: float, high: float) -> str:
        text = form.format(value)
        text = f"**{text}**" if form.startswith("{:+") and (low > 0 or high < 0) else text
        return f"{text} <small>{form.format(low)} to {form.format(high)}</small>"

    estimates = bootstrap(posts, runs)
    base, base_resampled = estimates["plain"]
    heads = [COLUMNS[0], *(f"{head}, less plain" for head in COLUMNS)]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for method, (value, resampled) in estimates.items():
        low, high = interval(value, resampled)
        cells = [cell("{:.3f}", value[0], low[0], high[0])]
        if method == "plain":
            cells += [""] * len(COLUMNS)
        else:
            less = value - base
            low, high = interval(less, resampled - base_resampled)
            cells += [cell("{:+.3f}", *numbers) for numbers in zip(less, low, high, strict=True)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, metavar="ENCODER")
    parser.add_argument("--out", type=Path, default=HERE / "length_bias.csv", help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=int, default=TIERS["A"].seeds, help="seeds of the models to train (default: %(default)s)"
    )
    args = parser.parse_args()
    posts = read(args.data, "test")
    groups: dict[str, dict[str, list[Bias]]] = {}
    for row in kept(HERE / "scores.parquet"):
        if row["method"] == "plain" or row["method"].endswith((", published", ", fitted")):
            group = groups.setdefault(f"{row['tier']}, kept", {})
            group.setdefault(row["method"], []).append(Bias(posts, np.array(row["scores"], np.float64)))
    train = data_of(args.data, "train", args.model)
    train.priors["static"] = static_cosine(train.posts, args.model)
    runs = [(method, seed) for method in NOW for seed in range(args.seeds)]
    for method, seed in tqdm(runs, desc="runs", disable=None):
        scores = trained(args.data, args.model, "A", NOW[method], seed).astype(np.float64)
        groups.setdefault("A, as fitted by default", {}).setdefault(method, []).append(Bias(posts, scores))
    everything = np.arange(len(posts.prompts)), np.arange(len(posts.pairs)), np.arange(len(posts.responses))
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["models", "method", "seed", *COLUMNS])
        for name, group in groups.items():
            for method, models in group.items():
                for seed, model in enumerate(models):
                    writer.writerow([name, method, seed, *(f"{v:.5f}" for v in model.columns(*everything))])
    for name, group in groups.items():
        print(f"\n{name}\n", *table(posts, group), sep="\n")
    print("\nSpearman's correlation of the priors of the train pairs\n")
    for name, prior in PRIORS.items():
        others = (statistics.spearman(*(train.priors[p].numpy() for p in (prior, other))) for other in PRIORS.values())
        print(f"{name:<16}", *(f"{value:6.2f}" for value in others))


if __name__ == "__main__":
    main()
