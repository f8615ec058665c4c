"""`pcrm demo`: the whole way from a file of preferences to a table and a picture."""

import gzip
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from pcrm.demo import data, metrics, model, plot, run, world
from pcrm.evaluate import statistics
from scipy.stats import spearmanr

import pcrm
from pcrm import cli

SMALL = ["--pairs", "48", "--held-out", "16", "--epochs", "1", "--max-length", "48"]


def demo(out, *arguments):
    return cli.main(["demo", "--out", str(out), *SMALL, *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert demo(out) == 0
    return out


def test_writes_models_table_and_picture(finished, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["models"]) == ["plain", "constrained", "alpaca/length_ratio"]
    for numbers in summary["models"].values():
        assert numbers.keys() == metrics.LABELS.keys()
        assert all(isinstance(v, float) and math.isfinite(v) for v in numbers.values())
    assert summary["constraints"]["plain"] is None and summary["constraints"]["constrained"]["floor"] == 2
    png = (finished / "margins.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000
    for name in ("plain", "constrained", "alpaca-length_ratio"):
        loaded = model.load_model(finished / name, seed=0)
        assert loaded.config.num_labels == 1


def test_models_differ_by_the_loss_alone(finished):
    """They start from the same weights and see the same pairs in the same order."""
    plain, constrained = (model.load_model(finished / n, 0).state_dict() for n in ("plain", "constrained"))
    gap = max((plain[k] - constrained[k]).abs().max().item() for k in plain)
    assert 0 < gap < 0.1


def test_goes_on_where_it_was_killed(finished, capsys):
    before = (finished / "summary.json").read_text()
    (finished / "constrained" / "demo.json").unlink()  # as a kill before its end leaves it
    assert demo(finished) == 0
    assert capsys.readouterr().out.count("kept: it was trained before") == 2
    again = json.loads((finished / "summary.json").read_text())
    for name, numbers in json.loads(before)["models"].items():
        assert again["models"][name] == pytest.approx(numbers, rel=1e-4, abs=1e-4)


def test_small_models_train_on_one_thread(tmp_path, monkeypatch, tiny):
    """So that figures do not depend on the number of cores. A checkpoint takes all."""
    seen = []

    def stop(*arguments):
        seen.append(torch.get_num_threads())
        raise ValueError("seen enough")

    monkeypatch.setattr(run, "_train", stop)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert demo(tmp_path) == 1 and torch.get_num_threads() == 3
        assert demo(tmp_path, "--model", tiny) == 1
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 3]


def test_says_where_it_is_without_a_terminal(tmp_path, capsys):
    assert demo(tmp_path, "--batch-size", "24", "--epochs", "2") == 0
    out = capsys.readouterr().out
    assert out.startswith("loading torch and TRL\n")
    assert out.count("    step 2 of 4\n    step 4 of 4\n") == 3


@pytest.mark.slow
def test_formats(tmp_path, tiny, capsys):
    """TRL's formats, plain and conversational, with and without a prompt, and a checkpoint."""
    rows = world.generate(64, seed=1)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "plain.parquet")
    with gzip.open(tmp_path / "implicit.jsonl.gz", "wt") as file:
        for r in rows:
            user, *answers = (
                {"role": role, "content": r[k]}
                for role, k in (("user", "prompt"), ("assistant", "chosen"), ("assistant", "rejected"))
            )
            file.write(json.dumps({"chosen": [user, answers[0]], "rejected": [user, answers[1]]}) + "\n")
    assert demo(tmp_path / "a", "--data", tmp_path / "plain.parquet") == 0
    assert demo(tmp_path / "b", "--data", tmp_path / "implicit.jsonl.gz", "--model", tiny) == 0
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert summary["models"]["plain"]["spearman_rating"] is None, "no ratings, no correlation"
    assert demo(tmp_path / "c", "--data", tmp_path / "implicit.jsonl.gz") == 0


@pytest.mark.slow
def test_real_preferences(tmp_path, real_pairs):
    assert demo(tmp_path, "--data", real_pairs, "--max-length", 64) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["train_pairs"] == 48
    assert summary["models"]["constrained"]["margin_sd"] > 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "missing.jsonl: no such file"),
        ("bad.csv", b"a,b", "bad.csv: must end in .jsonl, .jsonl.gz or .parquet"),
        ("bad.jsonl", b'{"chosen": "a", "rejected": "b"}\n{"chosen": \n', "bad.jsonl, line 2: is not JSON"),
        ("latin.jsonl", b'{"chosen": "\xe9", "rejected": "b"}\n', "latin.jsonl, line 1: is not JSON"),
        (
            "keys.jsonl",
            b'\n{"chosen": "a", "reject": "b"}\n',
            "keys.jsonl, line 2: has no rejected, its keys are chosen, reject",
        ),
        ("list.jsonl", b"[1]\n", "list.jsonl, line 1: is [1], must be an object"),
        (
            "type.jsonl",
            b'{"chosen": "a", "rejected": 3}\n',
            "type.jsonl, line 1: rejected is neither a text nor a list of messages",
        ),
        ("mixed.jsonl", b'{"chosen": "a", "rejected": []}\n', "mixed.jsonl, line 1: chosen is a str, rejected a list"),
        ("empty.jsonl", b"", "empty.jsonl: holds no rows"),
        ("one.jsonl", b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 9, "all rows have the same prompt"),
        ("cut.jsonl.gz", gzip.compress(b'{"chosen": "a", "rejected": "b"}\n' * 999)[:40], "cut.jsonl.gz, after line "),
        ("no.jsonl.gz", b"plain", "no.jsonl.gz, after line 0: Not a gzipped file"),
        ("bad.parquet", b"nonsense", "bad.parquet: "),
    ],
)
def test_bad_files(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert demo(tmp_path / "out", "--data", path) == 1
    assert message in capsys.readouterr().err


def test_bad_arguments(tmp_path, capsys):
    assert demo(tmp_path, "--preset", "alpaca/typo") == 1
    assert "preset must be one of alpaca/cosine" in capsys.readouterr().err
    assert demo(tmp_path, "--target-alike", "3", "--target-unlike", "1") == 1
    assert "target_unlike is 1, must be finite and greater than target_alike, which is 3" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["pairs", "held-out", "batch-size", "epochs", "learning-rate", "max-length"])
