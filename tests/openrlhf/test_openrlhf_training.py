"""OpenRLHF's own command lines, for real, on tiny models: `make test-openrlhf` has what they need.

Each run is a job of processes under one of the launchers. What it logged, what it traced and what
it saved is looked at by several tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from helpers.launching import BIN, CPU, cpu_environment, reserved_port
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

import pcrm
from pcrm import cli

pytestmark = pytest.mark.openrlhf

PAIRS, BATCH = 128, 8
BETAS = (1.1, 0.001, 0.9)  # deltas from 2 to 900: they bind where the responses are alike
CONSTRAINED = ("--pcrm.beta1=1.1", "--pcrm.beta2=0.001", "--pcrm.beta3=0.9")
FREE = ("--pcrm.prior=fixed", "--pcrm.delta=inf")
COMMANDS = ("train_rm", "train_dpo")
# Processes and ZeRO stage. What has no mark is what CI runs.
SIZES = [
    pytest.param(1, 0, marks=pytest.mark.slow),
    pytest.param(1, 2, marks=pytest.mark.slow),
    pytest.param(2, 0, marks=pytest.mark.slow),
    (2, 2),
]
each_command = pytest.mark.parametrize("command", COMMANDS)
each_size = pytest.mark.parametrize(("processes", "zero"), SIZES)


class Job(NamedTuple):
    """A run of a command: OpenRLHF's own if `flags` is None, else ours with these flags."""

    command: str
    processes: int
    zero: int
    flags: tuple[str, ...] | None
    data: str = "plain.jsonl"
    attention: str = "eager"
    script: str = ""  # instead of a command line


