"""The demonstration term: DPO against TRL's own losses, reward models against the written formula."""

import math
import textwrap

import pytest
import torch
from helpers.documents import blocks
from helpers.models import make_tiny
from helpers.project import ROOT
from helpers.trainers import FORMATS, TWO_PROCESSES, build, distance, joint, launch, load, logged, steps
from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM
from transformers.modeling_outputs import SequenceClassifierOutput

UNCONSTRAINED = {"pcrm_prior": "fixed", "pcrm_delta": math.inf}
# What float32 rounding of the loss's two implementations amounts to after six steps.
SAME = 5e-6


@pytest.fixture(scope="module")
def data(rows):
    return FORMATS["plain"](rows)


@pytest.fixture(scope="module")
def tied(tmp_path_factory, rows):
    """The folder of a tiny language model whose head is its embeddings."""
    return make_tiny(tmp_path_factory.mktemp("tied"), rows, LlamaForCausalLM, tie_word_embeddings=True)


@pytest.fixture
def reward(tied, tiny_policy, tmp_path, data):
    """A function that builds a reward trainer of a tiny model with both heads."""

    def make(head="lm_head", **options):
        model = joint(tiny_policy) if head == "lm_head" else load("reward", tied)
        return build(
            "reward", tiny_policy, options.pop("out", tmp_path), options.pop("data", data), model=model, **options
        )

    return make


# DPO


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [{"pcrm_sft_eta": 0.3}, {"loss_type": ["pcrm", "sft"], "loss_weights": [1.0, 0.3]}],
    ids=["eta", "weights"],
)
def test_dpo_with_infinite_delta_is_sigmoid_and_sft_of_trl(tiny_policy, tmp_path, data, asked):
    def run(**options):
        trainer = build("dpo", tiny_policy, tmp_path, data, **options)
        trainer.train()
        return trainer

    stock = run(stock=True, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.3])
    ours = run(**UNCONSTRAINED, **asked)
    assert (ours.args.loss_type, ours.args.loss_weights) == (["pcrm", "sft"], [1.0, 0.3])
    assert distance(ours, stock) < SAME
    for a, b in zip(steps(ours), steps(stock), strict=True):
        assert set(a) - set(b) == {"pcrm/violation", "pcrm/pull"}
        for key in set(b) - {"epoch"}:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=2e-6), key
    assert distance(run(**UNCONSTRAINED), stock) > 20 * SAME, "the term moves it"


def test_dpo_eta_is_the_weight_of_sft(tmp_path):
    options = {"output_dir": str(tmp_path), "bf16": False, "pcrm_sft_eta": 0.2}
    mixed = PCRMDPOConfig(**options, loss_type=["ipo", "pcrm"], loss_weights=[0.5, 2.0])
    assert (mixed.loss_type, mixed.loss_weights) == (["ipo", "pcrm", "sft"], [0.5, 2.0, 0.2])
    again = PCRMDPOConfig(**options, loss_type=mixed.loss_type, loss_weights=mixed.loss_weights)
    assert (again.loss_type, again.loss_weights) == (mixed.loss_type, mixed.loss_weights)
    assert PCRMDPOConfig(output_dir=str(tmp_path), bf16=False).loss_weights is None
    message = (
        r"pcrm_sft_eta must equal the weight .* got 0.2 with loss_type \['pcrm', 'sft'\] and the weights \[1.0, 1.0\]"
    )
    with pytest.raises(ValueError, match=message):
        PCRMDPOConfig(**options, loss_type=["pcrm", "sft"])


@pytest.mark.parametrize("config", [PCRMDPOConfig, PCRMRewardConfig])
@pytest.mark.parametrize("eta", [-0.1, math.inf, math.nan])
def test_bad_eta(tmp_path, config, eta):
    with pytest.raises(ValueError, match=f"pcrm_sft_eta must be finite and at least 0, got {eta}"):
        config(output_dir=str(tmp_path), bf16=False, pcrm_sft_eta=eta)


# Reward models


