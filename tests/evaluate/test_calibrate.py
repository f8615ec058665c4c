"""`pcrm calibrate`: against statsmodels and NumPy through the command, and what it takes out of scores."""

import json
from typing import Any

import numpy as np
import pytest
import scipy.stats
from helpers.files import SUFFIXES, read, write
from pcrm.evaluate import statistics
from statsmodels.nonparametric.smoothers_lowess import lowess
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from pcrm import cli


def calibrate(source, out, *arguments):
    return cli.main(["calibrate", str(source), "--out", str(out), *map(str, arguments)])


def fails(capsys, source, out, *arguments):
    capsys.readouterr()
    assert calibrate(source, out, *arguments) == 1
    return capsys.readouterr().err


def words(random, length):
    return "".join(random.choice(list("abcdé "), length))


def score_of(random, length, outliers, quality=0.0):
    """A score of which the larger part is length, and a share of outliers."""
    return float(np.sqrt(length) / 2 + quality + random.normal(0, 0.5) + 20 * (random.random() < outliers))


def pair_rows(n, seed=0, outliers=0.01):
    random = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        a, b = random.integers(1, 300, 2).tolist()
        rows.append(
            {
                "id": i,
                "prompt": "Why? ",
                "chosen": words(random, a),
                "rejected": words(random, b),
                "chosen_score": score_of(random, a, outliers, quality=0.5),
                "rejected_score": score_of(random, b, outliers),
            }
        )
    return rows


def ranking_rows(n, seed=1, outliers=0.01):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        lengths = random.integers(1, 300, random.integers(1, 6)).tolist()
        scores = [score_of(random, k, outliers) for k in lengths]
        rows.append({"responses": [words(random, k) for k in lengths], "scores": scores, "lengths": lengths})
    return rows


def single_rows(n, seed=2, outliers=0.01):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 300, n).tolist()
    return [{"response": words(random, k), "score": score_of(random, k, outliers), "length": k} for k in lengths]


ROWS = {"pairs": pair_rows, "rankings": ranking_rows, "single": single_rows}


def flat(rows, prefix=""):
    """All scores of the rows, as they stand there."""
    found = []
    for row in rows:
        for name in ("chosen_score", "rejected_score", "score"):
            if name in row:
                found.append(row[prefix + name])
        found += row[prefix + "scores"] if "scores" in row else []
    return np.array(found)


def lengths_of(rows):
    found = []
    for row in rows:
        responses = [row[k] for k in ("chosen", "rejected", "response") if k in row] + row.get("responses", [])
        found += map(len, responses)
    return np.array(found, float)


# What is computed.


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(("frac", "alpha"), [(None, None), (0.2, 0.5)])
def test_lowess_is_that_of_statsmodels(tmp_path, kind, frac, alpha, capsys):
    rows = ROWS[kind](300)
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    options = [*(["--frac", frac] if frac else []), *(["--alpha", alpha] if alpha else [])]
    assert calibrate(source, out, *options) == 0
    assert f"{out}: 300 rows" in capsys.readouterr().out
    got, scores = read(out), flat(rows)
    curve = lowess(scores, lengths_of(rows), frac=frac or 2 / 3, it=3, delta=0.0, return_sorted=False)
    np.testing.assert_allclose(flat(got, "calibrated_"), scores - (alpha or 1) * curve, rtol=0, atol=1e-6)
    added = [{k: v for k, v in row.items() if not k.startswith("calibrated_")} for row in got]
    assert added == rows, "all else is as it was, in its order"


def test_lowess_with_delta(tmp_path):
    rows = single_rows(400)
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert calibrate(source, out, "--delta", 25) == 0
    curve = lowess(flat(rows), lengths_of(rows), frac=2 / 3, it=3, delta=25.0, return_sorted=False)
    got = flat(read(out), "calibrated_")
    np.testing.assert_allclose(got, flat(rows) - curve, rtol=0, atol=1e-6)
    assert calibrate(source, out) == 0
    assert not np.allclose(flat(read(out), "calibrated_"), got, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ROWS)
