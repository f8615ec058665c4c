"""`pcrm reward`, `pcrm dpo` and `pcrm run`: TRL's command lines with our loss, in one process and in two."""

import csv
import json
import shutil
from pathlib import Path

import datasets
import pcrm.trl
import pytest
import trl
import yaml
from datasets import DatasetDict, load_from_disk
from helpers.documents import blocks
from helpers.files import write
from helpers.project import ROOT
from helpers.trainers import FORMATS, SETTINGS, TWO_PROCESSES, launch
from safetensors.torch import load_file

from pcrm import cli

pytestmark = pytest.mark.usefixtures("trl_as_it_was")

# Ceilings between 0.2 and 1.2 that bind on a tiny model.
CONSTRAINT = {"pcrm_beta1": 0.1, "pcrm_beta3": 0.1, "pcrm_cap": 1.2}


@pytest.fixture(scope="module")
def data(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps({k: r[k] for k in ("prompt", "chosen", "rejected")}) + "\n" for r in rows))
    return path


@pytest.fixture
def config(tmp_path, data, tiny, tiny_policy):
    """A function that writes a YAML file and returns its path and the output's."""

    def write(kind, name, **options):
        out = tmp_path / name
        settings = {
            "model_name_or_path": str(tiny if kind == "reward" else tiny_policy),
            "datasets": [{"path": "json", "data_files": str(data)}],
            "output_dir": str(out),
            "save_strategy": "steps",
            "save_steps": 6,
            "dtype": "float32",
        }
        path = tmp_path / f"{name}.yaml"
        chosen = {k: v for k, v in (SETTINGS | settings | options).items() if v is not None}
        path.write_text(yaml.safe_dump(chosen))
        return str(path), out

    return write


def parameters(out):
    return load_file(out / "model.safetensors")


def distance(a, b):
    a, b = parameters(a), parameters(b)
    assert a.keys() == b.keys()
    return max((a[k] - b[k]).abs().max().item() for k in a)


def history(out):
    return [
        e for e in json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())["log_history"] if "loss" in e
    ]


TORCHRUN = (*TWO_PROCESSES, "-m", "pcrm")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_two_processes_are_one_with_twice_the_batch(config, kind):
    one, one_out = config(kind, "one", per_device_train_batch_size=8, **CONSTRAINT)
    two, two_out = config(kind, "two", per_device_train_batch_size=4, **CONSTRAINT)
    assert cli.main([kind, "--config", one]) == 0
    launch(*TORCHRUN, kind, "--config", two)
    assert distance(one_out, two_out) < 5e-6
    for a, b in zip(history(one_out), history(two_out), strict=True):
        for name in ("loss", "pcrm/delta", "pcrm/target", "pcrm/residual", "pcrm/violation", "pcrm/prior"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=2e-6), name
    # And that is not what the stock loss trains.
    stock, stock_out = config(kind, "stock", per_device_train_batch_size=8, pcrm_prior="fixed", pcrm_delta="inf")
    assert cli.main([kind, "--config", stock]) == 0
    assert distance(one_out, stock_out) > 1e-4


