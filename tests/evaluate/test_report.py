"""pcrm report: its statistics against scipy, scikit-learn and statsmodels, its files against what they should hold."""

import gzip
import json
import re
import runpy
import sys
import xml.etree.ElementTree as ET

import html5lib
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from helpers.files import write
from helpers.project import ROOT
from pcrm.evaluate import statistics
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from statsmodels.nonparametric.smoothers_lowess import lowess
from statsmodels.stats.proportion import proportion_confint

import pcrm
from pcrm import cli


def report(out, *arguments):
    return cli.main(["report", "--out", str(out), *map(str, arguments)])


def summary(out):
    return json.loads((out / "summary.json").read_text())


def pair_rows(n=300, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        a, b = random.integers(1, 80, 2)
        rows.append(
            {
                "prompt": "p",
                "chosen": "ü" * a,
                "rejected": "b" * b,
                "prior": float(random.random()),
                "chosen_score": round(float(random.normal(0.6 + a / 60, 1.5)), 2),
                "rejected_score": round(float(random.normal(b / 60, 1.5)), 2),
            }
        )
    return rows


def ranking_rows(n=40, seed=1):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        ratings = random.integers(1, 8, random.integers(3, 9))
        scores = (0.4 * ratings + random.normal(size=len(ratings))).round(1)
        rows.append({"ratings": ratings.tolist(), "scores": scores.tolist(), "responses": ["r" * k for k in ratings]})
    return rows


# The statistics.


@pytest.mark.parametrize("n", [2, 3, 50, 600, 20_000])
@pytest.mark.parametrize("values", [2, 10, 10**9])
def test_rank_correlations(n, values):
    random = np.random.default_rng([n, values])
    x = random.integers(0, values, n).astype(float)
    y = np.where(random.random(n) < 0.5, x, random.integers(0, values, n)) - 5.0
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(statistics.spearman(x, y)) and np.isnan(statistics.kendall_tau_b(x, y))
        return
    # Sums of n terms of up to 1, of float64.
    assert statistics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)
    assert statistics.kendall_tau_b(x, y) == pytest.approx(scipy.stats.kendalltau(x, y)[0], abs=1e-12)


@pytest.mark.parametrize(("frac", "iterations"), [(2 / 3, 3), (0.2, 0), (0.05, 5), (1.0, 1)])
@pytest.mark.parametrize("ties", [False, True])
def test_lowess(frac, iterations, ties):
    random = np.random.default_rng(0)
    x = random.gamma(3, 30, 700)
    x = x.round() if ties else x
    y = np.sin(x / 40) + 0.2 * random.standard_cauchy(len(x))
    theirs = lowess(y, x, frac=frac, it=iterations, delta=0.0, return_sorted=False)
    np.testing.assert_allclose(
        statistics.lowess(x, y, frac=frac, iterations=iterations), theirs, atol=1e-9 * np.abs(y).max()
    )


def test_lowess_with_delta():
    """The same fits are skipped, at the end of the points too."""
    random = np.random.default_rng(1)
    for delta in (0.5, 7.0, 60.0, 1e4):
        x = np.sort(random.gamma(3, 30, 400)).round(1)
        y = np.log1p(x) + random.normal(size=len(x))
        theirs = lowess(y, x, delta=delta, return_sorted=False)
        np.testing.assert_allclose(statistics.lowess(x, y, delta=delta), theirs, atol=1e-9)


def test_quantiles_and_histogram():
    x = np.random.default_rng(2).normal(size=1001).round(1)
    p = np.linspace(0, 1, 33)
    np.testing.assert_allclose(statistics.quantiles(x, p), np.quantile(x, p), atol=1e-14)
    for bins, low, high in ((20, -2.0, 2.0), (7, -0.35, 1.3), (1, 0.0, 0.1)):
        counts, _ = np.histogram(x, bins, (low, high))
        assert statistics.histogram(x, bins, low, high).tolist() == counts.tolist()


