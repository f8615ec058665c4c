"""ms-swift's own trainers and command line, for real, on a tiny model: `make test-swift` has what they need.

Most runs are in this process, as importing ms-swift takes longer than training. One is of the command line, with two
processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pcrm.swift
import pytest
import torch
from helpers.documents import blocks
from helpers.launching import reserved_port
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

import pcrm

pytestmark = pytest.mark.framework

PAIRS = 64
PLUGIN = ("--external_plugins", str(Path(pcrm.swift.__file__).parent / "plugin" / "pcrm_plugin.py"))
OURS = ("--loss_type", "pcrm", *PLUGIN)
FULL = ("--tuner_type", "full")
SFT = ("--loss_weights", "1", "0.2")
FREE = '[constraint]\nprior = "fixed"\ndelta = inf\n'
BETAS = (1.1, 0.001, 0.9)  # deltas from 2 to 900: they bind where the responses are alike
BINDING = "[constraint]\nbeta1 = 1.1\nbeta2 = 0.001\nbeta3 = 0.9\n"
# For a tiny model that no hub knows, on a CPU.
TINY = "--model_type llama --template chatml --torch_dtype float32 --bf16 false --use_cpu true --check_model false"
SETTINGS = {
    "--max_length": 256,
    "--gradient_accumulation_steps": 2,
    "--learning_rate": 1e-3,
    "--adam_epsilon": 1e-4,  # 1e-8 makes steps of the rounding of gradients that are truly zero
    "--max_steps": 6,
    "--logging_steps": 1,
    "--eval_strategy": "steps",
    "--eval_steps": 3,
    "--save_strategy": "no",
    "--report_to": "none",
    "--dataset_num_proc": 1,
    "--load_from_cache_file": "false",
    "--seed": 1,
    "--add_version": "false",
}
COMMON = [*TINY.split(), *(str(x) for pair in SETTINGS.items() for x in pair)]


class Result(NamedTuple):
    folder: Path
    rows: list[dict[str, Any]]
    steps: list[dict[str, torch.Tensor]]  # what was traced

    def logged(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder with a tiny language model and a file of preferences for each set of columns."""
    from helpers.models import make_tiny
    from pcrm.demo.world import generate
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("swift")
    rows = generate(PAIRS, seed=0)
    make_tiny(folder / "base", rows, LlamaForCausalLM)
    columns = {
        "preferences": lambda i: {},
        "column": lambda i: {"prior": (i % 5) / 4, "id": f"pair {i}"},
        "wrong": lambda i: {"prior": 1.5 if i == 7 else 1},
        "margin": lambda i: {"margin": (i % 5) / 4},
        "many": lambda i: {},
    }
    for name, column in columns.items():
        kept = generate(400, seed=1) if name == "many" else rows
        lines = [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["chosen"]},
                ],
                "rejected_response": row["rejected"],
            }
            | column(i)
            for i, row in enumerate(kept)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def train(material, tmp_path, monkeypatch):
    """A function that trains in this process and returns its result."""
    before = dict(os.environ)  # ms-swift adds to it
    monkeypatch.chdir(tmp_path)
    environment = {"MODELSCOPE_OFFLINE": "1", "MODELSCOPE_CACHE": str(tmp_path / "cache")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("PCRM_CONFIG", "PCRM_PRIOR_MODEL"):
        monkeypatch.delenv(name, raising=False)
    runs = iter(range(100))

    def run(kind, *flags, config=None, data="preferences"):
        from swift.dataset import RowPreprocessor
        from swift.pipelines import rlhf_main
        from swift.trainers import TrainerFactory

        folder = tmp_path / f"run{next(runs)}"
        folder.mkdir()
        if config is not None:
            (folder / "settings.toml").write_text(config)
            monkeypatch.setenv("PCRM_CONFIG", str(folder / "settings.toml"))
        names = {"--model": material / "base", "--dataset": material / f"{data}.jsonl", "--output_dir": folder}
        fixed = [str(x) for pair in names.items() for x in pair]
        batch = ["--per_device_train_batch_size", "4", "--dataloader_num_workers", "0", "--split_dataset_ratio", "0.1"]
        with monkeypatch.context() as plugged, pcrm.trace(folder / "trace"):
            # What the plugin changes ends with the run, and the next one imports it again.
            for name in ("get_training_args", "get_trainer_cls"):
                plugged.setattr(TrainerFactory, name, getattr(TrainerFactory, name))
            plugged.setattr(RowPreprocessor, "standard_keys", [*RowPreprocessor.standard_keys])
            try:
                rlhf_main(["--rlhf_type", kind, *fixed, *COMMON, *batch, *flags])
            finally:
                monkeypatch.delenv("PCRM_CONFIG", raising=False)
                for name in [name for name in sys.modules if name.startswith("_swift_external_")]:
                    del sys.modules[name]
        return result_of(folder)

    yield run
    os.environ.clear()
    os.environ.update(before)


def result_of(folder: Path, trace: str = "trace/rank00000-*") -> Result:
    rows = [json.loads(line) for line in (folder / "logging.jsonl").read_text().splitlines()]
    return Result(folder, rows, [load_file(path) for path in sorted(folder.glob(trace))])


def counted(values) -> Counter:
    return Counter(round(float(x), 5) for x in values)


def traced(result: Result, name: str) -> torch.Tensor:
    return torch.cat([step[name] for step in result.steps])


def formula(m: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return (-logsigmoid(m) - logsigmoid(delta - m)).mean()


def recomputed(result: Result, loss_of) -> list[float]:
    """The loss of each step, the mean over its two batches."""
    losses = [loss_of({name: x.double() for name, x in step.items()}).item() for step in result.steps]
    return [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]


@pytest.mark.parametrize(
    ("kind", "stock", "ours"),
    [
        ("rm", ("--center_rewards_coefficient", "0.01", *FULL), ("--loss_type", "pcrm")),
        ("dpo", ("--loss_type", "sigmoid", "sft", *SFT), ("--loss_type", "pcrm", "sft")),
    ],
)
def test_without_a_ceiling_it_is_the_stock_loss(train, kind, stock, ours):
    """In training and evaluation, with all of ms-swift's metrics; DPO with LoRA and in a mix."""
    # The last of a flag counts.
    theirs, free = train(kind, *stock), train(kind, *stock, *PLUGIN, *ours, config=FREE)
    assert len(theirs.logged("loss")) == 6 and len(theirs.logged("eval_loss")) == 2
    times = ("time", "speed", "per_second", "memory", "runtime", "flos")
    for a, b in zip(theirs.rows[:-1], free.rows[:-1], strict=True):  # the last one describes the run
        for name, value in a.items():
            if not any(t in name for t in times):
                # Rounding, amplified by six steps of Adam.
                assert b[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=2e-6)), name
    assert "pcrm/pull" not in theirs.rows[0] and free.rows[0]["pcrm/pull"] == 0


def test_the_plugin_alone_changes_nothing(train):
    without, beside = train("rm", *FULL), train("rm", *FULL, *PLUGIN)
    assert beside.logged("loss") == without.logged("loss") and len(beside.logged("loss")) == 6
    assert not beside.steps


def test_the_loss_of_a_reward_model_is_the_formula(train):
    """The loss of bfloat16 scores is computed in float32, with the centering from the file."""
    flags = ("--eval_strategy", "no", "--torch_dtype", "bfloat16", "--bf16", "true")
    result = train("rm", *FULL, *OURS, *flags, config=f"{BINDING}[loss]\ncenter_rewards_coefficient = 0.01\n")
    beta1, beta2, beta3 = BETAS

    def loss_of(step):
        chosen, rejected = step["chosen_rewards"], step["rejected_rewards"]
        constrained = formula(chosen - rejected, beta1 / (step["prior"] + beta2) + beta3)
        return constrained + 0.01 * ((chosen + rejected) ** 2).mean()

    # float32 in the loss, and eight digits in the log.
    assert recomputed(result, loss_of) == pytest.approx(result.logged("loss"), abs=1e-6)
    scores = traced(result, "chosen_rewards")
    assert torch.equal(scores, scores.bfloat16().float())


def test_the_loss_of_dpo_is_the_formula_with_the_column(train):
    result = train("dpo", *FULL, *OURS, "--eval_strategy", "no", config=f"{BINDING}[dpo]\nbeta = 0.5\n", data="column")
    beta1, beta2, beta3 = BETAS

    def loss_of(step):
        policy = step["policy_chosen_logps"] - step["policy_rejected_logps"]
        z = 0.5 * (policy - (step["reference_chosen_logps"] - step["reference_rejected_logps"]))
        return formula(z, beta1 / (step["prior"] + beta2) + beta3)

    assert recomputed(result, loss_of) == pytest.approx(result.logged("loss"), abs=4e-6)
    found = counted(traced(result, "prior"))
    assert set(found) == {0.0, 0.25, 0.5, 0.75, 1.0} and found <= counted((i % 5) / 4 for i in range(PAIRS))


def test_targets_are_fitted_kept_and_resumed(train, material, caplog):
    """The run also warns that its constraint does not bind, and selects the best checkpoint by a metric of ms-swift."""
    flags = ["--save_strategy", "steps", "--save_steps", "3", "--metric_for_best_model", "rewards/margins"]
    flags += ["--val_dataset", str(material / "many.jsonl"), "--per_device_eval_batch_size", "50"]
    targets = "[constraint]\ntarget_alike = 10.0\ntarget_unlike = 30.0\n"  # no margin will be there soon
    result = train("rm", *FULL, *OURS, *flags, config=targets)
    fitted = pcrm.Constraint.from_toml(result.folder / "pcrm.toml")
    checkpoint = result.folder / "checkpoint-3"
    assert pcrm.Constraint.from_toml(checkpoint / "pcrm.toml") == fitted
    (line,) = [m for m in caplog.messages if m.startswith("Fitted to the prior length_ratio of 64 pairs")]
    assert f"delta(s) = {fitted.beta1:.6g}" in line
    (message,) = [m for m in caplog.messages if m.startswith("the constraint is not binding")]
    assert "Set lower targets with target_alike and target_unlike, or" in message
    assert {"pcrm/delta", "pcrm/pull", "rewards/margins"} <= set(result.rows[0])
    assert len(result.logged("eval_pcrm/delta")) == 2
    for step in result.steps:
        torch.testing.assert_close(step["delta"].double(), fitted.delta(step["prior"].double()), rtol=1e-6, atol=0)

    (checkpoint / "pcrm.toml").write_text(BINDING)
    again = train("rm", *FULL, *OURS, *flags, "--resume_from_checkpoint", str(checkpoint), config=targets)
    assert len(again.logged("loss")) == 3
    beta1, beta2, beta3 = BETAS
    trained = again.steps[:6]
    want = [beta1 / (step["prior"].double() + beta2) + beta3 for step in trained]
    torch.testing.assert_close(
        torch.cat([step["delta"] for step in trained]).double(), torch.cat(want), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("name", ["lexical", "random", "streaming"])
def test_priors(train, rows, name):
    texts = [[row[side] for row in rows] for side in ("chosen", "rejected")]
    if name == "lexical":
        result = train("dpo", *OURS, config=f'{BINDING}prior = "lexical"\n')
        assert counted(traced(result, "prior")[:48]) <= counted(pcrm.priors.lexical(*texts))
    elif name == "random":
        result = train("rm", *FULL, *OURS, config='[constraint]\nprior = "random"\nlow = 2.0\nhigh = 3.0\n')
        deltas = traced(result, "delta")
        assert len(set(deltas.tolist())) > 40 and deltas.min() >= 2 and deltas.max() <= 3
    else:
        result = train("rm", *FULL, *OURS, "--streaming", "true", "--eval_strategy", "no", data="column")
        assert set(counted(traced(result, "prior"))) == {0.0, 0.25, 0.5, 0.75, 1.0}
        assert 'prior = "column"' in (result.folder / "pcrm.toml").read_text()


@pytest.mark.parametrize(
    ("kind", "flags", "options", "message"),
    [
        ("rm", PLUGIN, {"config": BINDING}, "--loss_type must be pcrm where PCRM_CONFIG is set, got None"),
        ("dpo", (*OURS, "--packing", "true", "--attn_impl", "flash_attention_2"), {}, "--packing must be false"),
        ("dpo", (*OURS, "--padding_free", "true", "--attn_impl", "flash_attention_2"), {}, "--padding_free must be"),
        ("rm", OURS, {"data": "margin"}, "the data set must not have a column 'margin', which would shift the margin"),
        ("rm", OURS, {"data": "wrong"}, "prior[7] must be in [0, 1], got 1.5"),
        (
            "rm",
            OURS,
            {"config": f'{BINDING}prior = "column"\n'},
            "the train data set must have a column 'prior' with prior='column'",
        ),
    ],
)
def test_refused(train, kind, flags, options, message):
    with pytest.raises(ValueError) as error:
        train(kind, *flags, "--dataset_shuffle", "false", "--eval_strategy", "no", **options)
    assert message in str(error.value)


@pytest.mark.parametrize("items", [None, 2])
def test_accumulated_steps_are_scaled_as_ms_swift_scales_them(items, monkeypatch):
    """Where transformers counts the items of a step, which it does not without labels, the trainer scales the loss."""
    from pcrm.settings import Config
    from pcrm.swift.trainers import ConstrainedRewardTrainer
    from swift.metrics import MeanMetric
    from swift.rlhf_trainers import RewardTrainer

    trainer: Any = object.__new__(ConstrainedRewardTrainer)
    monkeypatch.setattr(ConstrainedRewardTrainer, "_add_metrics", lambda *_: None)
    trainer.args = SimpleNamespace(gradient_accumulation_steps=4, center_rewards_coefficient=0.5)
    trainer.model, trainer.model_accepts_loss_kwargs = SimpleNamespace(training=True), True
    trainer.custom_metrics = {"train": defaultdict(lambda: MeanMetric(device="cpu"))}
    trainer._begin(Config("fixed", pcrm.Constraint.fixed(float("inf"))))
    scores = torch.tensor([[1.0], [0.5], [0.0], [2.0]])
    batch = {"attention_mask": torch.ones(4, 3)}
    ours, theirs = (
        kind.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores), dict(batch), num_items_in_batch=items)
        for kind in (ConstrainedRewardTrainer, RewardTrainer)
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_megatron_is_refused(monkeypatch):
    from pcrm.swift.register import register

    monkeypatch.setitem(sys.modules, "swift.megatron.arguments", None)
    with pytest.raises(RuntimeError, match="the plugin of pcrm must be used with `swift rlhf`, got `megatron rlhf`"):
        register()


def test_the_prior_of_token_ids():
    """Computed after truncation and without the prompt; a column takes precedence."""
    from pcrm.settings import Config
    from pcrm.swift.data import PriorCollator

    collate = PriorCollator(lambda rows: {"rows": rows}, Config("length_ratio", pcrm.Constraint(*BETAS)))
    ids = [([1, 2, 7, 5, 6], [1, 2, 8, 5]), ([4, 5, 5, 9], [4, 6])]
    plain = [{"chosen_input_ids": chosen, "rejected_input_ids": rejected} for chosen, rejected in ids]
    assert collate(plain)["prior"].tolist() == pytest.approx([2 / 3, 1 / 3])
    batch = collate([row | {"_extra_kwargs": {"prior": 0.25, "id": "a"}} for row in plain])
    assert batch["prior"].tolist() == [0.25, 0.25] and batch["rows"] == plain


def test_the_settings_of_the_page(train, material, monkeypatch):
    """The argument file, which names the settings file and a copy of the plugin."""
    from swift.cli.main import parse_yaml_args

    (toml,), (arguments,) = blocks("docs/ms-swift.md", "toml"), blocks("docs/ms-swift.md", "yaml")
    Path("train.yaml").write_text(arguments)
    Path("pcrm.toml").write_text(toml)
    shutil.copy(PLUGIN[1], ".")
    monkeypatch.setenv("PCRM_CONFIG", "pcrm.toml")  # ms-swift then does not set it for the tests that come
    argv = ["train.yaml"]
    parse_yaml_args(argv)
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    assert given.pop("--rlhf_type") == "rm" and given.pop("--model") == "base" and "PCRM_CONFIG" not in given
    for name in ("--dataset", "--output_dir"):
        given.pop(name)
    result = train("rm", *(x for pair in given.items() for x in pair), config=toml)
    assert "target" in toml and 'prior = "lexical"' in (result.folder / "pcrm.toml").read_text()
    assert (result.folder / "args.json").is_file() and result.logged("pcrm/delta")


def test_the_page_as_printed_with_two_processes(train, material, tmp_path):
    """Each logs the same as one process with the same number of pairs."""
    (printed, *_) = blocks("docs/ms-swift.md", "")
    folder = tmp_path / "page"
    folder.mkdir()
    for name in ("base", "preferences.jsonl"):
        (folder / name).symlink_to(material / name)
    with reserved_port() as port:
        process = subprocess.run(
            ["bash", "-c", f"{printed.rstrip()} {' '.join(COMMON)} --ddp_backend gloo"],
            cwd=folder,
            env=os.environ
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "PCRM_TRACE": str(folder / "reward-model" / "trace"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
    assert process.returncode == 0, process.stdout[-5000:]
    assert process.stdout.count("Fitted to the prior length_ratio of 58 pairs") == 1
    both, one = result_of(folder / "reward-model"), train("rm", *FULL, *OURS)
    for name in ("loss", "eval_loss", "pcrm/delta", "pcrm/pull", "eval_pcrm/delta"):
        assert both.logged(name) == pytest.approx(one.logged(name), rel=1e-5), name
    # Two batches of two pairs in each of six steps; evaluations are not traced.
    for rank in (0, 1):
        steps = result_of(folder / "reward-model", f"trace/rank0000{rank}-*").steps
        assert sum(len(step["prior"]) for step in steps) == 2 * 2 * 6
