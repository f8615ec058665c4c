"""Rewards for reinforcement learning: the formulas against scipy, the functions in TRL's trainers."""

import re

import numpy as np
import pytest
import scipy.special
import torch
from datasets import Dataset
from helpers.project import ROOT
from pcrm.evaluate.reward_model import RewardModel
from pcrm.methods.rl_rewards import length_bonus, length_bonus_function, par, reward_function
from transformers import AutoTokenizer

PRINCIPLES = ["Be kind.", {"text": "Be brief.", "name": "brief"}, "Be fair."]


@pytest.fixture(scope="module")
def model(tiny):
    return RewardModel(tiny)


@pytest.mark.parametrize("shape", [(1,), (5,), (7,), (7, 1), (7, 3)])
def test_par(shape):
    random = np.random.default_rng(0)
    rewards, references = random.normal(0, 3, 7), random.normal(0, 3, shape)
    want = scipy.special.expit(rewards[:, None] - references).mean(1)
    # A few roundings of numbers of up to 1.
    for dtype, bound in ((torch.float64, 1e-15), (torch.float32, 2e-7)):
        got = par(torch.tensor(rewards, dtype=dtype), torch.tensor(references, dtype=dtype))
        assert got.dtype == dtype and got.shape == (7,) and 0 < got.min() <= got.max() < 1
        # The difference of rewards near 10 is off by up to 2^-21 in float32; the sigmoid's slope is at most 1/4.
        np.testing.assert_allclose(got, want, rtol=0, atol=bound if dtype == torch.float64 else bound + 2**-23)


def test_par_of_half_types_is_computed_in_float32():
    for dtype in (torch.bfloat16, torch.float16):
        rewards, references = torch.tensor([3.0, 2.0**-7], dtype=dtype), torch.tensor([2.0**-7, 3.0], dtype=dtype)
        got = par(rewards, references)
        want = scipy.special.expit(rewards.double().numpy()[:, None] - references.double().numpy()).mean(1)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got, want, rtol=1e-6)  # 3 - 2^-7 has 9 bits: bfloat16's difference is off by 2^-7


def test_par_at_the_ends():
    got = par(torch.tensor([-1e4, 16.0, 18.0, 1e4, float("nan")]), torch.zeros(1))
    assert got[0] == 0 and got[1] < 1 and got[2] == got[3] == 1 and got[4].isnan()


