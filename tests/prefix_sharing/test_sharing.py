"""Prefix sharing: the same hidden states, losses, gradients and training as without it."""

import copy
import functools

import pytest
import torch
import transformers
from helpers.documents import blocks
from pcrm.prefix_sharing import PrefixSharingError, disable, enable, share_prefixes, sharing
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

SIZE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def make(kind=LlamaForCausalLM, attention="sdpa", **options):
    torch.manual_seed(0)
    config = kind.config_class(**SIZE | options)
    return kind._from_config(config, attn_implementation=attention)


def batch():
    """Four responses to each of two prompts, one response twice, one shorter than the others' shared beginning."""
    generator = torch.Generator().manual_seed(1)

    def some(n):
        return torch.randint(2, 200, (n,), generator=generator).tolist()

    prompts = [some(40), some(25)]
    rows = [p + some(n) for p in prompts for n in (10, 17, 1)]
    rows += [rows[0], prompts[1][:20]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def shifted(inputs, pads):
    """A batch with this many of each row's pads on the left, and OpenRLHF's position ids."""
    shifted = {name: torch.stack([row.roll(n) for row, n in zip(x, pads, strict=True)]) for name, x in inputs.items()}
    real = shifted["attention_mask"]
    return shifted | {"position_ids": (real.cumsum(1) - 1).masked_fill(real == 0, 1)}


def loss_of(model, inputs):
    """A number that depends on each real token."""
    logits = model(**inputs).logits
    if logits.dim() == 2:
        return torch.nn.functional.softplus(logits).mean()
    mask = inputs["attention_mask"][:, 1:].bool()
    return torch.nn.functional.cross_entropy(logits[:, :-1][mask].float(), inputs["input_ids"][:, 1:][mask])


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_shared_is_plain(model, inputs, tolerance=2e-6):
    loss = loss_of(model, inputs)
    loss.backward()
    plain = gradient(model)
    model.zero_grad()
    seen = []
    with share_prefixes(model):
        hook = (
            sharing._decoder(model)[1]
            .layers[0]
            .register_forward_pre_hook(
                lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
                with_kwargs=True,
            )
        )
        loss_of(model, inputs)
        seen.clear()
        shared_loss = loss_of(model, inputs)
        hook.remove()
        shared_loss.backward()
    assert seen and seen[-1] < 0.6 * inputs["input_ids"].numel()  # 144 tokens, 185 packed, of 456
    torch.testing.assert_close(shared_loss, loss, rtol=tolerance, atol=0)
    apart = (gradient(model) - plain).norm() / plain.norm()
    assert apart < 20 * tolerance
    model.zero_grad()
    assert torch.equal(loss_of(model, inputs), loss)  # as it was


@pytest.mark.parametrize("attention", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [LlamaForCausalLM, LlamaForSequenceClassification])
def test_attention(attention, kind):
    options = {"num_labels": 1} if kind is LlamaForSequenceClassification else {}
    model = make(kind, attention, **options)
    if attention == "flex_attention":  # has no backward pass on the CPU
        inputs = batch()
        with torch.no_grad():
            plain = loss_of(model, inputs)
            with share_prefixes(model):
                torch.testing.assert_close(loss_of(model, inputs), plain, rtol=2e-6, atol=0)
        return
    assert_shared_is_plain(model, batch())


HEADS = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "output_router_logits": True}
ARCHITECTURES = {
    "Qwen2": {},
    "Qwen3": HEADS,
    "Mistral": {},
    "Phi3": {},
    "Olmo2": {},
    "Granite": {},
    "Qwen3Moe": HEADS | EXPERTS,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    assert_shared_is_plain(make(getattr(transformers, f"{name}ForCausalLM"), **ARCHITECTURES[name]), batch())


def test_the_auxiliary_loss_of_experts_is_that_of_the_rows():
    model = make(transformers.Qwen3MoeForCausalLM, **HEADS, **EXPERTS)
    inputs = batch()
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    plain = model(**inputs, labels=labels)
    with share_prefixes(model):
        shared = model(**inputs, labels=labels)
    assert plain.aux_loss > 0
    torch.testing.assert_close(shared.aux_loss, plain.aux_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(shared.loss, plain.loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("share_of_pads", [1, 0.5])
def test_padding_on_the_left(share_of_pads):
    inputs = batch()
    pads = [int(n * share_of_pads) for n in (inputs["attention_mask"] == 0).sum(1)]
    model = make(LlamaForSequenceClassification, num_labels=1)
    assert_shared_is_plain(model, shifted(inputs, pads))
    torch.testing.assert_close(loss_of(model, shifted(inputs, pads)), loss_of(model, inputs), rtol=2e-6, atol=0)


def test_hidden_states_of_all_layers():
    model, inputs = make(), batch()
    real = inputs["attention_mask"].bool()
    plain = model(**inputs, output_hidden_states=True).hidden_states
    with share_prefixes(model):
        shared = model(**inputs, output_hidden_states=True).hidden_states
    assert len(plain) == len(shared) == 3
    for a, b in zip(plain, shared, strict=True):
        torch.testing.assert_close(b[real], a[real], rtol=1e-5, atol=1e-6)


def test_checkpointing():
    model = make()
    model.gradient_checkpointing_enable()
    model.train()
    assert_shared_is_plain(model, batch())


def test_a_token_whose_state_is_0():
    """0 of 0 is no difference. An embedding of zeros stays 0 in all layers of Llama, which have no biases."""
    model = make()
    model.get_input_embeddings().weight.data[7] = 0
    ids = torch.full((2, 20), 7)
    with torch.no_grad(), share_prefixes(model):
        found = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert torch.equal(found, torch.zeros_like(found))


def test_dropout_does_not_fail_the_comparison():
    model = make(attention_dropout=0.5).train()
    with share_prefixes(model):
        assert loss_of(model, batch()).isfinite()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("first", [True, False], ids=["training", "evaluation"])
def test_attention_that_ignores_the_mask_in_training(first, monkeypatch):
    """As Unsloth's does; whichever mode the first batch was in."""
    from transformers import LlamaModel

    forward = LlamaModel.forward

    @functools.wraps(forward)
    def causal_in_training(self, *args, attention_mask=None, **kwargs):
        return forward(self, *args, attention_mask=None if self.training else attention_mask, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", causal_in_training)
    model = make().train(first)
    with share_prefixes(model):
        if not first:
            assert loss_of(model, batch()).isfinite()
            model.train()
        with pytest.raises(PrefixSharingError, match="the hidden states of LlamaModel"):
            loss_of(model, batch())


def test_unsloth_is_refused_by_name():
    model = make()
    for module in model.modules():
        module._unsloth_fast_path = True  # as its loader marks the models that compute by its own code
    with pytest.raises(
        ValueError, match=r"got LlamaModel with Unsloth's attention, which ignores the mask in training"
    ):
        enable(model)


def test_bfloat16_autocast():
    model, inputs = make(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        plain = loss_of(model, inputs)
        with share_prefixes(model):
            shared = loss_of(model, inputs)
    # A rounding of bfloat16 is 2**-8, of which a mean over many tokens keeps little.
    torch.testing.assert_close(shared, plain, rtol=2**-9, atol=0)


def test_peft():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = batch()
    loss_of(model, inputs).backward()
    plain = gradient(model)
    model.zero_grad()
    with share_prefixes(model):
        loss_of(model, inputs).backward()
    assert plain.norm() > 0 and (gradient(model) - plain).norm() < 4e-5 * plain.norm()


def test_a_copy_shares_on_its_own():
    model, inputs = make(), batch()
    enable(model)
    twin = copy.deepcopy(model)
    loss = loss_of(twin, inputs)
    disable(model)
    torch.testing.assert_close(loss_of(model, inputs), loss, rtol=2e-6, atol=0)
    disable(twin)
    assert torch.equal(loss_of(model, inputs), loss_of(twin, inputs))


def test_generation_goes_through_as_it_is():
    model = make().eval()
    inputs = {name: x[:1, :30] for name, x in batch().items()}
    plain = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    with share_prefixes(model):
        assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), plain)


def test_rows_that_share_nothing_go_through_as_they_are():
    model = make()
    ids = torch.randint(2, 200, (4, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), share_prefixes(model):
        loss_of(model, batch())  # the one that is compared
        shared = model(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(shared, model(input_ids=ids).logits)


@pytest.mark.slow
def test_compiled():
    model, inputs = make(), batch()
    plain = loss_of(model, inputs)
    with share_prefixes(model):
        loss_of(model, inputs)
        compiled = torch.compile(model, dynamic=True, backend="aot_eager")
        torch.testing.assert_close(loss_of(compiled, inputs), plain, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("BertForSequenceClassification", {}, "model must be causal to share prefixes, got BertModel"),
        ("ModernBertForSequenceClassification", {}, "model must be causal to share prefixes, got ModernBertModel"),
        ("JambaForCausalLM", {"use_mamba_kernels": False}, "model must consist of attention layers .*, got JambaModel"),
        ("Llama4ForCausalLM", HEADS, "layers must use full or sliding attention .* with chunked_attention"),
    ],
)
def test_models_that_cannot(kind, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        enable(make(getattr(transformers, kind), **options))


def test_other_things_that_cannot():
    with pytest.raises(TypeError, match=r"^model must be a model of transformers, got Linear"):
        enable(torch.nn.Linear(2, 2))
    model = make()
    with pytest.raises(ValueError, match=r"^model must share prefixes, got one that does not"):
        disable(model)
    for options, error, message in (
        ({"min_shared": 0}, ValueError, "min_shared must be in .*, got 0"),
        ({"budget": "x"}, TypeError, "budget must be an integer, got 'x'"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            enable(model, **options)
    enable(model)
    with pytest.raises(ValueError, match=r"^model must not share prefixes already, got one that does"):
        enable(model)
    inputs = batch()
    left = {name: x.flip(1) for name, x in inputs.items()}
    with pytest.raises(ValueError, match=r"^attention_mask must be padded on the right"):
        model(**left)
    with pytest.raises(ValueError, match=r"^attention_mask must not have padding inside a row .*, got 1 0 1"):
        model(inputs["input_ids"], inputs["attention_mask"].index_fill(1, torch.tensor([3]), 0))
    with pytest.raises(ValueError, match=r"^input_ids must be token ids to share prefixes, got None"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match=r"^position_ids must count from 0"):
        model(**inputs, position_ids=torch.ones_like(inputs["input_ids"]))
    with pytest.raises(ValueError, match=r"^output_attentions must be False"):
        model(**inputs, output_attentions=True)
    with pytest.raises(ValueError, match=r"^attention_mask must have shape \(8, 57\) .*, got \(8, 1, 57, 57\)"):
        model(inputs["input_ids"], torch.ones(8, 1, 57, 57))


def test_flash_attention_is_refused_by_name():
    model = make()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match=r"^the attention .* must be one of eager, sdpa, flex_attention .* got flash_attention_2"
    ):
        enable(model)


def test_a_window_that_is_shorter_than_a_row():
    model = make(transformers.MistralForCausalLM, sliding_window=16)
    with (
        share_prefixes(model),
        pytest.raises(ValueError, match=r"^rows must fit into .* of 16 tokens .*, got 57 tokens"),
    ):
        model(**batch())


def test_a_model_that_goes_around_its_decoder():
    model = make(transformers.OPTForCausalLM, ffn_dim=64, word_embed_proj_dim=32)
    enable(model)
    with pytest.raises(
        RuntimeError, match=r"^the forward pass of OPTForCausalLM must call its decoder to share prefixes"
    ):
        model(**batch())


def test_a_leak_of_one_token_is_found(monkeypatch):
    """The first batch is compared with the plain pass."""
    right = sharing._mask

    def leaky(ends, *rest):
        ends = ends.clone()
        ends[0, 45] = ends.shape[1]  # a token of the first response, seen by the others
        return right(ends, *rest)

    monkeypatch.setattr(sharing, "_mask", leaky)
    model = make()
    with share_prefixes(model), pytest.raises(RuntimeError, match=r"^the hidden states of LlamaModel .* norm, got"):
        model(**batch())


def test_the_page():
    (block,) = (text for text in blocks("docs/prefix-sharing.md", "python") if "prefix_sharing.enable(model)" in text)
    enabling, sharing_block = block.split("with ")
    model, inputs = make(LlamaForSequenceClassification, num_labels=1).eval(), batch()
    names = {"model": model, "ids": inputs["input_ids"], "mask": inputs["attention_mask"]}
    with torch.no_grad():
        plain = model(**inputs).logits
        exec(enabling, names)
        torch.testing.assert_close(model(**inputs).logits, plain, rtol=1e-4, atol=1e-6)
        disable(model)
        exec("with " + sharing_block, names)
    torch.testing.assert_close(names["scores"], plain, rtol=1e-4, atol=1e-6)


def steps(model, process):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    inputs = batch()
    for step in range(6):
        part = {name: x[process::2].roll(step, 0) for name, x in inputs.items()}
        optimizer.zero_grad()
        loss_of(model, part).backward()
        optimizer.step()


def test_training_gives_the_same_parameters():
    plain, shared = make(), make()
    steps(plain, 0)
    with share_prefixes(shared, min_shared=4):
        steps(shared, 0)
    assert max((p - q).abs().max().item() for p, q in zip(plain.parameters(), shared.parameters(), strict=True)) < 5e-6
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(plain.parameters(), make().parameters(), strict=True))
