"""Rankings as training data: the comparisons, their weights, the order of the batches, and what stays the same."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.documents import blocks
from helpers.project import ROOT
from helpers.trainers import FORMATS, SETTINGS, TWO_PROCESSES, build, distance, launch, load, steps
from hypothesis import given
from hypothesis import strategies as st
from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig, PCRMRewardTrainer
from pcrm.trl.rankings import PROMPT, PromptGroupedSampler
from safetensors.torch import load_file
from transformers import AutoTokenizer

from pcrm import prefix_sharing

slow = pytest.mark.slow

KINDS = ("reward", "dpo")
# What rounding in float32 amounts to after six steps.
SAME = 5e-6
PAIRS = {"pcrm_ranking_weights": "pair", "pcrm_group_by_prompt": False}


def as_rankings(rows):
    """Six prompts with two, three or four responses each, some of them tied."""
    made = []
    for k, row in enumerate(rows[:6]):
        texts = [text for r in rows[4 * k : 4 * k + 2] for text in (r["chosen"], r["rejected"])][: 2 + k % 3]
        ratings = [3, 1, 3, 2][: len(texts)]
        made.append({"prompt": f"{k}. {row['prompt'] * 3}", "responses": texts, "ratings": ratings})
    return made


def by_hand(rankings):
    """The comparisons of rankings, and the number of comparisons of their prompts."""
    rows, counts = [], []
    for ranking in rankings:
        found = []
        for (a, x), (b, y) in itertools.combinations(zip(ranking["responses"], ranking["ratings"], strict=True), 2):
            if x != y:
                chosen, rejected = (a, b) if x > y else (b, a)
                found.append({"prompt": ranking["prompt"], "chosen": chosen, "rejected": rejected})
        rows += found
        counts += [len(found)] * len(found)
    return rows, counts


def formatted(rankings, form):
    """Rankings in a format that pairs may have."""
    rows = []
    for ranking in rankings:
        responses, prompt = ranking["responses"], {"prompt": ranking["prompt"]}
        if form == "implicit":
            responses, prompt = [ranking["prompt"] + text for text in responses], {}
        elif form == "conversational":
            prompt = {"prompt": [{"role": "user", "content": ranking["prompt"]}]}
            responses = [[{"role": "assistant", "content": text}] for text in responses]
        rows.append(prompt | {"responses": responses, "ratings": ranking["ratings"]})
    return Dataset.from_list(rows)


@pytest.fixture
def rankings(rows):
    return as_rankings(rows)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make(kind, request, tmp_path):
    folder = request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy")
    return lambda data, **options: build(kind, folder, options.pop("out", tmp_path / "out"), data, **options)


@slow
@pytest.mark.parametrize("form", FORMATS)
def test_each_comparison_trains_as_a_pair(make, rankings, form):
    pairs, _ = by_hand(rankings)
    trainers = [make(FORMATS[form](pairs)), make(formatted(rankings, form), **PAIRS)]
    for trainer in trainers:
        trainer.train()
    assert distance(*trainers) == 0
    assert [entry["loss"] for entry in steps(trainers[0])] == [entry["loss"] for entry in steps(trainers[1])]


def test_each_prompt_counts_once(make, rankings):
    pairs, counts = by_hand(rankings)
    trainer = make(formatted(rankings, "plain"))
    assert sum(1 / n for n in counts) == pytest.approx(len(rankings))

    def weighted_sum(data, weights):
        """Computed by a loop over the pairs, each in its own batch without its weight."""
        total = torch.tensor(0.0)
        for row, weight in zip(data, weights, strict=True):
            batch = trainer.data_collator([row | {"pcrm_weight": 1.0}])
            total = total + weight * trainer.compute_loss(trainer.model, batch)
        return total

    data = trainer.train_dataset
    batch = trainer.data_collator(list(data))
    expected = weighted_sum(data, [1 / n / len(rankings) for n in counts])
    found = trainer.compute_loss(trainer.model, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    # The gradient has the weights too.
    gradients = []
    for value in (found, expected):
        trainer.model.zero_grad()
        value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()
    # And they matter: the mean over the pairs is another number.
    unweighted = weighted_sum(data, [1 / len(pairs)] * len(pairs))
    assert abs(found.item() - unweighted.item()) > 1e-4 * abs(found.item())


def test_weights_of_pairs_by_their_column_prompt(make, rankings):
    pairs, counts = by_hand(rankings)
    trainer = make(FORMATS["plain"](pairs), pcrm_ranking_weights="prompt")
    weights = trainer.train_dataset["pcrm_weight"][:]
    assert weights == pytest.approx([len(pairs) / len(rankings) / n for n in counts])
    assert make(FORMATS["plain"](pairs)).train_dataset.column_names.count("pcrm_weight") == 0


def test_the_evaluation_has_its_own_weights(make, rankings):
    trainer = make(formatted(rankings[:4], "plain"), eval_data=formatted(rankings[3:], "plain"))
    _, counts = by_hand(rankings[3:])
    assert trainer.eval_dataset["pcrm_weight"][:] == pytest.approx([len(counts) / 3 / n for n in counts])


@slow
def test_shared_prefixes_train_the_same_model(make, rankings, tmp_path):
    data = formatted(rankings, "plain")
    trainers = [make(data, out=tmp_path / str(on), pcrm_prefix_sharing=on) for on in (False, True)]
    for trainer in trainers:
        trainer.train()
    assert distance(*trainers) < SAME
    for a, b in zip(*map(steps, trainers), strict=True):
        for name in a.keys() - {"epoch"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), name


@slow
def test_a_resumed_run_goes_on_where_it_was(make, rankings):
    data = formatted(rankings, "plain")
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 9, "per_device_train_batch_size": 3}
    whole, again = make(data, **options), make(data, **options)
    whole.train()
    again.train(resume_from_checkpoint=os.path.join(again.args.output_dir, "checkpoint-4"))
    assert steps(whole)[-1]["epoch"] > 1  # so that the order was drawn anew
    assert distance(whole, again) == 0


TRAIN = """
import json, sys
from datasets import Dataset
from helpers.trainers import build

