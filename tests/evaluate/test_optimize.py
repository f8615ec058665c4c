"""pcrm optimize: what it samples, trains and writes."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import html5lib
import numpy as np
import pytest
import torch
from helpers.files import read, write
from helpers.killed import run_killed
from helpers.models import make_tiny
from helpers.project import ROOT
from pcrm.demo import world
from pcrm.evaluate.optimization import best_of_n, reference, rl, softmax_policy
from pcrm.evaluate.optimization.sampling import Policy, sample
from pcrm.evaluate.reward_model import RewardModel

from pcrm import cli


def optimize(out, *arguments):
    return cli.main(["optimize", "--out", str(out), *map(str, arguments)])


def summary(out):
    return json.loads((out / "summary.json").read_text())


def scored_rows(n=40, seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        gold = random.normal(random.normal(), 1, 8)
        rows.append({"scores": (scale * (gold + random.normal(0, 1, 8))).tolist(), "ratings": gold.tolist()})
    return rows


def gold(prompts, responses):
    return [world.gold(p, r) for p, r in zip(prompts, responses, strict=True)]


@pytest.fixture(scope="module")
def prompts(rows):
    return list(dict.fromkeys(row["prompt"] for row in rows))


@pytest.fixture
def prompt_file(prompts, tmp_path):
    return write(tmp_path / "prompts.jsonl", [{"prompt": p, "number": i} for i, p in enumerate(prompts[:6])])


# Scored pools.


def test_one_model(tmp_path, capsys):
    rows = scored_rows()
    assert optimize(tmp_path / "out", write(tmp_path / "pool.jsonl", rows), "--coefficients", 0.5, 2) == 0
    found = summary(tmp_path / "out")
    scores, ratings = [r["scores"] for r in rows], [r["ratings"] for r in rows]
    assert (found["pools"], found["responses"]) == (40, 320)
    of = reference(scores, ratings)
    assert found["reference"]["proxy_sd"] == of.proxy_sd[0]
    assert found["reference"]["gold_ci"] == of.gold_mean[1:].tolist()
    for key, curve, at in (
        ("best_of_n", best_of_n(scores, ratings), "n"),
        ("softmax_policy", softmax_policy(scores, ratings, [2, 0.5]), "coefficient"),
    ):
        assert [p[at] for p in found[key]] == curve.at.tolist()
        for k, point in enumerate(found[key]):
            assert point["pools"] == 40
            for name in ("kl", "proxy", "gold", "proxy_gain", "gold_gain"):
                value, *interval = getattr(curve, name)[k].tolist()
                assert (point[name], point[f"{name}_ci"]) == (value, interval)
    best, sd = found["best_of_n"][-1], found["reference"]["proxy_sd"]
    line = (
        f"best of 8: proxy reward from {best['proxy'] - best['proxy_gain']:.2f} to {best['proxy']:.2f} "
        f"(+{best['proxy_gain']:.2f}, {best['proxy_gain'] / sd:.1f} SD of the reference policy), "
        f"gold reward from {best['gold'] - best['gold_gain']:.2f} to {best['gold']:.2f}"
    )
    keys = {"by", "proxy_from", "proxy_to", "proxy_gain", "proxy_gain_ci", "proxy_gain_in_sd"}
    keys |= {"gold_from", "gold_to", "gold_gain", "gold_gain_ci", "text"}
    assert found["scaled"].keys() == keys
    assert found["scaled"]["text"] == line == capsys.readouterr().out.splitlines()[-1]


def test_page_of_several_models(tmp_path, capsys):
    plain = write(tmp_path / "plain.jsonl", scored_rows(scale=2))
    other = write(tmp_path / "b.jsonl", [{"scores": r["scores"], "gold_scores": r["ratings"]} for r in scored_rows()])
    assert optimize(tmp_path / "out", plain, f"con<strained={other}") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "best-of-n.svg", "optimize.html", "softmax-policy.svg", "summary.json",
    ]  # fmt: skip
    page = (tmp_path / "out" / "optimize.html").read_text()
    html5lib.HTMLParser(strict=True).parse(page)
    assert not re.search(r'(?:src|href)="(?!#)|https?://(?!www\.w3\.org)', page)
    assert "con&lt;strained" in page and "con<strained" not in page
    for name in ("best-of-n", "softmax-policy"):
        ET.fromstring((tmp_path / "out" / f"{name}.svg").read_text())
    models = summary(tmp_path / "out")["models"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [f"{name}: {m['scaled']['text']}" for name, m in models.items()]
    # Twice the scores are twice as far at the same n, and of RL where they are at half of the penalty.
    a, b = models["plain"], models["con<strained"]
    assert a["best_of_n"][2]["proxy_gain"] == pytest.approx(2 * b["best_of_n"][2]["proxy_gain"])
    assert a["best_of_n"][2]["gold_gain"] == b["best_of_n"][2]["gold_gain"]
    kl = [{p["coefficient"]: p["kl"] for p in m["softmax_policy"]} for m in (a, b)]
    for at, half in ((10, 5), (2, 1), (1, 0.5), (0.2, 0.1)):
        assert kl[0][at] == pytest.approx(kl[1][half], rel=1e-9)


def test_the_figures_come_before_the_table(tmp_path):
    assert optimize(tmp_path / "out", write(tmp_path / "pool.jsonl", scored_rows(3))) == 0
    page = (tmp_path / "out" / "optimize.html").read_text()
    assert 0 < page.index("<main") < page.index("<table")


@pytest.mark.parametrize("name", ["Cost$5 $x^{", "<script>alert(1)</script>", 'x\x01\x1b[31m\n,"y"', "\udc80"])
def test_any_name_is_shown_as_it_is(tmp_path, capsys, name):
    """On the page, in figures and on the terminal; what does not print is escaped."""
    pool = write(tmp_path / "pool.jsonl", scored_rows(3))
    assert optimize(tmp_path / "out", f"{name}={pool}", f"b={pool}") == 0
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    printed = capsys.readouterr().out
    assert f"\n{shown}: best of 8" in printed and all(c.isprintable() or c == "\n" for c in printed)
    page = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(
        (tmp_path / "out" / "optimize.html").read_text()
    )
    assert [h.find("i").tail for h in page.find(".//thead").iter("th")] == [shown, "b"]
    assert not list(page.iter("script"))
    for figure in ("best-of-n", "softmax-policy"):
        root = ET.parse(tmp_path / "out" / f"{figure}.svg").getroot()
        assert shown in [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]


def test_pools_of_different_sizes(tmp_path):
    rows = [{"scores": [1, 2, 3], "ratings": [0, 1, 5]}, {"scores": [4, 5], "ratings": [2, 1]}]
    assert optimize(tmp_path / "out", write(tmp_path / "pool.jsonl", rows)) == 0
    assert [p["n"] for p in summary(tmp_path / "out")["best_of_n"]] == [1, 2]
    assert optimize(tmp_path / "out", tmp_path / "pool.jsonl", "--counts", 3, 1) == 0
    found = summary(tmp_path / "out")
    assert [(p["n"], p["pools"], p["gold"]) for p in found["best_of_n"]] == [(1, 2, 1.75), (3, 1, 5.0)]
    # From what the reference gets of the one pool that has a best of three.
    assert found["scaled"]["text"].endswith("gold reward from 2.00 to 5.00")


def test_scores_without_spread(tmp_path):
    """Nothing to gain and no unit to say it in."""
    assert optimize(tmp_path / "out", write(tmp_path / "pool.jsonl", [{"scores": [2, 2], "ratings": [1, 3]}])) == 0
    assert summary(tmp_path / "out")["scaled"]["text"] == (
        "best of 2: proxy reward from 2.00 to 2.00 (+0.00), gold reward from 2.00 to 2.00"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "pool.jsonl: must have at least one row, got none"),
        ([{"scores": [1, 2], "ratings": [1, 2]}, {"scores": [1]}],
         "pool.jsonl, line 2: must have a key 'ratings', got scores"),
        ([{"responses": ["a"], "ratings": [1]}], "pool.jsonl, line 1: must have a key 'scores', got responses, ratings"),
        ([{"scores": [1, float("nan")], "ratings": [1, 2]}], "pool.jsonl, line 1: scores[1] must be finite, got nan"),
        ([{"scores": [1, 2], "ratings": [1, "2"]}], "pool.jsonl, line 1: ratings[1] must be a number, got '2'"),
        ([{"scores": [1, 2], "ratings": [1]}], "pool.jsonl, line 1: ratings must have 2 elements like scores, got 1"),
        ([{"scores": [], "ratings": []}], "pool.jsonl, line 1: scores must be a non-empty list, got []"),
        ([{"scores": [1], "ratings": [1], "gold_scores": [1]}],
         "pool.jsonl, line 1: must have one gold column, got gold_scores and ratings. Choose one with --gold gold_scores or --gold ratings"),
        ([3], "pool.jsonl, line 1: must be a JSON object with keys, got 3"),
    ],
)  # fmt: skip
def test_bad_scored_pools(tmp_path, capsys, rows, message):
    assert optimize(tmp_path / "out", write(tmp_path / "pool.jsonl", rows)) == 1
    assert capsys.readouterr().err.strip().endswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--counts", 9], "counts[0] must be from 1 to 8, the size of the largest pool, got 9"),
        (["--coefficients", -1], "coefficients[0] must be at least 0, got -1"),
        (["--gold", "gold_scores"], "line 1: must have a key 'gold_scores', got scores, ratings"),
        (
            ["m=pool.jsonl", "m=pool.jsonl"],
            "pool.jsonl: the name of a proxy must be unique, got m twice. Name it with NAME=pool.jsonl",
        ),
        (["none.jsonl"], "none.jsonl: no such file"),
        (["--gold", "some/model"], "--gold MODEL requires --proxy: scored pools already have gold_scores or ratings"),
        (
            ["--proxy", "m", "--gold", "rating"],
            "--gold must be a column (gold_scores or ratings), a folder of a reward "
            "model or the name of one on the hub (OWNER/NAME), got 'rating'",
        ),
        (["--policy", "p"], "--policy requires --proxy"),
        (["--rl", "rloo"], "--rl requires --policy"),
        (["b.jsonl", "--proxy", "m"], "--proxy requires a single POOL, got 2"),
        (["--proxy", "m", "--policy", "p"], "--policy requires --gold MODEL, because its samples have no ratings"),
        (
            ["--proxy", "m=y", "--proxy", "m=x/z"],
            "--proxy x/z: the name of a proxy must be unique, got m twice. Name it with NAME=x/z",
        ),
        (
            ["--out", ".", "--proxy", "m"],
            "--out must not contain POOL, which it would overwrite, got . with pool.jsonl",
        ),
        (["--proxy", "a/b=m"], "--proxy m: the name must be valid as a file name, got 'a/b'. Name it with NAME=m"),
    ],
)
def test_bad_arguments(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pool.jsonl", scored_rows(3))
    try:
        status = optimize("out", "pool.jsonl", *arguments)
    except SystemExit as exit:
        status = exit.code
    assert status in (1, 2)
    assert capsys.readouterr().err.strip().removesuffix("\nSee pcrm optimize --help").endswith(message)


# Pools that reward models score.


@pytest.fixture(scope="module")
def second(tmp_path_factory, rows):
    from transformers import LlamaForSequenceClassification

    folder = make_tiny(tmp_path_factory.mktemp("second"), rows, LlamaForSequenceClassification, num_labels=1)
    model = LlamaForSequenceClassification.from_pretrained(folder)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_pools_are_scored_as_by_pcrm_score(tmp_path, tiny, second, rows):
    pool = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"], ""], "ratings": [2, 1, 0]} for r in rows]
    source = write(tmp_path / "pool.jsonl", pool)
    out = tmp_path / "out"
    assert optimize(out, source, "--proxy", tiny, "--proxy", f"other={second}", "--gold", "ratings") == 0
    assert cli.main(["score", str(second), str(source), "--out", str(tmp_path / "scores.jsonl")]) == 0
    scores = [r["scores"] for r in read(tmp_path / "scores.jsonl")]
    curve = best_of_n(scores, [r["ratings"] for r in pool])
    found = summary(out)["models"]
    assert list(found) == [tiny.name, "other"]
    assert [p["gold"] for p in found["other"]["best_of_n"]] == curve.gold[:, 0].tolist()
    # What is there is kept, and made anew for another pool.
    before = {p: p.stat().st_mtime_ns for p in (out / "proxies").iterdir()}
    assert optimize(out, source, "--proxy", f"other={second}", "--gold", tiny) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "proxies").iterdir()} == before
    assert summary(out)["best_of_n"][0]["gold"] != found["other"]["best_of_n"][0]["gold"]
    write(source, pool[:9])
    assert optimize(out, source, "--proxy", f"other={second}", "--gold", tiny) == 0
    assert summary(out)["pools"] == 9
    # Ratings that are not as many.
    write(source, [pool[0] | {"ratings": [1, 2]}])
    assert optimize(out, source, "--proxy", f"other={second}") == 1


def test_ratings_of_another_number(tmp_path, tiny, capsys):
    source = write(tmp_path / "pool.jsonl", [{"prompt": "a", "responses": ["b", "c"], "ratings": [1, 2, 3]}])
    assert optimize(tmp_path / "out", source, "--proxy", tiny) == 1
    assert "pool 0: must have 2 gold values, one per response, got 3" in capsys.readouterr().err


# Samples.


def test_samples_of_a_cold_policy_are_greedy(tiny_policy, prompts):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    cold = Policy(tiny_policy, max_new_tokens=9, temperature=1e-6, batch_size=4)
    messages = [{"role": "user", "content": "hi"}]
    found = cold.sample([*prompts[:3], messages], 2, (0,))
    texts = [*prompts[:3], tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)]
    for text, responses in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt")
        greedy = model.generate(**ids, max_new_tokens=9, do_sample=False)[0, ids["input_ids"].shape[1] :]
        expected = tokenizer.decode(greedy, skip_special_tokens=True)
        assert responses == 2 * ([expected] if text in prompts else [[{"role": "assistant", "content": expected}]])


def test_samples_are_of_the_whole_distribution(tiny_policy, prompts):
    """One token each: as often as softmax says, the rare ones too, which a top k of 50 would leave out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    policy = Policy(tiny_policy, max_new_tokens=1, batch_size=2000)
    n = 2000
    texts = policy.sample(prompts[:1], n, (1,))[0]
    ids = tokenizer(prompts[0], return_tensors="pt")
    with torch.no_grad():
        p = model(**ids).logits[0, -1].softmax(0)
    decoded = tokenizer.batch_decode(torch.arange(len(p))[:, None], skip_special_tokens=True)
    likely = {decoded[i] for i in p.topk(50).indices}
    share = sum(float(q) for text, q in zip(decoded, p, strict=True) if text in likely)
    assert share < 0.5
    # Four standard errors of a share.
    assert np.mean([t in likely for t in texts]) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))