def test_uniform_is_the_mean_of_the_nearest(tmp_path, kind):
    rows = ROWS[kind](200)
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert calibrate(source, out, "--method", "uniform", "--frac", 0.1, "--alpha", 0.75) == 0
    scores, x = flat(rows), lengths_of(rows)
    distance = np.abs(x[:, None] - x)
    nearest = np.sort(distance, axis=1)[:, [len(x) // 10 - 1]]
    near = distance <= nearest
    want = scores - 0.75 * (near * scores).sum(1) / near.sum(1)
    np.testing.assert_allclose(flat(read(out), "calibrated_"), want, rtol=0, atol=1e-10)


def test_penalty(tmp_path):
    rows = pair_rows(50)
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    for options, cost in (([], 0.001), (["--alpha", 0.02], 0.02)):
        assert calibrate(source, out, "--method", "penalty", *options) == 0
        np.testing.assert_allclose(flat(read(out), "calibrated_"), flat(rows) - cost * lengths_of(rows), rtol=1e-14)


# A mean is off at the ends, where its window is on one side, by half the slope times the window's
# width, which a line is not; so its window is small. And it goes with outliers, which robust lines do not.
@pytest.mark.parametrize(("method", "frac", "outliers"), [("lowess", 0.1, 0.01), ("uniform", 0.02, 0.0)])
@pytest.mark.parametrize("kind", ROWS)
def test_a_planted_length_bias_is_gone(tmp_path, kind, method, frac, outliers):
    rows = ROWS[kind](1500, outliers=outliers)
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert calibrate(source, out, "--method", method, "--frac", frac) == 0
    x = lengths_of(rows)
    before = scipy.stats.spearmanr(flat(rows), x)[0]
    after = scipy.stats.spearmanr(flat(read(out), "calibrated_"), x)[0]
    # Without a correlation its standard deviation is 1/sqrt(n), .026 for 1500.
    assert before > 0.8 and abs(after) < 3 / np.sqrt(len(x))


def test_what_is_not_length_stays(tmp_path):
    """The better response of a pair is right far more often once length does not decide."""
    rows = pair_rows(2000)
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert calibrate(source, out) == 0
    before, after = (flat(r, prefix).reshape(-1, 2) for r, prefix in ((rows, ""), (read(out), "calibrated_")))
    accuracy = [(s[:, 0] > s[:, 1]).mean() for s in (before, after)]
    # Normal noise of sd 0.5 a score and a true difference of 0.5 would give .76.
    assert accuracy[0] < 0.60 < 0.70 < accuracy[1]


# What comes in and goes out.


@pytest.mark.parametrize("after", SUFFIXES)
@pytest.mark.parametrize("before", SUFFIXES)
def test_formats(tmp_path, monkeypatch, before, after):
    monkeypatch.setattr("pcrm.data.sources._BATCH_ROWS", 20)
    monkeypatch.setattr("pcrm.data.sources._LOOK_ROWS", 5)
    for kind, make in ROWS.items():
        rows = make(90)
        source, out = write(tmp_path / f"{kind}{before}", rows), tmp_path / f"{kind}-out{after}"
        assert calibrate(source, out) == 0
        want = statistics.calibrate(flat(rows), lengths_of(rows), method="lowess", alpha=1.0)
        got = read(out)
        np.testing.assert_array_equal(flat(got, "calibrated_"), want)
        assert [{k: v for k, v in row.items() if not k.startswith("calibrated_")} for row in got] == rows
    assert not list(tmp_path.glob("*.parts"))


def test_features(tmp_path, tiny):
    rows = pair_rows(60)
    rows = [r | {"chosen_bold": i % 7, "rejected_bold": 0.5, "chosen_length": 3 * i} for i, r in enumerate(rows)]
    rows = [r | {"rejected_length": 5} for r in rows]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert len(tokenizer("")["input_ids"]) == 2, "what it adds to a text is no part of the response"
    tokens = [
        [len(tokenizer(r[k], add_special_tokens=False)["input_ids"]) for k in ("chosen", "rejected")] for r in rows
    ]
    for options, feature in (
        (["--feature", "tokens", "--tokenizer", tmp_path / "tokenizer"], tokens),
        (["--feature", "column"], [[r["chosen_length"], 5] for r in rows]),
        (["--feature", "column", "--column", "bold"], [[r["chosen_bold"], 0.5] for r in rows]),
    ):
        assert calibrate(source, out, "--method", "penalty", "--alpha", 0.5, *options) == 0
        want = flat(rows) - 0.5 * np.array(feature, float).ravel()
        np.testing.assert_allclose(flat(read(out), "calibrated_"), want, rtol=0, atol=1e-12)
    for make, column in ((ranking_rows, "lengths"), (single_rows, "length")):
        rows = [{k: v for k, v in r.items() if not k.startswith("response")} for r in make(30)]
        source = write(tmp_path / f"{column}.jsonl", rows)
        assert calibrate(source, out, "--feature", "column", "--method", "penalty", "--alpha", 2) == 0
        x = np.hstack([r[column] for r in rows])
        np.testing.assert_allclose(flat(read(out), "calibrated_"), flat(rows) - 2 * x)


def test_responses_as_messages_and_with_their_prompt(tmp_path):
    rows = pair_rows(40)
    message = [{"role": "assistant", "content": "x"}]
    changed = [
        [r | {k: [message[0] | {"content": r[k]}] for k in ("chosen", "rejected")} | {"prompt": []} for r in rows],
        [
            {k: v for k, v in r.items() if k != "prompt"} | {k: f"Why? #{i}# {r[k]}" for k in ("chosen", "rejected")}
            for i, r in enumerate(rows)
        ],
    ]
    outs = []
    for i, version in enumerate([rows, *changed]):
        source, out = write(tmp_path / f"{i}.jsonl", version), tmp_path / f"{i}-out.jsonl"
        assert calibrate(source, out, "--method", "penalty", "--alpha", 1) == 0
        outs.append(flat(read(out), "calibrated_"))
    np.testing.assert_array_equal(outs[1], outs[0])
    # What both begin with is the prompt; where the responses begin alike it takes of them, as in TRL.
    a, b = (o.reshape(-1, 2) for o in (outs[0], outs[2]))
    np.testing.assert_allclose(b[:, 0] - b[:, 1], a[:, 0] - a[:, 1], atol=1e-12)


# What is refused.


@pytest.mark.parametrize("method", ["penalty", "uniform"])
def test_calibrated_scores_that_overflow_are_refused(tmp_path, capsys, method):
    """JSON has no infinity: no reader would take such a file."""
    rows = [{"score": (-1) ** i * 1e308, "response": "a" * (i + 1)} for i in range(20)]
    error = fails(
        capsys, write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", "--method", method, "--alpha", 1e308
    )
    assert "must be finite, got" in error and "Warning" not in error
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"chosen_score": 1.0}, [], "must have a key 'rejected_score', got chosen_score"),
        ({"chosen_score": 1.0, "rejected_score": None}, [], "rejected_score must be a number, got None"),
        ({"chosen_score": True, "rejected_score": 1}, [], "chosen_score must be a number, got True"),
        ({"chosen_score": float("inf"), "rejected_score": 1}, [], "chosen_score must be finite, got inf"),
        ({"chosen_score": 1, "rejected_score": 1, "chosen": "a"}, [], "must have a key 'rejected', got"),
        (
            {"chosen_score": 1, "rejected_score": 1, "chosen": "a", "rejected": 3},
            [],
            "rejected must be a text or a list of messages, got 3",
        ),
        (
            {"chosen_score": 1, "rejected_score": 1, "chosen_length": 2},
            ["--feature", "column"],
            "must have a key 'rejected_length', got",
        ),
        (
            {"chosen_score": 1, "rejected_score": 1, "chosen_length": 2, "rejected_length": "x"},
            ["--feature", "column"],
            "rejected_length must be a number, got 'x'",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, capsys, row, options, message):
    good = [r | {"chosen_length": 1, "rejected_length": 2} for r in pair_rows(30)]
    source, out = write(tmp_path / "in.jsonl", [*good[:20], row, *good[20:]]), tmp_path / "out.jsonl"
    out.write_text("before\n")
    assert f"in.jsonl, line 21: {message}" in fails(capsys, source, out, *options)
    assert out.read_text() == "before\n", "what was there stays until all is done"
    assert calibrate(source, out, *options, "--on-error", "skip") == 0
    assert f"{out}: 30 rows, 1 skipped" in capsys.readouterr().out
    # As if the row were not there: it is not in the curve, either.
    assert calibrate(write(tmp_path / "good.jsonl", good), tmp_path / "want.jsonl", *options) == 0
    assert read(out) == read(tmp_path / "want.jsonl")
    (skipped,) = read(tmp_path / "out.jsonl.skipped.jsonl")
    assert message in skipped["error"] and skipped["place"].endswith("line 21")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"scores": []}, "scores must be a non-empty list, got []"),
        ({"scores": 3}, "scores must be a list of numbers, got 3"),
        ({"scores": [1, "x"]}, "scores[1] must be a number, got 'x'"),
        ({"scores": [1, 2]}, "must have a key 'responses', got scores"),
        ({"scores": [1, 2], "responses": "ab"}, "responses must be a list, got 'ab'"),
        ({"scores": [1, 2], "responses": ["a"]}, "responses must have 2 elements like scores, got 1"),
        ({"scores": [1, 2], "responses": ["a", 5]}, "response must be a text or a list of messages, got 5"),
    ],
)
def test_bad_rankings_are_named(tmp_path, capsys, row, message):
    source = write(tmp_path / "in.jsonl", [*ranking_rows(3), row])
    assert f"in.jsonl, line 4: {message}" in fails(capsys, source, tmp_path / "out.jsonl")