@pytest.mark.slow
def test_pairs_against_scipy_and_scikit_learn():
    random = np.random.default_rng(3)
    m = random.normal(0.8, 2, 5001).round(2)
    difference = random.integers(-50, 50, len(m)).astype(float)
    delta = random.uniform(1, 6, len(m))
    got = {k: v[0] for k, v in statistics.pairs(m, difference, delta).items()}
    assert 0 < got.pop("ece") < got["ece_plugin"] and got.pop("ece_by_loss") > 0
    p = scipy.special.expit(m)
    correct, confidence = m > 0, np.maximum(p, 1 - p)

    def loss(inverse):
        return -scipy.special.log_expit(m * inverse).mean()

    # calibration_curve wants probabilities in [0, 1]: its ten bins of these are ours of [0.5, 1].
    accuracy, mean = calibration_curve(correct, 2 * confidence - 1, n_bins=10)
    counts = np.histogram(2 * confidence - 1, 10, (0, 1))[0]
    expected = {
        "accuracy": correct.mean(),
        "accuracy_longer_chosen": correct[difference > 0].mean(),
        "accuracy_shorter_chosen": correct[difference < 0].mean(),
        "margin/mean": m.mean(),
        "margin/sd": m.std(),
        "margin/share_over_5": (m > 5).mean(),
        "margin/share_over_10": (m > 10).mean(),
        "ece_plugin": (np.abs(accuracy - (mean + 1) / 2) * counts).sum() / len(m),
        "nll": log_loss(np.ones(len(m)), p, labels=[0, 1]),
        "brier": brier_score_loss(np.ones(len(m)), p, pos_label=1),
        "temperature": 1 / scipy.optimize.minimize_scalar(loss, (0.01, 1), tol=1e-12).x,
        "spearman_margin_length_difference": scipy.stats.spearmanr(m, difference)[0],
        "residual/mean": (m - delta / 2).mean(),
        "residual/sd": (m - delta / 2).std(),
        "violation_rate": (m > delta).mean(),
        "ruled_out_by_loss": (m <= -delta / 2).mean(),
        "brier_by_loss": ((1 - pcrm.win_probability(m, delta)) ** 2).mean(),
    } | {f"margin/quantiles/{q}": np.quantile(m, q) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}
    assert got.keys() == expected.keys()
    # A minimum is found to the square root of the precision.
    assert got.pop("temperature") == pytest.approx(expected.pop("temperature"), rel=1e-7)
    assert got == pytest.approx(expected, abs=1e-12)


def test_reliability():
    m = np.random.default_rng(4).normal(0.5, 2, 3000)
    count, confidence, accuracy, low, high = statistics.reliability(m)
    c = scipy.special.expit(np.abs(m))
    theirs, mean = calibration_curve(m > 0, 2 * c - 1, n_bins=10)
    assert count.sum() == len(m)
    np.testing.assert_allclose(accuracy, theirs, atol=1e-14)
    np.testing.assert_allclose(confidence, (mean + 1) / 2, atol=1e-14)
    ends = proportion_confint((accuracy * count).round(), count, method="wilson")
    np.testing.assert_allclose([low, high], ends, atol=1e-14)


def test_intervals_against_scipy_bootstrap():
    """Of the percentiles of 1000 draws each: their ends differ by some 5% of the width."""
    m = np.random.default_rng(5).normal(1, 2, 500)
    ours = statistics.pairs(m)
    for key, statistic in (("margin/mean", np.mean), ("margin/sd", np.std), ("margin/quantiles/0.5", np.median)):
        theirs = scipy.stats.bootstrap(
            (m,), statistic, n_resamples=1000, method="percentile", rng=0
        ).confidence_interval
        width = theirs.high - theirs.low
        assert ours[key][1:] == pytest.approx(tuple(theirs), abs=0.2 * width), key