def test_samples_go_on_after_a_kill(tmp_path, tiny_policy):
    source = write(tmp_path / "prompts.jsonl", [{"prompt": f"Number {i}", "ä": "ß"} for i in range(150)])
    policy = Policy(tiny_policy, max_new_tokens=3, batch_size=50)
    sample(policy, str(source), tmp_path / "whole.jsonl", samples=2, seed=5)
    torch.manual_seed(7)  # whatever else the process draws
    killed = Policy(tiny_policy, max_new_tokens=3, batch_size=50)
    original, calls = killed.sample, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    killed.sample = interrupted
    with pytest.raises(KeyboardInterrupt):
        sample(killed, str(source), tmp_path / "out.jsonl", samples=2, seed=5)
    assert not (tmp_path / "out.jsonl").exists()
    sample(killed, str(source), tmp_path / "out.jsonl", samples=2, seed=5)
    assert [a[2][1] for a in calls] == [0, 64, 128, 128]  # no shard twice
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert all(len(r["responses"]) == 2 and r["ä"] == "ß" for r in read(tmp_path / "out.jsonl"))
    sample(killed, str(source), tmp_path / "out.jsonl", samples=2, seed=6)
    assert (tmp_path / "out.jsonl").read_bytes() != (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 1: must have a key 'prompt', got text"),
        ({"prompt": 3}, "line 1: prompt must be a text or a list of messages, got 3"),
        ({"prompt": ""}, "line 1: prompt must have at least one token, got none"),
        (
            {"prompt": "a", "responses": ["b"]},
            "line 1: must not have a column 'responses', because this command adds one",
        ),
        ({"prompt": "word " * 3000}, r"prompt must have at most \d+ tokens, so that .* can add a response, got"),
    ],
)
def test_bad_prompts(tmp_path, tiny_policy, row, message):
    policy = Policy(tiny_policy, max_new_tokens=4)
    with pytest.raises(ValueError, match=message):
        sample(policy, str(write(tmp_path / "p.jsonl", [row])), tmp_path / "out.jsonl", samples=1)