def test_bad_files(tmp_path, capsys):
    rows = pair_rows(3)
    out = tmp_path / "out.jsonl"
    assert "none.jsonl: no such file" in fails(capsys, tmp_path / "none.jsonl", out)
    assert "empty.jsonl: must have at least one row, got none" in fails(
        capsys, write(tmp_path / "empty.jsonl", []), out
    )
    texts = [{"chosen": "a", "rejected": "b"}]
    for name in ("texts.jsonl", "texts.parquet"):
        message = fails(capsys, write(tmp_path / name, texts), out)
        assert "chosen_score and rejected_score, scores or score" in message
    again = write(tmp_path / "again.jsonl", [r | {"calibrated_chosen_score": 1.0} for r in rows])
    assert "again.jsonl, line 1: must not have a column 'calibrated_chosen_score', because" in fails(capsys, again, out)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(rows[0]) + "\n{\n")
    assert "broken.jsonl, line 2: must be JSON" in fails(capsys, broken, out)
    assert "must end in .jsonl" in fails(capsys, write(tmp_path / "in.jsonl", rows), tmp_path / "out.csv")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--feature", "tokens"], "--feature tokens requires --tokenizer"),
        (["--tokenizer", "x"], "--feature tokens requires --tokenizer"),
        (["--column", "bold"], "--column requires --feature column"),
        (["--method", "uniform", "--delta", "1"], "--delta requires --method lowess, got uniform"),
        (["--method", "penalty", "--frac", "0.5"], "--frac requires --method lowess or uniform, got penalty"),
        (["--method", "penalty", "--feature", "column"], "--method penalty with --feature column requires --alpha"),
        (["--frac", "0"], "--frac must be in (0, 1], got 0.0"),
        (["--frac", "1.5"], "--frac must be in (0, 1], got 1.5"),
        (["--delta", "-1"], "--delta must be at least 0 and finite, got -1.0"),
        (["--alpha", "nan"], "--alpha must be finite, got nan"),
        (["--method", "loess"], "invalid choice: 'loess'"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, message):
    source = write(tmp_path / "in.jsonl", pair_rows(3))
    with pytest.raises(SystemExit):
        calibrate(source, tmp_path / "out.jsonl", *arguments)
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        calibrate(source, source)
    assert "--out must be another file than SCORES" in capsys.readouterr().err


