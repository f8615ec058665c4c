"""A short run of TRL's RLOO or GRPO with a proxy as the reward, which records proxy and gold reward by step."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ... import _check
from ..._pretrained import load_model, load_tokenizer
from ..._printable import printable
from ...prefix_sharing import PrefixSharingError, enable, share_prefixes, why_not
from ..reward_model import identity_of
from .cached import make_once

# Returns the rewards of responses to prompts: a RewardModel, or any function of both lists.
Reward = Callable[[Sequence[Any], Sequence[Any]], Any]

_TRAINERS = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}


@dataclass(frozen=True)
class Settings:
    """Settings of a run. None means TRL's default.

    Attributes:
        algorithm: "rloo" or "grpo".
        steps: Updates of the policy.
        prompts: Prompts per step.
        generations: Responses per prompt.
        batch_size: Responses per pass, a divisor of prompts * generations. None means all of them.
        max_new_tokens: Maximum tokens of a response.
        temperature: Sampling temperature.
        beta: Weight of the KL divergence from the initial policy, in the reward (RLOO) or the loss (GRPO).
        learning_rate: Constant learning rate of AdamW.
        seed: Seed for the order of the prompts and for sampling.
    """

    algorithm: str = "rloo"
    steps: int = 100
    prompts: int = 8
    generations: int = 4
    batch_size: int | None = None
    max_new_tokens: int = 128
    temperature: float = 1.0
    beta: float | None = None
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check.one_of("algorithm", self.algorithm, _TRAINERS)
        for name, least in (("steps", 1), ("prompts", 1), ("generations", 2), ("max_new_tokens", 1), ("seed", 0)):
            _check.integer(name, getattr(self, name), least)
        _check.positive("temperature", self.temperature)
        if self.learning_rate is not None:
            _check.positive("learning_rate", self.learning_rate)
        if self.beta is not None:
            _check.at_least_0("beta", self.beta)
        total = self.prompts * self.generations
        if self.batch_size is not None and total % _check.integer("batch_size", self.batch_size, 1):
            raise ValueError(f"batch_size must divide the {total} responses of a step, got {self.batch_size}")


@dataclass(frozen=True)
class Step:
    """Statistics of the responses of one step.

    Attributes:
        step: The number of updates before it. 0 is the initial policy.
        proxy_mean, proxy_sd, proxy_max: Statistics of the proxy rewards. The standard deviation divides by their number.
        gold_mean: The mean of the gold values.
        kl: The mean divergence from the initial policy, in nats per response: the value that TRL logs per token, times the
            mean length. TRL's estimate may be negative for RLOO. None if beta is 0, because TRL then computes none.
        length: The mean length in tokens.
    """

    step: int
    proxy_mean: float
    proxy_sd: float
    proxy_max: float
    gold_mean: float
    kl: float | None
    length: float


def train(
    policy: str | os.PathLike[str],
    prompts: Sequence[Any],
    proxy: Reward,
    gold: Reward,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    device: str | None = None,
    name: str = "RL",
    prefix_sharing: bool = True,
    checkpoints: int = 20,
) -> list[Step]:
    """Train a policy on the rewards of a proxy, and record the gold values of its responses.

    Writes `policy`, the trained checkpoint, and `steps.csv` to `out`. After a kill, the same call resumes from the last
    checkpoint. A finished run is read from its files. For a proxy or gold that is not a
    `RewardModel`, only its name decides whether it is the same run.

    Args:
        policy: The folder or hub name of a causal language model with its tokenizer.
        prompts: Texts or lists of messages, at least as many as one step needs.
        proxy, gold: Called with lists of prompts and responses. They return finite numbers.
        prefix_sharing: Whether log probabilities of the responses to a prompt are computed with the prompt only once
            (`pcrm.prefix_sharing`), if the policy supports it. They are the same up to rounding.
        checkpoints: How many to write in a run, in equal distances. Each takes three times the space of the policy.

    Returns:
        One Step per update, in order.

    Raises:
        OSError: The policy does not exist.
        ValueError: There are too few prompts; a reward is not finite; the tokenizer of the policy has no EOS token.
    """
    settings, policy = settings or Settings(), _check.path("policy", policy)
    every = max(1, settings.steps // _check.integer("checkpoints", checkpoints, 1))
    out = Path(out)
    if len(prompts) < settings.prompts:
        raise ValueError(
            f"prompts must have at least {settings.prompts} elements, as many as a step uses, got {len(prompts)}"
        )
    tokenizer = load_tokenizer(policy, padding_side="left")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{policy}: the tokenizer must have an eos_token, got none")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = load_model(AutoModelForCausalLM, policy, dtype=torch.float32)
    shares = prefix_sharing and _can_share(policy, model)
    recipe = dataclasses.asdict(settings) | {
        "policy": identity_of(policy, model.config),
        "prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        "proxy": _identity(proxy),
        "gold": _identity(gold),
        "prefix_sharing": shares,
    }

    def make() -> None:
        scratch = out / "run"
        _check_same(scratch, recipe)
        steps, trainer = _run(model, tokenizer, prompts, proxy, gold, scratch, settings, device, name, shares, every)
        trainer.save_model(str(out / "policy.part"))
        shutil.rmtree(out / "policy", ignore_errors=True)
        (out / "policy.part").rename(out / "policy")
        _write(out / "steps.csv", steps)
        shutil.rmtree(scratch)

    make_once(out / "policy", recipe, make)
    return read(out / "steps.csv")


def read(path: str | os.PathLike[str]) -> list[Step]:
    """The steps of a `steps.csv`."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            Step(**{k: int(v) if k == "step" else float(v) if v else None for k, v in row.items()})  # pyright: ignore[reportArgumentType]
            for row in csv.DictReader(file)
        ]


