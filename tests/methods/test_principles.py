"""Principles: the draw, the label, the prompt; their scores in `pcrm score` and `pcrm report`; a model that learns them."""

import itertools
import json
import random
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from helpers.files import read, write
from helpers.project import ROOT
from helpers.trainers import build
from pcrm.cli import main
from pcrm.data.preferences import RowError
from pcrm.demo.model import make_model, make_tokenizer
from pcrm.methods.principles import Principle, load, parse, with_principles

PAIR = {"prompt": "Cats?", "chosen": " Yes.", "rejected": " No, {prompt}."}
FOUR = [{"text": f"Be {w}.", "name": w, "negation": f"Be un{w}."} for w in ("kind", "fair", "clear", "even")]


def rows(n, seed=0, scores=(-2.0, -1.0, 0.0, 1.0, 2.0)):
    """Pairs with distinct prompts and four principles with random scores."""
    draw = random.Random(seed)
    return [
        PAIR | {"prompt": f"{i}?", "principles": [p | {"score": draw.choice(scores)} for p in FOUR]} for i in range(n)
    ]


# The draw.


def test_the_draw_is_of_the_rows_own_texts():
    """The same in any order, in any batch, from JSON and from Arrow; different with another seed or text."""
    data = rows(60)
    options = {"k": 2, "negate": 0.5, "seed": 7}
    want = [with_principles(row, **options) for row in data]
    for order in itertools.permutations(range(4)):
        row = data[3] | {"principles": [data[3]["principles"][i] for i in order]}
        assert with_principles(row, **options) == want[3]
    mapped = Dataset.from_list(data).map(with_principles, fn_kwargs=options, num_proc=2).to_list()
    assert mapped == want
    messages = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in data]
    ragged = [row | {"prompt": [{"role": "system", "content": "s", "name": "n"}, *row["prompt"]]} for row in messages]
    for chats in (messages, ragged):  # Arrow gives every message every key
        again = Dataset.from_list(chats).map(with_principles, fn_kwargs=options).to_list()
        assert [row["principles"] for row in again] == [with_principles(row, **options)["principles"] for row in chats]
    others = [with_principles(row, **options | {"seed": 8})["principles"] for row in data]
    assert sum(a != b["principles"] for a, b in zip(others, want, strict=True)) > 10
    for key in ("prompt", "chosen", "rejected"):
        changed = [with_principles(row | {key: row[key] + "!"}, **options)["principles"] for row in data]
        assert sum(a != b["principles"] for a, b in zip(changed, want, strict=True)) > 10
    # Draws must not change between releases.
    assert [row["principles"] for row in want[:3]] == RECORDED


RECORDED = [["Be unkind.", "Be uneven."], ["Be even.", "Be clear."], ["Be fair.", "Be clear."]]


def test_the_draw_is_uniform():
    """Each principle in each position, negated or not: for 2,000 rows, counts within 5 standard errors."""
    n, counts = 2000, {}
    for row in rows(n):
        for place, text in enumerate(with_principles(row, k=2, negate=0.25)["principles"]):
            counts[place, text] = counts.get((place, text), 0) + 1
    for place, p in itertools.product(range(2), FOUR):
        for text, chance in ((p["text"], 0.75 / 4), (p["negation"], 0.25 / 4)):
            assert abs(counts[place, text] - n * chance) < 5 * (n * chance * (1 - chance)) ** 0.5
    both = sum(all(t.startswith("Be un") for t in with_principles(r, k=2, negate=0.5)["principles"]) for r in rows(n))
    assert abs(both - n / 4) < 5 * (n * 3 / 16) ** 0.5, "two negations of a row are independent"


def test_which_response_is_preferred():
    """Against the rule, applied to the principles in the prompt."""
    seen = set()
    for row in rows(400):
        new = with_principles(row, k=3, negate=0.5)
        best = 0.0
        for line in re.findall("^- (.*)$", new["prompt"], flags=re.M):
            (score,) = [p["score"] for p in row["principles"] if line in (p["text"], p["negation"])]
            score = -score if line.startswith("Be un") else score
            best = score if abs(score) > abs(best) else best
        want = "kept" if best > 0 else "swapped" if best < 0 else "none"
        assert new["preference"] == want
        order = ("rejected", "chosen") if want == "swapped" else ("chosen", "rejected")
        assert (new["chosen"], new["rejected"]) == tuple(row[name] for name in order)
        seen.add(want)
    assert seen == {"kept", "swapped", "none"}


