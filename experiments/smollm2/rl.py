"""TRL's RLOO with SmolLM2 as the policy, against proxies of best_of_n.py: what happens to the gold reward?

    python experiments/smollm2/rl.py DATA --gold MODEL --out DIR
    python experiments/smollm2/rl.py DATA --gold MODEL --out DIR --tables

Run best_of_n.py first, with the same DATA, MODEL and DIR. Its proxies with 25% flipped labels are the rewards, because human
raters disagree about as often on these summaries. To resume an interrupted run from its last checkpoint, give
the same command again. The output is rl.csv with a row per run, rl-steps.csv with a row per step, and the tables and the figure
of docs/experiments-smollm2.md.

The rewards are plain's scores; plain's scores divided by their temperature; plain's scores with PAR (arXiv 2502.18770), whose
references are four answers of the policy; the scores of the cosine model; and those of the label smoothing model. A seed sets
the proxy, the order of posts and the random draws, for all rewards. All weights of the policy are trained, on short train
posts. The policy then gives eight answers to each of 51 test posts. KL is the mean log ratio of policy and reference over these answers.

Hypotheses, stated before any run:
1. Plain divided by its temperature behaves as cosine and label smoothing do: less KL, shorter answers, and the gold reward that
   belongs to that KL.
2. PAR loses less gold than plain at the same KL.
3. Answers grow longer against every proxy.
Rewards whose gold differs by less than a tenth of gold's standard deviation within a post, over the whole 95% interval, count
as equal. `STEPS` and `BETA` were set before looking at any gold score. BETA is TRL's default.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import best_of_n
import models
import numpy as np
import torch
from best_of_n import Setup, add_arguments, file_of, gold_of, gold_scores, prompts, setup_of, spread, weights_of
from control import differences, table, temperature
from models import as_summary, make_each, replace
from numpy.typing import NDArray
from pcrm.evaluate import statistics
from pcrm.evaluate.optimization import figures
from pcrm.evaluate.optimization import rl as optimization
from pcrm.evaluate.pages import style
from pcrm.methods.rl_rewards import par
from safetensors.torch import load_file
from tables import replaced

Floats = NDArray[np.float64]

CONDITION = "25% flipped"
CHECKPOINTS = 6  # each of 1.6 GB


@dataclass(frozen=True)
class Sizes:
    """The sizes of the experiment. On one core, a run takes half an hour, of which ten minutes are for its answers.
    A process takes 5 GB of memory.

    Attributes:
        steps, prompts, generations: RLOO steps; prompts and generations per step.
        batch_size: Responses per pass.
        learning_rate: Constant; a tenth of the rate of reward models, as is usual for policies.
        beta: Weight of the KL divergence in the reward.
        post_tokens: Longer train posts are left out, because reading them takes most of a step. 38 are left.
        test_posts, answers: The first test posts, and the answers to each of them.
        seeds: At most as many as in best_of_n.py.
    """

    steps: int = 24
    prompts: int = 2
    generations: int = 4
    batch_size: int = 8
    learning_rate: float = 1e-5
    beta: float = 0.05
    post_tokens: int = 180
    test_posts: int = 51
    answers: int = 8
    seeds: int = 2
    resamples: int = 1000


SIZES = Sizes()


@dataclass(frozen=True)
class Kind:
    """The model that scores, and how its scores are transformed: "", "temperature" or "par"."""

    method: str
    then: str = ""


REWARDS = {
    "plain": Kind("plain"),
    "plain / temperature": Kind("plain", "temperature"),
    "PAR of plain": Kind("plain", "par"),
    "cosine": Kind("cosine"),
    "label smoothing 0.1": Kind("label smoothing 0.1"),
}


class Proxy:
    """A reward function for TRL. It gets the prompts as the policy reads them, and the responses as text."""

    def __init__(self, setup: Setup, kind: Kind, seed: int, post_of: dict[str, str]) -> None:
        file = file_of(setup, CONDITION, kind.method, seed)
        self._kind, self._post_of = kind, post_of
        self._frozen, self._model = models.frozen(setup.policy), models.TopLayers(setup.policy)
        self._model.load_state_dict(load_file(weights_of(file)))
        self._model.eval()
        self._scale = math.exp(-temperature(np.load(file)["held"])[0])
        self.identity = [dataclasses.asdict(kind), seed, CONDITION, file.stat().st_mtime_ns]
        self._references: dict[str, torch.Tensor] = {}
        if kind.then == "par":
            for i, post in enumerate(prompts(setup, "train")):
                if post in post_of.values():
                    texts = best_of_n.answers(setup, "train", i)
                    self._references[post] = torch.from_numpy(self.scores([post] * len(texts), texts))

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        posts = [self._post_of[prompt] for prompt in prompts]
        found = self.scores(posts, [as_summary(text) for text in responses])
        if self._kind.then == "temperature":
            found = found * self._scale
        elif self._kind.then == "par":
            rows = zip(torch.from_numpy(found), posts, strict=True)
            found = [float(par(one[None], self._references[post])) for one, post in rows]
        return [float(x) for x in found]

    @torch.inference_mode()
    def scores(self, posts: Sequence[str], texts: Sequence[str]) -> Floats:
        """The scores of the model, not transformed. Each post is read once."""
        found = np.empty(len(posts))
        for post in dict.fromkeys(posts):
            at = [i for i, other in enumerate(posts) if other == post]
            states, mask = self._frozen.states(post, [texts[i] for i in at])
            found[at] = self._model(states, mask).double().numpy()
        return found


class Gold:
    """The gold reward model as a reward function for TRL."""

    def __init__(self, setup: Setup, post_of: dict[str, str]) -> None:
        self._model, self._post_of = gold_of(setup.gold), post_of
        self.identity = self._model.identity

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float32]:
        return self._model([self._post_of[prompt] for prompt in prompts], [as_summary(text) for text in responses])


def short_posts(setup: Setup, tokens: int) -> list[str]:
    tokenizer = models.policy(setup.policy).tokenizer
    return [post for post in prompts(setup, "train") if len(tokenizer(post)["input_ids"]) <= tokens]


def trained(setup: Setup, sizes: Sizes, reward: str, seed: int, file: Path) -> None:
    """Train a policy; keep its steps, and its answers to the test posts with all measurements."""
    reference = models.policy(setup.policy)
    post_of = {reference.prompt(post): post for post in short_posts(setup, sizes.post_tokens)}
    proxy = Proxy(setup, REWARDS[reward], seed, post_of)
    settings = optimization.Settings(
        steps=sizes.steps,
        prompts=sizes.prompts,
        generations=sizes.generations,
        batch_size=sizes.batch_size,
        max_new_tokens=setup.sizes.new_tokens,
        beta=sizes.beta,
        learning_rate=sizes.learning_rate,
        seed=seed,
    )
    work = file.with_suffix("")
    steps = optimization.train(
        setup.policy,
        list(post_of),
        proxy,
        Gold(setup, post_of),
        work,
        settings,
        device="cpu",
        name=work.name,
        checkpoints=CHECKPOINTS,
    )
    policy, gold = models.Policy(work / "policy"), gold_of(setup.gold)
    posts, rows = prompts(setup, "test")[: sizes.test_posts], []
    answers = policy.answers(posts, sizes.answers, (2, seed), setup.sizes.new_tokens)
    for post, ids in zip(posts, answers, strict=True):
        texts = [policy.response(row) for row in ids]
        ratio = policy.log_probabilities(post, ids) - reference.log_probabilities(post, ids)
        found = {
            "texts": texts,
            "tokens": [len(row) for row in ids],
            "kl": ratio.tolist(),
            "proxy": proxy.scores([post] * len(texts), texts).tolist(),
            "gold": gold([post] * len(texts), texts).tolist(),
        }
        rows.append(found)
    kept = {"steps": [dataclasses.asdict(step) for step in steps], "posts": rows}
    replace(file, lambda partial: partial.write_text(json.dumps(kept)))
    shutil.rmtree(work)  # half a gigabyte that nothing reads again


COLUMNS = ("gold gain", "proxy gain, sd", "KL", "tokens gained", "proxy with length", "gold with length")


def columns_of(setup: Setup, sizes: Sizes, reward: str, seed: int, kept: dict[str, Any]) -> Floats:
    """The columns of each test post, (posts, columns). The last two are Spearman correlations over its answers."""
    n = len(kept["posts"])
    pools = np.load(file_of(setup, CONDITION, REWARDS[reward].method, seed))["pools"][:n].astype(np.float64)
    sd = float(np.sqrt(pools.var(1, ddof=1).mean()))
    rows = []
    for i, (of_post, pool, gold) in enumerate(zip(kept["posts"], pools, gold_scores(setup, "test")[:n], strict=True)):
        before = json.loads(best_of_n.place(setup, "samples", "test", i).read_text())["ids"]
        proxy, after, tokens = (np.array(of_post[key], np.float64) for key in ("proxy", "gold", "tokens"))
        rows.append(
            [
                after.mean() - gold.mean(),
                (proxy.mean() - pool.mean()) / sd,
                np.mean(of_post["kl"]),
                tokens.mean() - np.mean([len(row) for row in before]),
                statistics.spearman(proxy, tokens),
                statistics.spearman(after, tokens),
            ]
        )
    return np.array(rows)


def means(of_posts: Floats) -> Floats:
    """Means of the columns, without posts where a correlation is undefined."""
    defined = np.isfinite(of_posts)
    with np.errstate(invalid="ignore"):
        return np.where(defined, of_posts, 0).sum(0) / defined.sum(0)


def tables(setup: Setup, sizes: Sizes, results: Path, page: Path) -> None:
    rows, steps, parts = [], [], []
    found: dict[str, list[Floats]] = {}
    for seed in range(sizes.seeds):
        files = {reward: place(setup, reward, seed) for reward in REWARDS}
        if not all(file.is_file() for file in files.values()):
            continue
        for reward, file in files.items():
            kept = json.loads(file.read_text())
            of_posts = columns_of(setup, sizes, reward, seed, kept)
            found.setdefault(reward, []).append(of_posts)
            rows.append([reward, seed, *(f"{value:.5f}" for value in means(of_posts))])
            steps += [{"reward": reward, "seed": seed} | step for step in kept["steps"]]
    results.mkdir(parents=True, exist_ok=True)
    with (results / "rl.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["reward", "seed", *COLUMNS], *rows])
    if not found:
        return
    with (results / "rl-steps.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(steps[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(steps)
    n = min(sizes.test_posts, setup.sizes.test_posts)
    posts: Any = SimpleNamespace(prompts=range(n), pair_post=np.arange(n))
    for base in ("plain", "plain / temperature"):
        how: dict[str, Any] = {"base": base, "measure": means}
        less = differences(posts, found, sizes.resamples, **how)
        parts.append(table(f"{sizes.steps} steps", found, less, columns=COLUMNS, **how))
    by_run = np.array([means(of_posts) for runs in found.values() for of_posts in runs])
    gold, kl = (by_run[:, COLUMNS.index(name)] for name in ("gold gain", "KL"))
    correlation = statistics.spearman(gold, kl)
    together = f"Over the {len(by_run)} runs, Spearman's correlation of gold gain and KL is {correlation:.2f}."
    lead = f"{spread(gold_scores(setup, 'test'))} {together}"
    page.write_text(replaced(page.read_text(), "RL", "\n\n".join([lead, *parts])))
    page.with_name(f"{page.stem}-rl.svg").write_text(style.standalone(_figure(found)))


def _figure(found: dict[str, list[Floats]]) -> str:
    """Plot what each run gained over its KL, with 95% intervals over test posts."""
    order, title = list(found), "RLOO: gains of each run over its KL divergence"
    gold, proxy, kl = (COLUMNS.index(name) for name in ("gold gain", "proxy gain, sd", "KL"))
    with style.style():
        figure, axes = style.figure(1, 3.1, 1, 2)
        for ax, column, label in zip(axes, (proxy, gold), ("proxy reward, sd", "gold reward"), strict=True):
            ax.axhline(0, color=style.MUTED, linewidth=0.8, zorder=1)
            for i, runs in enumerate(found.values()):
                for of_posts in runs:
                    x, y = of_posts[:, kl], of_posts[:, column]
                    half = [1.96 * v.std(ddof=1) / math.sqrt(len(v)) for v in (x, y)]
                    ax.errorbar(
                        x.mean(), y.mean(), half[1], half[0], fmt="o", color=style.color(i), markersize=5, linewidth=0.8
                    )
            ax.set_xlim(0)
            ax.set_xlabel("KL divergence from the reference policy, nats")
            ax.set_ylabel(f"gain in {label}")
        figures.legend(figure, order, order)
        return style.svg(figure, "rl", title)


def place(setup: Setup, reward: str, seed: int) -> Path:
    return setup.out / "rl" / f"{reward}-{seed}.json".replace(" / ", "_by_").replace(" ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    setup, sizes = setup_of(arguments), SIZES
    if not arguments.tables:
        missing = [
            str(file)
            for seed, kind in itertools.product(range(sizes.seeds), REWARDS.values())
            if not (file := file_of(setup, CONDITION, kind.method, seed)).is_file()
        ]
        if missing:
            raise ValueError(f"--out must have the proxies of best_of_n.py, got none at {missing[0]}: run it first")
        wanted = [
            (setup, sizes, reward, seed, place(setup, reward, seed))
            for seed, reward in itertools.product(range(sizes.seeds), REWARDS)
        ]
        make_each(trained, wanted, arguments.jobs, "policies")
    tables(setup, sizes, arguments.results, arguments.page)


if __name__ == "__main__":
    main()