@dataclass
class Result:
    code: int
    log: str
    folder: Path

    @property
    def losses(self) -> list[float]:
        """The losses that OpenRLHF logged, one per step, means over the processes."""
        return self.logged("train/loss")

    def logged(self, name: str) -> list[float]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (path,) = (self.folder / "board").rglob("events.*")
        events = EventAccumulator(str(path))
        events.Reload()
        return [event.value for event in events.Scalars(name)] if name in events.Tags()["scalars"] else []

    def trace(self, rank: int) -> list[dict[str, torch.Tensor]]:
        return [load_file(path) for path in sorted((self.folder / "trace").glob(f"rank{rank:05d}-*"))]

    @property
    def model(self) -> Path:
        return self.folder / "model"


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A folder with a tiny language model, preferences, and preferences with a column `prior`."""
    from helpers.models import make_tiny
    from pcrm.demo.world import generate
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("openrlhf")
    rows = generate(PAIRS, seed=0)
    make_tiny(folder / "tiny", rows, LlamaForCausalLM)
    columns = {
        "plain": lambda i: {},
        "column": lambda i: {"prior": (i % 5) / 4},
        "wrong": lambda i: {"prior": 1.5 if i == 7 else 1},
        "margin": lambda i: {"margin": (i % 5) / 4},
        "rating": lambda i: {"margin": 3},
    }
    for name, column in columns.items():
        kept = [{key: row[key] for key in ("prompt", "chosen", "rejected")} | column(i) for i, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    return folder


@pytest.fixture(scope="session")
def train(material, request):
    """A function that runs a job once, even if called repeatedly, and returns its result."""
    done: dict[Job, Result] = {}

    def run(job: Job) -> Result:
        if job not in done:
            folder = material / f"run{len(done)}"
            folder.mkdir()
            done[job] = _launch(job, material, folder)
        return done[job]

    yield run
    lines = [
        f"\n\nopenrlhf {version('openrlhf')}\n",
        "| command | processes | ZeRO | loss of | first step | last | mean |",
    ]
    lines.append("|---" * 7 + "|")
    for job, result in sorted(done.items(), key=lambda item: item[0][:3]):
        name = {None: "OpenRLHF", FREE: "pcrm, delta = inf", CONSTRAINED: "pcrm"}.get(job.flags)
        if name and job.data == "plain.jsonl" and result.code == 0:
            name += ", packed" * (job.attention != "eager")
            first, *_, last = losses = result.losses
            numbers = " | ".join(f"{x:.7f}" for x in (first, last, sum(losses) / len(losses)))
            lines.append(f"| {job.command} | {job.processes} | {job.zero} | {name} | {numbers} |")
    if len(lines) > 3:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\n".join(lines))


def _launch(job: Job, material: Path, folder: Path) -> Result:
    with reserved_port() as port:
        return _launch_at(port, job, material, folder)


def _launch_at(port: int, job: Job, material: Path, folder: Path) -> Result:
    flags = {
        "--model.model_name_or_path": material / "tiny",
        "--data.dataset": material / job.data,
        "--data.prompt_key": "prompt",
        "--data.max_len": 128,
        "--ds.attn_implementation": job.attention,
        "--ds.zero_stage": job.zero,
        "--train.batch_size": BATCH,
        "--train.micro_batch_size": BATCH // job.processes,
        "--adam.lr": 3e-3,
        "--adam.eps": 1e-4,  # 1e-8 makes steps of the rounding of gradients that are truly zero
        "--ckpt.output_dir": folder / "model",
        "--ckpt.path": folder / "checkpoints",
        "--logger.tensorboard_dir": folder / "board",
    }
    arguments = [str(x) for pair in flags.items() for x in pair]
    # OpenRLHF's own loss of a reward model is of bfloat16 otherwise.
    arguments += ["--model.compute_fp32_loss_enable"] if job.command == "train_rm" else []
    arguments += ["--ds.packing_samples"] if job.attention != "eager" else []
    if job.script:
        arguments = [job.script, *arguments, *(job.flags or ())]
    elif job.flags is None:
        arguments = [f"openrlhf.cli.{job.command}", *arguments]
    else:
        arguments = ["pcrm.openrlhf", job.command, *arguments, *job.flags]
    environment = cpu_environment(material / "cache", folder / "trace")
    if job.processes == 1:
        launcher = [sys.executable, "-m", "on_cpu"]
        if job.flags is None or job.script:  # OpenRLHF's own does not start without these
            environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            environment["MASTER_PORT"] = str(port)
    elif (job.command, job.zero, job.flags) == ("train_rm", 2, CONSTRAINED):
        launcher = [BIN / "deepspeed", "--num_gpus", job.processes, "--master_port", port, "--module", "on_cpu"]
    else:
        # Not the script torchrun, which may be that of another environment.
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", job.processes, "-m", "on_cpu"]
    process = subprocess.run(
        [*map(str, launcher), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return Result(process.returncode, process.stdout, folder)


def finished(result: Result) -> Result:
    assert result.code == 0, result.log[-5000:]
    return result


def formula(m: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return (-logsigmoid(m) - logsigmoid(delta - m)).mean()


def recomputed(command: str, step: dict[str, torch.Tensor]) -> float:
    """The loss of a recorded step by the formula, in float64, from scores and priors alone."""
    return formula(*margins_and_ceilings(command, step)).item()


def margins_and_ceilings(command: str, step: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    step = {name: x.double() for name, x in step.items()}
    if command == "train_rm":
        m = step["chosen_rewards"] - step["rejected_rewards"]
    else:
        policy = step["policy_chosen_logps"] - step["policy_rejected_logps"]
        m = 0.1 * (policy - (step["reference_chosen_logps"] - step["reference_rejected_logps"]))
    beta1, beta2, beta3 = BETAS
    return m, beta1 / (step["prior"] + beta2) + beta3


@each_command
@each_size
def test_the_logged_loss_is_ours(train, command, processes, zero, capsys):
    result = finished(train(Job(command, processes, zero, CONSTRAINED)))
    traces = [result.trace(rank) for rank in range(processes)]
    assert [len(t) for t in traces] == [PAIRS // BATCH] * processes == [len(result.losses)] * processes
    for logged, *steps in zip(result.losses, *traces, strict=True):
        expected = sum(recomputed(command, step) for step in steps) / processes
        # Some ten roundings of float32 (2**-24) to numbers up to 4: priors, deltas, terms, two means.
        assert logged == pytest.approx(expected, abs=2.4e-6)
    assert cli.main(["verify", str(result.folder / "trace")]) == 0
    assert f"{PAIRS} pairs: ok" in capsys.readouterr().out


@each_command
@each_size
def test_the_logged_metrics_are_of_the_pairs_of_all_processes(train, command, processes, zero):
    result = finished(train(Job(command, processes, zero, CONSTRAINED)))
    traces = [result.trace(rank) for rank in range(processes)]
    logged = {name: result.logged(f"train/pcrm/{name}") for name in ("target_median", "over_target", "pull", "prior")}
    for at, steps in enumerate(zip(*traces, strict=True)):
        pairs = [margins_and_ceilings(command, step) for step in steps]
        m, delta = (torch.cat(part) for part in zip(*pairs, strict=True))
        want = {
            "target_median": delta.quantile(0.5).item() / 2,
            "over_target": (m > delta / 2).double().mean().item(),
            "pull": ((m - delta).sigmoid().sum() / (-m).sigmoid().sum()).item(),
            "prior": torch.cat([step["prior"] for step in steps]).double().mean().item(),
        }
        # Margins and deltas are of float32, and TensorBoard's numbers too.
        assert {name: values[at] for name, values in logged.items()} == pytest.approx(want, rel=1e-5)
    # At the end of a reward model's training 0.11.2 evaluates a pair, and 0.10.4 drops it.
    assert len(result.logged("eval/pcrm/pull")) == len(result.logged("eval/eval_loss"))


@each_command
@each_size
def test_without_constraint_it_is_openrlhfs_own(train, command, processes, zero):
    ours = finished(train(Job(command, processes, zero, FREE)))
    stock = finished(train(Job(command, processes, zero, None)))
    # Weights are equal up to the second step, as the first has a learning rate of 0. DPO's float32 log
    # probabilities, of some -700, are subtracted in another order: two roundings of 2**-15, times beta.
    exact = {"train_rm": 5e-7, "train_dpo": 0.1 * 2 * 2**-15}[command]
    assert ours.losses[:2] == pytest.approx(stock.losses[:2], abs=exact)
    # From there on the bfloat16 gradients of such roundings differ now and then by their last digit, 2**-8.
    # 16 steps made 9e-5 of it for DPO and 6e-8 for reward models.
    assert ours.losses == pytest.approx(stock.losses, abs=5e-4)
    bound = finished(train(Job(command, processes, zero, CONSTRAINED)))
    assert min(abs(a - b) for a, b in zip(bound.losses, stock.losses, strict=True)) > 0.01


def length_ratios(folder: Path) -> list[float]:
    """What the data set's pairs have, from the ids as OpenRLHF makes them: end of text last, at most 128."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    ratios = []
    for line in (folder / "plain.jsonl").read_text().splitlines():
        row = json.loads(line)
        a, b = (
            tokenizer(row["prompt"] + row[key].rstrip("\n") + " " + tokenizer.eos_token, add_special_tokens=False)
            for key in ("chosen", "rejected")
        )
        a, b = ([*x["input_ids"][:128][:-1], tokenizer.eos_token_id] for x in (a, b))
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        shorter, longer = sorted((len(a) - same, len(b) - same))
        ratios.append(shorter / longer if longer else 1.0)
    return ratios


