"""`pcrm score` computes each prompt once, with the same scores."""

import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from helpers.models import make_tiny
from pcrm.evaluate.reward_model import RewardModel

from pcrm import cli, prefix_sharing


@pytest.fixture(scope="module")
def ranked(rows):
    """Prompts of some fifty tokens with four responses each."""
    responses = [row["chosen"] for row in rows[:4]]
    return [{"prompt": row["prompt"] * 3, "responses": responses} for row in rows[::9][:6]]


def encoded(model, ranked):
    return [model.encode("x", row["prompt"] + r + model.end) for row in ranked for r in row["responses"]]


def widths(model):
    """How many tokens each pass of a model takes."""
    seen = []
    decoder = model._model.base_model
    decoder.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    return seen


def test_the_same_scores_of_fewer_tokens(tiny, ranked):
    plain, shared = RewardModel(tiny, prefix_sharing=False), RewardModel(tiny)
    assert shared.shares_prefixes and not plain.shares_prefixes
    sequences = encoded(plain, ranked)
    want = plain.score(sequences)
    shared.score(sequences)  # the first pass goes through the model both ways
    counts = widths(plain), widths(shared)
    np.testing.assert_allclose(shared.score(sequences), want, rtol=2e-5, atol=2e-7)
    plain.score(sequences)
    assert sum(counts[1]) < 0.5 * sum(counts[0])


def test_responses_to_a_prompt_meet_in_a_pass(tiny, ranked):
    """As many as there are of a prompt, given one from each prompt in turn."""
    model = RewardModel(tiny, batch_size=4)
    sequences = encoded(model, ranked)
    sequences = [sequences[i] for start in range(4) for i in range(start, len(sequences), 4)]
    model.score(sequences)  # the first pass goes through the model both ways
    counts = widths(model)
    model.score(sequences)
    # It is 0.70. With rows of one length in a pass it is 1.01, padding included.
    assert sum(counts) < 0.75 * sum(map(len, set(map(tuple, sequences))))


def test_the_order_of_the_rows_is_theirs(tiny, ranked):
    model = RewardModel(tiny, batch_size=3)
    sequences = encoded(model, ranked)
    alone = np.concatenate([model.score([s]) for s in sequences])
    np.testing.assert_allclose(model.score(sequences), alone, rtol=2e-5, atol=2e-7)
    assert len(set(alone)) > 12


def test_the_flag(tiny, ranked, tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked))
    enabled, scores = [], []
    monkeypatch.setattr("pcrm.evaluate.reward_model.enable", lambda m: enabled.append(m) or prefix_sharing.enable(m))
    for flag in ([], ["--no-prefix-sharing"]):
        out = tmp_path / f"out{len(flag)}.jsonl"
        assert cli.main(["score", str(tiny), str(tmp_path / "rows.jsonl"), "--out", str(out), *flag]) == 0
        scores.append([json.loads(line)["scores"] for line in out.read_text().splitlines()])
    assert len(enabled) == 1
    np.testing.assert_allclose(*scores, rtol=2e-5, atol=2e-7)


def test_a_window_that_is_shorter_than_the_rows(tmp_path, rows, ranked):
    options = {"num_key_value_heads": 2, "sliding_window": 24, "num_labels": 1, "max_position_embeddings": 512}
    folder = make_tiny(tmp_path, rows, transformers.MistralForSequenceClassification, **options)
    model = RewardModel(folder)
    assert not model.shares_prefixes
    assert RewardModel(folder, max_length=24).shares_prefixes
    sequences = encoded(model, ranked)
    np.testing.assert_array_equal(model.score(sequences), RewardModel(folder, prefix_sharing=False).score(sequences))


def test_a_model_that_turns_out_not_to_share(tiny, ranked, monkeypatch):
    right = prefix_sharing.sharing._mask
    want = RewardModel(tiny, prefix_sharing=False).score(encoded(RewardModel(tiny), ranked))
    monkeypatch.setattr(prefix_sharing.sharing, "_mask", lambda ends, *rest: right(torch.full_like(ends, 10**6), *rest))
    model = RewardModel(tiny)
    with pytest.warns(
        RuntimeWarning, match=r"is scored without prefix sharing, which is slower: the hidden states of LlamaModel"
    ):
        got = model.score(encoded(model, ranked))
    assert not model.shares_prefixes
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.score(encoded(model, ranked))


def test_a_broken_model_is_not_blamed_on_sharing(tiny, ranked):
    model = RewardModel(tiny)
    model._model.model.layers[0].mlp.down_proj.weight.data.fill_(torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(model.score(encoded(model, ranked))).all()
    assert model.shares_prefixes