# RL.

SETTINGS = rl.Settings(steps=3, prompts=2, generations=3, max_new_tokens=8, learning_rate=1e-2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_steps_are_those_of_the_stock_trainer(tmp_path, tiny, tiny_policy, prompts, algorithm):
    """Rewards and divergence as TRL's own trainer logs them, of a run that has none of ours but the reward model."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = rl.Settings(**(vars(SETTINGS) | {"algorithm": algorithm, "batch_size": 3, "beta": 0.1}))
    steps = rl.train(tiny_policy, prompts, RewardModel(tiny), gold, tmp_path / "ours", settings)
    proxy, seen = RewardModel(tiny), []

    def reward(prompts, completions, **_):
        seen.append((prompts, completions, proxy(prompts, completions)))
        return seen[-1][2].tolist()

    config, trainer_class = (getattr(trl, f"{algorithm.upper()}{kind}") for kind in ("Config", "Trainer"))
    trainer = trainer_class(
        AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32),
        reward,
        config(
            output_dir=str(tmp_path / "theirs"), max_steps=3, per_device_train_batch_size=3, gradient_accumulation_steps=2,
            num_generations=3, max_completion_length=8, learning_rate=1e-2, beta=0.1, lr_scheduler_type="constant",
            bf16=False, use_cpu=True, gradient_checkpointing=False, logging_steps=1, report_to="none", seed=1,
        ),
        train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
        processing_class=AutoTokenizer.from_pretrained(tiny_policy, padding_side="left"),
    )  # fmt: skip
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [s.step for s in steps] == [0, 1, 2]
    assert steps[0].kl == pytest.approx(0, abs=1e-6)
    for step, entry, (asked, answers, rewards) in zip(steps, logged, seen, strict=True):
        # TRL computes in float32.
        assert step.proxy_mean == pytest.approx(entry["reward"], rel=1e-5)
        assert step.kl == pytest.approx(entry["kl"] * entry["completions/mean_length"], rel=1e-5, abs=1e-6)
        assert step.proxy_max == pytest.approx(max(rewards), rel=1e-6)
        assert step.proxy_sd == pytest.approx(np.std(rewards.astype(float)), rel=1e-4)
        assert step.gold_mean == pytest.approx(np.mean(gold(asked, answers)), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_responses_of_a_prompt_share_it(tmp_path, tiny, tiny_policy, prompts, algorithm, monkeypatch):
    """The steps are those without sharing, up to rounding, and fewer tokens go through the layers."""
    from transformers import AutoModelForCausalLM

    long = [" ".join([prompt] * 12) for prompt in prompts]
    settings = rl.Settings(**(vars(SETTINGS) | {"algorithm": algorithm, "beta": 0.1, "learning_rate": 1e-3}))
    found, tokens = [], []

    def counted(*args, **kwargs):
        model = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)

        def count(layer, args, kwargs):
            if kwargs.get("past_key_values") is None:  # not a pass that generates
                tokens[-1] += args[0].shape[:2].numel()

        model.model.layers[0].register_forward_pre_hook(count, with_kwargs=True)
        return model

    monkeypatch.setattr(rl, "load_model", counted)
    for shares in (True, False):
        tokens.append(0)
        where = tmp_path / f"{shares}"
        found.append(rl.train(tiny_policy, long, RewardModel(tiny), gold, where, settings, prefix_sharing=shares))
    for ours, plain in zip(*found, strict=True):
        assert vars(ours) == pytest.approx(vars(plain), rel=1e-4, abs=1e-6)
    # Fewer even with the first passes, which are computed both ways to compare them.
    assert tokens[0] < tokens[1]


@pytest.mark.slow
def test_a_policy_that_cannot_share(tmp_path, tiny_policy, prompts):
    """OPT's head bypasses the decoder that the hooks are on: it is trained without sharing, and a warning says so."""
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    settings = rl.Settings(**(vars(SETTINGS) | {"steps": 1}))
    with pytest.warns(RuntimeWarning, match="opt is trained without prefix sharing, which is slower: .*OPTForCausalLM"):
        steps = rl.train(tmp_path / "opt", prompts, gold, gold, tmp_path / "run", settings)
    assert len(steps) == 1


@pytest.mark.slow
def test_a_run_goes_on_after_a_kill(tmp_path, tiny, tiny_policy, prompts):
    proxy = RewardModel(tiny)
    whole = rl.train(tiny_policy, prompts, proxy, gold, tmp_path / "whole", SETTINGS)
    calls = []

    def counted(asked, answers):
        calls.append(asked)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return gold(asked, answers)

    with pytest.raises(KeyboardInterrupt):
        rl.train(tiny_policy, prompts, proxy, counted, tmp_path / "killed", SETTINGS)
    # The last checkpoint was not finished: the one before it counts.
    (tmp_path / "killed" / "run" / "checkpoint-2" / "trainer_state.json").write_text("{")
    # How often a run is saved changes nothing of it.
    resumed = rl.train(tiny_policy, prompts, proxy, counted, tmp_path / "killed", SETTINGS, checkpoints=1)
    assert resumed == whole
    assert len(calls) == 5
    for a, b in zip(*(load(tmp_path / run / "policy").values() for run in ("whole", "killed")), strict=True):
        assert torch.equal(a, b)
    # What is done is read, and other settings are another run.
    assert rl.train(tiny_policy, prompts, proxy, counted, tmp_path / "killed", SETTINGS) == whole
    assert len(calls) == 5
    other = rl.Settings(**(vars(SETTINGS) | {"seed": 2, "steps": 1}))
    assert rl.train(tiny_policy, prompts, proxy, counted, tmp_path / "killed", other) != whole[:1]


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.slow
def test_rl_raises_the_proxy(tmp_path, tiny_policy, prompts):
    """A reward that is easy to have, and that the policy has not: it learns it, at a price in KL."""

    def commas(asked, answers):
        return [float(a.count("a")) for a in answers]

    settings = rl.Settings(steps=25, prompts=4, generations=4, max_new_tokens=8, learning_rate=2e-2, beta=0.0)
    steps = rl.train(tiny_policy, prompts, commas, gold, tmp_path / "run", settings)
    assert np.mean([s.proxy_mean for s in steps[-5:]]) > np.mean([s.proxy_mean for s in steps[:5]]) + 1
    assert all(s.kl is None for s in steps)
    assert rl.read(tmp_path / "run" / "steps.csv") == steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "ppo"}, "algorithm must be one of rloo, grpo, got 'ppo'"),
        ({"steps": 0}, "steps must be in [1, 2**63), got 0"),
        ({"generations": 1}, "generations must be in [2, 2**63), got 1"),
        ({"temperature": 0.0}, "temperature must be finite and greater than 0, got 0"),
        ({"beta": -1.0}, "beta must be finite and at least 0, got -1"),
        ({"batch_size": 5}, "batch_size must divide the 6 responses of a step, got 5"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rl.Settings(**(vars(SETTINGS) | changes))


def test_bad_rewards(tmp_path, tiny_policy, prompts):
    def broken(asked, answers):
        return [0.0, float("nan"), *[0.0] * (len(answers) - 2)]

    with pytest.raises(ValueError, match=re.escape("the proxy reward of response 1 must be finite, got nan")):
        rl.train(tiny_policy, prompts, broken, gold, tmp_path / "a", SETTINGS)
    with pytest.raises(ValueError, match="prompts must have at least 2 elements, as many as a step uses, got 1"):
        rl.train(tiny_policy, prompts[:1], gold, gold, tmp_path / "b", SETTINGS)


@pytest.mark.slow
def test_policy_and_rl(tmp_path, capsys, tiny, second, tiny_policy, prompt_file):
    arguments = [
        prompt_file, "--policy", tiny_policy, "--proxy", f"a={tiny}", "--proxy", f"b={second}", "--gold", second,
        "--samples", 4, "--max-new-tokens", 8, "--rl", "rloo", "--steps", 3, "--prompts", 2, "--generations", 3,
        "--learning-rate", 0.01, "--device", "cpu",
    ]  # fmt: skip
    out = tmp_path / "out"
    assert optimize(out, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    found = summary(out)["models"]
    before, after = read(out / "pool.jsonl"), read(out / "rl" / "a" / "pool.jsonl")
    assert [r["prompt"] for r in before] == [r["prompt"] for r in after] and before != after
    a = found["a"]["scaled"]
    proxy = RewardModel(tiny)
    means = [
        np.mean([proxy([row["prompt"]] * 4, row["responses"]).astype(float).mean() for row in pool])
        for pool in (before, after)
    ]
    assert (a["by"], a["proxy_from"], a["proxy_to"]) == ("RLOO, 3 steps", *map(pytest.approx, means))
    assert a["proxy_gain"] == pytest.approx(means[1] - means[0], abs=1e-7)
    assert a["proxy_gain_ci"][0] <= a["proxy_gain"] <= a["proxy_gain_ci"][1]
    assert a["proxy_gain_in_sd"] == pytest.approx(a["proxy_gain"] / found["a"]["reference"]["proxy_sd"])
    assert lines[-2:] == [f"a: {a['text']}", f"b: {found['b']['scaled']['text']}"]
    # The proxy b is the gold standard itself.
    b = found["b"]
    assert b["scaled"]["proxy_to"] == b["scaled"]["gold_to"]
    assert b["best_of_n"][-1]["proxy"] == b["best_of_n"][-1]["gold"]
    assert [s["gold_mean"] for s in b["rl"]["steps"]] == [s["proxy_mean"] for s in b["rl"]["steps"]]
    with (out / "rl.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(r["proxy"], int(r["step"])) for r in table] == [(n, i) for n in "ab" for i in range(3)]
    assert float(table[4]["proxy_max"]) == b["rl"]["steps"][1]["proxy_max"]
    ET.fromstring((out / "rl.svg").read_text())
    html5lib.HTMLParser(strict=True).parse((out / "optimize.html").read_text())
    # A second call finds all of it there.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.jsonl")}
    assert optimize(out, *arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.jsonl")} == before


@pytest.mark.slow
def test_killed_and_gone_on_with(tmp_path, tiny, tiny_policy, prompt_file):
    """The process itself, killed while it trains: one checkpoint is there, the second is being written."""
    out = tmp_path / "out"
    command = [
        "optimize", prompt_file, "--policy", tiny_policy, "--proxy", f"a={tiny}", "--gold", tiny,
        "--samples", 2, "--max-new-tokens", 8, "--rl", "rloo", "--prompts", 2, "--generations", 2, "--device", "cpu",
        "--steps", 12, "--out", out,
    ]  # fmt: skip
    code = "import sys; from pcrm.cli import main; sys.exit(main(sys.argv[1:]))"
    second = ("open", r"/rl/a/run/checkpoint-\d+/trainer_state\.json$", 2)
    run_killed(code, *command, at=second, OMP_NUM_THREADS="1")
    assert len(list(out.glob("rl/a/run/checkpoint-*/trainer_state.json"))) == 1
    assert not (out / "summary.json").exists()
    again = [sys.executable, "-c", code, *map(str, command)]
    done = subprocess.run(again, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"RLOO, 12 steps: proxy reward from .*, gold reward from .*", done.stdout.splitlines()[-1])
    assert [s.step for s in rl.read(out / "rl" / "a" / "steps.csv")] == list(range(12))
    shutil.rmtree(out)


def test_documentation():
    """The page's Python does what it says, and its last line is one."""
    page = (ROOT / "docs" / "optimize.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], names)
    said = re.search(r"# ([\d., ]+): the best of four", page)[1]
    assert names["curve"].gold[:, 0] == pytest.approx([float(x) for x in said.split(", ")])
    line = re.search(r"^best of 16: .*$", page, re.M)[0]
    start, end, gain, _ = map(float, re.search(r"from (\S+) to (\S+) \((\S+), (\S+) SD", line).groups())
    assert end - start == pytest.approx(gain)
