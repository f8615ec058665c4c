"""`pcrm compare`: from pairs to a table and a report of plain, plain + temperature and constrained models."""

import json
import random
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.models import make_tiny
from pcrm.compare import pairs, run, table, training
from pcrm.demo import world
from pcrm.demo.model import make_tokenizer
from pcrm.evaluate import statistics

import pcrm
from pcrm import cli

SHORT = ["--epochs", "4", "--learning-rate", "0.01", "--cpu"]
DASH = "\N{EN DASH}"
KINDS = ("plain", "plain + temperature", "constrained")


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def some(n, seed=0):
    return [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in world.generate(n, seed)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """A finished run, and what it printed."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("compare")
    write(folder / "pairs.jsonl", some(300))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command = ["compare", str(folder / "pairs.jsonl"), "--model", str(tiny), "--out", str(folder / "out"), *SHORT]
        assert cli.main(command) == 0
    return folder, command, printed.getvalue()


@pytest.mark.slow
def test_from_pairs_to_a_table_and_a_report(finished):
    folder, _, printed = finished
    out = folder / "out"
    summary = json.loads((out / "report" / "summary.json").read_text())["models"]
    assert tuple(summary) == KINDS
    plain, tempered, constrained = summary.values()
    # A temperature changes neither the order nor the shape of the margins.
    assert plain["accuracy"] == tempered["accuracy"]
    assert constrained["margin"]["sd"] < plain["margin"]["sd"]
    shown = {line[:30].strip(): line[30:].split() for line in printed.splitlines() if line[:1].isupper()}
    assert shown["Accuracy on test pairs"] == [f"{100 * m['accuracy']:.1f}%" for m in summary.values()]
    assert [float(x) for x in shown["Margin, standard deviation"]] == pytest.approx(
        [m["margin"]["sd"] for m in summary.values()], abs=0.005
    )
    dash, temperature, _ = shown["Temperature"]
    assert dash == DASH
    assert plain["margin"]["sd"] / float(temperature) == pytest.approx(tempered["margin"]["sd"], rel=0.01)
    html = (out / "report" / "report.html").read_text()
    assert "plain + temperature" in html
    *_, said, command = printed.strip().splitlines()
    assert said == "Next, train on all pairs with the same constraint:"
    assert command.strip().startswith("pcrm reward --model_name_or_path ") and str(out / "pcrm.toml") in command
    assert pcrm.Constraint.from_toml(out / "pcrm.toml").floor == 2


def run_the_next_command(printed, folder):
    """The command that is printed last, for one step."""
    *_, line = printed.strip().splitlines()
    short = "--max_steps 1 --report_to none --gradient_checkpointing false --disable_tqdm true --save_strategy no"
    _, *words = shlex.split(line)
    assert cli.main([*words, *short.split(), "--output_dir", str(folder / "reward-model")]) == 0
    return folder / "reward-model"


@pytest.mark.slow
@pytest.mark.usefixtures("trl_as_it_was")
def test_the_next_command_trains(finished, tmp_path):
    assert (run_the_next_command(finished[2], tmp_path) / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("trl_as_it_was")
def test_an_adapter(tmp_path, tiny, capsys):
    write(tmp_path / "pairs.jsonl", some(90))
    command = ["compare", tmp_path / "pairs.jsonl", "--model", tiny, "--out", tmp_path / "out", "--lora", "2", *SHORT]
    assert cli.main(list(map(str, command))) == 0
    out = tmp_path / "out"
    for kind in ("plain", "constrained"):
        assert json.loads((out / kind / "adapter_config.json").read_text())["r"] == 2
        assert not (out / kind / "model.safetensors").exists()
    printed = capsys.readouterr().out
    assert "Accuracy on test pairs" in printed
    assert (run_the_next_command(printed, tmp_path) / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("trl_as_it_was")
def test_an_encoder_whose_tokenizer_has_no_eos(tmp_path, rows, capsys):
    """As BERT's: its sep_token ends texts. Only the head is missing from its weights, which is not reported."""
    from transformers import BertModel, PreTrainedTokenizerFast

    made = make_tokenizer(r["prompt"] + r["chosen"] for r in rows)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, pad_token="<pad>", sep_token="<eos>", model_max_length=512
    )
    base = make_tiny(tmp_path / "base", rows, BertModel, tokenizer)
    write(tmp_path / "pairs.jsonl", some(90))
    command = ["compare", tmp_path / "pairs.jsonl", "--model", base, "--out", tmp_path / "out", *SHORT]
    assert cli.main(list(map(str, command))) == 0
    printed = capsys.readouterr()
    assert "MISSING" not in printed.err and "has no weights" not in printed.out
    assert "--eos_token '<eos>'" in printed.out
    run_the_next_command(printed.out, tmp_path)


