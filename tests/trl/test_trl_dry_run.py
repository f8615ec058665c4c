"""`--dry-run` of `pcrm reward` and `pcrm dpo` describes a run without training."""

import itertools
import json
import re
from typing import Any

import pytest
import yaml
from datasets import Dataset
from helpers.trainers import FORMATS, SETTINGS, TWO_PROCESSES, build, launch, load
from pcrm.settings.fitted import formula, write_toml
from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig, dry_run
from transformers import AutoTokenizer

import pcrm
from pcrm import cli

pytestmark = pytest.mark.usefixtures("trl_as_it_was")

slow = pytest.mark.slow

KINDS = ("reward", "dpo")
RATINGS = [3, 1, 3, 2]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tiny, tiny_policy):
    return {"reward": tiny, "dpo": tiny_policy}[kind]


@pytest.fixture
def rankings(rows):
    return [
        {
            "prompt": f"{k}. {a['prompt']}",
            "responses": [a["chosen"], a["rejected"], b["chosen"], b["rejected"]],
            "ratings": RATINGS,
        }
        for k, (a, b) in enumerate(zip(rows[:8:2], rows[1:8:2], strict=True))
    ]


@pytest.fixture
def dry(kind, folder, tmp_path, monkeypatch):
    """A function that runs the command on rows in the current folder and returns its exit status."""
    monkeypatch.chdir(tmp_path)

    def run(data, *flags, **options):
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
        settings = {"model_name_or_path": str(folder), "dataset_name": "data.jsonl", "output_dir": "runs/out"}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(SETTINGS | settings | {"dtype": "float32"} | options))
        return cli.main([kind, "--config", "run.yaml", *flags])

    return run


def entry(text, label):
    """The text that follows a label."""
    (found,) = re.findall(rf"^  {re.escape(label)} +(.*)$", text, flags=re.M)
    return found


class _First(Exception):
    """Carries the first batch out of a training run, before any step."""


def first_batch(trainer):
    """The ids and the mask of the first training batch, and the number of steps."""

    def compute_loss(model, inputs, *_, **__):
        raise _First(inputs["input_ids"], inputs["attention_mask"])

    trainer.compute_loss = compute_loss
    with pytest.raises(_First) as first:
        trainer.train()
    return *first.value.args, trainer.state.max_steps


@slow
@pytest.mark.parametrize("ranked", [False, True], ids=["pairs", "rankings"])
def test_the_first_pair_and_the_steps_are_those_of_training(kind, folder, tmp_path, rows, rankings, ranked):
    data = Dataset.from_list(rankings) if ranked else FORMATS["plain"](rows[:20])
    options: Any = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 2}
    text = dry_run.describe(build(kind, folder, tmp_path, data, **options))
    ids, mask, steps = first_batch(build(kind, folder, tmp_path, data, **options))
    assert entry(text, "steps") == f"{steps}, 1 epochs of {steps}"
    assert entry(text, "pairs per step") == "8 = 4 in a batch x 1 process x 2 accumulated"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = text.splitlines()
    assert any(
        line.startswith(f"First pair of 4 in the first batch, padded to {ids.shape[1]} tokens; s = ") for line in lines
    )
    for name, row in (("chosen", 0), ("rejected", 4)):
        (at,) = (i for i, line in enumerate(lines) if line.startswith(f"  {name}, {int(mask[row].sum())} tokens"))
        shown = "".join(line[4:] for line in itertools.takewhile(lambda s: s.startswith("    "), lines[at + 1 :]))
        read = tokenizer.decode(ids[row][mask[row].bool()])
        assert shown == read.replace("\n", "\\n") and shown.endswith(tokenizer.eos_token)
    row = rankings[0] if ranked else rows[0]
    prompt, response = row["prompt"], (row["responses"] if ranked else [row["chosen"]])[0]
    assert entry(text, "text") == (
        f"prompt + response, with nothing between them: {prompt[-16:]!r} + {response[:16]!r}"
    )


@slow
def test_counts_of_rankings(kind, folder, tmp_path, rankings):
    text = dry_run.describe(build(kind, folder, tmp_path, Dataset.from_list(rankings)))
    # Four responses each, of which two are tied.
    assert entry(text, "train") == "4 rankings with 20 pairs"
    assert entry(text, "weights") == "each prompt counts once"
    assert entry(text, "order") == "pairs grouped by prompt, prompts shuffled"