def counted(priors) -> Counter:
    return Counter(round(float(p), 6) for p in priors)


@each_command
def test_the_prior_is_the_length_ratio_of_each_pair(train, material, command):
    result = finished(train(Job(command, 2, 2, CONSTRAINED)))
    traced = torch.cat([step["prior"] for rank in (0, 1) for step in result.trace(rank)])
    assert len(set(traced.tolist())) > PAIRS / 4
    assert counted(traced) == counted(length_ratios(material))


@pytest.mark.parametrize(
    ("command", "processes"), [("train_rm", 1), pytest.param("train_dpo", 2, marks=pytest.mark.slow)]
)
def test_targets_are_fitted_to_the_training_data(train, command, processes):
    """The priors of an epoch's batches give the constraint that was logged, kept and trained with."""
    flags = ("--pcrm.target_alike=0.3", "--pcrm.win_unlike=0.7")
    result = finished(train(Job(command, processes, 2, flags)))
    steps = [step for rank in range(processes) for step in result.trace(rank)]
    traced = torch.cat([step["prior"] for step in steps])
    want = pcrm.Constraint.fit(traced, target_alike=0.3, target_unlike=pcrm.margin_of(0.7))
    assert pcrm.Constraint.from_toml(result.model / "pcrm.toml") == want
    assert result.log.count(f"Fitted to the prior length_ratio of {PAIRS} pairs: delta(s) = {want.beta1:.6g}") == 1
    for step in steps:
        torch.testing.assert_close(step["delta"].double(), want.delta(step["prior"].double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("prior", ["length_ratio", "random"])
def test_the_prior_of_dpo_is_that_of_the_tokens_that_train(prior, monkeypatch):
    """The prompt does not count. Its last token may differ where it merges with the response."""
    monkeypatch.syspath_prepend(str(CPU))
    from pcrm.openrlhf.training import PCRMRewardDataset

    data = object.__new__(PCRMRewardDataset)
    data.is_dpo, data.column, data.prior, data.seed = True, False, prior, 3
    data.tokenizer = SimpleNamespace(pad_token_id=0)
    pairs = [([1, 2, 7, 5, 6], [1, 2, 8, 5], 3), ([4, 5, 5, 9], [4, 6], 1)]
    items = []
    for chosen, rejected, prompt in pairs:
        ids = [torch.tensor([row]) for row in (chosen, rejected)]
        items.append((ids[0], torch.ones_like(ids[0]), ids[1], torch.ones_like(ids[1]), prompt))
    *_, extras = data.collate_fn(items)
    trained = [[row[k][row[2] :] for row in pairs] for k in (0, 1)]
    want = (pcrm.priors.random_uniform(*trained, 3) if prior == "random" else torch.tensor([0.0, 1 / 3])).tolist()
    assert [length for length, _ in extras] == [3, 1]
    assert [s for _, s in extras] == pytest.approx(want, rel=1e-6)


@pytest.mark.slow
@each_command
def test_a_column_wins(train, command):
    result = finished(train(Job(command, 1, 2, CONSTRAINED, data="column.jsonl")))
    traced = torch.cat([step["prior"] for step in result.trace(0)])
    assert counted(traced) == counted((i % 5) / 4 for i in range(PAIRS))
    assert recomputed(command, result.trace(0)[3]) == pytest.approx(result.losses[3], abs=2.4e-6)


@pytest.mark.slow
def test_a_file_of_settings(train, material):
    path = material / "pcrm.toml"
    path.write_text('[constraint]\nprior = "random"\nlow = 2.0\nhigh = 3.0\nseed = 5\n[dpo]\nbeta = 0.5\n')
    result = finished(train(Job("train_dpo", 1, 0, (f"--pcrm.config={path}",))))
    deltas = torch.cat([step["delta"] for step in result.trace(0)])
    different = set((material / "plain.jsonl").read_text().splitlines())
    assert len(set(deltas.tolist())) == len(different) > PAIRS / 2
    assert 2 <= deltas.min() < 2.1 and 2.9 < deltas.max() < 3
    step = {name: x.double() for name, x in result.trace(0)[3].items()}
    policy = step["policy_chosen_logps"] - step["policy_rejected_logps"]
    z = 0.5 * (policy - (step["reference_chosen_logps"] - step["reference_rejected_logps"]))
    # As above, with numbers up to 4.
    assert formula(z, step["delta"]).item() == pytest.approx(result.losses[3], abs=2.4e-6)


OWN = {"command": "train_rm", "processes": 1, "zero": 0, "script": "own_script"}


@pytest.mark.slow
def test_a_script_of_ones_own(train):
    result = finished(train(Job(**OWN, flags=("--model.margin_loss_enable",), data="margin.jsonl")))
    traced = torch.cat([step["prior"] for step in result.trace(0)])
    assert counted(traced) == counted((i % 5) / 4 for i in range(PAIRS))
    assert recomputed("train_rm", result.trace(0)[3]) == pytest.approx(result.losses[3], abs=2.4e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "flags", "message"),
    [
        ("margin.jsonl", (), "ValueError: margin must be the prior of each pair, got None"),
        (
            "plain.jsonl",
            ("--model.margin_loss_enable",),
            "ValueError: margin must not be 0 for all pairs, got 0 for the first 64",
        ),
        ("rating.jsonl", ("--model.margin_loss_enable",), "ValueError: margin[0] must be in [0, 1], got 3"),
    ],
)
def test_a_script_of_ones_own_meets_the_traps(train, data, flags, message):
    result = train(Job(**OWN, flags=flags, data=data))
    assert result.code == 1
    assert message in result.log


@pytest.mark.slow
@each_command
def test_packed_samples(train, command):
    packed = finished(train(Job(command, 2, 0, CONSTRAINED, attention="flash_attention_on_cpu")))
    padded = finished(train(Job(command, 2, 0, CONSTRAINED)))
    # Before the first update. A reward is rounded to bfloat16 by each of a few layers, whose last digit is
    # 2**-8; a log probability is the sum of some hundred such.
    names, within = {
        "train_rm": (("chosen_rewards", "rejected_rewards"), 2**-6),
        "train_dpo": (("policy_chosen_logps", "policy_rejected_logps"), 2**-13),
    }[command]
    for rank in (0, 1):
        ours, theirs = packed.trace(rank)[0], padded.trace(rank)[0]
        for name in names:
            torch.testing.assert_close(ours[name], theirs[name], rtol=within, atol=0)
    for logged, *steps in zip(packed.losses, packed.trace(0), packed.trace(1), strict=True):
        assert logged == pytest.approx(sum(recomputed(command, step) for step in steps) / 2, abs=2.4e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "processes", "zero"), [("train_rm", 2, 2), ("train_dpo", 1, 0)])
