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
are trained, for one epoch, and the states below them are computed once for all runs. A fifth of the train posts is held out
for temperatures. The trained policy then answers 51 test posts.

Hypotheses, stated before any run:
1. Accuracy on test pairs is equal, and so is NLL after a temperature.
2. With the fitted constraint, the KL from the reference and the drop of chosen log probabilities are smaller than with stock
   DPO; the same holds for cDPO. The published constraint does not bind: within an epoch, margins stay below its targets.
3. Answers grow longer under every loss.
The second learning rate was added after a look at the first two runs. Under the first one, the margins of DPO had a standard
deviation of .18, far below all targets, and a temperature of .17: the policy had learned too little for a constraint to matter.
Methods whose NLL and accuracy differ by less than .01, over the whole 95% interval, count as equal.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

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
from pcrm.prefix_sharing.plan import pack
from posts import Posts
from rl import means
from safetensors import safe_open
from safetensors.torch import load_file, save_file
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
    """The sizes of the experiment. On one core, a run takes a quarter of an hour.

    Attributes:
        layers: Number of top layers to train. All thirty would take twice the time.
        beta: TRL's default.
        learning_rates: For AdamW; a tenth of the rate of reward models, as is usual for policies, and the same rate.
        posts_per_step: About 35 comparisons.
        test_posts, answers: The first test posts, and the answers to each of them. All test posts count for the rewards.
    """

    layers: int = 6
    beta: float = 0.1
    learning_rates: tuple[float, ...] = (1e-5, 1e-4)
    posts_per_step: int = 2
    epochs: int = 1
    test_posts: int = 51
    answers: int = 8
    seeds: int = 2
    resamples: int = 1000


SIZES = Sizes()


class Summaries(NamedTuple):
    """The responses to a post, each after its prompt, and the packed sequence that has the prompt once.

    Attributes:
        ids, lengths, starts: The rows (N, T), their lengths and where their responses begin, (N,).
        positions, ends, gather: Of the packed sequence, as in `pcrm.prefix_sharing.plan.Packed`.
        states: The states of the packed sequence below the trained layers, (1, W, width).
    """

    ids: Tensor
    lengths: Tensor
    starts: Tensor
    positions: Tensor
    ends: Tensor
    gather: Tensor
    states: Tensor


def summaries_of(policy: models.Policy, layers: int, post: str, responses: Sequence[Sequence[int]]) -> Summaries:
    rows, starts = zip(*(policy.row(post, ids) for ids in responses), strict=True)
    ids, mask = padded(rows, policy.tokenizer.pad_token_id)
    packed, base = pack(ids, mask.sum(1)), policy.model.base_model
    below = base.layers[: len(base.layers) - layers]
    states = _through(base, below, base.embed_tokens(packed.ids), packed.positions, packed.ends)
    return Summaries(ids, mask.sum(1), torch.tensor(starts), packed.positions, packed.ends, packed.gather, states)


def log_probabilities(model: Any, layers: int, of: Summaries) -> Tensor:
    """The log probability of each response, summed over tokens, (N,)."""
    base = model.base_model
    above = base.layers[len(base.layers) - layers :]
    hidden = base.norm(_through(base, above, of.states, of.positions, of.ends))
    return models.log_probabilities_of(model, hidden.flatten(0, 1)[of.gather], of.ids, of.lengths, of.starts)


def _through(base: Any, layers: Iterable[nn.Module], states: Tensor, positions: Tensor, ends: Tensor) -> Tensor:
    at = torch.arange(states.shape[1])
    mask = (at <= at[:, None]) & (at[:, None] < ends[:, None, None, :])
    turned = base.rotary_emb(states, positions)
    for layer in layers:
        states = layer(states, attention_mask=mask, position_embeddings=turned)
    return states


