"""Run the experiments on SmolLM2 at a small scale."""

import sys

from helpers.project import ROOT

EXPERIMENT = ROOT / "experiments" / "smollm2"


def make_small():
    """Change what the experiments' modules, which lie on `sys.path`, do; return the modules."""
    import best_of_n
    import dpo
    import rl

    best_of_n.SIZES = best_of_n.Sizes(
        test_samples=4, train_samples=3, new_tokens=6, epochs=2, posts_per_step=3, seeds=2, resamples=20
    )
    best_of_n.METHODS = {name: best_of_n.METHODS[name] for name in ("plain", "length ratio")}
    rl.SIZES = rl.Sizes(
        steps=4,
        prompts=2,
        generations=2,
        batch_size=2,
        learning_rate=1e-3,
        post_tokens=1000,
        test_posts=4,
        answers=10,
        seeds=1,
        resamples=20,
    )
    rl.REWARDS = {name: kind for name, kind in rl.REWARDS.items() if kind.method == "plain"}
    dpo.SIZES = dpo.Sizes(layers=2, learning_rates=(1e-3, 1e-4), test_posts=4, answers=3, seeds=2, resamples=20)
    dpo.METHODS = {name: dpo.METHODS[name] for name in ("DPO", "PCRM-DPO, fitted")}
    return best_of_n, rl, dpo


def main(name):
    """Run one of the commands at a small scale."""
    sys.path.insert(0, str(EXPERIMENT))
    next(module for module in make_small() if module.__name__ == name).main()
