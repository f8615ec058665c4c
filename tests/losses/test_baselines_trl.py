"""The losses of other papers against TRL's implementations."""

import math

import pytest
import torch
from helpers.trainers import build, plain
from pcrm.functional import (
    cdpo_loss,
    ipo_loss,
    llama2_margin_loss,
    odpo_loss,
    pcrm_loss,
    rpo_distance_loss,
)


def shaken(model):
    """Move the policy away from the reference that it was copied from."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return model


def sums_and_lengths(model, batch):
    """The log probabilities of the completions, of chosen and rejected ones, and their lengths."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    picked = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
    mask = batch["completion_mask"][:, 1:]
    return (picked * mask).sum(1).chunk(2), mask.sum(1).chunk(2)


@pytest.mark.parametrize("loss_type", ["ipo", "exo_pair", "aot", "sigmoid"])
def test_trl_dpo(backend, tiny_policy, rows, tmp_path, loss_type):
    """IPO with log probabilities per token; EXO is forward KL to a label of 1 - e; AOT of one pair is cDPO."""
    e = 0.1
    trainer = build(
        "dpo",
        tiny_policy,
        tmp_path,
        plain(rows),
        stock=True,
        loss_type=[loss_type],
        label_smoothing=e,
        beta=0.3,
        per_device_train_batch_size=1 if loss_type == "aot" else 4,
    )
    model = shaken(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    want = trainer.compute_loss(model, dict(batch))
    (pc, pr), (chosen, rejected) = sums_and_lengths(model, batch)
    (rc, rr), _ = sums_and_lengths(trainer.ref_model, batch)
    logps = (pc, pr, rc, rr)
    if loss_type == "ipo":
        got = ipo_loss(pc / chosen, pr / rejected, rc / chosen, rr / rejected, beta=0.3)
    elif loss_type == "exo_pair":
        got = rpo_distance_loss(*logps, math.log((1 - e) / e), beta=0.3, distance="forward_kl")
    elif loss_type == "aot":
        got = cdpo_loss(*logps, label_smoothing=e, beta=0.3)
    else:
        got = odpo_loss(*logps, 0.0, beta=0.3)
    assert abs((pc - rc) - (pr - rr)).min() > 0.05, "the policy is not its reference"
    # float32 sums of some tens of numbers up to 10: a relative error of 1e-5.
    torch.testing.assert_close(got[0], want.detach(), rtol=1e-4, atol=1e-5)


def test_trl_reward_margin_and_centering(backend, tiny, rows, tmp_path):
    from datasets import Dataset

    data = Dataset.from_list(
        [{k: r[k] for k in ("prompt", "chosen", "rejected")} | {"margin": i % 4 / 3} for i, r in enumerate(rows)]
    )
    for center in (None, 0.05):
        trainer = build("reward", tiny, tmp_path, data, stock=True, center_rewards_coefficient=center)
        model = shaken(trainer.model)
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch["margin"].unique().numel() > 1
        want = trainer.compute_loss(model, dict(batch))
        with torch.no_grad():
            scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        chosen, rejected = scores.squeeze(1).chunk(2)
        got = llama2_margin_loss(chosen, rejected, batch["margin"])
        if center is not None:  # centering is the term added to the plain loss
            plain_loss = pcrm_loss(chosen, rejected, math.inf)
            got = got + pcrm_loss(chosen, rejected, math.inf, center_rewards_coefficient=center) - plain_loss
        torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=1e-6)