@slow
def test_counts_of_pairs_that_are_too_long(tiny, tmp_path, rows):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    length = {i: max(len(tokenizer(r["prompt"] + r[k])["input_ids"]) for k in ("chosen", "rejected")) + 1 for i, r in enumerate(rows)}  # fmt: skip
    longest = sorted(length.values())[40]
    kept = sum(n <= longest for n in length.values())
    data = FORMATS["plain"](rows)
    text = dry_run.describe(build("reward", tiny, tmp_path, data, eval_data=data, max_length=longest))
    counts = f"64 pairs, {kept} kept: TRL drops {64 - kept} that exceed max_length={longest}"
    assert entry(text, "train") == entry(text, "eval") == counts
    with pytest.raises(
        ValueError, match="the train data set must have a batch of pairs after TRL prepared it, got 0 pairs"
    ):
        dry_run.describe(build("reward", tiny, tmp_path, data, max_length=1, pcrm_preset="alpaca/length_ratio"))


@slow
@pytest.mark.parametrize(
    ("options", "prior", "curve"),
    [
        ({"pcrm_prior": "fixed", "pcrm_delta": 4.5}, "none (fixed)", "delta = 4.5 for every pair"),
        ({"pcrm_prior": "fixed", "pcrm_delta": float("inf")}, "none (fixed)", "delta = inf for every pair: no constraint"),
        (
            {"pcrm_prior": "random", "pcrm_low": 1.0, "pcrm_high": 4.0, "pcrm_seed": 3},
            "none (random, seed 3)",
            "delta is uniform between 1 and 4",
        ),
        (
            {"pcrm_prior": "lexical", "pcrm_beta1": 1.0, "pcrm_beta3": 0.5, "pcrm_cap": 4.0},
            "lexical, computed from the texts",
            "delta(s) = 1 / (s + 0.001) + 0.5, at most 4",
        ),
        (
            {"pcrm_preset": "alpaca/length_ratio"},
            "length_ratio, computed from the token ids of each batch",
            "delta(s) = 10 / (s + 0.001) - 5",
        ),
    ],
)  # fmt: skip
def test_priors_and_curves(tiny, tmp_path, rows, options, prior, curve):
    trainer = build("reward", tiny, tmp_path, FORMATS["plain"](rows), **options)
    text = dry_run.describe(trainer)
    assert entry(text, "prior") == prior and entry(text, "curve") == curve
    assert ("similarity s" in text) == (options.get("pcrm_prior") not in ("fixed", "random"))


@slow
def test_streaming_data(kind, folder, tmp_path, rows):
    data = FORMATS["plain"](rows).to_iterable_dataset()
    text = dry_run.describe(build(kind, folder, tmp_path, data))
    assert (entry(text, "train"), entry(text, "order")) == ("pairs, an iterable data set", "as in the data set")
    assert entry(text, "steps") == "6 (max_steps)"


@slow
def test_the_losses_of_dpo(tiny_policy, tmp_path, rows):
    trainer = build("dpo", tiny_policy, tmp_path, FORMATS["plain"](rows), pcrm_sft_eta=0.2, beta=0.3)
    text = dry_run.describe(trainer)
    assert (entry(text, "form"), entry(text, "beta")) == ("pcrm + 0.2 sft", "0.3")


def test_long_texts_are_cut_and_what_a_terminal_obeys_is_escaped():
    text = "".join(dry_run._shown("\x1b[31m" + "a" * 500 + "b" * 500 + "\n"))
    assert text == r"\x1b[31m" + "a" * 295 + " [... 406 characters ...] " + "b" * 299 + r"\n"


