"""`pcrm calibrate --method temperature`: against SciPy and scikit-learn, and the copy of a model by the scores that it gives."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from helpers.files import SUFFIXES, read, write
from helpers.models import make_tiny
from pcrm.data.resumable import ResumableOutput
from pcrm.evaluate import statistics
from pcrm.evaluate.reward_model import RewardModel
from pcrm.evaluate.score_head import find_head, write_divided
from safetensors.torch import load_file, save_file
from sklearn.metrics import brier_score_loss, log_loss
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    RobertaForSequenceClassification,
)

from pcrm import cli


def calibrate(source, out, *arguments):
    return cli.main(["calibrate", str(source), "--method", "temperature", "--out", str(out), *map(str, arguments)])


def fails(capsys, source, out, *arguments):
    capsys.readouterr()
    assert calibrate(source, out, *arguments) == 1
    return capsys.readouterr().err


def pair_rows(n, seed=0, scale=2.5):
    """Pairs of a model whose margins are `scale` times as large as they should be."""
    random = np.random.default_rng(seed)
    size = np.abs(random.normal(0, 1.5, n))
    m = np.where(random.random(n) < scipy.special.expit(size), size, -size)
    rejected = random.normal(size=n)
    scores = (scale * np.stack([rejected + m, rejected])).T.tolist()
    return [{"id": i, "chosen_score": a, "rejected_score": b} for i, (a, b) in enumerate(scores)]


def ranking_rows(n, seed=1):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        ratings = random.integers(1, 4, random.integers(1, 6))
        rows.append({"scores": (ratings + 2 * random.normal(size=len(ratings))).tolist(), "ratings": ratings.tolist()})
    return rows


def margins_of(rows):
    """All margins, pair by pair in plain Python."""
    found = []
    for row in rows:
        if "chosen_score" in row:
            found.append(row["chosen_score"] - row["rejected_score"])
        rated = list(zip(row.get("scores", []), row.get("ratings", []), strict=True))
        found += [a - b for a, p in rated for b, q in rated if p > q]
    return np.array(found)


def fitted(m):
    """The temperature by SciPy, in 1/T, of which the mean of -log sigmoid(m/T) is convex."""
    slope = lambda a: np.mean(-m * scipy.special.expit(-a * m))  # noqa: E731
    brentq: Any = scipy.optimize.brentq
    found = brentq(slope, 1e-9, 1e9, xtol=1e-300, rtol=1e-14)
    best: Any = scipy.optimize.minimize_scalar(lambda a: -scipy.special.log_expit(a * m).mean(), (0.1, 1), tol=1e-12)
    assert found == pytest.approx(best.x, rel=1e-6), "a minimum is found to the square root of the precision"
    return 1 / found


# What is computed.


@pytest.mark.parametrize("kind", [pair_rows, ranking_rows])
def test_the_temperature_is_the_maximum_of_the_likelihood(tmp_path, capsys, kind):
    held_out, rows = kind(400, seed=5), pair_rows(90)
    source, fit_on = write(tmp_path / "in.jsonl", rows), write(tmp_path / "held-out.jsonl", held_out)
    assert calibrate(source, tmp_path / "out.jsonl", "--fit-on", fit_on) == 0
    m, got = margins_of(held_out), read(tmp_path / "out.jsonl")
    temperature = rows[0]["chosen_score"] / got[0]["calibrated_chosen_score"]
    assert temperature == pytest.approx(fitted(m), rel=1e-12)
    # The slope in 1/T, of terms whose sizes sum up to about their number, is 0 to their rounding.
    a = 1 / temperature
    assert abs(np.mean(m * scipy.special.expit(-a * m))) < 1e-14 * np.abs(m).mean()
    assert f"\ntemperature {temperature:.6g}" in capsys.readouterr().out
    assert [{k: v for k, v in row.items() if not k.startswith("calibrated_")} for row in got] == rows


@pytest.mark.slow
def test_large_and_small_scores(tmp_path, capsys):
    """T goes with the scores."""
    for scale in (1e-12, 1e12):
        fit_on = write(tmp_path / "in.jsonl", pair_rows(200, scale=scale))
        assert calibrate(fit_on, tmp_path / "out.jsonl", "--fit-on", fit_on) == 0
        temperature = float(capsys.readouterr().out.split("\ntemperature ")[1].split()[0])
        assert temperature == pytest.approx(scale * fitted(margins_of(pair_rows(200, scale=1))), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_formats_and_kinds(tmp_path, suffix):
    fit_on = write(tmp_path / f"held-out{suffix}", pair_rows(200))
    temperature = fitted(margins_of(pair_rows(200)))
    single = [{"score": r["chosen_score"]} for r in pair_rows(50)]
    unrated = [{"scores": r["scores"]} for r in ranking_rows(50)]
    for name, rows in {"pairs": pair_rows(50), "ranked": ranking_rows(50), "s": single, "u": unrated}.items():
        source, out = write(tmp_path / f"{name}{suffix}", rows), tmp_path / f"{name}-out{suffix}"
        assert calibrate(source, out, "--fit-on", fit_on) == 0
        for row, got in zip(rows, read(out), strict=True):
            for key in ("chosen_score", "rejected_score", "score", "scores"):
                if key in row:
                    np.testing.assert_allclose(
                        got.pop(f"calibrated_{key}"), np.array(row[key]) / temperature, rtol=1e-12
                    )
            assert got == row


def table(text):
    """What is printed below the line of the temperature: of each file, the two numbers of each row."""
    found, title = {}, None
    for line in text.split("\ntemperature ")[1].splitlines()[3:]:
        if not line.startswith("  "):
            found[title := line] = {}
        else:
            name, *numbers = line.strip().rsplit(None, 2)
            found[title][name] = [float(x) for x in numbers]
    return found


@pytest.mark.parametrize("kind", [pair_rows, ranking_rows])
def test_the_table_says_how_it_was_before_and_after(tmp_path, capsys, kind):
    held_out, rows = kind(300, seed=5), kind(200)
    source, fit_on = write(tmp_path / "in.jsonl", rows), write(tmp_path / "held-out.jsonl", held_out)
    assert calibrate(source, tmp_path / "out.jsonl", "--fit-on", fit_on) == 0
    printed = capsys.readouterr().out
    temperature, found = fitted(margins_of(held_out)), table(printed)
    interval = printed.split("\ntemperature ")[1].splitlines()[0].split()[1:]
    if kind is pair_rows:
        low, high = (float(x.strip("[],")) for x in interval)
        # That of the model is 2.5, and the interval of 300 pairs is about a third of it wide.
        assert 1.5 < low < temperature < high < 3.5
    else:
        assert interval == [], "pairs of one prompt depend on each other"
    titles = [f"{fit_on}, {len(margins_of(held_out)):,} pairs, fitted on", f"{source}, {len(margins_of(rows)):,} pairs"]
    assert list(found) == titles
    for m, title in zip(map(margins_of, (held_out, rows)), titles, strict=True):
        for column, margins in enumerate((m, m / temperature)):
            ones, p = np.ones(len(m)), scipy.special.expit(margins)
            want = {"NLL": log_loss(ones, p, labels=[0, 1]), "Brier score": brier_score_loss(ones, p, pos_label=1)}
            want["ECE"] = statistics.calibration_error(margins)[0]
            for key, value in want.items():
                assert found[title][key][column] == pytest.approx(value, abs=5e-5), (title, key)


@pytest.mark.slow
def test_the_table_has_what_is_known(tmp_path, capsys):
    """Only the fitted pairs where SCORES is that file, or does not say what is better."""
    fit_on = write(tmp_path / "held-out.jsonl", pair_rows(100))
    sources = [
        fit_on,
        write(tmp_path / "single.jsonl", [{"score": 1.0}] * 3),
        write(tmp_path / "unrated.jsonl", [{"scores": [1.0, 2.0]}] * 3),
        write(tmp_path / "tied.jsonl", [{"scores": [1.0, 2.0], "ratings": [3, 3]}] * 3),
    ]
    for source in sources:
        assert calibrate(source, tmp_path / "out.jsonl", "--fit-on", fit_on) == 0
        assert list(table(capsys.readouterr().out)) == [f"{fit_on}, 100 pairs, fitted on"]


@pytest.mark.slow
def test_splits(tmp_path, capsys):
    from datasets import Dataset, DatasetDict

    splits = {"validation": pair_rows(200), "test": pair_rows(50, seed=3)}
    DatasetDict({k: Dataset.from_list(v) for k, v in splits.items()}).save_to_disk(tmp_path / "data")
    data, out = tmp_path / "data", tmp_path / "out.jsonl"
    assert calibrate(data, out, "--split", "test", "--fit-on", data, "--fit-split", "validation") == 0
    assert list(table(capsys.readouterr().out)) == [
        f"{data}/validation, 200 pairs, fitted on",
        f"{data}/test, 50 pairs",
    ]
    assert calibrate(data, out, "--split", "test", "--fit-on", data) == 0
    assert list(table(capsys.readouterr().out)) == [f"{data}/test, 50 pairs, fitted on"]


@pytest.mark.slow
def test_what_goes_on_counts_all_pairs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pcrm.data.sources._BATCH_ROWS", 20)
    monkeypatch.setattr("pcrm.data.sources._LOOK_ROWS", 5)
    rows = pair_rows(90)
    source, fit_on = write(tmp_path / "in.jsonl", rows), write(tmp_path / "held-out.jsonl", pair_rows(200, seed=2))
    assert calibrate(source, tmp_path / "want.jsonl", "--fit-on", fit_on) == 0
    want = table(capsys.readouterr().out)
    real = ResumableOutput.write

    def interrupted(self, batch, *arguments):
        real(self, batch, *arguments)
        if batch.start >= 40:
            raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(ResumableOutput, "write", interrupted)
        assert calibrate(source, out, "--fit-on", fit_on) == 130
    assert f"resume from {out}.parts" in capsys.readouterr().err
    # Not with another temperature.
    other = write(tmp_path / "other.jsonl", pair_rows(200, seed=3))
    assert "the temperature" in fails(capsys, source, out, "--fit-on", other)
    assert calibrate(source, out, "--fit-on", fit_on) == 0
    assert read(out) == read(tmp_path / "want.jsonl") and table(capsys.readouterr().out) == want


# In the report.


@pytest.mark.slow
def test_report_shows_both(tmp_path):
    rows = pair_rows(400)
    source, fit_on = write(tmp_path / "in.jsonl", rows), write(tmp_path / "held-out.jsonl", pair_rows(400, seed=5))
    assert calibrate(source, tmp_path / "out.jsonl", "--fit-on", fit_on) == 0
    assert cli.main(["report", str(tmp_path / "out.jsonl"), "--out", str(tmp_path / "report")]) == 0
    got = json.loads((tmp_path / "report" / "summary.json").read_text())
    m = margins_of(rows)
    after = statistics.pairs(m / fitted(margins_of(pair_rows(400, seed=5))))
    for key in ("nll", "brier", "ece"):
        assert got[key] == pytest.approx(statistics.pairs(m)[key][0], rel=1e-9)
        assert got[f"{key}_calibrated"] == pytest.approx(after[key][0], rel=1e-9)
        assert got[f"{key}_calibrated_ci"] == pytest.approx(after[key][1:], rel=1e-9), "the same pairs are resampled"
        assert got[f"{key}_calibrated"] < got[key]
    assert got["flip_rate"] == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("… of calibrated scores") == 4
    assert "Dashed: calibrated scores." in page


# What is refused.


def test_no_temperature_is_best(tmp_path, capsys):
    source, fit_on = write(tmp_path / "in.jsonl", pair_rows(5)), tmp_path / "held-out.jsonl"

    def rows(*margins):
        return [{"chosen_score": m, "rejected_score": 0.0} for m in margins]

    tied = [{"scores": [1.0, 2.0], "ratings": [3, 3]}]
    for bad, message in (
        (
            rows(1, 2, 0),
            "margins must have both signs to fit a temperature, got 3 pairs without a negative margin",
        ),
        (rows(1, -3), "the mean margin must be greater than 0 to fit a temperature, got -1 over 2 pairs"),
        (rows(1, -1), "the mean margin must be greater than 0 to fit a temperature, got 0 over 2 pairs"),
        (rows(0, 0), "the mean margin must be greater than 0 to fit a temperature, got 0 over 2 pairs"),
        (tied, "must have two responses to a prompt with different ratings, got none"),
        ([], "must have at least one row, got none"),
        ([{"score": 1.0}], "must have rows with chosen_score and rejected_score, or scores and ratings"),
        ([{"scores": [1.0, 2.0]}], "must have rows with chosen_score and rejected_score, or scores and ratings"),
    ):
        write(fit_on, bad)
        assert f"{fit_on}: {message}" in fails(capsys, source, tmp_path / "out.jsonl", "--fit-on", fit_on)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("good", "row", "message"),
    [
        (pair_rows, {"chosen_score": float("nan"), "rejected_score": 1}, "chosen_score must be finite, got nan"),
        (pair_rows, {"chosen_score": 1, "rejected_score": float("inf")}, "rejected_score must be finite, got inf"),
        (pair_rows, {"chosen_score": 1}, "must have a key 'rejected_score', got chosen_score"),
        (ranking_rows, {"scores": [1, float("nan")], "ratings": [1, 2]}, "scores[1] must be finite, got nan"),
        (ranking_rows, {"scores": [1, 2], "ratings": [1, float("inf")]}, "ratings[1] must be finite, got inf"),
        (ranking_rows, {"scores": [1, 2], "ratings": [1]}, "ratings must have 2 elements like scores, got 1"),
        (ranking_rows, {"scores": [], "ratings": []}, "scores must be a non-empty list, got []"),
    ],
)
def test_bad_rows_are_named(tmp_path, capsys, good, row, message):
    """In either file; --on-error skip is for SCORES alone."""
    good = good(30)
    bad, fine = write(tmp_path / "bad.jsonl", [*good[:20], row, *good[20:]]), write(tmp_path / "good.jsonl", good)
    out = tmp_path / "out.jsonl"
    assert f"bad.jsonl, line 21: {message}" in fails(capsys, fine, out, "--fit-on", bad, "--on-error", "skip")
    assert f"bad.jsonl, line 21: {message}" in fails(capsys, bad, out, "--fit-on", fine)
    assert calibrate(bad, out, "--fit-on", fine, "--on-error", "skip") == 0
    assert f"{out}: 30 rows, 1 skipped" in capsys.readouterr().out
    assert calibrate(fine, tmp_path / "want.jsonl", "--fit-on", fine) == 0
    assert read(out) == read(tmp_path / "want.jsonl")


def test_other_bad_rows(tmp_path, capsys):
    rows, out = pair_rows(30, scale=1e-5), tmp_path / "out.jsonl"
    fit_on = write(tmp_path / "held-out.jsonl", rows)
    unrated = write(tmp_path / "unrated.jsonl", [{"scores": [1, 2], "ratings": [1, 2]}, {"scores": [1, 2]}])
    assert "line 2: must have a key 'ratings', got scores" in fails(capsys, fit_on, out, "--fit-on", unrated)
    large = write(tmp_path / "large.jsonl", [*rows, {"chosen_score": 1e306, "rejected_score": 1}])
    message = "large.jsonl, line 31: a score divided by the temperature must be finite, got 1e+306 / "
    assert message in fails(capsys, large, out, "--fit-on", fit_on)
    again = write(tmp_path / "again.jsonl", [r | {"calibrated_chosen_score": 1.0} for r in rows])
    assert "must not have a column 'calibrated_chosen_score', because" in fails(capsys, again, out, "--fit-on", fit_on)
    assert "none.jsonl: no such file" in fails(capsys, fit_on, out, "--fit-on", tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--method temperature requires --fit-on FILE with held-out pairs"),
        (["--fit-on", "IN", "--model", "x"], "--model and --save must be given together"),
        (["--fit-on", "IN", "--save", "x"], "--model and --save must be given together"),
        (["--fit-on", "OUT"], "--out must be another file than --fit-on"),
        (["--fit-on", "IN", "--feature", "characters"], "--feature does not work with --method temperature"),
        (["--fit-on", "IN", "--alpha", "0.5"], "--alpha does not work with --method temperature"),
        (["--fit-on", "IN", "--method", "lowess"], "--fit-on does not work with --method lowess"),
        (["--method", "penalty", "--model", "x"], "--model does not work with --method penalty"),
        (["--method", "uniform", "--fit-split", "x"], "--fit-split does not work with --method uniform"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, message):
    names = {"IN": write(tmp_path / "in.jsonl", pair_rows(30)), "OUT": write(tmp_path / "out.jsonl", pair_rows(3))}
    with pytest.raises(SystemExit):
        calibrate(names["IN"], names["OUT"], *(names.get(a, a) for a in arguments))
    assert message in capsys.readouterr().err


# The copy of the model.


def of_scores(folder, rows):
    return RewardModel(folder, prefix_sharing=False)([r["prompt"] for r in rows], [r["chosen"] for r in rows])


def enlarge(folder, shards=False, dtype=None):
    """Give a model scores of the size of real ones, and its folder what a run leaves beside a checkpoint."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.manual_seed(1)
    head = next(
        module for name, module in model.named_modules() if name in ("score", "classifier.out_proj", "classifier")
    )
    head = getattr(head, "out_proj", head)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 15  # from deviations of 0.02, which give scores of 0.001
        for parameter in head.parameters():
            parameter.normal_()
    if dtype is not None:
        model = model.to(dtype)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB" if shards else "1GB")
    assert (folder / "model.safetensors.index.json").is_file() == shards
    for name in ("optimizer.pt", "trainer_state.json", "training_args.bin", "pytorch_model.bin"):
        (folder / name).write_bytes(b"{}")
    (folder / "LICENSE").write_text("free")
    return folder