class ImplicitReward(nn.Module):
    """Implicit rewards, beta times the log ratio of policy and reference, of summaries given by their indices, (N,) -> (N,).

    Args:
        folder: The policy before training, which is the reference.
        layers: Number of top layers to train.
        beta: Scale of the rewards.
        files: What `lower_states` kept of each post. The indices count all summaries of the first post, then of the next.
    """

    def __init__(self, folder: Path, layers: int, beta: float, files: Sequence[Path]) -> None:
        super().__init__()
        self.policy = models.Policy(folder)
        self.model, self.layers, self.beta, self.files = self.policy.model, layers, beta, files
        self.model.requires_grad_(False)
        for part in (*self.model.base_model.layers[-layers:], self.model.base_model.norm):
            part.requires_grad_(True)
        self.ends = np.cumsum([_summaries(file) for file in files])

    def forward(self, which: Tensor) -> Tensor:
        posts = np.searchsorted(self.ends, which.numpy(), side="right")
        found = {p: self._of_post(p) for p in dict.fromkeys(posts.tolist())}
        # From the end, so that the first post needs no special case.
        return torch.stack([found[p][i - self.ends[p]] for p, i in zip(posts.tolist(), which.tolist(), strict=True)])

    def _of_post(self, p: int) -> Tensor:
        kept = load_file(self.files[p])
        reference = kept.pop("reference")
        return self.beta * (log_probabilities(self.model, self.layers, Summaries(**kept)) - reference)


def _summaries(file: Path) -> int:
    """The number of summaries of a post, without reading its states."""
    with safe_open(file, "pt") as kept:
        return kept.get_slice("reference").get_shape()[0]


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


@torch.inference_mode()
def lower_states(setup: Setup, layers: int, split: str, i: int, file: Path) -> None:
    """Keep the summaries of a post, with their log probabilities under the policy before training."""
    posts, policy = rated(setup, split), models.policy(setup.policy)
    texts = posts.responses[posts.offsets[i] : posts.offsets[i + 1]]
    found = summaries_of(policy, layers, posts.prompts[i], [policy.summary(text) for text in texts])
    kept = found._asdict() | {"reference": log_probabilities(policy.model, layers, found)}
    replace(file, lambda partial: save_file({k: v.contiguous() for k, v in kept.items()}, partial))


@torch.inference_mode()
def kl(model: ImplicitReward, reference: models.Policy, post: str, responses: Sequence[Sequence[int]]) -> list[float]:
    """The log ratio of policy and reference of each response. They share the states below the trained layers."""
    found = summaries_of(reference, model.layers, post, responses)
    after, before = (log_probabilities(m, model.layers, found) for m in (model.model, reference.model))
    return (after - before).tolist()


def files_of(setup: Setup, split: str) -> list[Path]:
    return [setup.out / "reference" / split / f"{i:04}.safetensors" for i in range(len(prompts(setup, split)))]


@functools.cache
def data_of(setup: Setup) -> Data:
    posts = rated(setup, "train")
    chosen, rejected = ([posts.responses[i] for i in posts.pairs[:, side]] for side in (0, 1))
    prior = pcrm.priors.of_texts(chosen, rejected, prior="length_ratio", tokenizer=str(setup.policy))
    return Data(posts, {"length_ratio": prior.double()})


