"""The recipes: what they say is what the paper says, every key is known, and each trains a step on tiny stand-ins.

Those for OpenRLHF also in tests/openrlhf/test_openrlhf_recipes.py, where OpenRLHF is.
"""

import json
import math
import re

import pytest
import trl
import yaml
from helpers.project import ROOT
from helpers.workplace import RECIPES, ROWS, kind_of, make_workplace, prepare_alpaca_farm, recorded
from pcrm.data.sources import read_rows
from pcrm.settings import settings_of
from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

from pcrm import Constraint, cli

pytestmark = pytest.mark.usefixtures("trl_as_it_was")

TRL = sorted((RECIPES / "trl").glob("*.yaml"))
OPENRLHF = sorted((RECIPES / "openrlhf").glob("*.sh"))
each_trl = pytest.mark.parametrize("recipe", TRL, ids=lambda path: path.stem)

# arXiv 2404.00978 and the training scripts that its authors published with it: learning rate, epochs, pairs or
# texts in a batch, tokens, weight decay, betas of the constraint.
PAPER = {
    "alpaca-farm-llama-2-7b-sft": (2e-5, 3, 128, 512, 0.0, None),
    "tldr-llama-2-7b-sft": (1e-5, 3, 64, 1024, 0.0, None),
    "alpaca-farm-llama-2-7b-reward": (3e-6, 1, 16, 512, 0.1, (10.0, 0.001, -5.0)),
    "tldr-llama-2-7b-reward": (1e-6, 1, 64, 1024, 0.1, (10.0, 0.001, -5.0)),
    # On how many GPUs theirs ran is not said: 8 here.
    "alpaca-farm-llama-2-7b-dpo": (1e-6, 1, 32, 512, 0.0, (20.0, 0.001, -15.0)),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return make_workplace(tmp_path_factory.mktemp("workplace"), monkeypatch)


@pytest.fixture
def workplace(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("HF_HOME", str(prepared / "cache"))
    return prepared


def parsed(recipe, *flags):
    """The arguments of a recipe by TRL's own parser, which here refuses what it does not know."""
    config = {"sft": trl.SFTConfig, "reward": PCRMRewardConfig, "dpo": PCRMDPOConfig}[kind_of(recipe)]
    parser = trl.TrlParser((ScriptArguments, config, trl.ModelConfig, DatasetMixtureConfig))
    # For use_cpu: without a GPU bfloat16 is refused.
    return parser.parse_args_and_config(["--config", str(recipe), "--use_cpu", "true", *flags])[1]


@pytest.mark.slow
@each_trl
def test_every_key_is_known(workplace, recipe):
    """By the parser, which gives the training's arguments the recipe's values."""
    arguments, given = parsed(recipe), yaml.safe_load(recipe.read_text())
    names = given.keys() & vars(arguments).keys() - {"fp16", "bf16", "report_to", "lr_scheduler_type"}
    assert {"learning_rate", "output_dir"} <= names
    for name in names:
        value = getattr(arguments, name)
        assert value == (float(given[name]) if isinstance(value, float) else given[name]), name


@pytest.mark.slow
def test_an_unknown_key_is_found(workplace, tmp_path):
    path = tmp_path / "x-reward.yaml"
    path.write_text((RECIPES / "trl" / "tldr-llama-2-7b-reward.yaml").read_text() + "warmup_steeps: 3\n")
    with pytest.raises(ValueError, match="warmup_steeps"):
        parsed(path)


@pytest.mark.slow
def test_another_prior(workplace):
    """The flags of the README."""
    flags = "--dataset_name runs/data/alpaca-farm/cosine --pcrm_prior column --pcrm_preset alpaca/cosine"
    assert flags in (RECIPES / "README.md").read_text()
    arguments = parsed(RECIPES / "trl" / "alpaca-farm-llama-2-7b-reward.yaml", *flags.split())
    assert betas(arguments.pcrm_constraint()) == (20.0, 0.001, -15.0)


def betas(constraint):
    return constraint.beta1, constraint.beta2, constraint.beta3


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings_in_trl(workplace, name):
    recipe = RECIPES / "trl" / f"{name}.yaml"
    arguments = parsed(recipe)
    zero3 = yaml.safe_load((ROOT / "examples" / "accelerate" / "zero3.yaml").read_text())
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * zero3["num_processes"]
    assert PAPER[name] == (
        arguments.learning_rate,
        arguments.num_train_epochs,
        batch,
        arguments.max_length,
        arguments.weight_decay,
        None if kind_of(recipe) == "sft" else betas(arguments.pcrm_constraint()),
    )
    assert arguments.bf16 and arguments.gradient_checkpointing and arguments.warmup_steps == 0
    assert arguments.lr_scheduler_type == "cosine" and arguments.max_grad_norm == 1.0
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.seed) == (0.9, 0.95, 42)
    if kind_of(recipe) == "dpo":
        assert arguments.beta == 0.1 and arguments.loss_type == ["pcrm"]


def flags(recipe, folder, *arguments):
    """A recipe's flags, by name: the last one's values, as argparse takes them."""
    found = {}
    for word in recorded(recipe, folder, *arguments):
        if word.startswith("--"):
            values = found[word] = []
        elif found:
            values.append(word)
    return {name: " ".join(values) for name, values in found.items()}


@pytest.mark.parametrize("name", [name for name in PAPER if not name.endswith("sft")])
def test_the_papers_settings_in_openrlhf(tmp_path, name):
    given = flags(RECIPES / "openrlhf" / f"{name}.sh", tmp_path)
    settings = settings_of({"prior": given["--pcrm.prior"], "preset": given["--pcrm.preset"]})
    assert PAPER[name] == (
        float(given["--adam.lr"]),
        int(given["--train.max_epochs"]),
        int(given["--train.batch_size"]),
        int(given["--data.max_len"]),
        float(given["--adam.weight_decay"]),
        betas(settings.constraint),
    )
    assert given["--adam.betas"] == "0.9 0.95" and given["--ds.param_dtype"] == "bf16"
    assert given["--lr_scheduler"] == "cosine" and given["--lr_warmup_ratio"] == "0" and given["--ds.zero_stage"] == "2"
    assert given.get("--model.beta", "0.1") == "0.1"


def test_the_papers_ppo(tmp_path):
    given = flags(RECIPES / "openrlhf" / "alpaca-farm-llama-2-7b-ppo.sh", tmp_path)
    expected = {
        "--actor.adam.lr": 1e-5,
        "--critic.adam.lr": 5e-6,
        "--algo.kl.init_coef": 0.1,
        "--algo.advantage.lambd": 0.95,
        "--algo.advantage.gamma": 1,
        "--actor.eps_clip": 0.2,
        "--critic.value_clip": 0.2,
        "--rollout.max_new_tokens": 384,
        "--data.max_len": 256 + 384,
    }
    assert {name: float(given[name]) for name in expected} == expected
    assert given["--reward.clip_range"] == "-5 5"
    # What it starts from is what the reward model's recipe makes.
    reward = flags(RECIPES / "openrlhf" / "alpaca-farm-llama-2-7b-reward.sh", tmp_path)
    assert given["--reward.model_name_or_path"] == reward["--ckpt.output_dir"]


@pytest.mark.parametrize("recipe", OPENRLHF, ids=lambda path: path.stem)
def test_flags_of_the_user_come_last(tmp_path, recipe):
    model = ["Qwen/Qwen3-8B"] if recipe.stem.startswith("ultrafeedback") else []
    assert recorded(recipe, tmp_path, *model, "--data.max_len", "7 7")[-2:] == ["--data.max_len", "7 7"]


@pytest.mark.slow
@each_trl
def test_one_step(workplace, recipe):
    """Everything is the recipe's but how long, where to, how often to say so, and the device."""
    kind, out = kind_of(recipe), workplace / "out" / recipe.stem
    dry = {"max_steps": 1, "output_dir": out, "logging_steps": 1, "save_steps": 1, "eval_steps": 1, "report_to": "none"}
    dry["use_cpu"] = "true"
    argv = ["--config", str(recipe), *(str(x) for name, value in dry.items() for x in (f"--{name}", value))]
    if kind == "sft":
        from trl.scripts import sft

        sft.main(*sft.make_parser().parse_args_and_config(argv))
    else:
        assert cli.main([kind, *argv]) == 0
    assert (out / "model.safetensors").is_file()
    history = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    step = next(entry for entry in history if "loss" in entry)
    assert math.isfinite(step["loss"]) and step["grad_norm"] > 0
    if kind == "sft":
        return
    assert step["pcrm/target"] == pytest.approx(step["pcrm/delta"] / 2, rel=1e-5)
    if "ultrafeedback" in recipe.stem:  # win probabilities of 0.65 and 0.9 are margins of 0.62 and 2.2
        assert 0.6 < step["pcrm/target"] < 2.2
    else:  # the published betas: 5 is delta's least
        assert step["pcrm/target"] > 2.49
    given = yaml.safe_load(recipe.read_text())
    evaluated = [entry for entry in history if "eval_pcrm/target" in entry]
    assert len(evaluated) == (given.get("eval_strategy") == "steps")


@pytest.mark.slow
def test_prepared_preferences(workplace):
    parts = {
        part: [row for _, row in read_rows(f"runs/data/alpaca-farm/preferences/{part}.jsonl")]
        for part in ("train", "test")
    }
    assert all(parts.values()) and sum(map(len, parts.values())) == ROWS
    assert not {row["prompt"] for row in parts["train"]} & {row["prompt"] for row in parts["test"]}
    from pcrm.demo.world import generate

    made = {(row["prompt"], row["chosen"], row["rejected"]) for rows in parts.values() for row in rows}
    for i, row in enumerate(generate(ROWS, seed=0)):
        question = row["prompt"] if i % 2 else f"{row['prompt']}\nan input"
        text = f"\n\nHuman: {question}\n\nAssistant:"
        assert (text, f" {row['chosen']}", f" {row['rejected']}") in made


@pytest.mark.slow
def test_an_input_that_the_instruction_holds_is_not_said_twice(workplace):
    import runpy

    prompt = runpy.run_path(str(RECIPES / "prepare" / "alpaca_farm.py"))["prompt"]
    assert prompt({"instruction": "Say: yes", "input": "yes"}) == "\n\nHuman: Say: yes\n\nAssistant:"


def test_a_preference_that_is_none_is_named(tmp_path, monkeypatch):
    row = {"instruction": "a", "input": "", "output_1": "b", "output_2": "c"}
    rows = [row | {"preference": preference} for preference in (1, 2, 0)]
    (tmp_path / "alpaca_human_preference.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"alpaca_human_preference.json, row 2: preference must be 1 or 2, got 0"):
        prepare_alpaca_farm(monkeypatch, str(tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_prior_and_its_constraint(workplace):
    import numpy as np

    priors = [row["prior"] for _, row in read_rows("runs/data/ultrafeedback/train.parquet")]
    constraint = Constraint.from_toml("runs/data/ultrafeedback.toml")
    for quantile, win in ((0.95, 0.65), (0.05, 0.9)):
        margin = constraint.target(float(np.quantile(priors, quantile)))
        assert 1 / (1 + math.exp(-margin)) == pytest.approx(win, abs=1e-6)


def test_the_readme_names_each_recipe_and_nothing_else():
    text = (RECIPES / "README.md").read_text()
    named = set(re.findall(r"recipes/[\w./-]+\.(?:yaml|sh|py)", text))
    there = {str(path.relative_to(ROOT)) for path in RECIPES.rglob("*.*") if path.suffix in (".yaml", ".sh", ".py")}
    assert named == there
    for path in TRL + OPENRLHF:  # each says its own command
        assert any(str(path.relative_to(ROOT)) in line for line in path.read_text().splitlines()[:2])
    for path in re.findall(r"examples/[\w./-]+\.yaml", text):
        assert (ROOT / path).is_file()