def _write(path: Path, steps: list[Step]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Step)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in dataclasses.asdict(s).items()} for s in steps)


def _identity(reward: Reward) -> Any:
    return getattr(reward, "identity", None) or f"{reward.__module__}.{getattr(reward, '__qualname__', '')}"


def _check_same(scratch: Path, recipe: dict[str, Any]) -> None:
    """Remove the checkpoints of a different run."""
    marker = scratch / "recipe.json"
    text = json.dumps(recipe)
    if not marker.is_file() or marker.read_text(encoding="utf-8") != text:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        marker.write_text(text, encoding="utf-8")


def _run(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    proxy: Reward,
    gold: Reward,
    folder: Path,
    settings: Settings,
    device: str | None,
    name: str,
    shares: bool,
    every: int,
) -> tuple[list[Step], Any]:
    config, trainer_class = _TRAINERS[settings.algorithm]
    total = settings.prompts * settings.generations
    per_pass = settings.batch_size or total
    given = {"beta": settings.beta, "learning_rate": settings.learning_rate}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about renamed arguments between TRL and transformers
        args = config(
            output_dir=str(folder),
            max_steps=settings.steps,
            per_device_train_batch_size=per_pass,
            gradient_accumulation_steps=total // per_pass,
            num_generations=settings.generations,
            max_completion_length=settings.max_new_tokens,
            temperature=settings.temperature,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=device == "cpu" or (device is None and not torch.cuda.is_available()),
            gradient_checkpointing=False,
            logging_steps=1,
            save_steps=every,
            save_total_limit=2,  # the previous one is needed if the last is incomplete
            report_to="none",
            seed=settings.seed,
            disable_tqdm=True,  # the recorder shows a progress bar
            **{k: v for k, v in given.items() if v is not None},
        )
        recorder = _Recorder(proxy, gold, name)
        trainer = trainer_class(
            model,
            recorder.rewards,
            args,
            train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
            processing_class=tokenizer,
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)
        if shares:
            for one in (model, getattr(trainer, "ref_model", None)):
                if one is not None:
                    _share(trainer.accelerator.unwrap_model(one))
        checkpoint = _last_checkpoint(folder)
        if checkpoint is not None:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            recorder.rows = state["stateful_callbacks"][_Recorder.__name__]["attributes"]["rows"]
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    logged = {entry["step"] - 1: entry for entry in trainer.state.log_history if "reward" in entry}
    steps = []
    for step, values in enumerate(recorder.rows):
        entry = logged[step]
        length = entry["completions/mean_length"]
        steps.append(Step(step, **values, kl=entry["kl"] * length if "kl" in entry else None, length=length))
    return steps, trainer


def _can_share(name: str, model: Any) -> bool:
    """Whether a model supports prefix sharing. Two equal rows are computed both ways, because no configuration says it all."""
    if why_not(model) is not None:
        return False
    try:
        with torch.no_grad(), share_prefixes(model):
            ids = torch.zeros(2, 16, dtype=torch.long)
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except PrefixSharingError as error:
        warnings.warn(
            f"{name} is trained without prefix sharing, which is slower: {error}", RuntimeWarning, stacklevel=3
        )
        return False
    return True


def _share(model: Any) -> None:
    """Enable prefix sharing. TRL pads prompts on the left and gives no position ids, which prefix sharing needs.

    Learned positions then also count as they do in generation; TRL's own passes count the padding.
    """

    def count(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is None or kwargs.get("use_cache") or kwargs.get("position_ids") is not None:
            return None  # generation
        return args, kwargs | {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}

    model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    enable(model)


def _last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint. The trainer writes trainer_state.json last."""
    found = [p.parent for p in folder.glob("checkpoint-*/trainer_state.json") if _is_json(p)]
    return max(found, key=lambda p: int(p.name.partition("-")[2]), default=None)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


class _Recorder(TrainerCallback, ExportableState):
    """Computes and records the rewards of a run. Each checkpoint contains the record."""

    def __init__(self, proxy: Reward, gold: Reward, name: str) -> None:
        self.proxy, self.gold, self.name = proxy, gold, name
        self.rows: list[dict[str, float]] = []

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"rows": self.rows}}

    def rewards(self, prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        proxy, gold = (
            _finite(what, reward(prompts, completions)) for what, reward in (("proxy", self.proxy), ("gold", self.gold))
        )
        self.rows.append(
            {
                "proxy_mean": float(proxy.mean()),
                "proxy_sd": float(proxy.std()),
                "proxy_max": float(proxy.max()),
                "gold_mean": float(gold.mean()),
            }
        )
        return proxy.tolist()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=printable(self.name), unit=" steps", disable=None
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = self.rows[-1]
        self.bar.set_postfix(proxy=f"{last['proxy_mean']:.2f}", gold=f"{last['gold_mean']:.2f}", refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def _finite(what: str, rewards: Any) -> np.ndarray:
    array = np.asarray(rewards, np.float64)
    if not np.isfinite(array).all():
        i = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"the {what} reward of response {i} must be finite, got {array[i]}")
    return array
