"""`pcrm fit`: from a column of similarities to a pcrm.toml."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from pcrm.settings import load_config

import pcrm
from pcrm import cli

S = np.random.default_rng(0).beta(4, 2, 501).round(3)
ROWS = [{"prompt": "p", "chosen": "a", "rejected": "b", "prior": s} for s in S.tolist()]
WANT = pcrm.Constraint.fit(S, target_alike=1, target_unlike=6)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def fit(*arguments):
    return cli.main(["fit", *map(str, arguments)])


def targets(alike=1, unlike=6):
    return "--target-alike", alike, "--target-unlike", unlike


@pytest.mark.parametrize("kind", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet", "folder"])
def test_every_kind_of_data(tmp_path, kind, capsys):
    path, out = tmp_path / kind, tmp_path / "pcrm.toml"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if kind == "folder":
        Dataset.from_list(ROWS).save_to_disk(path)
    elif kind.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes(gzip.compress(lines) if kind.endswith(".gz") else lines)
    assert fit(path, *targets(), "--out", out) == 0
    assert pcrm.Constraint.from_toml(out) == WANT
    assert load_config(out).prior == "column", "a trainer must not make another prior for these betas"
    text = out.read_text()
    assert f"501 pairs of {str(path)!r}, column 'prior'" in text and "target margin 6 (win probability 0.998)" in text
    assert (tmp_path / "pcrm.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in tmp_path.iterdir()} == {kind, "pcrm.toml", "pcrm.png"}


def test_prints_what_it_does_to_the_pairs(data, tmp_path, capsys):
    assert fit(data, *targets(), "--out", tmp_path / "pcrm.toml") == 0
    out = capsys.readouterr().out
    low, *_, high = q = np.quantile(S, (0.05, 0.25, 0.5, 0.75, 0.95))
    table = {line[:24].strip(): line[24:].split() for line in out.splitlines()}
    assert table["similarity s"] == [f"{v:.3f}" for v in (S.min(), *q, S.max())]
    target = np.clip((WANT.beta1 / (q + WANT.beta2) + WANT.beta3) / 2, 1, 6)
    assert table["target margin delta/2"] == ["6.00", *(f"{t:.2f}" for t in target), "1.00"]
    assert table["ceiling delta(s)"][1:-1] == [f"{2 * t:.2f}" for t in target]
    assert table["as a win probability"][1:-1] == [f"{p:.3f}" for p in 1 / (1 + np.exp(-target))]
    every = np.clip((WANT.beta1 / (S + WANT.beta2) + WANT.beta3) / 2, 1, 6)
    every[high <= S], every[low >= S] = 1, 6
    assert table["is above the target of"] == [f"{np.mean(every < m):.1%}" for m in (1, 2, 4, 8)]
    inside, floor, cap = (np.mean(x) for x in ((low < S) & (high > S), high <= S, low >= S))
    assert (
        f"{floor:.1%} of the pairs have the lowest target, 1. {cap:.1%} have the highest, 6. {inside:.1%} are between.\n"
        f"{np.mean(every <= 1.5):.1%} of the pairs have targets in the lowest tenth of the range, 1 to 1.5, and "
        f"{np.mean(every >= 5.5):.1%} in\nthe highest, 5.5 to 6. The median target is {np.median(every):.4g}; the middle of the "
        "range is 3.5."
    ) in out
    assert "The lowest target is 1, so a model" in out


def test_says_when_a_prior_tells_few_pairs_apart(data, tmp_path, capsys):
    data.write_text("".join(json.dumps({"prior": s}) + "\n" for s in [0] * 60 + [i / 80 for i in range(40)]))
    assert fit(data, *targets(), "--out", tmp_path / "pcrm.toml") == 0
    out, err = capsys.readouterr()
    assert err.startswith(
        "pcrm fit: warning: most pairs get a target near 6, because half of them have a similarity of at most 0"
    )
    assert "61.0% have the highest, 6. " in out


def test_win_probabilities_and_quantiles(data, tmp_path):
    out = tmp_path / "pcrm.toml"
    assert fit(data, "--win-alike", 0.7, "--win-unlike", 0.95, "--quantiles", 0.1, 0.8, "--out", out) == 0
    found = pcrm.Constraint.from_toml(out)
    target = torch.tensor([found.target(float(np.quantile(S, q))) for q in (0.8, 0.1)], dtype=torch.float64)
    assert target.sigmoid().tolist() == pytest.approx([0.7, 0.95], abs=1e-12)


def test_replaces_nothing_unasked(data, tmp_path, capsys):
    out, plot = tmp_path / "my.toml", tmp_path / "curve.svg"
    out.write_text("mine")
    assert fit(data, *targets(), "--out", out, "--plot", plot) == 1
    assert "my.toml: already exists. Add --force to replace it" in capsys.readouterr().err
    assert out.read_text() == "mine" and not plot.exists()
    assert fit(data, *targets(), "--out", out, "--plot", plot, "--force") == 0
    assert pcrm.Constraint.from_toml(out) == WANT and "<svg" in plot.read_text()
    out.unlink()
    assert fit(data, *targets(), "--out", out, "--plot", plot) == 1
    assert "curve.svg: already exists" in capsys.readouterr().err and not out.exists()


def test_a_name_cannot_leave_its_comment(tmp_path):
    path, out = tmp_path / "a\n[constraint]\nbeta1 = 9\n.jsonl", tmp_path / "pcrm.toml"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert fit(path, *targets(), "--out", out) == 0
    assert pcrm.Constraint.from_toml(out) == WANT


def test_another_column(tmp_path):
    path, out = tmp_path / "pairs.jsonl", tmp_path / "pcrm.toml"
    path.write_text("".join(json.dumps({"alike": s}) + "\n" for s in S.tolist()))
    assert fit(path, *targets(), "--column", "alike", "--out", out) == 0
    assert pcrm.Constraint.from_toml(out) == WANT


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (
            ['{"chosen": "a"}'],
            targets(),
            "pairs.jsonl, line 1: must have a column 'prior', got none. Add the column 'prior' with `pcrm prior ",
        ),
        (
            ['{"prior": 0.5}', '{"prior": 1.5}'],
            targets(),
            "pairs.jsonl, line 2: prior must be a number in [0, 1], got 1.5",
        ),
        (['{"prior": null}'], targets(), "pairs.jsonl, line 1: prior must be a number in [0, 1], got None"),
        (['{"prior": true}'], targets(), "pairs.jsonl, line 1: prior must be a number in [0, 1], got True"),
        (['{"prior": NaN}'], targets(), "pairs.jsonl, line 1: prior must be a number in [0, 1], got nan"),
        (['{"prior": "0.5"}'], targets(), "pairs.jsonl, line 1: prior must be a number in [0, 1], got '0.5'"),
        (['{"prior": 0.5}', "[]"], targets(), "pairs.jsonl, line 2: must be a JSON object with keys, got []"),
        ([], targets(), "pairs.jsonl: must have at least one row, got none"),
        (
            ['{"prior": 0.5}'] * 9,
            targets(),
            "similarities must differ by at least 1e-06 between the quantiles 0.05 and 0.95, got 0.5 and 0.5",
        ),
        (None, targets(0), "--target-alike must be greater than 0, got 0"),
        (None, targets(2, 1), "--target-unlike must be finite and greater than --target-alike, which is 2, got 1"),
        (None, (*targets(), "--quantiles", 0.9, 0.1), "quantiles must satisfy 0 <= low < high <= 1, got (0.9, 0.1)"),
        (None, (*targets(), "--plot", "nowhere/x.png"), "nowhere: no such folder"),
    ],
)
def test_bad_input(data, tmp_path, monkeypatch, capsys, lines, arguments, message):
    monkeypatch.chdir(tmp_path)
    if lines is not None:
        data.write_text("".join(f"{line}\n" for line in lines))
    assert fit(data, *arguments) == 1
    assert message in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.jsonl"}, "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--win-alike", 0.5, "--win-unlike", 0.9),
            "argument --win-alike: must be a number in (0.5, 1), got '0.5'",
        ),
        (("--win-alike", 0.7, "--win-unlike", 1), "argument --win-unlike: must be a number in (0.5, 1), got '1'"),
        (("--win-alike", "x", "--win-unlike", 0.9), "argument --win-alike: must be a number in (0.5, 1), got 'x'"),
        (("--win-alike", 0.7, *targets()), "--target-alike: not allowed with argument --win-alike"),
        (("--target-alike", 1), "one of the arguments --target-unlike --win-unlike is required"),
    ],
)
def test_bad_arguments(data, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        fit(data, *arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_there_is_no_such_file(capsys):
    assert fit("none.jsonl", *targets()) == 1
    assert "none.jsonl: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["scores.jsonl", "scores.parquet"])
def test_reports_refuse_betas_of_another_prior(tmp_path, kind, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [{"chosen": "a b c d"[: i % 7 + 1], "rejected": "a b c d e"[: i % 9 + 1]} for i in range(60)]
    scored = [{**row, "chosen_score": 1.0 + i % 3, "rejected_score": 0.5} for i, row in enumerate(texts)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    assert cli.main(["prior", "in.jsonl", "--out", kind, "--prior", "lexical"]) == 0
    assert cli.main(["fit", kind, *map(str, targets()), "--out", "lexical.toml"]) == 0
    (tmp_path / "cosine.toml").write_text("[constraint]\npreset = 'tldr/cosine'\n")
    kept = f"calibrated-{kind}"
    assert cli.main(["calibrate", kind, "--out", kept]) == 0
    for flags, prior, file in (
        (["--preset", "alpaca/length_ratio"], "length_ratio", kind),
        (["--constraint", "cosine.toml"], "cosine", kind),
        (["--constraint", "cosine.toml"], "cosine", kept),
    ):
        assert cli.main(["report", file, "--out", "report", *flags]) == 1
        assert (
            f"{' '.join(flags)} must be for the prior lexical, which is recorded for the column 'prior' of {file}, got {prior}. "
            f"Use betas for lexical, or recompute the column with `pcrm prior --prior {prior}`"
        ) in capsys.readouterr().err
    assert cli.main(["report", kind, "--out", "report", "--constraint", "lexical.toml"]) == 0
    assert cli.main(["report", kind, "--out", "report", "--preset", "alpaca/fixed"]) == 0