@pytest.mark.slow
def test_weights_that_a_checkpoint_lacks_are_named(tmp_path, tiny, capsys):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    training.load_model(tmp_path / "base", 0)
    assert "has no weights for model.norm.weight: 1 start random" in capsys.readouterr().out


@pytest.mark.slow
def test_temperature_is_fitted_apart_from_what_is_evaluated(finished):
    """By hand: the maximum of the likelihood on pairs whose prompts are in neither other part."""
    out = finished[0] / "out"
    parts = {
        part: [json.loads(line) for line in (out / "pairs" / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "temperature", "test")
    }
    prompts = [{row["prompt"] for row in rows} for rows in parts.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    assert sum(map(len, parts.values())) == 300
    scored = [json.loads(line) for line in (out / "scores" / "plain-temperature.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in scored] == [row["prompt"] for row in parts["temperature"]]
    margins = np.array([row["chosen_score"] - row["rejected_score"] for row in scored])
    summary = json.loads((out / "report" / "summary.json").read_text())["models"]
    fitted = summary["plain"]["margin"]["sd"] / summary["plain + temperature"]["margin"]["sd"]

    def nll(t):
        return np.logaddexp(0, -margins / t).mean()

    assert nll(fitted) <= min(nll(0.98 * fitted), nll(1.02 * fitted))


@pytest.mark.slow
def test_a_finished_model_is_not_trained_again(finished, capsys, monkeypatch):
    folder, command, before = finished
    monkeypatch.setattr(run.training, "train", None)
    monkeypatch.setattr(run, "add_scores", None)
    assert cli.main(command) == 0
    again = capsys.readouterr().out
    assert again.count("finished earlier with the same settings: not trained again") == 2
    table_of = before[before.index("Accuracy on test") :]
    assert again[again.index("Accuracy on test") :] == table_of
    with pytest.raises(TypeError):  # with other settings it is trained
        cli.main([*command, "--seed", "1"])
    assert not list((folder / "out" / "scores").glob("plain-*")), "scores of another model are gone"


@pytest.mark.slow
def test_messages_a_column_and_evaluation_data(tmp_path, tiny, capsys):
    """Conversational rows with a prior of their own, and evaluation data with a prompt of the training data."""
    rows = [
        {
            "prompt": [{"role": "user", "content": r["prompt"]}],
            "chosen": [{"role": "assistant", "content": r["chosen"]}],
            "rejected": [{"role": "assistant", "content": r["rejected"]}],
            "prior": i % 7 / 7,
        }
        for i, r in enumerate(some(80))
    ]
    write(tmp_path / "train.jsonl", rows[:60])
    write(tmp_path / "test.jsonl", [*rows[60:], rows[0]])
    out = tmp_path / "out"
    command = [
        "compare",
        tmp_path / "train.jsonl",
        "--eval-data",
        tmp_path / "test.jsonl",
        "--model",
        tiny,
        "--out",
        out,
    ]
    assert cli.main([*map(str, command), "--cpu", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "5 pairs of " in printed and "are not trained on: their prompts are in " in printed
    assert "21 to evaluate on" in printed
    assert 'prior = "column"' in (out / "pcrm.toml").read_text()


@pytest.mark.slow
def test_without_a_temperature(tmp_path, tiny, capsys, monkeypatch):
    """The plain model orders all of the few pairs right: no temperature is best, and the table has two models."""
    write(tmp_path / "pairs.jsonl", some(60))
    add = run.add_scores

    def perfect(source, out, *rest, **options):
        written = add(source, out, *rest, **options)
        rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
        write(out, [row | {"chosen_score": 1.0, "rejected_score": 0.0} for row in rows])
        return written

    monkeypatch.setattr(run, "add_scores", perfect)
    command = [
        "compare",
        tmp_path / "pairs.jsonl",
        "--model",
        tiny,
        "--out",
        tmp_path / "out",
        "--cpu",
        "--epochs",
        "1",
    ]
    assert cli.main(list(map(str, command))) == 0
    printed = capsys.readouterr().out
    assert "Warning: There is no plain + temperature: " in printed and "to fit a temperature" in printed


@pytest.mark.parametrize(
    ("content", "options", "fragments"),
    [
        (None, [], ["nope.jsonl: no such file"]),
        ([], [], ["pairs.jsonl must have at least one row, got none"]),
        ([{"prompt": "a", "chosen": "b"}], [], ["line 1: a pair must have chosen and rejected, got the keys prompt, chosen"]),
        ([{"prompt": "a", "responses": ["b", "c"], "ratings": [1, 2]}], [], ["line 1: ", "pcrm pairs DATA --out PAIRS"]),
        ([*some(5), {"prompt": [], "chosen": [], "rejected": []}], [], ["line 6: ", "chosen"]),
        ([*some(5), {"chosen": "a b", "rejected": "a c"}], [], ["line 6: prompt must be a text, as in the first row, got missing"]),
        ([some(1)[0] | {"prior": 1.5}], [], ["line 1: prior must be in [0, 1], got 1.5"]),
        (some(5)[:1] * 9, [], ["must have at least 3 different prompts", "got 1"]),
        (some(60), ["--prior", "column"], ["--prior must be lexical or length_ratio for rows without a column 'prior'"]),
        ([r | {"prior": 0.5} for r in some(60)], ["--prior", "lexical"], ["--prior must be column for rows with", "got lexical"]),
        (some(60), ["--epochs", "0"], ["--epochs must be greater than 0 and finite, got 0"]),
        (some(60), ["--learning-rate", "inf"], ["--learning-rate must be greater than 0 and finite, got inf"]),
        (some(60), ["--target-alike", "3"], ["--target-unlike must be greater than --target-alike, got 3 and 3"]),
        (some(60), ["--seed", "-1"], ["--seed must be in [0, 2**32), got -1"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tmp_path, tiny, capsys, content, options, fragments):
    path = tmp_path / ("nope.jsonl" if content is None else "pairs.jsonl")
    if content is not None:
        write(path, content)
    out = tmp_path / "out"
    assert cli.main(["compare", str(path), "--model", str(tiny), "--out", str(out), *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("pcrm compare: ") and said.count("\n") == 1
    for fragment in fragments:
        assert fragment in said
    assert not out.exists()


def test_a_model_that_does_not_fit_the_rows(tmp_path, tiny, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    message = [{"role": "user", "content": "a"}]
    row = {"prompt": message, "chosen": message, "rejected": message}
    with pytest.raises(ValueError, match="must have a chat template, since the rows hold messages, got none"):
        run._tokenizer(str(tmp_path / "base"), row)
    assert run._tokenizer(str(tmp_path / "base"), some(1)[0]).eos_token
    write(tmp_path / "pairs.jsonl", some(60))
    assert cli.main(["compare", str(tmp_path / "pairs.jsonl"), "--model", str(tmp_path / "nope")]) == 1
    assert f"pcrm compare: {tmp_path / 'nope'}: " in capsys.readouterr().err


def test_interrupted(tmp_path, tiny, capsys, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.training, "train", interrupt)
    write(tmp_path / "pairs.jsonl", some(60))
    out = tmp_path / "out"
    assert cli.main(["compare", str(tmp_path / "pairs.jsonl"), "--model", str(tiny), "--out", str(out)]) == 130
    assert capsys.readouterr().err == f"\npcrm compare: interrupted; give the same command again to resume from {out}\n"


def test_split_by_prompt():
    rows = some(500)
    random.Random(0).shuffle(rows)
    split = pairs.split_pairs(rows, None, seed=0)
    prompts = [set(map(pairs.prompt_of, part)) for part in split.parts().values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == len(set(map(pairs.prompt_of, rows)))
    assert [len(part) for part in split.parts().values()] == [320, 80, 100]
    assert split == pairs.split_pairs(rows, None, seed=0) != pairs.split_pairs(rows, None, seed=1)
    fewer = pairs.split_pairs(rows, None, seed=0, most=50)
    assert (fewer.train, fewer.test) == (split.train[:50], split.test)
    assert split.digest() != fewer.digest()


def test_split_with_evaluation_data():
    rows = some(100)
    split = pairs.split_pairs(rows, rows[:12], seed=0)
    taken = {r["prompt"] for r in rows[:12]}
    assert split.test == rows[:12]
    assert split.dropped == sum(r["prompt"] in taken for r in rows)
    assert not taken & {r["prompt"] for r in split.train + split.temperature}
    with pytest.raises(
        ValueError, match=r"at least 2 different prompts that the evaluation data do not have, .* got 0"
    ):
        pairs.split_pairs(rows, rows, seed=0)


@pytest.mark.parametrize("prompts", [3, 4, 11])
def test_split_of_few_prompts(prompts):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(prompts)]
    split = pairs.split_pairs(rows, None, seed=0)
    assert all(split.parts().values())


def test_prompts_that_the_responses_begin_with():
    """Rows without a prompt of their own are told apart by it."""
    rows = [{"chosen": f"Question {i // 2}: yes", "rejected": f"Question {i // 2}: no"} for i in range(20)]
    assert len(set(map(pairs.prompt_of, rows))) == 10
    user = [{"role": "user", "content": "q"}]
    a, b = ([*user, {"role": "assistant", "content": text}] for text in "ab")
    assert pairs.prompt_of({"chosen": a, "rejected": b}) == json.dumps(user)


def test_difference_counts_prompts():
    """Against the textbook's standard error where each pair has a prompt, and wider where pairs of a prompt agree."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 400), rng.normal(0, 1, 400)
    mean, low, high = table.difference(a, b, [str(i) for i in range(400)])
    d = a - b
    assert mean == pytest.approx(d.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * d.std() / 20)
    repeated = table.difference(np.repeat(a, 4), np.repeat(b, 4), [str(i // 4) for i in range(1600)])
    assert repeated == pytest.approx((mean, low, high))


def models(plain, constrained, train=None):
    train = plain if train is None else train
    return {
        "plain": table.Model(plain, train),
        "plain + temperature": table.Model(plain / 2, train, (2.0, 1.5, None)),
        "constrained": table.Model(constrained, train),
    }


def test_table():
    rng = np.random.default_rng(1)
    plain = rng.normal(1, 2, 300)
    lines = table.table(models(plain, plain / 4)).splitlines()
    assert lines[0].split("  ")[-1].strip() == "constrained"
    found = statistics.pairs(plain)
    accuracy, low, high = (f"{100 * x:.1f}%" for x in found["accuracy"])
    assert lines[1].split()[-3:] == [accuracy] * 3
    assert f"{low} to {high}" in lines[2]
    assert lines[-2].split()[-3:] == [DASH, "2.00", DASH]
    assert lines[-1].split("  ")[-1].strip() == "1.50 to ∞"


def test_headline():
    rng = np.random.default_rng(2)
    plain = rng.normal(1, 2, 300)
    prompts = [str(i) for i in range(300)]
    said = table.headline(table.Model(plain, plain), table.Model(plain / 4, plain), prompts)
    assert (
        "spread 0.25 times as far" in said and "is the same within error (0.0 points, 95% interval 0.0 to 0.0)" in said
    )
    better = table.headline(table.Model(-plain, plain), table.Model(plain, plain), prompts)
    assert "Its accuracy is higher (+" in better
    worse = table.headline(table.Model(plain, plain), table.Model(-plain, plain), prompts)
    assert "Its accuracy is lower (\N{MINUS SIGN}" in worse


def test_calibration_beside_a_temperature():
    rng = np.random.default_rng(3)
    margins = rng.normal(1, 1, 500)
    prompts = [str(i) for i in range(500)]
    model = table.Model(margins, margins)
    assert "is the same within error as" in table.calibration(model, model, prompts)
    assert "is higher (worse) than" in table.calibration(model, table.Model(-margins, margins), prompts)
    assert "is lower (better) than" in table.calibration(table.Model(-margins, margins), model, prompts)


def test_warnings():
    rng = np.random.default_rng(4)
    test = np.where(rng.random(500) < 0.62, 1.5, -1.5)
    train = np.where(rng.random(500) < 0.94, 1.5, -1.5)
    delta = np.full(500, 2.0)
    assert table.warnings(models(test, test), delta) == []
    plain, constrained = table.warnings(models(test, test, train), delta)
    assert plain.startswith("The plain model overfits: its accuracy is 9") and "fewer --epochs" in plain
    assert constrained.startswith("The constrained model overfits")
    (idle,) = table.warnings(models(test, test), np.full(500, 8.0))
    assert idle.startswith(
        "The constraint hardly acts: 0.0% of the test margins are over their targets, which are 4.00 to 4.00"
    )
    assert "--target-alike 0.5 --target-unlike 1.5" in idle


def test_durations():
    assert [training._duration(x) for x in (0.2, 45, 150, 7200)] == [
        "about 1 s",
        "about 45 s",
        "about 2 min",
        "about 2.0 h",
    ]
