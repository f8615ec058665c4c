"""`prefix_sharing` of the trainers: the same training, in float32, with the prompt of each pair computed once."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers.launching import CPU
from pcrm.settings import settings_of

pytestmark = pytest.mark.openrlhf

BATCH, STEPS = 4, 6


class Strategy:
    """The methods of OpenRLHF's strategy that a trainer uses, in plain torch, because the strategy has no float32."""

    accumulated_gradient = 1
    ring_attn_group = None

    def __init__(self, packing_samples=False):
        never = STEPS + 1
        self.printed = []
        self.args = SimpleNamespace(
            data=SimpleNamespace(prompt_key="prompt", chosen_key="chosen", rejected_key="rejected"),
            model=SimpleNamespace(
                aux_loss_coef=0.0,
                nll_loss_coef=0.0,
                label_smoothing=0.0,
                ipo_enable=False,
                margin_loss_enable=False,
                compute_fp32_loss_enable=False,
            ),
            ds=SimpleNamespace(packing_samples=packing_samples),
            logger=SimpleNamespace(wandb=SimpleNamespace(key=None), tensorboard_dir=None, logging_steps=never),
            eval=SimpleNamespace(steps=never),
            ckpt=SimpleNamespace(save_steps=never),
            train=SimpleNamespace(batch_size=BATCH),
        )

    def print(self, *what):
        self.printed.extend(map(str, what))

    def is_rank_0(self):
        return False

    def backward(self, loss, *_):
        loss.backward()

    def optimizer_step(self, optimizer, *_):
        optimizer.step()
        optimizer.zero_grad()

    def get_grad_norm(self, _):
        return 0.0

    def all_reduce(self, logs):
        return logs

    def all_gather(self, rows):
        return rows


@pytest.fixture
def models(tiny, monkeypatch):
    """A function from a command to the model that it trains, in float32, and its reference."""
    monkeypatch.syspath_prepend(CPU)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from openrlhf.models import Actor, get_llm_for_sequence_regression

    def make(command):
        torch.manual_seed(0)
        if command == "train_rm":
            return get_llm_for_sequence_regression(str(tiny), "reward", attn_implementation="sdpa").float(), None
        policy = Actor(str(tiny), attn_implementation="sdpa").float()
        reference = copy.deepcopy(policy)
        return policy, reference

    return make


def make_trainer(command, model, reference, tiny, rows, *, shared, packing_samples=False):
    from datasets import Dataset
    from pcrm.openrlhf import patch
    from transformers import AutoTokenizer

    settings = settings_of({"beta1": 1.1, "beta2": 0.001, "beta3": 0.9}, "reward")
    replaced = {name: ours for name, (_, ours) in patch.replacements(command, settings, prefix_sharing=shared).items()}
    strategy = Strategy(packing_samples)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    table = Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows])
    data = replaced["RewardDataset"](table, tokenizer, 128, strategy, is_dpo=command == "train_dpo", num_processors=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    options = {
        "model": model,
        "strategy": strategy,
        "optim": optimizer,
        "train_dataloader": torch.utils.data.DataLoader(data, BATCH, collate_fn=data.collate_fn),
        "eval_dataloader": None,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
        "tokenizer": tokenizer,
    }
    if command == "train_dpo":
        return replaced["DPOTrainer"](ref_model=reference, max_epochs=1, **options)
    return replaced["RewardModelTrainer"](max_epochs=1, **options)


@pytest.mark.parametrize("command", ["train_rm", "train_dpo"])
def test_training_gives_the_same_parameters(command, models, tiny, rows):
    model, reference = models(command)
    start = copy.deepcopy(model)
    twin, twin_reference = copy.deepcopy(model), copy.deepcopy(reference)
    tokens = {}

    def count(model):
        for module in model.modules():
            if type(module).__name__ == "LlamaDecoderLayer":
                tokens[model] = 0
                module.register_forward_pre_hook(
                    lambda _, args: tokens.update({model: tokens[model] + args[0].shape[:2].numel()})
                )

    for one in filter(None, (model, reference, twin, twin_reference)):
        count(one)
    rows = rows[: BATCH * STEPS]
    for one, other, shared in ((model, reference, False), (twin, twin_reference, True)):
        trainer = make_trainer(command, one, other, tiny, rows, shared=shared)
        trainer.fit(trainer.args)
        assert ("Prefix sharing is on" in trainer.strategy.printed) == shared
    assert tokens[twin] < 0.8 * tokens[model]
    assert reference is None or tokens[twin_reference] < 0.8 * tokens[reference]
    apart = [(p - q).abs().max().item() for p, q in zip(model.parameters(), twin.parameters(), strict=True)]
    assert max(apart) < 5e-6
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(model.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("command", ["train_rm", "train_dpo"])
def test_refused(command, models, tiny, rows):
    model, reference = models(command)
    with pytest.raises(ValueError, match=r"^prefix_sharing must be False with --ds.packing_samples .* got True"):
        make_trainer(command, model, reference, tiny, rows[:4], shared=True, packing_samples=True)
    (model if command == "train_rm" else reference.model).config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"^the attention of the model must be one of eager, .* got flash_attention_2"):
        make_trainer(command, model, reference, tiny, rows[:4], shared=True)
