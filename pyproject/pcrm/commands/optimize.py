"""`pcrm optimize`: measure reward over-optimization of a policy against a proxy reward model."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .._printable import printable
from ..evaluate import DTYPES
from ._parser import Parser

if TYPE_CHECKING:
    from ..evaluate.optimization.pools import Pools
    from ..evaluate.optimization.summary import Run
    from ..evaluate.shared_out import Processes

_DESCRIPTION = """\
Measure reward over-optimization: the proxy reward (optimized) and gold reward (not optimized) of a
policy over its KL divergence from the reference policy. The policies are best of n and the optimum
of RL, both exact on pools of sampled responses, and with --rl a run of TRL's RLOO or GRPO. Write
optimize.html, summary.json and the figures as SVG to DIR.

POOL ends in .jsonl, .jsonl.gz, .json or .parquet, or is a folder of `datasets`. A row has

  scores, and gold_scores or ratings    lists for one prompt; needs no model. Several files are
                                        several proxies, and NAME=FILE names one
  prompt, responses                     requires --proxy, and --gold or ratings
  prompt                                requires --policy, which samples the responses

To resume an interrupted run, give the same command again. With torchrun (see pcrm score), several
GPUs score the responses. Only one process samples, and --rl requires a single process.
"""
_EXAMPLES = (
    "pcrm optimize pool.jsonl --out optimize",
    "pcrm optimize prompts.jsonl --policy P --proxy plain=A --proxy constrained=B --gold G --out opt",
)


def main(argv: list[str]) -> int:
    from ..evaluate.shared_out import Processes

    with Processes() as processes:
        return processes.serve() if processes.rank else run(argv, processes)


def run(argv: list[str], processes: Processes) -> int:
    """The command, in the first process."""
    parser = Parser("pcrm optimize", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument("pools", metavar="POOL", nargs="+", help="pool of responses or prompts, as FILE or NAME=FILE")
    parser.add_argument("--out", metavar="DIR", required=True, help="output folder; existing files are replaced")
    parser.add_argument(
        "--proxy",
        metavar="MODEL",
        action="append",
        default=[],
        help="reward model to optimize against, or NAME=MODEL; may be repeated",
    )
    parser.add_argument(
        "--gold",
        metavar="MODEL",
        help="gold standard: the column gold_scores or ratings, or a reward model (folder or OWNER/NAME on the hub)",
    )
    parser.add_argument(
        "--split", default="train", help="split to read, if the data set has splits (default: %(default)s)"
    )
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        metavar="N",
        help="values of n for best of n (default: powers of 2 up to the smallest pool)",
    )
    parser.add_argument(
        "--coefficients",
        type=float,
        nargs="+",
        metavar="X",
        help="coefficients of the KL penalty (default: 10 to 0.01)",
    )
    models = parser.add_argument_group("reward models")
    models.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the models (default: %(default)s)")
    models.add_argument(
        "--device", help="torch device of all models (default: a GPU per process, or the CPU without GPUs)"
    )
    models.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        default=32,
        help="responses per pass, for all models (default: %(default)s)",
    )
    models.add_argument(
        "--max-length",
        metavar="N",
        type=int,
        help="maximum tokens of prompt and response (default: the limit of model and tokenizer)",
    )
    models.add_argument(
        "--no-prefix-sharing",
        action="store_true",
        help="compute the prompt again for each of its responses, also in RL",
    )
    policy = parser.add_argument_group("policy")
    policy.add_argument("--policy", metavar="MODEL", help="causal language model to sample from")
    policy.add_argument(
        "--samples", metavar="N", type=int, default=16, help="responses per prompt (default: %(default)s)"
    )
    policy.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        default=128,
        help="maximum tokens of a response (default: %(default)s)",
    )
    policy.add_argument(
        "--temperature", metavar="X", type=float, default=1.0, help="sampling temperature (default: %(default)s)"
    )
    policy.add_argument(
        "--seed", metavar="N", type=int, default=0, help="seed of sampling and RL (default: %(default)s)"
    )
    rl = parser.add_argument_group("RL")
    rl.add_argument("--rl", choices=("rloo", "grpo"), help="train the policy with TRL, once with each proxy as reward")
    rl.add_argument("--steps", metavar="N", type=int, default=100, help="updates of the policy (default: %(default)s)")
    rl.add_argument("--prompts", metavar="N", type=int, default=8, help="prompts per step (default: %(default)s)")
    rl.add_argument(
        "--generations", metavar="N", type=int, default=4, help="responses per prompt (default: %(default)s)"
    )
    rl.add_argument(
        "--beta",
        metavar="X",
        type=float,
        help="weight of the KL divergence (default: TRL's, 0.05 for RLOO, 0 for GRPO)",
    )
    rl.add_argument("--learning-rate", metavar="X", type=float, help="constant learning rate of AdamW (default: TRL's)")
    args = parser.parse_args(argv)
    parser.check_folder("--out", args.out)
    parser.check_counts(
        args, "batch_size", "max_length", "samples", "max_new_tokens", "steps", "prompts", "generations"
    )
    if args.policy and not args.proxy:
        parser.error("--policy requires --proxy")
    if args.rl and not args.policy:
        parser.error("--rl requires --policy")
    if args.rl and processes.count > 1:
        parser.error(
            f"--rl requires a single process, got {processes.count}. First run without --rl under torchrun, then run the "
            "whole command without torchrun: it uses the samples and scores of the first run"
        )
    if args.proxy and len(args.pools) > 1:
        parser.error(f"--proxy requires a single POOL, got {len(args.pools)}")
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
        parser.error("--policy requires --gold MODEL, because its samples have no ratings")

    from .._engine.native import library

    library()  # statistics need it: fails before hours of sampling and scoring
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
        print("pcrm optimize: interrupted; give the same command again to resume", file=sys.stderr)
        return 130
    print(f"Wrote optimize.html, summary.json and the figures to {printable(args.out)}")
    print("\n".join(map(printable, summary.lines(found))))
    return 0


def _computed(
    args: argparse.Namespace, gold_model: str | None, processes: Processes
) -> tuple[list[Pools], dict[str, Run]]:
    """Sample and score pools with models, and do the RL runs. The output folder keeps all of them."""
    from transformers.utils import logging

    from ..evaluate.optimization.pools import GOLD_COLUMNS, Pools, columns
    from ..evaluate.optimization.sampling import Policy, sample, score_responses
    from ..evaluate.score_rows import load_models
    from ..evaluate.scores import named

    logging.disable_progress_bar()  # for loading weights
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
            raise ValueError(
                f"--proxy {path}: the name of a proxy must be unique, got {name} twice. Name it with NAME={path}"
            )
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise ValueError(
                f"--proxy {path}: the name must be valid as a file name, got {name!r}. Name it with NAME={path}"
            )
    for made in (out / "pool.jsonl", out / "gold.jsonl", *(out / "proxies" / f"{name}.jsonl" for name, _ in names)):
        if made.exists() and os.path.exists(source) and os.path.samefile(made, source):
            raise ValueError(f"--out must not contain POOL, which it would overwrite, got {out} with {source}")
    # All models are loaded first, so that errors show before hours of sampling.
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
                raise ValueError(f"{pool}, pool {i}: must have {len(s)} gold values, one per response, got {len(g)}")
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
        how = {"device": args.device, "name": name, "prefix_sharing": not args.no_prefix_sharing}
        steps = rl.train(args.policy, prompts, model, gold, folder, settings, **how)
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