def test_bad_numbers(tmp_path, capsys, option):
    assert demo(tmp_path, f"--{option}", "0") == 1
    assert f"{option.replace('-', '_')} is 0" in capsys.readouterr().err


def test_world():
    rows = world.generate(300, seed=3)
    assert rows == world.generate(300, seed=3) != world.generate(300, seed=4)
    assert len(rows) == 300
    gap = np.array([r["rating_chosen"] - r["rating_rejected"] for r in rows])
    # Choices follow the true reward, noisily: the share that does is what Bradley-Terry says
    # of these gaps, within four standard errors.
    p = 1 / (1 + np.exp(-np.abs(gap)))
    ties = gap == 0
    assert abs((gap[~ties] > 0).mean() - p[~ties].mean()) < 4 * 0.5 / math.sqrt((~ties).sum())


def test_world_rates_any_text():
    """Its own responses as it did when it made them, and all else by the sentences that are its own."""
    for row in world.generate(1000, seed=5):
        for side in ("chosen", "rejected"):
            assert world.gold(row["prompt"], row[side]) == row[f"rating_{side}"]
    child, expert = (f"Question 1: explain bread to {who}.\n" for who in ("a child", "an expert"))
    image, topic = "It is like a game where the yeast plays with the dough.", "The yeast feeds the dough."
    for prompt, text, worth in (
        (child, "", 0),
        (child, image, 1.8 - 12 * 0.02),
        (expert, image, -1.0 - 12 * 0.02),
        (expert, f"  {topic}\n{topic}\n", 1.5 + 1.5 * 0.8 - 10 * 0.02),
        (
            expert,
            "Formally, the oven is a function of the crust. Just look it up somewhere else.",
            1.8 - 2.0 - 15 * 0.02,
        ),
        (child, "There is a lot one could say here.", -0.5 - 8 * 0.02),
        # What is off: another topic, of two topics, of one thing alone, cut off, no sentence of this world.
        (child, "The moon warms the shore.", -1.2 - 5 * 0.02),
        (child, "The yeast feeds the moon.", -1.2 - 5 * 0.02),
        (child, "The yeast feeds the yeast.", -1.2 - 5 * 0.02),
        (child, "Imagine the moon as a big friendly toy.", -1.2 - 8 * 0.02),
        (child, "The yeast feeds the", -1.2 - 4 * 0.02),
        (child, "zzz \x00 \N{SNOWMAN}", -1.2 - 3 * 0.02),
    ):
        assert world.gold(prompt, text) == pytest.approx(worth, abs=1e-12), text
    with pytest.raises(ValueError, match="prompt is 'explain physics', must ask to explain a topic of this world"):
        world.gold("explain physics", "")


def test_split_keeps_prompts_apart():
    rows = world.generate(200, seed=0)
    train, held_out = data.split_by_prompt(rows, 100, 40, seed=0)
    assert len(train) == 100 and 40 <= len(held_out) < 50
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in held_out}