@pytest.mark.slow
def test_accelerate_launch(config, rows, tmp_path):
    """With the example's own configuration, and a prior column in a file named on the command line."""
    prior = [i % 4 / 4 + 0.25 for i in range(len(rows))]
    path = tmp_path / "prior.jsonl"
    path.write_text(
        "".join(
            json.dumps({k: r[k] for k in ("prompt", "chosen", "rejected")} | {"prior": s}) + "\n"
            for r, s in zip(rows, prior, strict=True)
        )
    )
    file, out = config("reward", "launched", datasets=None, pcrm_prior="column", pcrm_beta1=1.0, pcrm_beta3=0.0)
    launch(
        *("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "examples" / "accelerate" / "ddp.yaml")),
        *("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0", "-m", "pcrm", "reward"),
        *("--config", file, "--dataset_name", str(path)),
    )
    assert all(1.0 <= e["pcrm/delta"] <= 4.0 for e in history(out))
    # Two processes, so an epoch of these 64 rows has 8 steps of 2 x 4.
    assert history(out)[-1]["epoch"] == pytest.approx(6 / 8)


@pytest.mark.slow
def test_a_file_by_name_is_read_as_trl_reads_a_data_set(config, data, tmp_path):
    """A mixture in the configuration takes precedence, and the file can be streamed."""
    path = tmp_path / "prior.jsonl"
    lines = [json.loads(line) | {"prior": 0.5} for line in data.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file, out = config("reward", "named", datasets=None, pcrm_beta1=10.0)
    assert cli.main(["reward", "--config", file, "--dataset_name", str(path)]) == 0
    assert history(out)[0]["pcrm/prior"] == 0.5
    mixture, out = config("reward", "mixture")
    assert cli.main(["reward", "--config", mixture, "--dataset_name", str(path)]) == 0
    assert history(out)[0]["pcrm/prior"] != 0.5
    endless, _ = config("reward", "streamed", datasets=None, max_steps=-1)
    with pytest.raises(ValueError, match="max_steps"):  # what has no length needs
        cli.main(["reward", "--config", endless, "--dataset_name", str(path), "--dataset_streaming", "true"])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_csv_files_and_json_arrays_are_read_by_name(config, data, tmp_path, suffix):
    """Texts that look like numbers stay texts."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0] |= {"chosen": "7", "rejected": ""}
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    for streaming in ("false", "true"):
        file, out = config("reward", f"named-{streaming}", datasets=None, save_steps=6)
        arguments = ["reward", "--config", file, "--dataset_name", str(path), "--dataset_streaming", streaming]
        assert cli.main(arguments) == 0
        assert len(history(out)) == 6


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_help_begins_with_what_it_does_and_ends_with_examples(kind, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([kind, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: pcrm {kind} [--config FILE] [FLAGS ...]\n\nTrain ")
    assert "--dry-run" in text and text.index("\nexamples:\n") > text.index("--pcrm_prior")
    assert f"pcrm {kind} --config {kind}.yaml --dry-run\n" in text


@pytest.mark.slow
@pytest.mark.parametrize("parts", [False, True], ids=["one data set", "splits"])
def test_a_folder_of_save_to_disk_is_read_by_name(config, data, tmp_path, parts):
    """As `pcrm prior --out FOLDER` writes it; `datasets` in a YAML file works too."""
    folder = tmp_path / "annotated"
    assert cli.main(["prior", str(data), "--out", str(folder)]) == 0
    prior = load_from_disk(str(folder))["prior"][:]
    asked = {"pcrm_prior": "column", "pcrm_beta2": 0.001, **CONSTRAINT}  # which finds the column or fails
    if parts:
        DatasetDict(train=load_from_disk(str(folder)), test=load_from_disk(str(folder))).save_to_disk(
            tmp_path / "parts"
        )
        folder = tmp_path / "parts"
    load = datasets.load_dataset
    evaluated = {"eval_strategy": "steps", "eval_steps": 3} | ({} if parts else {"test_split_size": 0.25})
    file, out = config("reward", "named", datasets=None, **asked, **evaluated)
    assert cli.main(["reward", "--config", file, "--dataset_name", str(folder)]) == 0
    assert all(min(prior) <= entry["pcrm/prior"] <= max(prior) for entry in history(out))
    file, out = config("reward", "mixed", datasets=[{"path": str(folder)}], **asked)
    assert cli.main(["reward", "--config", file]) == 0
    assert all(min(prior) <= entry["pcrm/prior"] <= max(prior) for entry in history(out))
    assert datasets.load_dataset is load


def test_a_file_is_split_for_evaluation(config, data, capsys):
    file, out = config("reward", "evaluated", datasets=None, eval_strategy="steps", eval_steps=3)
    command = ["reward", "--config", file, "--dataset_name", str(data)]
    with pytest.raises(SystemExit):
        cli.main(command)
    error = capsys.readouterr().err
    assert f"--test_split_size must be set with --eval_strategy, because {data} is a single split, got none" in error
    assert "--test_split_size 0.1 to hold out 10% of its rows" in error
    assert cli.main([*command, "--test_split_size", "0.25"]) == 0
    log = json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert sum("eval_loss" in entry for entry in log) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_scripts_of_trl_run_unmodified(config, kind):
    """The loss is swapped in the configuration alone."""
    script = Path(trl.__file__).parent / "scripts" / f"{kind}.py"
    asked = {"loss_type": ["pcrm"]} if kind == "dpo" else {}
    file, out = config(kind, "script", **CONSTRAINT, **asked)
    assert cli.main(["run", str(script), "--config", file]) == 0
    assert "pcrm/residual" in history(out)[0]
    same, same_out = config(kind, "command", **CONSTRAINT)
    assert cli.main([kind, "--config", same]) == 0
    assert distance(out, same_out) == 0
    # And where it does not ask for it, nothing is changed.
    file, out = config(kind, "silent")
    assert cli.main(["run", str(script), "--config", file]) == 0
    assert "pcrm/residual" not in history(out)[0]
    unconstrained, stock_out = config(kind, "unconstrained", pcrm_prior="fixed", pcrm_delta="inf")
    assert cli.main([kind, "--config", unconstrained]) == 0
    assert distance(out, stock_out) < 5e-6


def test_run_a_module_and_a_script_with_arguments(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys, trl\nprint(sys.argv[1:], trl.DPOConfig.__mro__[1].__name__, __name__)\n")
    assert cli.main(["run", str(script), "--a", "-m", "b"]) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "-m", "script", "c"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "['--a', '-m', 'b'] PCRMDPOConfig __main__",
        "['c'] PCRMDPOConfig __main__",
    ]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "nowhere.py"])
    assert "SCRIPT must be an existing file, got 'nowhere.py'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "-m", "nowhere.at_all"])
    assert "SCRIPT must be a module that Python can find, got 'nowhere.at_all'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "options", "arguments"),
    [
        ("pcrm_bta1 is not a key of this configuration: did you mean pcrm_beta1?", {"pcrm_bta1": 1.0}, []),
        (
            "delta must be greater than 0 on all of [0, 1], got -10.01 at similarity 1",
            {"pcrm_beta1": 10.0, "pcrm_beta3": -20.0},
            [],
        ),
        ("pcrm_delta must not be set, got 4.0: pcrm_prior='length_ratio' does not use it", {}, ["--pcrm_delta", "4"]),
        ("--pcrm_bta1 is not a flag of this command: did you mean --pcrm_beta1?", {}, ["--pcrm_bta1", "4"]),
        ("--dataset_nmae is not a flag of this command: did you mean --dataset_name?", {}, ["--dataset_nmae=x"]),
        (
            "--dataset_name must be an existing file, got nope.jsonl.gz",
            {"datasets": None},
            ["--dataset_name", "nope.jsonl.gz"],
        ),
        (
            "--dataset_name must be a file, a folder or the name of a data set on the hub, got none",
            {"datasets": None},
            [],
        ),
        ("--model_name_or_path must be a checkpoint's folder", {"model_name_or_path": None}, []),
        ("nope.toml: no such file or directory", {"pcrm_config": "nope.toml"}, []),
        ("got the folder / without config.json", {"model_name_or_path": "/"}, []),
    ],
)
def test_bad_arguments_end_before_anything_is_loaded(config, capsys, message, options, arguments):
    file, _ = config("reward", "bad", **options)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reward", "--config", file, *arguments])
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 2, "not all the flags before it"


def test_a_configuration_that_is_not_there(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reward", "--config", "nope.yaml"])
    assert "pcrm reward: error: nope.yaml: no such file or directory" in capsys.readouterr().err


def test_a_configuration_that_is_not_yaml(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("a: [")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reward", "--config", str(tmp_path / "run.yaml")])
    assert "pcrm reward: error: --config must be a YAML file: while parsing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reason"), [("empty", "the folder empty without config.json"), ("no/such", "")])
def test_a_model_that_is_not_there_ends_in_one_line(config, capsys, tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    file, _ = config("reward", "bad", model_name_or_path=name)
    if reason:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["reward", "--config", file])
        assert reason in capsys.readouterr().err
    else:
        assert cli.main(["reward", "--config", file]) == 1
        assert "pcrm reward: no/such: the model cannot be loaded: not a local folder" in capsys.readouterr().err


def test_an_empty_file(config, tmp_path, capsys):
    file, _ = config("reward", "empty", datasets=None)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reward", "--config", file, "--dataset_name", str(tmp_path / "empty.jsonl")])
    assert "empty.jsonl must have at least one row, got an empty file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ""])
def test_a_file_with_other_columns(config, tmp_path, capsys, suffix):
    """The error comes before anything is loaded."""
    path = write(tmp_path / f"named{suffix}", [{"question": "Why?", "better": "So.", "worse": "No."}])
    file, _ = config("reward", "columns", datasets=None, model_name_or_path="nowhere")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reward", "--config", file, "--dataset_name", str(path)])
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2 and f"{path} must have the columns chosen and rejected" in error[0]
    assert "got question, better, worse: rename its columns" in error[0]


def renamed(file):
    """The rows of a file of pairs with other column names, and as messages."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return (
        [{names[k]: v for k, v in row.items()} for row in rows],
        [{k: [{"role": roles[k], "content": v}] for k, v in row.items()} for row in rows],
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_data_and_tokenizers_that_trl_cannot_prepare_are_a_line(
    config, data, tmp_path, capsys, kind, tiny, tiny_policy
):
    named, messages = renamed(data)
    folder = {"reward": tiny, "dpo": tiny_policy}[kind]
    without = {}
    for what in ("template", "eos"):
        without[what] = shutil.copytree(folder, tmp_path / f"without_{what}")
    (without["template"] / "chat_template.jinja").unlink()
    settings = without["eos"] / "tokenizer_config.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if k != "eos_token"}))
    option = "got none: set " if kind == "reward" else "got none: "
    for rows, model, wanted in (
        (named, folder, "the train data set must have the columns chosen and rejected"),
        (
            messages,
            without["template"],
            "the tokenizer must have a chat template, because the train data set holds messages",
        ),
        (
            data,
            without["eos"],
            "the tokenizer must have an eos_token, which TRL appends to the plain texts of the train",
        ),
    ):
        path = data if rows is data else write(tmp_path / "rows.jsonl", rows)
        source = [{"path": "json", "data_files": str(path)}]
        file, _ = config(kind, "bad", datasets=source, model_name_or_path=str(model), pcrm_preset="alpaca/length_ratio")
        assert cli.main([kind, "--config", file]) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error and error.splitlines()[-1].startswith(f"pcrm {kind}: {wanted}")
        assert option in error or rows is named


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_resume(config, monkeypatch, capsys):
    """Before the first checkpoint, and after one, from which it then resumes."""
    file, out = config("reward", "interrupted", save_steps=2)
    step = pcrm.trl.PCRMRewardTrainer.training_step

    def interrupted_at(last):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == last:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        monkeypatch.setattr(pcrm.trl.PCRMRewardTrainer, "training_step", training_step)
        status = cli.main(["reward", "--config", file])
        return status, capsys.readouterr().err.splitlines()[-1]

    assert interrupted_at(1) == (
        130,
        "pcrm reward: interrupted before the first checkpoint was saved (--save_steps). To start again, run the same command",
    )
    flags = ["--resume_from_checkpoint", str(out / "checkpoint-2")]
    message = f"pcrm reward: interrupted. To resume, run the same command with {' '.join(flags)}"
    (out / "checkpoint-4").mkdir(parents=True)  # as if it was interrupted while saving
    assert interrupted_at(3) == (130, message)
    monkeypatch.setattr(pcrm.trl.PCRMRewardTrainer, "training_step", step)
    assert cli.main(["reward", "--config", file, *flags]) == 0
    assert len(history(out)) == 6


def test_errors_of_ours_are_a_line_and_others_have_their_traceback(config, capsys, monkeypatch):
    file, _ = config("reward", "column", pcrm_prior="column", pcrm_preset="tldr/cosine")
    assert cli.main(["reward", "--config", file]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("pcrm reward: ") and "prior" in error and "Traceback" not in error
    file, _ = config("reward", "nowhere", datasets=[{"path": "json", "data_files": "nowhere.jsonl"}])
    assert cli.main(["reward", "--config", file]) == 1
    assert "pcrm reward: data set nowhere.jsonl cannot be loaded: " in capsys.readouterr().err

    def fail(*_):
        raise ValueError("in training")

    monkeypatch.setattr("trl.scripts.reward.main", fail)
    with pytest.raises(ValueError, match="in training"):
        cli.main(["reward", "--config", file])


def test_a_key_that_is_nearly_one_of_trl(config):
    file, _ = config("reward", "typo", learning_rte=1e-3)
    with pytest.warns(UserWarning, match="learning_rte is not a key.*TRL ignores it: did you mean learning_rate?"):
        assert cli.main(["reward", "--config", file]) == 0


def test_enabled_classes(tmp_path, tiny, rows, monkeypatch):
    """A configuration without our fields trains TRL's loss, and an incomplete one is an error."""
    from pcrm.trl import enable
    from trl import RewardConfig

    enable()
    options = {"output_dir": str(tmp_path), "bf16": False}
    assert not trl.RewardConfig(**options).pcrm_enabled
    assert trl.RewardConfig(**options, pcrm_prior="length_ratio").pcrm_enabled
    assert trl.DPOConfig(**options).loss_type == ["sigmoid"]
    assert trl.DPOConfig(**options, loss_type=["pcrm", "sft"]).pcrm_enabled
    stock = RewardConfig(**options)  # from before
    data = FORMATS["plain"](rows[:8])
    for args in (stock, trl.RewardConfig(**options)):  # no arguments at all ask for bfloat16 and a GPU
        monkeypatch.chdir(tmp_path)
        trainer = trl.RewardTrainer(str(tiny), args, train_dataset=data)
        assert not trainer.constrained and "PriorCollator" not in type(trainer.data_collator).__name__
    asked = trl.RewardConfig(**options, pcrm_preset="alpaca/length_ratio")
    assert trl.RewardTrainer(str(tiny), asked, train_dataset=data).constrained
    with pytest.raises(ValueError, match=r"loss_type must contain 'pcrm' where pcrm_beta1 is set, got \['sigmoid'\]"):
        trl.DPOConfig(**options, pcrm_beta1=1.0)


def test_runs_that_ask_for_nothing_keep_trls_names(tmp_path, tiny, tiny_policy, rows, monkeypatch):
    """Tags, model card, citation and the default output folder."""
    from pcrm.trl import enable

    stock = trl.RewardTrainer, trl.DPOTrainer
    enable()
    data = FORMATS["plain"](rows[:8])
    options = {"bf16": False, "use_cpu": True, "report_to": "none"}

    def named(trainer):
        trainer.create_model_card(model_name="tiny")
        card = (Path(trainer.args.output_dir) / "README.md").read_text()
        return (
            trainer._name,
            trainer._tag_names,
            trainer._paper,
            trainer.model.model_tags,
            "PCRM" in card,
            "2404" in card,
        )

    for kind, folder, asked in (
        ("Reward", tiny, {"pcrm_prior": "length_ratio"}),
        ("DPO", tiny_policy, {"loss_type": ["pcrm"]}),
    ):
        config, trainer = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
        original, ours = stock[kind == "DPO"], getattr(pcrm.trl, f"PCRM{kind}Trainer")
        plain = named(trainer(str(folder), args=config(output_dir=str(tmp_path / "a"), **options), train_dataset=data))
        tags = original._tag_names
        assert plain == (original._name, tags, original._paper, tags, False, False)
        constrained = config(output_dir=str(tmp_path / "b"), **options, **asked)
        got = named(trainer(str(folder), args=constrained, train_dataset=data))
        assert got[:4] == (ours._name, ours._tag_names, ours._paper, ours._tag_names) and got[4]
        # Without arguments TRL asks for bfloat16, and names the folder.
        made = []
        monkeypatch.setattr(trainer, "config_class", staticmethod(lambda out, made=made: made.append(out) or 1 / 0))
        with pytest.raises(ZeroDivisionError):
            trainer(str(folder), train_dataset=data)
        assert made == [f"{folder.name}-{kind}"]


def test_trainers_imported_from_their_own_modules_are_enabled_too():
    """TRL's own reward trainer would accept our configuration and train its own loss."""
    from pcrm.trl import enable

    enable()
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.reward_trainer import RewardTrainer

    assert RewardTrainer is trl.RewardTrainer and DPOTrainer is trl.DPOTrainer


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp1", "zero3"])
def test_example_configurations_are_what_accelerate_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "examples" / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
    assert config.distributed_type.value == {"ddp": "MULTI_GPU", "zero3": "DEEPSPEED"}.get(name, "FSDP")


def test_the_page_of_distributed_training():
    """docs/distributed.md shows the example configurations as they are, and its commands name them."""
    for text in blocks("docs/distributed.md", "yaml"):
        path = ROOT / text.splitlines()[0].removeprefix("# ")
        assert yaml.safe_load(text).items() <= yaml.safe_load(path.read_text()).items()
    for line in blocks("docs/distributed.md", "")[0].splitlines():
        words = line.split()
        assert words[:3] == ["accelerate", "launch", "--config_file"] and (ROOT / words[3]).is_file()
        assert words[4:7] in (["-m", "pcrm", "reward"], ["-m", "pcrm", "dpo"])