def run(setup: Setup, sizes: Sizes, learning_rate: float, method: str, seed: int, file: Path) -> None:
    """Train a policy; keep its implicit rewards of the human-rated summaries, and its answers with their measurements."""
    drawn = labels(data_of(setup), Condition(), seed)
    model = ImplicitReward(
        setup.policy, sizes.layers, sizes.beta, [file for split in ("train", "test") for file in files_of(setup, split)]
    )
    n, m = (len(rated(setup, split).responses) for split in ("train", "test"))
    inputs, test_inputs = (torch.arange(n),), (torch.arange(n, n + m),)
    train(
        model,
        inputs,
        drawn.trained.posts,
        METHODS[method](drawn.trained),
        epochs=sizes.epochs,
        learning_rate=learning_rate,
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
        scores = gold([post] * len(texts), texts).tolist()
        tokens = [len(row) for row in ids]
        rows.append({"texts": texts, "tokens": tokens, "kl": kl(model, reference, post, ids), "gold": scores})
    kept = {"held": held.tolist(), "rewards": of_test.tolist(), "posts": rows}
    replace(file, lambda partial: partial.write_text(json.dumps(kept)))


POLICY_COLUMNS = ("KL", "log ratio of chosen", "log ratio of rejected", "tokens gained", "gold gain")


def columns_of(setup: Setup, sizes: Sizes, kept: dict[str, Any]) -> Floats:
    """The columns of each test post, (posts, columns)."""
    posts = rated(setup, "test")
    ratios = np.array(kept["rewards"]) / sizes.beta
    rows, n = [], len(kept["posts"])
    for i, (of_post, gold) in enumerate(zip(kept["posts"], gold_scores(setup, "test")[:n], strict=True)):
        before = json.loads(place(setup, "samples", "test", i).read_text())["ids"]
        pairs = ratios[posts.pairs[posts.pair_post == i]]
        gained = np.mean(of_post["tokens"]) - np.mean([len(row) for row in before])
        chosen, rejected = pairs.mean(0) if len(pairs) else (np.nan, np.nan)
        rows.append([np.mean(of_post["kl"]), chosen, rejected, gained, np.mean(of_post["gold"]) - gold.mean()])
    return np.array(rows)


def tables(setup: Setup, sizes: Sizes, results: Path, page: Path) -> None:
    posts = rated(setup, "test")
    rows, parts = [], []
    for rate in sizes.learning_rates:
        odds: dict[str, list[Floats]] = {}
        found: dict[str, list[Floats]] = {}
        for seed in range(sizes.seeds):
            files = {method: file_of(setup, rate, method, seed) for method in METHODS}
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
                    values = (math.exp(log_t), *pair_measures(margins), *means(of_posts))
                    rows.append([f"{rate:g}", f"{method}{suffix}", seed, *(f"{value:.5f}" for value in values)])
        if found:
            parts += _tables(f"learning rate {rate:g}", posts, odds, found, sizes.resamples)
    results.mkdir(parents=True, exist_ok=True)
    with (results / "dpo.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["learning_rate", "reading", "seed", "temperature", *PAIR_COLUMNS, *POLICY_COLUMNS]
        writer.writerows([head, *rows])
    if parts:
        page.write_text(replaced(page.read_text(), "DPO", "\n\n".join(parts)))


PAIR_COLUMNS = ("margin, sd", *COLUMNS)


def pair_measures(margins: Floats) -> Floats:
    return np.array([margins.std(), *measures(margins)])


def _tables(
    title: str, posts: Posts, odds: dict[str, list[Floats]], found: dict[str, list[Floats]], resamples: int
) -> Iterator[str]:
    how: dict[str, Any] = {"base": BASE, "measure": pair_measures}
    less = differences(posts, odds, resamples, **how)
    yield table(f"{title}, test pairs", odds, less, columns=PAIR_COLUMNS, **how)
    n = len(next(iter(found.values()))[0])
    by_post: Any = SimpleNamespace(prompts=range(n), pair_post=np.arange(n))
    how = {"base": "DPO", "measure": means}
    less = differences(by_post, found, resamples, **how)
    yield table(f"{title}, test posts", found, less, columns=POLICY_COLUMNS, **how)


def file_of(setup: Setup, learning_rate: float, method: str, seed: int) -> Path:
    return setup.out / "dpo" / f"{learning_rate:g}-{method}-{seed}.json".replace(", ", "_").replace(" ", "_")


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
            wanted = [(setup, sizes.layers, split, i, file) for i, file in enumerate(files_of(setup, split))]
            make_each(lower_states, wanted, arguments.jobs, f"reference, {split}")
        runs = [
            (setup, sizes, rate, method, seed, file_of(setup, rate, method, seed))
            for seed, rate, method in itertools.product(range(sizes.seeds), sizes.learning_rates, METHODS)
        ]
        make_each(run, runs, arguments.jobs, "policies")
    tables(setup, sizes, arguments.results, arguments.page)


if __name__ == "__main__":
    main()