@pytest.mark.parametrize("k", [1.0, 0.7], ids=["calibrated", "too sure"])
def test_intervals_of_the_calibration_error_cover(k):
    """At least 90% of 200 draws hold the true error, as benchmarks/calibration.py measures for many more."""
    random = np.random.default_rng(7)

    def draw(n):
        size = np.abs(1.5 * random.normal(size=n))
        return np.where(random.random(n) < scipy.special.expit(k * size), size, -size)

    true = statistics.calibration_error(draw(200_000))[0] if k < 1 else 0.0
    assert true == pytest.approx(0.053 if k < 1 else 0, abs=0.002)
    found = [statistics.calibration_error(draw(200)) for _ in range(200)]
    assert sum(low <= true <= high for _, low, high in found) >= 180
    assert all(0 <= low <= value <= high <= 1 for value, low, high in found)
    m = draw(200)
    assert statistics.pairs(m)["ece"] == statistics.calibration_error(m)


def test_the_simulation_of_the_docs_runs(monkeypatch, capsys):
    """Its first line is that of docs/report.md but for the number of draws."""
    monkeypatch.setattr(sys, "argv", ["calibration.py", "--draws", "20"])
    runpy.run_path(str(ROOT / "benchmarks" / "calibration.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert "| " + " | ".join(cells[0]) + " |" in (ROOT / "docs" / "report.md").read_text()
    assert [c[:3] for c in cells[2:5]] == [["none", "0", n] for n in ("200", "500", "2,000")]
    assert len(cells) == 2 + 18 and min(float(c[5].rstrip("%")) for c in cells[2:]) >= 80


def test_statistics_refuse_what_is_not_finite():
    x, bad = np.arange(3.0), np.array([0.0, np.nan, 1.0])
    for call, message in (
        (lambda: statistics.spearman(x, bad), r"^y\[1\] must be finite, got NaN"),
        (lambda: statistics.lowess(bad, x), r"^x\[1\] must be finite, got NaN"),
        (lambda: statistics.lowess(x, x, frac=2), r"^frac must be in \[0, 1\], got 2"),
        (lambda: statistics.pairs(bad), r"^margins\[1\] must be finite, got NaN"),
        (lambda: statistics.pairs(x, x[:2]), r"^arrays must have the same length, got 3 and 2"),
        (lambda: statistics.pairs(np.empty(0)), r"^margins must have at least one number, got none"),
        (lambda: statistics.rankings(x, x, np.array([0, 2])), r"^offsets must run from 0 to 3"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# The command.


@pytest.mark.slow
def test_summary_has_the_keys_and_the_numbers(tmp_path):
    rows, rankings = pair_rows(), ranking_rows()
    scores = write(tmp_path / "scores.jsonl", [*rows, *rankings])
    assert report(tmp_path / "out", scores, "--preset", "alpaca/length_ratio") == 0
    got = summary(tmp_path / "out")
    plain = ["accuracy", "accuracy_longer_chosen", "accuracy_shorter_chosen", "ece", "nll", "brier", "temperature"]
    plain += ["spearman_score_length", "spearman_margin_length_difference", "violation_rate"]
    plain += ["ece_by_loss", "brier_by_loss", "ruled_out_by_loss"]
    plain += [f"{p}{k}_rating" for p in ("", "pooled_") for k in ("spearman", "kendall_tau_b")]
    assert got["ruled_out_by_loss"] > 0, "a margin is under -delta/2"
    assert got.pop("nll_by_loss") is None and got.pop("nll_by_loss_ci") == [None, None]
    assert got.pop("ece_plugin") > got["ece"] and got.pop("ece_plugin_ci") == [None, None]
    assert got.keys() == {*plain, *(f"{k}_ci" for k in plain), "margin", "residual"}
    assert got["residual"].keys() == {"mean", "mean_ci", "sd", "sd_ci"}
    inner = {"mean", "sd", "share_over_5", "share_over_10", "quantiles"}
    assert got["margin"].keys() == inner | {f"{k}_ci" for k in inner}
    assert got["margin"]["quantiles"].keys() == got["margin"]["quantiles_ci"].keys() >= {"0.05", "0.5", "0.95"}
    for key in plain:
        low, high = got[f"{key}_ci"]
        assert isinstance(got[key], (int, float)) and low <= got[key] <= high, key

    m = np.array([r["chosen_score"] - r["rejected_score"] for r in rows])
    delta = pcrm.Constraint.preset("alpaca/length_ratio").delta(np.array([r["prior"] for r in rows]))
    assert got["accuracy"] == pytest.approx((m > 0).mean())
    assert got["residual"]["mean"] == pytest.approx((m - delta / 2).mean())
    assert got["violation_rate"] == pytest.approx((m > delta).mean())
    lengths = [(r[f"{k}_score"], len(r[k])) for r in rows for k in ("chosen", "rejected")]
    lengths += [(s, len(t)) for r in rankings for s, t in zip(r["scores"], r["responses"], strict=True)]
    assert got["spearman_score_length"] == pytest.approx(scipy.stats.spearmanr(*zip(*lengths, strict=True))[0])
    of_each = [scipy.stats.kendalltau(r["scores"], r["ratings"])[0] for r in rankings]
    assert got["kendall_tau_b_rating"] == pytest.approx(np.nanmean(of_each))
    pooled = [[x for r in rankings for x in r[k]] for k in ("scores", "ratings")]
    assert got["pooled_spearman_rating"] == pytest.approx(scipy.stats.spearmanr(*pooled)[0])

    again = (tmp_path / "out" / "report.html").read_bytes()
    assert report(tmp_path / "out", scores, "--preset", "alpaca/length_ratio") == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == again, "the same rows give the same page"


def test_what_is_missing_leaves_its_keys_out(tmp_path):
    rows = [{k: r[k] for k in ("chosen_score", "rejected_score")} for r in pair_rows(20)]
    assert report(tmp_path / "out", write(tmp_path / "a.jsonl", rows), "--preset", "alpaca/length_ratio") == 0
    got = summary(tmp_path / "out")
    assert {"accuracy", "ece", "margin"} <= got.keys()
    assert (
        not {"residual", "violation_rate", "accuracy_longer_chosen", "spearman_score_length", "spearman_rating"}
        & got.keys()
    )
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.svg")) == ["calibration", "margins"]
    # A fixed constraint needs no prior.
    assert report(tmp_path / "fixed", tmp_path / "a.jsonl", "--preset", "alpaca/fixed") == 0
    assert summary(tmp_path / "fixed")["residual"]["mean"] == pytest.approx(got["margin"]["mean"] - 2.25)


BY_LOSS = ("nll_by_loss", "ece_by_loss", "brier_by_loss", "ruled_out_by_loss")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_calibration_by_the_loss(tmp_path, capsys, ending):
    """By the rows' own deltas, whatever constraint is named, and beside a model that has none."""
    rows = [r | {"delta": 30 - 12 * r["prior"]} for r in pair_rows(200)]
    path, plain = tmp_path / f"own.{ending}", write(tmp_path / "plain.jsonl", pair_rows(200))
    if ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    assert report(tmp_path / "out", path, plain) == 0
    got = summary(tmp_path / "out")["models"]
    assert not {*BY_LOSS, "violation_rate"} & got["plain"].keys() and {*BY_LOSS} < got["own"].keys()
    m = np.array([r["chosen_score"] - r["rejected_score"] for r in rows])
    p = pcrm.win_probability(m, np.array([r["delta"] for r in rows]))
    got = got["own"]
    assert got["nll_by_loss"] == pytest.approx(log_loss(np.ones(len(m)), p, labels=[0, 1]), rel=1e-12)
    assert got["brier_by_loss"] == pytest.approx(brier_score_loss(np.ones(len(m)), p, pos_label=1), rel=1e-12)
    # Margins of an equal confidence by sigmoid: their bins are those of the loss.
    alike = statistics.calibration_error(scipy.special.logit(p))
    assert (got["ece_by_loss"], *got["ece_by_loss_ci"]) == pytest.approx(alike, rel=1e-9)
    assert got["ruled_out_by_loss"] == 0 and got["nll_by_loss"] != got["nll"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        "It is meaningful only for models that were trained with these constraints" in page and "Dotted: P is" in page
    )
    table = capsys.readouterr().out
    assert re.search(r"Pairs with probability 0 under the loss +0\.0% +\N{EN DASH}", table)

    assert report(tmp_path / "flag", path, "--preset", "alpaca/fixed") == 0
    assert all(summary(tmp_path / "flag")[key] == got[key] for key in (*BY_LOSS, "violation_rate"))


def test_a_choice_that_the_loss_rules_out(tmp_path, capsys):
    rows = [{"chosen_score": m, "rejected_score": 0.0} for m in (1.0, 2.0, -1.0, -2.25)]
    path = write(tmp_path / "a.jsonl", rows)
    assert report(tmp_path / "out", path, "--preset", "alpaca/fixed") == 0
    got = summary(tmp_path / "out")
    assert (got["ruled_out_by_loss"], got["nll_by_loss"], got["nll_by_loss_ci"]) == (0.25, None, [None, None])
    assert re.search(r"NLL\).*\n\N{HORIZONTAL ELLIPSIS} with the loss.s probability +∞\n", capsys.readouterr().out)
    (tmp_path / "pcrm.toml").write_text("[constraint]\nprior = 'fixed'\ndelta = inf\n")
    assert report(tmp_path / "plain", path, "--constraint", tmp_path / "pcrm.toml") == 0
    assert not {*BY_LOSS} & summary(tmp_path / "plain").keys()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet", "folder"])
def test_formats(tmp_path, ending):
    rows = pair_rows(50)
    assert report(tmp_path / "want", write(tmp_path / "want.jsonl", rows)) == 0
    path = tmp_path / f"scores.{ending}"
    if ending == "jsonl.gz":
        path.write_bytes(gzip.compress(b"\n".join(json.dumps(r).encode() for r in rows)))
    elif ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "folder":
        from datasets import Dataset

        Dataset.from_list(rows).save_to_disk(path)
    else:
        write(path, rows)
    assert report(tmp_path / "out", path) == 0
    assert summary(tmp_path / "out") == summary(tmp_path / "want")


def as_messages(row):
    return (
        row
        | {"prompt": [{"role": "user", "content": "p"}]}
        | {k: [{"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")}
    )


def with_prompt(row):
    del (row := dict(row))["prompt"]
    # Of another length in each row: what all scores have in common would change no rank.
    return row | {k: f"{'Why' * len(row['rejected'])}? {row[k]}" for k in ("chosen", "rejected")}


def with_lengths(row):
    return {k: row[k] for k in ("chosen_score", "rejected_score", "prior")} | {
        f"{k}_length": len(row[k]) for k in ("chosen", "rejected")
    }


@pytest.mark.slow
@pytest.mark.parametrize("change", [as_messages, with_prompt, with_lengths])
def test_lengths_are_those_of_the_responses(tmp_path, change):
    """However they are given. Texts that begin with their prompt lose it, and its last space is theirs."""
    rows = pair_rows(60)
    assert report(tmp_path / "want", write(tmp_path / "a.jsonl", rows)) == 0
    assert report(tmp_path / "out", write(tmp_path / "b.jsonl", [change(r) for r in rows])) == 0
    assert summary(tmp_path / "out") == summary(tmp_path / "want")


def test_single_responses(tmp_path):
    rows = [{"score": s, "response": "x" * n} for s, n in ((1.5, 3), (0.5, 1), (2.5, 2), (0, 9), (3, 12))]
    assert report(tmp_path / "out", write(tmp_path / "a.jsonl", rows)) == 0
    got = summary(tmp_path / "out")
    assert got.keys() == {"spearman_score_length", "spearman_score_length_ci"}
    assert got["spearman_score_length"] == pytest.approx(0.3)
    messages = [r | {"response": [{"role": "assistant", "content": r["response"]}]} for r in rows]
    assert report(tmp_path / "messages", write(tmp_path / "b.jsonl", messages)) == 0
    assert summary(tmp_path / "messages") == got


@pytest.mark.slow
def test_what_pcrm_score_writes(tmp_path, tiny, rows):
    rankings = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "ratings": [2, 1]} for r in rows[:8]]
    for name, data in (("pairs", rows[:8]), ("rankings", rankings)):
        write(tmp_path / f"{name}.jsonl", data)
        assert (
            cli.main(
                ["score", str(tiny), str(tmp_path / f"{name}.jsonl"), "--out", str(tmp_path / f"{name}-scores.jsonl")]
            )
            == 0
        )
    assert report(tmp_path / "out", *(f"tiny={tmp_path / name}-scores.jsonl" for name in ("pairs", "rankings"))) == 0
    got = summary(tmp_path / "out")
    # Of two responses the correlation is 1 or -1, as the pair is right or not.
    assert got["spearman_rating"] == pytest.approx(2 * got["accuracy"] - 1)


@pytest.mark.slow
def test_several_models(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "scores.jsonl", pair_rows(seed=len(folder)))
    ranked = write(tmp_path / "ranked.jsonl", ranking_rows())
    files = [tmp_path / "one" / "scores.jsonl", f"b={tmp_path / 'two' / 'scores.jsonl'}", f"b={ranked}"]
    assert report(tmp_path / "out", *files, tmp_path / "two" / "scores.jsonl") == 0
    models = summary(tmp_path / "out")["models"]
    assert list(models) == ["one/scores", "b", "two/scores"]
    assert "spearman_rating" in models["b"] and "spearman_rating" not in models["two/scores"]
    assert models["b"]["accuracy"] == models["two/scores"]["accuracy"]
    # A model has its color in every figure: the rankings, which it alone has, are the second one's.
    from pcrm.evaluate.pages.style import SERIES

    text = (tmp_path / "out" / "rankings.svg").read_text().rsplit("</style>", 1)[1]
    assert SERIES[1] in text and SERIES[0] not in text


@pytest.mark.slow
def test_the_page_needs_nothing_else(tmp_path):
    scores = write(tmp_path / "a<b.jsonl", [*pair_rows(40), *ranking_rows()])
    toml = tmp_path / "pcrm.toml"
    toml.write_text("[constraint]\nbeta1 = 1.0\nbeta3 = 1.0\n")
    assert report(tmp_path / "out", scores, "--constraint", toml) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    page = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)  # raises where it is no HTML 5
    ids = [e.get("id") for e in page.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in used} <= set(ids)
    assert not re.findall(r'(?:src|href)="(?!#)', text) and "@import" not in text and "<script" not in text
    assert page.find(".//title").text == "a<b"
    headings = [h.text for h in page.iter("h2")]
    assert headings == [
        "Margins",
        "Calibration",
        "Margin against prior",
        "Score against length",
        "Rank correlation by prompt",
    ]
    assert "beta1=1.0" in page.find(".//footer").text
    assert "prefers-color-scheme:dark" in text and "@media print" in text


@pytest.mark.slow
def test_figures_are_svg_of_text_and_every_color_has_a_dark_one(tmp_path):
    assert report(tmp_path / "out", write(tmp_path / "a.jsonl", [*pair_rows(), *ranking_rows()])) == 0
    files = sorted((tmp_path / "out").glob("*.svg"))
    assert [f.stem for f in files] == ["calibration", "length", "margins", "prior", "rankings"]
    for file in files:
        text = file.read_text()
        root = ET.fromstring(text)
        assert root.get("viewBox") and root.get("width").endswith("pt")
        assert list(root.iter("{http://www.w3.org/2000/svg}text")), "text is text"
        sheet, drawing = text.split("</style>", 1)
        for color in set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawing)):
            assert f'"fill: {color}"' in sheet, f"{color} in {file.name} stays as it is on a dark page"
        assert "DejaVu" not in text