kind, folder, out, accumulated, rows = sys.argv[1:]
data = Dataset.from_list(json.load(open(rows)))
options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": int(accumulated)}
trainer = build(kind, folder, out, data, **options)
trainer.train()
trainer.save_model(out)
"""


@slow
def test_two_processes_take_the_same_batches(kind, rankings, request, tmp_path, monkeypatch):
    folder = str(request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy"))
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "rows.json").write_text(json.dumps(rankings))
    path = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    weights = []
    for launcher, accumulated in (((), 2), (TWO_PROCESSES, 1)):
        out = str(tmp_path / str(accumulated))
        launch(*launcher, str(tmp_path / "train.py"), kind, folder, out, str(accumulated), str(tmp_path / "rows.json"))
        weights.append(load_file(os.path.join(out, "model.safetensors")))
    assert max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[0]) < SAME


def test_the_batches_hold_whole_prompts(make, rankings):
    trainer = make(formatted(rankings, "plain"), per_device_train_batch_size=6)
    prompts = trainer.train_dataset[PROMPT][:]
    orders = []
    for number in range(3):
        trainer._rankings.sampler.set_round(number)
        order = list(trainer._get_train_sampler())
        assert sorted(order) == list(range(len(prompts)))
        groups = [prompt for prompt, _ in itertools.groupby(prompts[i] for i in order)]
        # One, two and five comparisons, each twice: six of them fill a batch with two prompts, and nothing is split but
        # what is left in the end.
        assert len(groups) <= len(rankings) + 1
        assert all(a < b for a, b in itertools.pairwise(order) if prompts[a] == prompts[b])
        orders.append(order)
    assert len({tuple(order) for order in orders}) == 3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 5))
def test_every_pair_is_drawn_once_and_few_prompts_are_split(sizes, batch_size, number):
    prompts = np.repeat(np.arange(len(sizes)) * 7 % 31, sizes)
    sampler = PromptGroupedSampler(prompts, batch_size, seed=0)
    sampler.set_round(number)
    order = list(sampler)
    assert sorted(order) == list(range(sum(sizes))) and len(sampler) == len(order)
    batches = [prompts[order[i : i + batch_size]].tolist() for i in range(0, len(order), batch_size)]
    parts = sum(len(set(batch)) for batch in batches)
    # Each boundary between batches splits one prompt at most.
    assert parts <= len(sizes) + len(batches) - 1
    assert all(len(list(itertools.groupby(batch))) == len(set(batch)) for batch in batches)


def test_prompts_that_fill_batches_are_never_split():
    prompts = np.repeat(np.arange(40), [3, 1, 2, 2] * 10)
    sampler = PromptGroupedSampler(prompts, 4, seed=0)
    for number in range(20):
        sampler.set_round(number)
        order = prompts[list(sampler)]
        assert all(len(set(order[i : i + 4])) == 2 for i in range(0, 80, 4))


def test_the_sampler_draws_every_order():
    """Of three prompts, each of the six orders in about a sixth of the rounds: chi-squared at p = 1e-6 for 5 degrees."""
    sampler = PromptGroupedSampler(np.array([9, 9, -4, 5, 9, 5]), 1, seed=1)
    seen = {}
    for number in range(1200):
        sampler.set_round(number)
        order = tuple(sampler)
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 6
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 35.9
    assert {order[:3] for order in seen if order[0] == 0} == {(0, 1, 4)}


def test_what_rankings_do_by_default(make, rankings):
    trainer = make(formatted(rankings, "plain"))
    assert isinstance(trainer._get_train_sampler(), PromptGroupedSampler)
    pairs = make(FORMATS["plain"](by_hand(rankings)[0]))
    assert not isinstance(pairs._get_train_sampler(), PromptGroupedSampler)
    grouped = make(FORMATS["plain"](by_hand(rankings)[0]), pcrm_group_by_prompt=True)
    assert list(grouped._get_train_sampler()) == list(trainer._get_train_sampler())


def test_streamed_rankings(make, rankings):
    stream = formatted(rankings, "plain").to_iterable_dataset()
    with pytest.raises(
        ValueError, match=r"^pcrm_ranking_weights must be 'pair' with an iterable data set, .* got 'prompt'"
    ):
        make(stream)
    with pytest.raises(ValueError, match=r"^pcrm_group_by_prompt must be False with an iterable data set, .* got True"):
        make(stream, pcrm_ranking_weights="pair", pcrm_group_by_prompt=True)
    trainer = make(stream, pcrm_ranking_weights="pair")
    assert len(list(trainer.train_dataset)) == len(by_hand(rankings)[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ratings": [1, 1]}, "the train data set must have responses with different ratings, got only ties"),
        (
            {"ratings": [1]},
            "the train data set, row 0: ratings must have one number for each of the 2 responses, got 1",
        ),
        ({"ratings": [1, 2], "prior": 0.5}, "the train data set must not have a column 'prior' with rankings"),
        ({"ratings": [1, 2], "margin": 0.5}, "the train data set must not have a column 'margin' with rankings"),
        ({"ratings": [1, 2], "chosen": "x"}, "the train data set, row 0: a ranking must not have a column 'chosen'"),
    ],
)
def test_data_that_are_refused(make, changed, message):
    with pytest.raises(ValueError) as error:
        make(Dataset.from_list([{"prompt": "p", "responses": ["a", "b"]} | changed]))
    assert str(error.value).startswith(message)


def test_pairs_without_a_prompt_cannot_be_grouped(make, rows):
    with pytest.raises(
        ValueError, match=r"^the train data set must have a column 'prompt' with pcrm_group_by_prompt=True"
    ):
        make(FORMATS["implicit"](rows), pcrm_group_by_prompt=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pcrm_sft_eta": 0.5}, "pcrm_sft_eta must be 0.0 if each prompt counts once, got 0.5"),
        ({"pcrm_priority_alpha": 0.5}, "pcrm_priority_alpha must be 0.0 if each prompt counts once, got 0.5"),
        (
            {"loss_type": ["pcrm", "ipo"]},
            "loss_type must be ['pcrm'] if each prompt counts once, got ['pcrm', 'ipo']",
        ),
    ],
)
def test_what_the_weights_would_not_reach(tiny, tiny_policy, rankings, tmp_path, options, message):
    with pytest.raises(ValueError) as error:
        build("dpo", tiny_policy, tmp_path, formatted(rankings, "plain"), **options)
    assert str(error.value).startswith(message)
    build("dpo", tiny_policy, tmp_path, formatted(rankings, "plain"), pcrm_ranking_weights="pair", **options)


@pytest.mark.parametrize("config", [PCRMRewardConfig, PCRMDPOConfig])
def test_fields_that_are_refused(config):
    def made(**options):
        return config("out", bf16=False, **options)

    with pytest.raises(ValueError, match=r"^pcrm_ranking_weights must be one of prompt, pair, got 'post'"):
        made(pcrm_ranking_weights="post")
    with pytest.raises(ValueError, match=r"^pcrm_priority_alpha must be 0 with pcrm_group_by_prompt=True"):
        made(pcrm_priority_alpha=0.5, pcrm_group_by_prompt=True)
    with pytest.raises(ValueError, match=r"^train_sampling_strategy must be 'random' with pcrm_group_by_prompt=True"):
        made(train_sampling_strategy="sequential", pcrm_group_by_prompt=True)


def test_the_token_form_has_the_weights(tiny, rankings, tmp_path):
    options = {"pcrm_form": "token", "pcrm_prior": "fixed", "pcrm_delta": 1.0}
    trainer = build("reward", tiny, tmp_path, formatted(rankings, "plain"), **options)
    rows = list(trainer.train_dataset)[:3]
    one_by_one = [trainer.compute_loss(trainer.model, trainer.data_collator([row])).item() for row in rows]
    weights = [row["pcrm_weight"] for row in rows]
    alone = [trainer.compute_loss(trainer.model, trainer.data_collator([row | {"pcrm_weight": 1.0}])) for row in rows]
    assert one_by_one == pytest.approx([w * loss.item() for w, loss in zip(weights, alone, strict=True)], rel=1e-5)
    assert len(set(weights)) > 1


def test_the_page(tiny, tmp_path):
    (block,) = blocks("docs/rankings.md", "python")
    model, tokenizer = load("reward", tiny), AutoTokenizer.from_pretrained(tiny)

    def config(out, **options):
        return PCRMRewardConfig(str(tmp_path / out), **SETTINGS | {"max_steps": 2} | options)

    names = {"Dataset": Dataset, "PCRMRewardConfig": config, "PCRMRewardTrainer": PCRMRewardTrainer}
    exec(block, found := names | {"model": model, "tokenizer": tokenizer})
    trainer = found["trainer"]
    assert trainer.train_dataset["rating_chosen"][:] == [5, 5, 4, 3]
    # Two prompts: three comparisons of the first, one of the second, each prompt with a weight of two.
    assert trainer.train_dataset["pcrm_weight"][:] == pytest.approx([2 / 3] * 3 + [2])
    trainer.train()
    assert prefix_sharing.is_enabled(trainer.model) and len(steps(trainer)) == 2