def test_shared_prefixes(train, command, processes, zero):
    """In DeepSpeed's engine and bfloat16; test_openrlhf_prefix_sharing.py compares the parameters in float32."""
    plain = finished(train(Job(command, processes, zero, CONSTRAINED)))
    shared = finished(train(Job(command, processes, zero, (*CONSTRAINED, "--pcrm.prefix_sharing"))))
    assert "Prefix sharing is on" in shared.log and "Prefix sharing" not in plain.log
    for rank in range(processes):
        for name, want in plain.trace(rank)[0].items():
            # A rounding of bfloat16 is 2**-8.
            torch.testing.assert_close(shared.trace(rank)[0][name], want, rtol=2**-7, atol=2**-8)
    # Later gradients differ by such roundings: 16 steps made 4e-4 of them for reward models and 1e-4 for DPO.
    assert shared.losses == pytest.approx(plain.losses, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "data", "flags", "message"),
    [
        (
            "train_rm",
            "plain.jsonl",
            ("--pcrm.prior=column", *CONSTRAINED),
            "the data set must have a column 'prior' with the prior 'column'",
        ),
        ("train_dpo", "wrong.jsonl", (), "prior[7] must be in [0, 1], got 1.5"),
        ("train_rm", "plain.jsonl", ("--model.margin_loss_enable",), "--model.margin_loss_enable must not be set"),
        ("train_rm", "plain.jsonl", ("--model.loss_t=logexp",), "--model.loss_type must be 'sigmoid', got LogExpLoss"),
        ("train_dpo", "plain.jsonl", ("--model.ipo_enable",), "ipo must be False"),
    ],
)
def test_refused_before_the_first_step(train, command, data, flags, message):
    result = train(Job(command, 1, 0, flags, data=data))
    assert result.code == 1
    assert f"\npcrm openrlhf: {message}" in result.log and "Traceback" not in result.log
    assert "Train step" not in result.log and not result.trace(0)