def written(model, head, pairs, constraint, eta):
    """L + eta NLL, a response at a time, with no padding."""
    losses, logps = [], []
    for pair in pairs:
        margin = 0.0
        ids = {k: torch.tensor([pair[f"{k}_ids"]]) for k in ("chosen", "rejected")}
        for kind, sign in (("chosen", 1), ("rejected", -1)):
            states = model.model(ids[kind]).last_hidden_state[0]
            margin = margin + sign * model.score(states[-1])[0]
            if kind == "chosen":
                chosen, rejected = (ids[k][0].tolist() for k in ("chosen", "rejected"))
                start = next(t for t, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
                tokens = (states @ head.T).log_softmax(-1)
                logps += [tokens[t - 1, chosen[t]] for t in range(start, len(chosen))]
        shorter, longer = sorted(len(ids[k][0]) - start for k in ids)
        delta = constraint.delta(shorter / longer)
        losses.append(-logsigmoid(margin) - logsigmoid(delta - margin))
    nll = -torch.stack(logps).mean()
    return torch.stack(losses).mean() + eta * nll, nll


@pytest.mark.parametrize("head", ["lm_head", "tied"])
def test_reward_gradient_is_that_of_the_written_formula(reward, head):
    trainer = reward(head, pcrm_beta1=1.0, pcrm_beta3=0.0, pcrm_sft_eta=0.7)
    model = trainer.model.double().train()
    pairs = [trainer.train_dataset[i] for i in range(4)]
    assert len({len(p["chosen_ids"]) for p in pairs}) > 1, "some rows are padded"
    batch = trainer.data_collator(pairs)
    batch["prior"] = batch["prior"].double()

    def differentiate(value):
        model.zero_grad()
        value.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    loss = trainer.compute_loss(model, batch)
    ours = differentiate(loss)
    weight = model.lm_head.weight if head == "lm_head" else model.model.embed_tokens.weight
    # The length ratio is a float32 number in the batch.
    want, nll = written(model, weight, pairs, trainer.constraint, 0.7)
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    assert logged(trainer)["pcrm/nll"] == pytest.approx(nll.item(), rel=1e-6)
    theirs = differentiate(want)
    scale = max(g.abs().max().item() for g in theirs.values())
    for name in theirs:
        assert (ours[name] - theirs[name]).abs().max().item() < 1e-6 * scale, name
    if head == "lm_head":
        assert ours["lm_head.weight"].abs().max() > 0
    assert not model.score._forward_hooks


@pytest.mark.slow
def test_reward_nll_falls_where_it_has_a_weight(reward):
    options = {"max_steps": 16, "learning_rate": 0.5}
    with_it, without = reward(pcrm_sft_eta=0.5, **options), reward(**options)
    before = {k: v.clone() for k, v in without.model.state_dict().items()}
    with_it.train()
    without.train()
    # The batches' own differences are about 0.02 here.
    first, last = (steps(with_it)[i]["pcrm/nll"] for i in (0, -1))
    assert last < first - 0.5
    assert steps(with_it)[-1]["loss"] < steps(with_it)[0]["loss"]
    assert "pcrm/nll" not in steps(without)[0]
    assert torch.equal(without.model.lm_head.weight, before["lm_head.weight"])


@pytest.mark.slow
def test_reward_without_a_weight_is_the_trainer_of_a_model_without_the_head(reward, tiny_policy, tmp_path, data):
    plain = build("reward", tiny_policy, tmp_path, data)
    ours = reward(pcrm_sft_eta=0.0)
    plain.train()
    ours.train()
    trained = dict(ours.model.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in plain.model.named_parameters())
    assert steps(ours) == steps(plain)


@pytest.mark.slow
def test_reward_checkpoint_is_a_language_model_too(reward, tmp_path):
    trainer = reward(pcrm_sft_eta=0.5, save_strategy="steps", save_steps=3)
    trainer.train()
    folder = tmp_path / "checkpoint-6"
    policy = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(policy.lm_head.weight, trainer.model.lm_head.weight)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(scorer.score.weight, trainer.model.score.weight)
    assert torch.equal(policy.model.embed_tokens.weight, scorer.model.embed_tokens.weight)
    resumed = reward(pcrm_sft_eta=0.5, out=tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert distance(resumed, trainer) == 0


def test_the_guide_runs_as_it_is_printed(tiny_policy, tmp_path, data, monkeypatch):
    (block,) = blocks("docs/sft.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(tiny_policy)
    here = {"dataset": data}
    exec(compile(block, "docs/sft.md", "exec"), here)
    assert "pcrm/nll" in here["trainer"].state.log_history[0]


def test_reward_evaluation_has_the_term(reward, data):
    trainer = reward(pcrm_sft_eta=0.5, eval_data=data.select(range(4)), **UNCONSTRAINED)
    trainer.evaluate()
    metrics = trainer.state.log_history[-1]
    model, pairs = trainer.model, [trainer.eval_dataset[i] for i in range(4)]
    with torch.no_grad():
        want, nll = written(model, model.lm_head.weight, pairs, trainer.constraint, 0.5)
    assert metrics["eval_pcrm/nll"] == pytest.approx(nll.item(), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(want.item(), rel=1e-5)


def test_pairs_of_equal_responses_demonstrate_nothing(reward, rows):
    equal = FORMATS["plain"]([r | {"rejected": r["chosen"]} for r in rows[:8]])
    trainer = reward(pcrm_sft_eta=0.5, data=equal, max_steps=2, pcrm_preset="alpaca/length_ratio")
    trainer.train()
    assert not any("pcrm/nll" in step for step in steps(trainer)), "a mean over no tokens"
    for step in steps(trainer):  # margins of 0, and one delta, that of a prior of 1
        assert step["loss"] == pytest.approx(math.log(2) + math.log1p(math.exp(-step["pcrm/delta"])), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}, {"pcrm_form": "token"}], ids=str)
def test_reward_modes(reward, options):
    first = {}
    for name, extra in (("plain", {}), ("mode", options)):
        trainer = reward(pcrm_sft_eta=0.5, max_steps=2, **extra)
        trainer.train()
        first[name] = steps(trainer)[0]
        assert all(math.isfinite(step["loss"]) for step in steps(trainer))
    # bfloat16 has 8 bits; the rest computes the same.
    rel = 2**-7 if "bf16" in options else 1e-6
    assert first["mode"]["pcrm/nll"] == pytest.approx(first["plain"]["pcrm/nll"], rel=rel)


@pytest.fixture
def compiled():
    """Options that compile the model, with graphs of no other test."""
    torch.compiler.reset()
    yield {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 1}
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{"pcrm_sft_eta": 0.5}, {"pcrm_form": "token"}], ids=["eta", "token"])
def test_a_model_compiled_without_the_term_is_compiled_anew_with_it(reward, compiled, asked):
    """torch.compile keeps the graphs of a process: those of another run must not be taken."""
    eager = reward("tied", max_steps=1, **asked)
    eager.train()
    plain = reward("tied", **compiled)
    plain.train()
    for options in (asked, {}):
        trainer = reward("tied", **compiled, **options)
        trainer.train()
        same, other = (eager, plain) if options else (plain, eager)
        assert distance(trainer, same) < SAME < distance(trainer, other)
        assert [set(step) for step in steps(trainer)] == [set(step) for step in steps(same)]