def test_many_distinct_values_are_told_of(tmp_path, monkeypatch, capsys):
    rows = single_rows(80)
    distinct = len({r["length"] for r in rows})
    monkeypatch.setattr("pcrm.evaluate.length_bias._MANY", distinct - 1)
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    x = lengths_of(rows)
    said = f"the feature has {distinct} distinct values, and the time to fit the curve grows with their square. To speed it up, add --delta {np.ptp(x) / 100:g}"
    assert calibrate(source, out) == 0
    assert said in capsys.readouterr().err
    for quiet in (["--delta", 1], ["--method", "uniform"]):
        assert calibrate(source, out, *quiet) == 0
        assert "distinct" not in capsys.readouterr().err


def test_the_statistics_refuse_what_is_wrong():
    x = np.arange(3.0)
    for call, message in (
        (
            lambda: statistics.calibrate(x, x[:2], method="lowess", alpha=1),
            "arrays must have the same length, got 3 and 2",
        ),
        (
            lambda: statistics.calibrate(x / [1, 0, 1], x, method="lowess", alpha=1),
            r"scores\[1\] must be finite, got \+Inf",
        ),
        (
            lambda: statistics.calibrate(x, x, method="mean", alpha=1),
            'method must be lowess, uniform or penalty, got "mean"',
        ),
        (lambda: statistics.calibrated(x, x[:2]), "arrays must have the same length, got 3 and 2"),
    ):
        with np.errstate(divide="ignore"), pytest.raises(ValueError, match=message):
            call()