def test_the_reward_model_is_what_both_loaders_read(train, monkeypatch):
    """transformers', and OpenRLHF's own, which train_ppo_ray and serve_rm call."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.syspath_prepend(CPU)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from openrlhf.models import get_llm_for_sequence_regression

    folder = finished(train(Job("train_rm", 2, 2, CONSTRAINED))).model
    assert json.loads((folder / "config.json").read_text())["value_head_prefix"] == "score"
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, output_loading_info=True)
    assert not any(info.values()), info
    actor = get_llm_for_sequence_regression(str(folder), "reward", attn_implementation="eager")
    weights = {name: x.to(torch.bfloat16) for name, x in model.state_dict().items()}
    assert weights.keys() == actor.state_dict().keys() and "score.weight" in weights
    assert all(torch.equal(weights[name], x) for name, x in actor.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    batch = tokenizer(["a short text", "another one, which is longer"], return_tensors="pt", padding=True)
    with torch.no_grad():
        scores = model.float()(**batch).logits.squeeze(-1)
        rewards = actor.float().eval()(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(rewards, scores)


def test_pcrm_score_gives_openrlhfs_rewards(train, material, monkeypatch, tmp_path):
    """Of its data set's tokens by its own model: a space before the end, and line ends before that are dropped."""
    from types import SimpleNamespace

    from datasets import Dataset
    from transformers import AutoTokenizer

    monkeypatch.syspath_prepend(CPU)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from openrlhf.datasets import RewardDataset
    from openrlhf.models import get_llm_for_sequence_regression

    folder = finished(train(Job("train_rm", 2, 2, CONSTRAINED))).model
    config = json.loads((folder / "config.json").read_text())
    assert "id2label" not in config and "num_labels" not in config
    rows = [json.loads(line) for line in (material / "plain.jsonl").read_text().splitlines()][:20]
    rows[3]["chosen"] += "\n\n"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "scores.jsonl"
    assert cli.main(["score", str(folder), str(tmp_path / "rows.jsonl"), "--out", str(out)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    keys = {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected"}
    strategy = SimpleNamespace(args=SimpleNamespace(data=SimpleNamespace(**keys)))
    data = RewardDataset(Dataset.from_list(rows), tokenizer, 512, strategy, num_processors=1)
    actor = get_llm_for_sequence_regression(str(folder), "reward", attn_implementation="eager").float().eval()
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    for i, row in enumerate(scored):
        chosen, chosen_mask, rejected, rejected_mask, _ = data[i]
        with torch.no_grad():
            want = [actor(chosen, chosen_mask).item(), actor(rejected, rejected_mask).item()]
        assert [row["chosen_score"], row["rejected_score"]] == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_the_policy_loads_in_transformers(train):
    from transformers import AutoModelForCausalLM

    folder = finished(train(Job("train_dpo", 2, 2, CONSTRAINED))).model
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