def test_the_command_writes_nothing(kind, dry, rows, tmp_path, capsys, caplog):
    """No folder and no repository on the hub are created, and the curve is that of `Constraint.fit`."""
    s = [i / 64 for i in range(64)]
    data = [{k: r[k] for k in ("prompt", "chosen", "rejected")} | {"prior": v} for r, v in zip(rows, s, strict=True)]
    assert dry(data, "--dry-run", pcrm_prefix_sharing=True, push_to_hub=True, hub_model_id="nobody/nothing") == 0
    output = capsys.readouterr().out
    assert "Written to" not in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "run.yaml"]
    assert output.startswith("Data\n") and output.endswith("\n\nNothing was trained (--dry-run)\n")
    assert entry(output, "train") == "64 pairs" and entry(output, "steps") == "6 (max_steps), 0.375 epochs of 16"
    assert entry(output, "curve") == formula(pcrm.Constraint.fit(s, target_alike=1, target_unlike=3))
    assert "fitted to the training data for targets 1 to 3; the run writes it to runs/out/pcrm.toml" in output
    assert entry(output, "of 64 pairs").split() == ["5%", "25%", "50%", "75%", "95%"]
    assert entry(output, "similarity s").split()[2] == "0.492"
    assert entry(output, "shared prefixes").startswith("on (pcrm_prefix_sharing=True): ")


@slow
def test_a_key_of_the_configuration_asks_for_it_too(kind, dry, rankings, tmp_path, capsys):
    assert dry(rankings, dry_run=True) == 0
    assert entry(capsys.readouterr().out, "train") == "4 rankings with 20 pairs"
    assert not (tmp_path / "runs").exists()


def test_wrong_settings_are_refused(kind, dry, rows, tmp_path, capsys):
    data = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]
    assert dry(data, "--dry-run", pcrm_prior="column") == 1
    captured = capsys.readouterr()
    assert f"pcrm {kind}: the train data set must have a column 'prior'" in captured.err and captured.out == ""
    with pytest.raises(SystemExit, match="2"):
        dry(data, "--dry-run", pcrm_delta=3.0)
    assert not (tmp_path / "runs").exists()


def test_help(kind, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([kind, "--help"])
    assert "--dry-run, --dry_run  Print what would be trained" in capsys.readouterr().out


@slow
def test_log_probabilities_of_the_reference_are_not_computed(tiny_policy, tmp_path, rows):
    def make(data):
        return dry_run.DryRunDPOTrainer(
            model=load("dpo", tiny_policy),
            args=PCRMDPOConfig(str(tmp_path / "out"), precompute_ref_log_probs=True, **SETTINGS),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(tiny_policy),
        )

    data = FORMATS["plain"](rows)
    trainer = make(data)
    assert not any("logps" in name for name in trainer.train_dataset.column_names)
    with pytest.raises(dry_run.Ended):
        trainer.train()
    assert trainer.state.global_step == 0 and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="not supported with IterableDataset"):
        make(data.to_iterable_dataset())


@slow
def test_a_resumed_run_has_the_curve_of_its_checkpoint(tiny, tmp_path, rows, capsys):
    checkpoint = tmp_path / "out" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    kept = pcrm.Constraint(1.0, 0.5, 1.5, floor=2.0, cap=4.0)
    write_toml(checkpoint / "pcrm.toml", kept, "length_ratio")
    trainer = dry_run.DryRunRewardTrainer(
        model=load("reward", tiny),
        args=PCRMRewardConfig(str(tmp_path / "out"), **SETTINGS),
        train_dataset=FORMATS["plain"](rows),
        processing_class=AutoTokenizer.from_pretrained(tiny),
    )
    for given in (str(checkpoint), True):
        with pytest.raises(dry_run.Ended):
            trainer.train(resume_from_checkpoint=given)
        output = capsys.readouterr().out
        assert entry(output, "curve") == formula(kept) and f"from {checkpoint}, from which the run resumes" in output
    with pytest.raises(ValueError, match="resume_from_checkpoint must be a checkpoint's folder, got 'nowhere'"):
        trainer.train(resume_from_checkpoint="nowhere")


@slow
def test_two_processes_print_once(tiny, tmp_path, rows):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({k: r[k] for k in ("prompt", "chosen", "rejected")}) + "\n" for r in rows))  # fmt: skip
    settings = {"model_name_or_path": str(tiny), "dataset_name": str(tmp_path / "data.jsonl"), "max_steps": -1}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SETTINGS | settings | {"output_dir": str(tmp_path / "out")}))
    output = launch(*TWO_PROCESSES, "-m", "pcrm", "reward", "--config", str(tmp_path / "run.yaml"), "--dry-run")
    assert output.count("Nothing was trained (--dry-run)") == 1
    assert entry(output, "pairs per step") == "8 = 4 in a batch x 2 processes x 1 accumulated"
    assert entry(output, "steps") == "24, 3 epochs of 8"
    assert not (tmp_path / "out").exists()