def test_without_scores_all_or_none_are_negated():
    data = [PAIR | {"prompt": f"{i}?", "principles": ["Be kind.", {"text": "Be fair."}]} for i in range(1000)]
    swapped = 0
    for row in data:
        new = with_principles(row, negate=0.5, negation="Not: {principle}")
        negated = {line.startswith("Not: ") for line in new["principles"]}
        assert len(negated) == 1 and {line.removeprefix("Not: ") for line in new["principles"]} == {
            "Be kind.",
            "Be fair.",
        }
        assert new["preference"] == ("swapped" if negated == {True} else "kept")
        assert (new["chosen"] == row["rejected"]) == (negated == {True})
        swapped += negated == {True}
    assert abs(swapped - 500) < 5 * 250**0.5
    assert all(with_principles(row)["preference"] == "kept" for row in data[:50])


# The prompt.


def test_the_prompt():
    row = PAIR | {"prompt": "Is {principles} {x}?", "principles": ["Be {prompt}."]}
    new = with_principles(row, template='{"p": {principles}} {prompt}')
    assert new["prompt"] == '{"p": - Be {prompt}.} Is {principles} {x}?'
    assert new == row | {"prompt": new["prompt"], "preference": "kept"}
    assert row["prompt"] == "Is {principles} {x}?"
    assert with_principles(row)["prompt"].endswith("\n\nIs {principles} {x}?"), "a plain response follows the prompt"
    chat = [
        {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    new = with_principles(
        {"prompt": chat, "principles": ["Be kind.", "Be fair."]}, template="{prompt} by\n{principles}"
    )
    lines = "\n".join(f"- {text}" for text in new["principles"])
    assert new["prompt"] == [*chat[:2], {"role": "user", "content": f"c by\n{lines}"}, chat[3]]
    assert chat[2]["content"] == "c" and "preference" not in new


BAD = [
    ({"principles": None}, {}, "principles must be a list of texts or objects, got None"),
    ({"principles": []}, {}, "principles must be a list of texts or objects, got []"),
    ({"principles": "Be kind."}, {}, "principles must be a list of texts or objects, got 'Be kind.'"),
    ({"principles": ["a", 5]}, {}, "principles[1] must be a text or an object with a key 'text', got 5"),
    ({"principles": ["a", {"name": "b"}]}, {}, "principles[1].text is missing"),
    ({"principles": ["a", " "]}, {}, "principles[1].text must be a non-empty text, got ' '"),
    (
        {"principles": [{"text": "a", "weight": 1}]},
        {},
        "principles[0] must have only the keys text, name, negation, score, got 'weight'",
    ),
    ({"principles": [{"text": "a", "score": "1"}]}, {}, "principles[0].score must be a number, got '1'"),
    ({"principles": [{"text": "a", "score": True}]}, {}, "principles[0].score must be a number, got True"),
    ({"principles": [{"text": "a", "score": float("nan")}]}, {}, "principles[0].score must be finite, got nan"),
    (
        {"principles": ["a", {"text": "b", "name": "a"}]},
        {},
        "principles[1] must have a unique name, got 'a', as principles[0]",
    ),
    (
        {"principles": [{"text": "a", "score": 1}, "b"]},
        {},
        "principles[1] must have a score, because principles[0] has one",
    ),
    ({"prompt": None}, {}, "prompt is missing"),
    ({"prompt": 3}, {}, "prompt must be a text or a list of messages, got 3"),
    ({"prompt": [{"role": "system", "content": "a"}]}, {}, "prompt must have a user message with a text"),
    ({"rejected": None}, {"negate": 0.5}, "chosen and rejected are missing: negate requires both"),
]


@pytest.mark.parametrize(("change", "options", "message"), BAD, ids=[m[:30] for *_, m in BAD])
def test_bad_rows(change, options, message):
    with pytest.raises(RowError, match=re.escape(message)):
        with_principles(PAIR | {"principles": ["Be kind."]} | change, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be in [1, 2**63), got 0"),
        ({"k": 1.5}, TypeError, "k must be an integer, got 1.5"),
        ({"negate": 1.5}, ValueError, "negate must be in [0, 1], got 1.5"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"template": "{prompt}"}, ValueError, "template must contain {principles}, got '{prompt}'"),
        ({"template": "{principles}"}, ValueError, "template must contain {prompt}, got '{principles}'"),
        ({"negation": 5}, TypeError, "negation must be a text, got 5"),
        ({"negation": None}, TypeError, "negation must be a text, got None"),
        ({"negate": "x"}, TypeError, "negate must be a number, got 'x'"),
        ({"negate": None}, TypeError, "negate must be a number, got None"),
        ({"negate": True}, TypeError, "negate must be a number, got True"),
        ({"negate": float("nan")}, ValueError, "negate must be in [0, 1], got nan"),
        ({"negation": "not"}, ValueError, "negation must contain {principle}, got 'not'"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        with_principles(PAIR | {"principles": ["Be kind."]}, **options)


def test_files(tmp_path):
    path = tmp_path / "principles.json"
    path.write_text(json.dumps(["Be kind.", FOUR[1]]))
    assert load(path) == [Principle("Be kind.", "Be kind."), Principle("Be fair.", "fair", "Be unfair.")]
    assert parse(np.array(["Be kind."], object)) == [Principle("Be kind.", "Be kind.")]
    for text, message in (
        ("[", f"{path}: must be JSON: "),
        ('["a", ""]', f"{path}: principles[1].text must be a non-empty text, got ''"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json")


# Scores and reports.

KINDS = {
    "pairs": ({"chosen": " two", "rejected": " three"}, ("chosen_score", "rejected_score")),
    "rankings": ({"responses": [" two", " three", " one"]}, ("scores",)),
    "single": ({"response": " two"}, ("score",)),
}


@pytest.mark.parametrize("given", ["file", "column"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_by_principle(tmp_path, tiny, kind, given):
    """Equal to the scores of rows with prompts written by hand."""
    responses, names = KINDS[kind]
    template, texts = "Keep to\n{principles}\nTask: {prompt}", {"kind": "Be kind.", "fair": "Be fair."}
    (tmp_path / "template.txt").write_text(template + "\n")
    (tmp_path / "principles.json").write_text(json.dumps([{"text": t, "name": n} for n, t in texts.items()]))
    plain = [{"prompt": f"{i} is"} | responses for i in range(3)]
    hand = []
    for row in plain:
        for lines in ("- Be kind.\n- Be fair.", "- Be kind.", "- Be fair."):
            hand.append(row | {"prompt": f"Keep to\n{lines}\nTask: {row['prompt']}"})
    if given == "column":  # rows with different principles
        own = [{"text": t, "name": n} for n, t in texts.items()]
        plain = [row | {"principles": own if i else own[::-1]} for i, row in enumerate(plain)]
        hand[0]["prompt"] = "Keep to\n- Be fair.\n- Be kind.\nTask: 0 is"
    source, byhand = write(tmp_path / "in.jsonl", plain), write(tmp_path / "hand.jsonl", hand)
    assert main(["score", str(tiny), str(byhand), "--out", str(tmp_path / "hand-out.jsonl")]) == 0
    want = read(tmp_path / "hand-out.jsonl")
    option = str(tmp_path / "principles.json") if given == "file" else "column"
    command = ["score", str(tiny), str(source), "--principles", option, "--principle-template"]
    command += [str(tmp_path / "template.txt"), "--out"]
    for out in ("out.jsonl", "out.parquet"):
        assert main([*command, str(tmp_path / out)]) == 0
    got = read(tmp_path / "out.jsonl")
    for i, (row, before) in enumerate(zip(got, plain, strict=True)):
        assert {k: v for k, v in row.items() if k in before} == before
        by = {entry["principle"]: entry for entry in row["scores_by_principle"]}
        assert list(by) == (["fair", "kind"] if given == "column" and not i else ["kind", "fair"])
        for one, other in ((row, want[3 * i]), (by["kind"], want[3 * i + 1]), (by["fair"], want[3 * i + 2])):
            for name in names:
                # The same text in batches of two widths: last bits of sums of about 1e-3.
                np.testing.assert_allclose(one[name], other[name], rtol=3e-5, atol=1e-8)
        assert by["kind"][names[0]] != by["fair"][names[0]]
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for row, other in zip(table, got, strict=True):
        for entry, same in zip(row["scores_by_principle"], other["scores_by_principle"], strict=True):
            assert entry["principle"] == same["principle"]
            np.testing.assert_array_equal(np.float32(entry[names[0]]), np.float32(same[names[0]]))


def test_score_refuses(tmp_path, tiny, capsys):
    source, out = write(tmp_path / "in.jsonl", [PAIR]), tmp_path / "out.jsonl"
    command = ["score", str(tiny), str(source), "--out", str(out), "--principles", "column"]

    def fails(*options):
        capsys.readouterr()
        assert main([*command, *map(str, options)]) == 1 and not out.exists()
        return capsys.readouterr().err

    assert f"{source}, line 1: principles must be a list of texts or objects, got None" in fails()
    (tmp_path / "bad.txt").write_text("{prompt}")
    assert "template must contain {principles}, got '{prompt}'" in fails("--principle-template", tmp_path / "bad.txt")
    assert "none.json: no such file" in fails("--principles", tmp_path / "none.json")
    write(source, [{"chosen": "a b", "rejected": "a c", "principles": ["Be kind."]}])
    assert f"{source}, line 1: prompt is missing" in fails()
    write(source, [PAIR | {"principles": ["Be kind."], "scores_by_principle": []}])
    assert f"{source}, line 1: must not have a column 'scores_by_principle', because" in fails()
    with pytest.raises(SystemExit, match="2"):
        main([*command[:5], "--principle-template", "x"])
    assert "--principle-template requires --principles" in capsys.readouterr().err


def test_going_on_needs_the_same_principles(tmp_path, tiny, capsys):
    source, out = write(tmp_path / "in.jsonl", [PAIR] * 600 + [{"chosen": 3}]), tmp_path / "out.jsonl"
    given, template = tmp_path / "p.json", tmp_path / "t.txt"
    command = ["score", str(tiny), str(source), "--out", str(out), "--principles", str(given)]

    def fails(text, *options):
        given.write_text(text)
        capsys.readouterr()
        assert main([*command, *options]) == 1
        return capsys.readouterr().err

    assert f"{source}, line 601: must have a key 'rejected'" in fails('["Be kind."]')  # after a shard
    template.write_text("{prompt}{principles}")
    assert "--principles must be " in fails('["Be fair."]')
    assert "--principle-template must be " in fails('["Be kind."]', "--principle-template", str(template))
    assert f"{source}, line 601: must have a key 'rejected'" in fails('["Be kind."]')


def scored(n, seed, names=("kind", "odd/“<name>”")):
    """Rows in the format of `pcrm score`, and the margins by each principle."""
    draw, data, margins = np.random.default_rng(seed), [], {name: [] for name in names}
    for _ in range(n):
        chosen, rejected, score = draw.normal(size=2), draw.normal(size=2), draw.integers(-1, 2)
        data.append(
            {"chosen_score": 0.5, "rejected_score": 0.1, "principles": [{"text": names[0], "score": float(score)}]}
        )
        data[-1]["scores_by_principle"] = [
            {"principle": name, "chosen_score": float(a), "rejected_score": float(b)}
            for name, a, b in zip(names, chosen, rejected, strict=True)
        ]
        if score:
            margins[names[0]].append(score * (chosen[0] - rejected[0]))
        margins[names[1]].append(chosen[1] - rejected[1])
    return data, {name: np.array(m) for name, m in margins.items()}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_report_by_principle(tmp_path, ending):
    data, margins = scored(200, 0)
    path = tmp_path / f"scores.{ending}"
    if ending == "jsonl":
        write(path, data)
    else:
        Dataset.from_list(data).to_parquet(str(path))
    other = write(tmp_path / "plain.jsonl", [{"chosen_score": 1.0, "rejected_score": 0.0}] * 3)
    assert main(["report", str(path), "--out", str(tmp_path / "one")]) == 0
    assert main(["report", str(path), str(other), "--out", str(tmp_path / "two")]) == 0
    found = json.loads((tmp_path / "one" / "summary.json").read_text())["by_principle"]
    assert found.keys() == margins.keys()
    for name, m in margins.items():
        assert found[name]["pairs"] == len(m) and found[name]["accuracy"] == pytest.approx((m > 0).mean())
        low, high = found[name]["accuracy_ci"]
        assert low < found[name]["accuracy"] < high
        assert found[name]["margin"]["mean"] == pytest.approx(m.mean())
        assert found[name]["margin"]["sd"] == pytest.approx(m.std())
    assert found["kind"]["pairs"] < 200 == found["odd/“<name>”"]["pairs"]
    two = json.loads((tmp_path / "two" / "summary.json").read_text())["models"]
    assert two["scores"]["by_principle"] == found and "by_principle" not in two["plain"]
    page = (tmp_path / "two" / "report.html").read_text()
    (row,) = re.findall("<tr[^>]*><th[^>]*>By “kind”: accuracy</th>(.*?)</tr>", page)
    assert re.sub("<[^>]*>", " ", row).split()[0] == f"{100 * found['kind']['accuracy']:.1f}%" and "\N{EN DASH}" in row
    assert "By “odd/“&lt;name&gt;””: accuracy" in page


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a", "scores_by_principle must be a list, got 'a'"),
        (
            [{"chosen_score": 1}],
            "scores_by_principle[0] must be an object with the key principle, got {'chosen_score': 1}",
        ),
        ([{"principle": "a", "chosen_score": 1}], "scores_by_principle[0].rejected_score must be a number, got None"),
        (
            [{"principle": "a", "chosen_score": "1", "rejected_score": 1}],
            "scores_by_principle[0].chosen_score must be a number, got '1'",
        ),
    ],
)
def test_report_refuses(tmp_path, capsys, value, message):
    path = write(tmp_path / "s.jsonl", [{"chosen_score": 1.0, "rejected_score": 0.0, "scores_by_principle": value}])
    assert main(["report", str(path), "--out", str(tmp_path / "out")]) == 1
    assert f"{path}, line 1: {message}" in capsys.readouterr().err


# A model that learns them.


@pytest.mark.slow
def test_a_reward_model_learns_principles_and_their_negations(tmp_path):
    """The responses alone do not tell which is better; only the principle in the prompt does."""
    draw = random.Random(0)

    def row():
        brief = [draw.random() < 0.5 for _ in range(2)]
        chosen, rejected = (f" {draw.choice(['Yes', 'No'])} {('lengthy', 'short')[b]}" for b in brief)
        principle = {"text": "Brief.", "negation": "Wordy.", "score": float(brief[0]) - float(brief[1])}
        return {"prompt": draw.choice("abc"), "chosen": chosen, "rejected": rejected, "principles": [principle]}

    data = Dataset.from_list([row() for _ in range(600)])
    data = data.map(with_principles, fn_kwargs={"negate": 0.5}).filter(lambda r: r["preference"] != "none")
    tokenizer = make_tokenizer(r["prompt"] + r["chosen"] + r["rejected"] for r in data)
    for part in (make_model(tokenizer, 128, seed=0), tokenizer):
        part.save_pretrained(tmp_path / "start")
    options = {"max_steps": 150, "optim": "adamw_torch", "learning_rate": 3e-3, "lr_scheduler_type": "cosine"}
    options |= {"per_device_train_batch_size": 32, "logging_steps": 150, "pcrm_prior": "fixed", "pcrm_delta": 6.0}
    trainer = build("reward", tmp_path / "start", tmp_path / "model", data, **options)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))

    test = [row() for _ in range(100)]
    for r in test:  # the negation as a separate principle, which prefers the other response
        (p,) = r["principles"]
        r["principles"] = [{"text": p["text"], "score": p["score"]}, {"text": p["negation"], "score": -p["score"]}]
    source = write(tmp_path / "in.jsonl", test)
    command = ["score", str(tmp_path / "model"), str(source), "--principles", "column", "--out"]
    assert main([*command, str(tmp_path / "out.jsonl")]) == 0
    assert main(["report", str(tmp_path / "out.jsonl"), "--out", str(tmp_path / "report")]) == 0
    found = json.loads((tmp_path / "report" / "summary.json").read_text())["by_principle"]
    assert found.keys() == {"Brief.", "Wordy."}
    # With the same score for both sides of a principle, half would be right.
    assert all(by["accuracy"] > 0.9 for by in found.values()), {k: v["accuracy"] for k, v in found.items()}


def test_documentation(tmp_path, monkeypatch, tiny):
    """The commands of docs/principles.md run as they are printed."""
    page = (ROOT / "docs" / "principles.md").read_text()
    commands = [line.split() for line in page.splitlines() if line.startswith("pcrm ")]
    assert [command[1] for command in commands] == ["score", "report"]
    (block,) = re.findall("```json\n(.*?)```", page, flags=re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward-model").symlink_to(tiny)
    (tmp_path / "principles.json").write_text(block)
    write(tmp_path / "pairs.jsonl", [PAIR] * 3)
    for command in commands:
        assert main(command[1:]) == 0, command