def test_calibration_error():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 2, 200_000)
    labels = np.where(rng.random(truth.size) < 1 / (1 + np.exp(-truth)), 1, -1)
    honest = metrics.calibration_error(truth * labels)
    assert honest < 0.01
    assert metrics.calibration_error(3 * truth * labels) > 0.1, "sure of itself"
    assert metrics.calibration_error(np.array([50.0, -50.0])) == pytest.approx(0.5)


def test_spearman_by_prompt():
    rows = [
        {"prompt": "p", "chosen": c, "rejected": r, "rating_chosen": rc, "rating_rejected": rr}
        for c, r, rc, rr in (("a", "b", 3, 1), ("a", "c", 3, 2), ("d", "b", 0, 1))
    ]
    scores = {"a": 2.0, "b": 1.5, "c": 1.0, "d": -1.0}
    got = metrics.spearman_by_prompt(
        rows, np.array([scores[r["chosen"]] for r in rows]), np.array([scores[r["rejected"]] for r in rows])
    )
    assert got == pytest.approx(spearmanr([2.0, 1.5, 1.0, -1.0], [3, 1, 2, 0])[0])


def test_numbers_are_those_of_a_report():
    """Which computes them in Go, where the demo does without."""
    rows = world.generate(400, seed=1)
    noise = np.random.default_rng(1)
    chosen, rejected = (np.array([r[f"rating_{side}"] for r in rows]) for side in ("chosen", "rejected"))
    score = {r[side]: noise.normal() for r in rows for side in ("chosen", "rejected")}
    chosen, rejected = (
        x + np.array([score[r[side]] for r in rows]) for x, side in ((chosen, "chosen"), (rejected, "rejected"))
    )
    ceiling = noise.uniform(0.5, 3, len(rows))
    got = metrics.evaluate(rows, chosen, rejected, ceiling)
    want = {k: value for k, (value, _, _) in statistics.pairs(chosen - rejected, None, ceiling).items()}
    names = {
        "accuracy": "accuracy",
        "margin_mean": "margin/mean",
        "margin_sd": "margin/sd",
        "margin_p95": "margin/quantiles/0.95",
        "share_over_ceiling": "violation_rate",
        "ece": "ece_plugin",
    }
    assert {ours: got[ours] for ours in names} == pytest.approx({ours: want[theirs] for ours, theirs in names.items()})
    by_prompt: dict[str, dict[str, tuple[float, float]]] = {}
    for r, *pair in zip(rows, chosen, rejected, strict=True):
        for side, value in zip(("chosen", "rejected"), pair, strict=True):
            by_prompt.setdefault(r["prompt"], {})[r[side]] = (value, r[f"rating_{side}"])
    prompts = [list(responses.values()) for responses in by_prompt.values() if len(responses) >= 3]
    assert len(prompts) > 20
    scores, ratings = (np.array([pair[i] for prompt in prompts for pair in prompt]) for i in range(2))
    offsets = np.cumsum([0, *map(len, prompts)])
    ranked, _, _ = statistics.rankings(scores, ratings, offsets)
    assert got["spearman_rating"] == pytest.approx(ranked["spearman_rating"][0])


def test_any_file_name_is_drawn(tmp_path):
    """Of the user's data; it is not mathematics."""
    margins = {"plain": np.array([1.0, 2.0]), "constrained": np.array([0.5, 1.0])}
    name = "a$\\q$\x01.jsonl"
    plot.plot_margins(tmp_path / "m.png", np.array([0.2, 0.8]), margins, pcrm.Constraint(2.0, 0.5, 1.0), name)
    assert (tmp_path / "m.png").stat().st_size > 1000


def test_encoder_cuts_the_prompt_at_its_beginning(tiny):
    tokenizer = model.load_tokenizer(tiny)
    row = {"prompt": "one two three four five six seven eight", "chosen": " yes", "rejected": " no, not at all"}
    whole = model.Encoder(tokenizer, 1000).pair(row)
    cut = model.Encoder(tokenizer, len(whole[1]) - 3).pair(row)
    assert cut[0] == whole[0][3:] and cut[1] == whole[1][3:]
    assert len(model.Encoder(tokenizer, 3).pair(row)[1]) == 3
    # The prior does not see the difference.
    assert torch.equal(*(pcrm.priors.length_ratio([a], [b]) for a, b in (whole, cut)))


@pytest.mark.slow
def test_console_script():
    out = subprocess.run([sys.executable, "-m", "pcrm.cli", "demo", "--help"], capture_output=True, text=True)
    assert out.returncode == 0 and "--target-unlike" in out.stdout