# In the report.


def report(out, *arguments):
    assert cli.main(["report", "--out", str(out), *map(str, arguments)]) == 0
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_report_says_what_it_changed(tmp_path, suffix):
    rows = pair_rows(400)
    source, out = write(tmp_path / f"in{suffix}", rows), tmp_path / f"out{suffix}"
    assert calibrate(source, out) == 0
    got, before = report(tmp_path / "report", out), report(tmp_path / "before", source)
    scores, after = (flat(r, p).reshape(-1, 2) for r, p in ((rows, ""), (read(out), "calibrated_")))
    margins, calibrated = scores[:, 0] - scores[:, 1], after[:, 0] - after[:, 1]
    assert got["accuracy_calibrated"] == pytest.approx((calibrated > 0).mean())
    flips = (np.sign(margins) != np.sign(calibrated)).mean()
    assert got["flip_rate"] == pytest.approx(flips) and 0.1 < flips < 0.9
    half = 1.96 * np.sqrt(flips * (1 - flips) / 400)
    np.testing.assert_allclose(got["flip_rate_ci"], [flips - half, flips + half], atol=0.3 * half)
    assert {k: got[k] for k in before} == before, "all else is of the scores themselves"
    for key in ("nll", "brier", "ece"):
        assert got[f"{key}_calibrated"] == pytest.approx(statistics.pairs(calibrated)[key][0], abs=1e-12)
    added = {f"{key}_calibrated" for key in ("accuracy", "nll", "brier", "ece")} | {"flip_rate"}
    assert got.keys() - before.keys() == added | {f"{key}_ci" for key in added}
    page = (tmp_path / "report" / "report.html").read_text()
    assert "… of calibrated scores" in page and "Pairs whose order changes with calibration" in page
    assert f"{100 * flips:.1f}%" in page
    assert "of calibrated scores" not in (tmp_path / "before" / "report.html").read_text()


def test_report_reads_the_other_kinds_too(tmp_path):
    for kind in ("rankings", "single"):
        rows = [r | ({"ratings": r["lengths"]} if kind == "rankings" else {}) for r in ROWS[kind](30)]
        source, out = write(tmp_path / f"{kind}.jsonl", rows), tmp_path / f"{kind}-out.jsonl"
        assert calibrate(source, out) == 0
        assert report(tmp_path / "out", out) == report(tmp_path / "in", source)


def test_report_refuses_half_of_it(tmp_path, capsys):
    good = [r | {"calibrated_chosen_score": 1.0, "calibrated_rejected_score": 2.0} for r in pair_rows(5)]
    half = {k: v for k, v in good[0].items() if k != "calibrated_rejected_score"}
    none = pair_rows(1)[0]
    for row, message in (
        (half, "must have a key 'calibrated_rejected_score', got"),
        (none, "must have a calibrated score as "),
        (good[0] | {"calibrated_chosen_score": "x"}, "calibrated_chosen_score must be a number, got 'x'"),
    ):
        source = write(tmp_path / "in.jsonl", [*good, row])
        assert cli.main(["report", str(source), "--out", str(tmp_path / "out")]) == 1
        assert f"in.jsonl, line 6: {message}" in capsys.readouterr().err