@pytest.mark.slow
def test_all_pairs_are_drawn(tmp_path):
    """Each as a point where they are few; beyond that as hexagons, so that the file stays small."""
    assert report(tmp_path / "few", write(tmp_path / "few.jsonl", pair_rows(250))) == 0
    assert (tmp_path / "few" / "prior.svg").read_text().count("<use ") >= 250
    random = np.random.default_rng(0)
    n = 50_000
    import pyarrow
    import pyarrow.parquet

    columns = {k: random.normal(size=n) for k in ("chosen_score", "rejected_score")}
    columns |= {"prior": random.random(n)} | {
        k: random.integers(1, 999, n) for k in ("chosen_length", "rejected_length")
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "many.parquet")
    assert report(tmp_path / "many", tmp_path / "many.parquet") == 0
    assert (tmp_path / "many" / "report.html").stat().st_size < 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen_score": 1.0}, "must have a key 'rejected_score', got chosen_score"),
        ({"chosen_score": 1.0, "rejected_score": "x"}, "rejected_score must be a number, got 'x'"),
        ({"chosen_score": 1.0, "rejected_score": float("nan")}, "rejected_score must be finite, got nan"),
        ({"chosen_score": True, "rejected_score": 1.0}, "chosen_score must be a number, got True"),
        ({"chosen_score": 1.0, "rejected_score": 1.0, "prior": 1.5}, "prior must be in [0, 1], got 1.5"),
        ({"chosen_score": 1.0, "rejected_score": 1.0, "prior": 0.5, "delta": 0}, "delta must be greater than 0, got 0"),
        (
            {"chosen_score": 1.0, "rejected_score": 1.0, "prior": 0.5, "delta": float("inf")},
            "delta must be finite, got inf",
        ),
        (
            {"chosen_score": 1.0, "rejected_score": 1.0, "prior": 0.5, "chosen_length": 3},
            "must have a key 'rejected_length', got ",
        ),
        ({"chosen_score": 1.0, "rejected_score": 1.0}, "must have a prior as "),
        (
            {"scores": [1.0], "score": 2.0},
            "must have the keys chosen_score and rejected_score, or scores and ratings, or score, got those of a ranking and a score",
        ),
        ({"scores": [1.0, 2.0], "ratings": [1]}, "ratings must have 2 elements like scores, got 1"),
        ({"scores": [1.0, None], "ratings": [1, 2]}, "scores[1] must be a number, got None"),
        ({"scores": 3, "ratings": [1, 2]}, "scores must be a list of numbers, got 3"),
        ({"scores": [], "ratings": []}, "scores must be a non-empty list, got []"),
        ({"scores": [1], "ratings": [1], "responses": ["a", "b"]}, "responses must have 1 elements like scores, got 2"),
        ({"score": 1.0, "response": 5}, "response must be a text or a list of messages, got 5"),
        (
            {"text": "?"},
            "must have the keys chosen_score and rejected_score, or scores and ratings, or score, got text",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, capsys, row, message):
    """Among five thousand good ones."""
    good = {"chosen_score": 1.0, "rejected_score": 0.5, "prior": 0.5, "chosen_length": 3, "rejected_length": 4}
    rows = [good] * 5000
    path = write(tmp_path / "a.jsonl", [*rows[:4500], row, *rows[4500:]])
    assert report(tmp_path / "out", path) == 1
    assert f"a.jsonl, line 4501: {message}" in capsys.readouterr().err