def test_the_gradient_of_par():
    torch.manual_seed(0)
    rewards, references = (
        torch.randn(5, dtype=torch.float64, requires_grad=True),
        torch.randn(5, 3, dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(lambda r: par(r, references), rewards)


def test_length_bonus():
    lengths = torch.tensor([0, 50, 100, 1000])
    np.testing.assert_allclose(length_bonus(lengths, max_length=200), [0.0, 1.25, 2.5, 4.0], rtol=1e-7)
    got = length_bonus(lengths, max_length=200, weight=2, cap=1.5, multiplier=torch.tensor([1.0, -0.4, 2.0, -0.4]))
    np.testing.assert_allclose(got, [0.0, -0.2, 2.0, -4.0], rtol=1e-7)
    # Larger than any integer in torch.
    assert length_bonus(lengths, max_length=2**70, weight=2**70)[3] == 1000
    assert got.dtype == torch.float32 and length_bonus(lengths.double(), max_length=3).dtype == torch.float64


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_multipliers_of_a_column(kind):
    """As returned by a data set in Python, NumPy and torch format."""
    function = length_bonus_function(max_length=4, weight=2.0, multiplier="m")
    for column in (kind([1.0, -0.5]), [*kind([1, -2])]):
        assert function(completion_ids=[[1, 2], [1]], m=column) == [1.0, -0.25 if column[1] == -0.5 else -1.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: par([1.0], torch.ones(1)),
            TypeError,
            "rewards must be a tensor of float32, float64, bfloat16 or float16, got [1.0]",
        ),
        (
            lambda: par(torch.ones(2), torch.ones(1).int()),
            TypeError,
            "reference_rewards must be a tensor of float32, float64, bfloat16 or float16, got a tensor of torch.int32",
        ),
        (
            lambda: par(torch.ones(2, 1), torch.ones(1)),
            ValueError,
            "rewards must have shape (B,) with B at least 1, got (2, 1)",
        ),
        (
            lambda: par(torch.ones(0), torch.ones(1)),
            ValueError,
            "rewards must have shape (B,) with B at least 1, got (0,)",
        ),
        (
            lambda: par(torch.ones(2), torch.ones(3, 2)),
            ValueError,
            "reference_rewards must have shape (K,) or (2, K) with K at least 1, got (3, 2)",
        ),
        (
            lambda: par(torch.ones(2), torch.ones(2, 0)),
            ValueError,
            "reference_rewards must have shape (K,) or (2, K) with K at least 1, got (2, 0)",
        ),
        (
            lambda: par(torch.ones(2), torch.tensor(1.0)),
            ValueError,
            "reference_rewards must have shape (K,) or (2, K) with K at least 1, got ()",
        ),
        (
            lambda: par(torch.ones(2), torch.ones(2).double()),
            TypeError,
            "reference_rewards must have the dtype of rewards, torch.float32, got torch.float64",
        ),
        (
            lambda: par(torch.ones(2), torch.ones(2, device="meta")),
            ValueError,
            "reference_rewards must be on the device of rewards, cpu, got meta",
        ),
        (lambda: length_bonus([1], max_length=1), TypeError, "lengths must be a tensor of real numbers, got [1]"),
        (lambda: length_bonus(torch.ones(1, 1), max_length=1), ValueError, "lengths must have shape (B,), got (1, 1)"),
        (
            lambda: length_bonus(torch.tensor([3, -2]), max_length=1),
            ValueError,
            "lengths[1] must be finite and at least 0, got -2",
        ),
        (
            lambda: length_bonus(torch.tensor([np.nan]), max_length=1),
            ValueError,
            "lengths[0] must be finite and at least 0, got nan",
        ),
        (lambda: length_bonus(torch.ones(1), max_length=0), ValueError, "max_length must be greater than 0, got 0"),
        (lambda: length_bonus(torch.ones(1), max_length=1, weight="5"), TypeError, "weight must be a number, got '5'"),
        (lambda: length_bonus(torch.ones(1), max_length=1, cap=np.inf), ValueError, "cap must be finite, got inf"),
        (
            lambda: length_bonus(torch.ones(1), max_length=1, multiplier=None),
            TypeError,
            "multiplier must be a number, got None",
        ),
        (
            lambda: length_bonus(torch.ones(1), max_length=1, multiplier=torch.ones(2)),
            ValueError,
            "multiplier must have the shape of lengths, (1,), got (2,)",
        ),
        (
            lambda: length_bonus(torch.ones(1), max_length=10**400),
            ValueError,
            "max_length must be a number of at most 1.79769e+308",
        ),
        (
            lambda: length_bonus(torch.ones(1), max_length=1, multiplier=-(10**5000)),
            ValueError,
            "multiplier must be a number of at most 1.79769e+308",
        ),
        (
            lambda: length_bonus_function(max_length=1, weight=10**400),
            ValueError,
            "weight must be a number of at most 1.79769e+308",
        ),
        (lambda: length_bonus_function(max_length=-1), ValueError, "max_length must be greater than 0, got -1"),
        (
            lambda: length_bonus_function(max_length=1, multiplier=np.nan),
            ValueError,
            "multiplier must be finite, got nan",
        ),
        (
            lambda: length_bonus_function(max_length=1, multiplier="m")(completion_ids=[[1]], a=[1]),
            ValueError,
            "multiplier must be a number or a column of the data set (a), got 'm'",
        ),
        *(
            (lambda m=m: length_bonus_function(max_length=1, multiplier="m")(completion_ids=[[1], [2]], m=m), e, text)
            for m, e, text in (
                ([1.0, None], TypeError, "m[1] must be a number, got None"),
                (["1", 1.0], TypeError, "m[0] must be a number, got '1'"),
                ([1.0, True], TypeError, "m[1] must be a number, got True"),
                ([1.0, np.nan], ValueError, "m[1] must be finite, got nan"),
                ([1.0, 10**400], ValueError, "m[1] must be a number of at most 1.79769e+308"),
                ([1.0], ValueError, "m must have as many rows as completion_ids, 2, got 1"),
                (None, TypeError, "m must be a list with one value for each of completion_ids, got None"),
                ("ab", TypeError, "m must be a list with one value for each of completion_ids, got 'ab'"),
            )
        ),
        (
            lambda: reward_function(None, principles="Be kind."),
            TypeError,
            "principles must be a list of texts or objects, got 'Be kind.'",
        ),
        (
            lambda: reward_function(None, principles=[3]),
            ValueError,
            "principles[0] must be a text or an object with a key 'text', got 3",
        ),
        (lambda: reward_function(None, principles=["a"], k=0), ValueError, "k must be in [1, 2**63), got 0"),
        (
            lambda: reward_function(None, principles=["a"], template="{prompt}"),
            ValueError,
            "template must contain {principles}, got",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def logit(model, text):
    """The score of a text, in a separate pass."""
    return float(model.score([model.encode("text", text + model.end)])[0])


def test_rewards(model):
    """Compare with scores of texts that were assembled by hand."""
    prompts, completions = ["one", "one", "two"], [" two", " three", " one"]
    columns = {"completion_ids": [[1]] * 3, "references": [[" a", " b"], [" a", " b"], [" c"]], "trainer_state": None}
    want = [logit(model, p + c) for p, c in zip(prompts, completions, strict=True)]
    plain = reward_function(model)
    got = plain(prompts=prompts, completions=completions, **columns)
    # Batches of other widths: the last bits of scores of 1e-3.
    np.testing.assert_allclose(got, want, atol=1e-8)
    references = [[logit(model, p + r) for r in rs] for p, rs in zip(prompts, columns["references"], strict=True)]
    want_par = [scipy.special.expit(w - np.array(r)).mean() for w, r in zip(want, references, strict=True)]
    as_preference = reward_function(model, references="references")
    got = as_preference(prompts=prompts, completions=completions, **columns)
    np.testing.assert_allclose(got, want_par, atol=1e-7)
    known = columns | {"references": references}
    np.testing.assert_allclose(as_preference(prompts=prompts, completions=completions, **known), want_par, atol=1e-7)
    assert (plain.__name__, as_preference.__name__) == ("reward", "preference_as_reward")

    template = "{principles}; {prompt}"
    ruled = reward_function(model, references="references", principles=PRINCIPLES, template=template, k=1, seed=3)
    got = ruled(prompts=prompts, completions=completions, **columns)
    texts = ("Be kind.", "Be brief.", "Be fair.")
    drawn = []
    for i, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        by = {}
        for text in texts:
            before = f"- {text}; {p}"
            by[text] = scipy.special.expit(
                logit(model, before + c) - np.array([logit(model, before + r) for r in columns["references"][i]])
            ).mean()
        drawn += [text for text, value in by.items() if abs(value - got[i]) < 1e-7]
    assert len(drawn) == 3 and drawn[0] == drawn[1], "one prompt, one principle"


def test_conversations(model):
    user, answer = [{"role": "user", "content": "one"}], [{"role": "assistant", "content": "two"}]
    got = reward_function(model, references="refs")(prompts=[user], completions=[answer], refs=[[answer, answer]])
    assert got == [0.5]


def test_bad_batches(model):
    function = reward_function(model, references="refs")
    for columns, message in (
        ({"other": [[]]}, "references must be a column of the data set (other), got 'refs'"),
        ({"refs": [" a"]}, "refs[0] must be a list of responses or of their rewards, got ' a'"),
        ({"refs": [[]]}, "refs[0] must be a list of responses or of their rewards, got []"),
        ({"refs": [[1.0, " a"]]}, "refs[0][1] must be a number, like other elements of the list, got ' a'"),
        (
            {"refs": [[" a", None]]},
            "completion 0 of the batch: refs[0][1] must be a text or a list of messages, got None",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(prompts=["one"], completions=[" two"], **columns)
    two = {"prompts": ["one", "two"], "completions": [" two", " three"]}
    with pytest.raises(ValueError, match=r"^refs must have as many rows as prompts, 2, got 1$"):
        function(**two, refs=[[1.0]])
    with pytest.raises(TypeError, match=r"^refs must be a list with one value for each of prompts, got None$"):
        function(**two, refs=None)
    with pytest.raises(ValueError, match=r"^completions must have as many rows as prompts, 2, got 1$"):
        reward_function(model)(prompts=["one", "two"], completions=[" two"])
    with pytest.raises(
        ValueError,
        match=r"completion 1 of the batch: completions\[1\] with its prompt must have at most 2048 tokens, got \d+",
    ):
        reward_function(model)(prompts=["a", "a"], completions=[" two", " two" * 3000])


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_in_trl(tmp_path, model, tiny_policy, kind):
    """Two steps of TRL's own trainer: the logged rewards match the logged completions."""
    import trl

    trainer_class, config_class = (getattr(trl, f"{kind.upper()}{part}") for part in ("Trainer", "Config"))
    data = Dataset.from_list(
        [{"prompt": f"{w} is", "refs": [" two", " three"]} for w in ("one", "two", "three", "four")]
    )
    preference = reward_function(model, references="refs", principles=PRINCIPLES, k=2)
    seen = []

    def watched(**columns):
        seen.append((columns["prompts"], columns["completions"], columns["refs"], preference(**columns)))
        return seen[-1][-1]

    watched.__name__ = preference.__name__
    args = config_class(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        logging_steps=1,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    trainer = trainer_class(
        model=str(tiny_policy),
        reward_funcs=[watched, length_bonus_function(max_length=4, weight=0.5, cap=1.0)],
        args=args,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(tiny_policy, padding_side="left"),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "rewards/preference_as_reward/mean" in entry]
    assert len(logs) == len(seen) == 2
    for entry, (_, completions, _, rewards) in zip(logs, seen, strict=True):
        assert len(rewards) == len(completions) == 4 and all(0 < r < 1 for r in rewards)
        assert entry["rewards/preference_as_reward/mean"] == pytest.approx(np.mean(rewards), abs=1e-6)
        assert 0 < entry["rewards/length_bonus/mean"] <= 0.5
        total = entry["rewards/preference_as_reward/mean"] + entry["rewards/length_bonus/mean"]
        assert entry["reward"] == pytest.approx(total, abs=1e-6)


def test_documentation(tmp_path, monkeypatch, tiny, tiny_policy, rows):
    """The script of docs/rl-rewards.md trains as printed, for one step."""
    (block,) = re.findall("```python\n(.*?)```", (ROOT / "docs" / "rl-rewards.md").read_text(), flags=re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward-model").symlink_to(tiny)
    (tmp_path / "policy").symlink_to(tiny_policy)
    Dataset.from_list([{"prompt": r["prompt"], "references": [r["chosen"]]} for r in rows[:8]]).to_json("prompts.jsonl")
    short = 'output_dir="out", max_steps=1, use_cpu=True, bf16=False, report_to="none", max_completion_length=4, '
    short += 'per_device_train_batch_size=2, num_generations=2, save_strategy="no", disable_tqdm=True'
    assert block.count('output_dir="out"') == 1
    exec(block.replace('output_dir="out"', short), {})
