"""`pcrm optimize`: how far proxy and gold go together while a policy is optimized against the proxy."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .._printable import printable

if TYPE_CHECKING:
    from ..evaluate.optimization.pools import Pools
    from ..evaluate.optimization.summary import Run
    from ..evaluate.shared_out import Processes

_DESCRIPTION = """\
Draws what a policy gets of a proxy reward model that it is optimized against, and of a gold
standard that it is not, over its KL divergence from the reference policy: for best of n, exactly
over pools of sampled responses, for the optimum of RL on the pools, and with --rl for a run of
TRL's RLOO or GRPO. Writes optimize.html, summary.json and the figures as SVG into DIR.

POOL is a file that ends in .jsonl, .jsonl.gz or .parquet, or a folder of `datasets`, of rows

  scores, and gold_scores or ratings    lists of one prompt: no model is needed. Several files are
                                        several proxies, NAME=FILE names one
  prompt, responses                     with --proxy, and --gold or ratings
  prompt                                with --policy, which samples the responses

Killed, the same command goes on where it was. With torchrun, see pcrm score, several GPUs score
the responses; one samples, and --rl is for one process.
"""


def main(argv: list[str]) -> int:
    from ..evaluate.shared_out import Processes

    with Processes() as processes:
        return processes.serve() if processes.rank else run(argv, processes)


def run(argv: list[str], processes: Processes) -> int:
    """What the first process does."""
    parser = argparse.ArgumentParser(
        prog="pcrm optimize", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pools", metavar="POOL", nargs="+", help="FILE or NAME=FILE")
    parser.add_argument("--out", metavar="DIR", required=True, help="where to write; what is there is replaced")
    parser.add_argument(
        "--proxy", metavar="MODEL", action="append", default=[], help="a reward model, or NAME=MODEL; any number of times"
    )  # fmt: skip
    parser.add_argument(
        "--gold",
        metavar="MODEL",
        help="gold standard: the column gold_scores or ratings, or a reward model (folder or OWNER/NAME on the hub)",
    )
    parser.add_argument("--split", default="train", help="of a data set that has some (default: %(default)s)")
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        metavar="N",
        help="the n of best of n (default: powers of 2 up to the smallest pool)",
    )
    parser.add_argument(
        "--coefficients", type=float, nargs="+", metavar="B", help="of the KL penalty (default: 10 to 0.01)"
    )
    models = parser.add_argument_group("reward models")
    models.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    models.add_argument("--device", help="of all models (default: the GPU where there is one, one for each process)")
    models.add_argument(
        "--batch-size", type=int, default=32, help="responses in a pass of any model (default: %(default)s)"
    )
    models.add_argument("--max-length", type=int, help="tokens of prompt and response (default: what the model takes)")
    models.add_argument(
        "--no-prefix-sharing",
        action="store_true",
        help="compute the prompt once for each of its responses, as training does",
    )
    policy = parser.add_argument_group("policy")
    policy.add_argument("--policy", metavar="MODEL", help="a causal language model to sample from")
    policy.add_argument("--samples", type=int, default=16, help="responses to a prompt (default: %(default)s)")
    policy.add_argument("--max-new-tokens", type=int, default=128, help="of a response (default: %(default)s)")
    policy.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    policy.add_argument("--seed", type=int, default=0, help="of samples and RL (default: %(default)s)")
    rl = parser.add_argument_group("RL")
    rl.add_argument("--rl", choices=("rloo", "grpo"), help="train the policy with TRL, a proxy each as the reward")
    rl.add_argument("--steps", type=int, default=100, help="updates of the policy (default: %(default)s)")
    rl.add_argument("--prompts", type=int, default=8, help="in a step (default: %(default)s)")
    rl.add_argument("--generations", type=int, default=4, help="responses to each of them (default: %(default)s)")
    rl.add_argument(
        "--beta", type=float, help="weight of the KL divergence (default: TRL's, 0.05 for RLOO, 0 for GRPO)"
    )
    rl.add_argument("--learning-rate", type=float, help="of AdamW, constant (default: TRL's)")
    args = parser.parse_args(argv)

    if args.policy and not args.proxy:
        parser.error("--policy needs --proxy")
    if args.rl and not args.policy:
        parser.error("--rl needs --policy")
    if args.rl and processes.count > 1:
        parser.error(
            f"--rl needs a single process, got {processes.count}: leave --rl out under torchrun, then give the whole "
            "command without torchrun. It goes on with what was sampled and scored"
        )
    if args.proxy and len(args.pools) > 1:
        parser.error("--proxy takes one POOL")
    from ..evaluate.optimization.pools import GOLD_COLUMNS

    gold_model: str | None = None if args.gold in GOLD_COLUMNS else args.gold
    # A model's name on the hub has a slash: this is more likely a misspelled column.
    if gold_model and "/" not in gold_model and not os.path.isdir(gold_model):
        parser.error(
            f"--gold must be a column ({' or '.join(GOLD_COLUMNS)}), a folder of a reward model or the name of one "
            f"on the hub (OWNER/NAME), got {gold_model!r}"
        )
    if gold_model and not args.proxy:
        parser.error(f"--gold MODEL requires --proxy: scored pools already have {' or '.join(GOLD_COLUMNS)}")
    if args.policy and not gold_model:
        parser.error("--policy needs --gold MODEL: what it samples has no ratings")

    from .._engine.native import library

    library()  # without it there are no statistics: said before hours of sampling and scoring
    from ..evaluate.optimization import COEFFICIENTS, summary
    from ..evaluate.optimization.pools import read

    try:
        if args.proxy:
            pools, runs = _computed(args, gold_model, processes)
        else:
            pools, runs = read(args.pools, args.gold, args.split), {}
        coefficients = args.coefficients or COEFFICIENTS
        found = summary.write(pools, args.out, counts=args.counts, coefficients=coefficients, runs=runs)
    except KeyboardInterrupt:
        print("pcrm optimize: interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(f"Wrote optimize.html, summary.json and the figures to {printable(args.out)}")
    print("\n".join(map(printable, summary.lines(found))))
    return 0


def _computed(
    args: argparse.Namespace, gold_model: str | None, processes: Processes
) -> tuple[list[Pools], dict[str, Run]]:
    """Pools that models sample and score, and the RL runs, kept in the output folder."""
    from transformers.utils import logging

    from ..evaluate.optimization.pools import GOLD_COLUMNS, Pools, columns
    from ..evaluate.optimization.sampling import Policy, sample, score_responses
    from ..evaluate.score_rows import load_models
    from ..evaluate.scores import named

    logging.disable_progress_bar()  # of reading weights
    out = Path(args.out)
    options = {
        "dtype": args.dtype,
        "device": args.device,
        "batch_size": args.batch_size,
        "max_length": args.max_length,
        "prefix_sharing": not args.no_prefix_sharing,
    }
    source: str = args.pools[0]
    names = named(args.proxy)
    for i, (name, path) in enumerate(names):
        if name in [n for n, _ in names[:i]]:
            raise ValueError(f"--proxy {path}: there is a proxy {name} already: name it, NAME={path}")
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise ValueError(f"--proxy {path}: {name!r} is no name of a file: name it, NAME={path}")
    for made in (out / "pool.jsonl", out / "gold.jsonl", *(out / "proxies" / f"{name}.jsonl" for name, _ in names)):
        if made.exists() and os.path.exists(source) and os.path.samefile(made, source):
            raise ValueError(f"{source}: is POOL and what would be written into --out {out}")
    # All are loaded at the beginning: what is wrong with one says so before hours of sampling.
    paths = dict.fromkeys([*(path for _, path in names), *([gold_model] if gold_model else [])])
    models = processes.everywhere(load_models, [{"model": path} | options for path in paths])
    proxies = {name: models[path] for name, path in names}
    gold = models[gold_model] if gold_model else None

    def sampled(model: str, to: Path) -> str:
        policy = Policy(
            model,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            batch_size=args.batch_size,
            device=args.device,
        )
        sample(policy, source, to, samples=args.samples, seed=args.seed, split=args.split)
        return str(to)

    pool = sampled(args.policy, out / "pool.jsonl") if args.policy else source
    split = "train" if args.policy else args.split
    if gold is not None:
        golden = score_responses(gold, pool, out / "gold.jsonl", split, processes)
    else:
        golden = columns(pool, (args.gold or GOLD_COLUMNS[-1],), split)[0]
    pools = []
    for name, model in proxies.items():
        scores = score_responses(model, pool, out / "proxies" / f"{name}.jsonl", split, processes)
        for i, (s, g) in enumerate(zip(scores, golden, strict=True)):
            if len(s) != len(g):
                raise ValueError(f"{pool}, pool {i}: has {len(g)} gold values and {len(s)} responses")
        pools.append(Pools(name, scores, golden))
    if not args.rl or gold is None:
        return pools, {}

    from ..data.sources import read_rows
    from ..evaluate.optimization import rl
    from ..evaluate.optimization.summary import Run

    prompts = [row["prompt"] for _, row in read_rows(pool)]
    settings = rl.Settings(
        algorithm=args.rl,
        steps=args.steps,
        prompts=args.prompts,
        generations=args.generations,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        beta=args.beta,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    runs = {}
    for name, model in proxies.items():
        folder = out / "rl" / name
        steps = rl.train(args.policy, prompts, model, gold, folder, settings, device=args.device, name=name)
        after = sampled(str(folder / "policy"), folder / "pool.jsonl")
        runs[name] = Run(
            settings,
            steps,
            Pools(
                name,
                score_responses(model, after, folder / "proxy.jsonl"),
                score_responses(gold, after, folder / "gold.jsonl"),
            ),
        )
    return pools, runs