def test_bad_files_and_arguments(tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", pair_rows(3))
    empty = write(tmp_path / "empty.jsonl", [])
    for arguments, message in (
        ([empty], "empty.jsonl: must have at least one row, got none"),
        ([tmp_path / "none.jsonl"], "none.jsonl: no such file"),
        ([good, "--preset", "alpaca/typo"], "preset must be one of alpaca/cosine"),
        (
            [good, "--preset", "alpaca/random"],
            "constraint must be a curve over the prior, to compare margins with, got a random constraint",
        ),
        ([good, "--constraint", tmp_path / "none.toml"], "none.toml"),
    ):
        assert report(tmp_path / "out", *arguments) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report(tmp_path / "out")


@pytest.mark.slow
def test_the_table_is_printed(tmp_path, capsys):
    """With intervals for one model, with a column for each of several."""
    scores = write(tmp_path / "scores.jsonl", [*pair_rows(), *ranking_rows()])
    assert report(tmp_path / "out", scores) == 0
    got, printed = summary(tmp_path / "out"), capsys.readouterr().out
    low, high = got["nll_ci"]
    assert re.search(rf"^Negative log-likelihood \(NLL\) +{got['nll']:.3f} +\[{low:.3f}, {high:.3f}\]$", printed, re.M)
    assert re.search(rf"^Accuracy +{got['accuracy']:.1%}  +\[", printed, re.M)
    assert "\n\n\n" not in printed and printed.endswith(f"figures to {tmp_path / 'out'}\n")
    other = write(tmp_path / "other.jsonl", pair_rows(seed=5))
    assert report(tmp_path / "several", scores, f"b={other}") == 0
    a, b = summary(tmp_path / "several")["models"].values()
    printed = capsys.readouterr().out
    assert re.match(r"^ +scores +b\n", printed)
    assert re.search(rf"^Accuracy +{a['accuracy']:.1%} +{b['accuracy']:.1%}$", printed, re.M)
    assert re.search(r"^Spearman with the ratings, mean over prompts +0\.\d{3} +\u2013$", printed, re.M)


NAMES = [
    "Cost$5 $x^{",  # matplotlib's mathtext
    "a$\\q$",
    "<script>alert(1)</script>&amp;",
    "x\x01\x1b[31m\ny\u2028",
    "\udc80",  # a file name that is not UTF-8
    "url(#c) font: 9px x; font-family: y",  # what is rewritten in attributes
    "_hidden",
    "模型",  # not in matplotlib's font, whose width it would measure
    "{{ 7 * 7 }}",
]


def shown(name):
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def svg_texts(file):
    return [e.text for e in ET.parse(file).getroot().iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_shown_as_it_is(tmp_path, capsys, name):
    """On the page, in figures and on the terminal; what does not print is escaped."""
    principles = [{"principle": name, "chosen_score": 1.0, "rejected_score": 0.5}]
    rows = [row | {"scores_by_principle": principles} for row in pair_rows(40)]
    scores = write(tmp_path / "a.jsonl", rows)
    assert report(tmp_path / "one", f"{name}={scores}") == 0
    assert report(tmp_path / "two", f"{name}={scores}", f"b{name}={scores}") == 0
    printed = capsys.readouterr().out
    assert shown(f"b{name}") in printed and all(c.isprintable() or c == "\n" for c in printed)
    for folder, heading in (("one", name), ("two", "Reward model report")):
        page = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(
            (tmp_path / folder / "report.html").read_text()
        )
        assert page.find(".//h1").text == page.find(".//title").text == shown(heading)
        assert not list(page.iter("script"))
        assert f"By “{shown(name)}”: accuracy" in [e.text for e in page.iter("th")]
    assert [h.find("i").tail for h in page.find(".//thead").iter("th")] == [shown(name), shown(f"b{name}")]
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["models"].keys() == {name, f"b{name}"}
    for figure in ("margins", "calibration", "prior"):
        texts = svg_texts(tmp_path / "two" / f"{figure}.svg")
        assert {shown(name), shown(f"b{name}")} <= set(texts), figure


def test_a_bin_of_three_pairs_does_not_set_the_axis(monkeypatch):
    """It has an interval, which says how little it says."""
    from pcrm.evaluate.pages import style
    from pcrm.evaluate.report import figures

    random = np.random.default_rng(0)
    sizes = random.uniform(0, 2, 2000)  # confidences up to .9
    m = np.where(random.random(2000) < scipy.special.expit(sizes), sizes, -sizes)
    m = np.concatenate([m, [-3.5, -3.5, 3.5]])  # and three of .97, a third of them right
    drawn = []
    monkeypatch.setattr(style, "svg", lambda figure, *_: drawn.append(figure))
    with style.style():
        figures.calibration({"a": m}, {}, {}, ["a"])
    ax = drawn[0].axes[1]
    assert ax.get_ylim()[0] > 0.4
    (intervals,) = ax.collections
    count, confidence, accuracy, low, high = statistics.reliability(m)
    assert (count[-1], accuracy[-1]) == (3, pytest.approx(1 / 3))
    ends = [segment.tolist() for segment in intervals.get_segments()]
    assert ends[-1] == pytest.approx(np.array([[confidence[-1], low[-1]], [confidence[-1], high[-1]]]))
    assert len(ends) == (count > 0).sum()