def weights_of(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def same_but_for_the_head(folder, out, names):
    """All of a checkpoint's files are in its copy, byte for byte but for the tensors of these names."""
    left = {"optimizer.pt", "trainer_state.json", "training_args.bin", "pytorch_model.bin", "README.md"}
    assert {p.name for p in folder.iterdir()} - left == {p.name for p in out.iterdir()}
    for path in out.iterdir():
        if path.suffix != ".safetensors":
            assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
        else:
            # The header, and so the place of each tensor, is the same.
            n = 8 + int.from_bytes(path.read_bytes()[:8], "little")
            assert path.read_bytes()[:n] == (folder / path.name).read_bytes()[:n]
    before, after = weights_of(folder), weights_of(out)
    changed = {k for k in before if before[k].view(torch.uint8).tolist() != after[k].view(torch.uint8).tolist()}
    assert changed == set(names)


ARCHITECTURES = {
    "llama": (None, ["score.weight"]),
    "bert": (BertForSequenceClassification, ["classifier.weight", "classifier.bias"]),
    "roberta": (RobertaForSequenceClassification, ["classifier.out_proj.weight", "classifier.out_proj.bias"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_of_the_copy_are_divided(tmp_path, capsys, tiny, rows, architecture, shards):
    model_class, names = ARCHITECTURES[architecture]
    model = tmp_path / "model"
    if model_class is None:
        shutil.copytree(tiny, model)
    else:
        make_tiny(model, rows, model_class, num_labels=1)
    enlarge(model, shards)
    fit_on, out = write(tmp_path / "held-out.jsonl", pair_rows(200)), tmp_path / "copy"
    assert calibrate(fit_on, tmp_path / "out.jsonl", "--fit-on", fit_on, "--model", model, "--save", out) == 0
    temperature = fitted(margins_of(pair_rows(200)))
    assert f"\n{out}: {model} with {' and '.join(names)} divided by {temperature:.6g}\n" in capsys.readouterr().out
    same_but_for_the_head(model, out, names)
    head = weights_of(model)[names[0]]
    before, after = of_scores(model, rows[:20]), of_scores(out, rows[:20])
    assert before.std() > 0.1
    # 16 products of the head's weights with what is at most 4 long (normalized, or of a tanh), whose sizes sum up to at
    # most 4 times the head's length; each errs by 2^-24, and so do its weight, the 16 sums before and after, and the bias.
    size = 4 * head.norm().item() + np.abs(before).max()
    np.testing.assert_allclose(after, before / temperature, rtol=0, atol=40 * 2**-24 * size / temperature)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_power_of_two_is_exact(tmp_path, tiny, rows, dtype):
    model = enlarge(shutil.copytree(tiny, tmp_path / "model"), dtype=dtype)
    write_divided(find_head(model), tmp_path / "copy", 2)
    assert weights_of(tmp_path / "copy")["score.weight"].dtype == dtype
    np.testing.assert_array_equal(of_scores(tmp_path / "copy", rows[:20]), of_scores(model, rows[:20]) / 2)
    # Of any other divisor the weights are torch's float64 quotient, rounded.
    write_divided(find_head(model), tmp_path / "third", 3)
    want = (weights_of(model)["score.weight"].double() / 3).to(dtype)
    torch.testing.assert_close(weights_of(tmp_path / "third")["score.weight"], want, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["score", "value_head"])
def test_a_model_of_openrlhf(tmp_path, tiny, rows, prefix):
    model = enlarge(shutil.copytree(tiny, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"value_head_prefix": prefix}))
    weights = load_file(model / "model.safetensors")
    weights[f"{prefix}.weight"] = weights.pop("score.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    write_divided(find_head(model), tmp_path / "copy", 4)
    same_but_for_the_head(model, tmp_path / "copy", [f"{prefix}.weight"])
    np.testing.assert_array_equal(of_scores(tmp_path / "copy", rows[:20]), of_scores(model, rows[:20]) / 4)


def adapter(folder, base, **options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **options))
    adapted.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_an_adapter(tmp_path, tiny_policy, rows):
    lora = adapter(tmp_path / "lora", tiny_policy, task_type="SEQ_CLS", target_modules=["q_proj"])
    write_divided(find_head(lora), tmp_path / "copy", 2)
    same_but_for_the_head(lora, tmp_path / "copy", ["base_model.model.score.weight"])
    np.testing.assert_array_equal(of_scores(tmp_path / "copy", rows[:20]), of_scores(lora, rows[:20]) / 2)


@pytest.mark.slow
def test_heads_that_cannot_be_divided(tmp_path, capsys, tiny, tiny_policy):
    fit_on = write(tmp_path / "held-out.jsonl", pair_rows(200))

    def refused(model, save=tmp_path / "copy"):
        error = fails(capsys, fit_on, tmp_path / "out.jsonl", "--fit-on", fit_on, "--model", model, "--save", save)
        assert not (tmp_path / "out.jsonl").exists() and not (tmp_path / "copy").exists()
        return error

    sought = "must have one of the score heads score.weight, classifier.weight, classifier.out_proj.weight, "
    assert f"{tiny_policy}: {sought}" in (error := refused(tiny_policy)) and "got none of them" in error
    headless = adapter(tmp_path / "headless", tiny, target_modules=["q_proj"])
    assert "got none of them. An adapter trained with modules_to_save has its own head" in refused(headless)
    factors = adapter(tmp_path / "factors", tiny, target_modules=["q_proj", "score"])
    assert "must not have LoRA factors on the score head, got base_model.model.score.lora_A.weight" in refused(factors)
    two = shutil.copytree(tiny, tmp_path / "two")
    weights = load_file(two / "model.safetensors")
    save_file(weights | {"classifier.weight": torch.zeros(1, 16)}, two / "model.safetensors")
    assert "got both score.weight and classifier.weight" in refused(two)
    save_file(weights | {"score.weight": torch.zeros(2, 16)}, two / "model.safetensors")
    assert f"{two / 'model.safetensors'}: score.weight must have the shape [1, n] of a reward model" in refused(two)
    (two / "model.safetensors").write_bytes(b"\x10" * 40)
    assert f"{two / 'model.safetensors'}: header must have" in refused(two)
    assert "no such folder. To copy a model from the hub, download it first" in refused("some/model")
    (two / "model.safetensors").unlink()
    assert f"{two}: must contain model.safetensors or" in refused(two)
    (there := tmp_path / "there").mkdir()
    (there / "x").touch()
    assert f"{there}: already exists" in refused(tiny, there)
