"""`pcrm_prefix_sharing`: the same training with the prompt of each pair computed once."""

import json
import os

import pytest
from helpers.documents import blocks
from helpers.project import ROOT
from helpers.trainers import FORMATS, TWO_PROCESSES, build, distance, joint, launch, load, steps
from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig
from peft import LoraConfig
from safetensors.torch import load_file

from pcrm import prefix_sharing

pytestmark = pytest.mark.slow

KINDS = ("reward", "dpo")
# What rounding of the hidden states in float32 amounts to after six steps.
SAME = 5e-6


@pytest.fixture
def data(rows):
    """Prompts of some fifty tokens."""
    return FORMATS["plain"]([row | {"prompt": row["prompt"] * 3} for row in rows])


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def run(kind, data, request, tmp_path):
    """Train the tiny model of this kind, plain and with shared prefixes."""
    folder = request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy")

    def train(**options):
        trainers = [
            build(kind, folder, tmp_path / str(shared), data, pcrm_prefix_sharing=shared, **options)
            for shared in (False, True)
        ]
        for trainer in trainers:
            trainer.train()
        return trainers

    return train


def assert_same(plain, shared, ignored=()):
    assert prefix_sharing.is_enabled(shared.model) and not prefix_sharing.is_enabled(plain.model)
    assert distance(plain, shared) < SAME
    for a, b in zip(steps(plain), steps(shared), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"epoch", *ignored}:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, {"gradient_checkpointing": True}],
    ids=["plain", "accumulation", "checkpointing"],
)
def test_training_is_the_same(run, options):
    assert_same(*run(**options))


def test_lora(run):
    assert_same(*run(trainer={"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}))


def test_fewer_tokens_go_through_the_model(kind, data, request, tmp_path):
    folder = request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy")
    counts = []
    for shared in (False, True):
        model, seen = load(kind, folder), []
        model.model.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append((args[0] if args else kwargs["hidden_states"]).shape[1::-1]),
            with_kwargs=True,
        )
        build(kind, folder, tmp_path / str(shared), data, model=model, pcrm_prefix_sharing=shared).train()
        counts.append(sum(width * rows for width, rows in seen[-3:]))  # the first batch goes through both ways
    assert counts[1] < 0.75 * counts[0]


@pytest.mark.parametrize("kind", ["dpo"])
def test_precomputed_reference(run):
    # At the first step the policy is the reference, and which of two equal rewards is greater is rounding.
    assert_same(*run(precompute_ref_log_probs=True), ignored={"rewards/accuracies"})


def test_demonstrations(tiny_policy, data, tmp_path):
    trainers = []
    for shared in (False, True):
        options = {"model": joint(tiny_policy), "pcrm_sft_eta": 0.5, "pcrm_prefix_sharing": shared}
        trainers.append(build("reward", tiny_policy, tmp_path / str(shared), data, **options))
        trainers[-1].train()
    assert_same(*trainers)


def test_the_token_form_is_refused():
    with pytest.raises(ValueError, match=r"^pcrm_prefix_sharing must be False with pcrm_form='token', got True"):
        PCRMRewardConfig("out", bf16=False, pcrm_prefix_sharing=True, pcrm_form="token")


TRAIN = """
import json, sys
from helpers.trainers import FORMATS, build

kind, folder, out, shared = sys.argv[1:5]
data = FORMATS["plain"](json.load(open(sys.argv[5])))
trainer = build(kind, folder, out, data, pcrm_prefix_sharing=shared == "True", per_device_train_batch_size=2)
trainer.train()
trainer.save_model(out)
"""


def test_two_processes(kind, data, request, tmp_path, monkeypatch):
    folder = request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy")
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "rows.json").write_text(json.dumps(list(data)))
    path = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    weights = []
    for shared in (False, True):
        out = tmp_path / str(shared)
        arguments = (kind, str(folder), str(out), str(shared), str(tmp_path / "rows.json"))
        launch(*TWO_PROCESSES, str(tmp_path / "train.py"), *arguments)
        weights.append(load_file(out / "model.safetensors"))
    assert max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[0]) < SAME


def test_resumed(kind, data, request, tmp_path):
    folder = request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy")
    options = {"pcrm_prefix_sharing": True, "save_strategy": "steps", "save_steps": 3}
    whole = build(kind, folder, tmp_path / "out", data, **options)
    whole.train()
    again = build(kind, folder, tmp_path / "out", data, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert distance(whole, again) < SAME


def test_the_fields_of_the_page():
    (block,) = (text for text in blocks("docs/prefix-sharing.md", "python") if "pcrm_prefix_sharing" in text)
    for config in (PCRMRewardConfig, PCRMDPOConfig):
        made = eval(block.split("#")[0].replace("...", "'out', bf16=False"), {"PCRMRewardConfig": config})
        assert made.pcrm_prefix_sharing and config.__name__ in block


@pytest.mark.parametrize("shared", [False, True])
def test_what_it_would_save_is_told_once(kind, data, request, tmp_path, shared, caplog):
    folder = request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy")
    build(kind, folder, tmp_path / "out", data, pcrm_prefix_sharing=shared).train()
    told = [record.message for record in caplog.records if "pcrm_prefix_sharing" in record.message]
    assert len(told) == (not shared)
    for text in told:
        percent = int(text.split("%")[0])
        assert 25 < percent < 50, text


def test_off_by_default():
    assert not PCRMRewardConfig("out", bf16=False).pcrm_prefix_sharing
    assert not PCRMDPOConfig("out", bf16=False).pcrm_prefix_sharing