def test_a_forward_pass_around_the_score_is_told(reward):
    trainer = reward(pcrm_sft_eta=0.5)
    model = trainer.model
    model.forward = lambda input_ids, **_: SequenceClassifierOutput(logits=input_ids.float().mean(1, keepdim=True))
    message = "the forward pass of LlamaForSequenceClassification must call its module 'score', got one that does not"
    with pytest.raises(RuntimeError, match=message):
        trainer.train()
    assert isinstance(model.score, torch.nn.Linear), "it is back in its place"


def test_reward_with_lora(reward, data):
    adapters = LoraConfig(
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        r=4,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,
    )
    options = {"eval_data": data.select(range(4)), **UNCONSTRAINED}
    trainer = reward(pcrm_sft_eta=0.5, trainer={"peft_config": adapters}, **options)
    trainer.train()
    metrics = trainer.evaluate()
    model, pairs = trainer.model.get_base_model(), [trainer.eval_dataset[i] for i in range(4)]
    with torch.no_grad():
        want, nll = written(model, model.lm_head.weight, pairs, trainer.constraint, 0.5)
    assert metrics["eval_pcrm/nll"] == pytest.approx(nll.item(), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.slow
def test_reward_in_two_processes_is_accumulation_in_one(tiny_policy, tmp_path, rows):
    """DDP, which has to learn of the head beside the model's output."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import conftest
        from pcrm.demo.world import generate
        from helpers.trainers import FORMATS, build, joint
        trainer = build("reward", sys.argv[1], sys.argv[2], FORMATS["plain"](generate(64, seed=0)),
                        model=joint(sys.argv[1]), pcrm_sft_eta=0.5, max_steps=3,
                        gradient_accumulation_steps=int(sys.argv[3]))
        trainer.train()
        trainer.save_model()
        trainer.accelerator.end_training()
        """)
    )
    launch(str(script), str(tiny_policy), str(tmp_path / "one"), "2")
    launch(*TWO_PROCESSES, str(script), str(tiny_policy), str(tmp_path / "two"), "1")
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    assert max((one[k] - two[k]).abs().max().item() for k in one) < SAME
    start = load("dpo", tiny_policy).state_dict()
    assert (one["lm_head.weight"] - start["lm_head.weight"]).abs().max() > 20 * SAME


def test_what_has_no_such_head_is_refused(tiny, tiny_policy, tmp_path, data, reward):
    def asked(model):
        return build("reward", tiny, tmp_path, data, model=model, pcrm_sft_eta=0.5)

    with pytest.raises(
        ValueError, match=r"a module 'lm_head' or tied embeddings .*got LlamaForSequenceClassification with neither"
    ):
        asked(load("reward", tiny))
    scaled = joint(tiny_policy)
    scaled.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"final_logit_softcapping of Llama.* must be unset or 1 .* got 30.0"):
        asked(scaled)
    model = joint(tiny_policy)
    model.classifier = model.score
    del model.score
    with pytest.raises(
        ValueError, match=r"model must have a module 'score' .* pcrm_sft_eta=0.5, got LlamaFor.* without one"
    ):
        asked(model)
    trainer = reward(pcrm_sft_eta=0.5)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"pcrm_sft_eta must be 0 for reward models with FSDP or ZeRO-3, got 0.5"):
        trainer._check_demonstrations()
