"""The metrics in OpenRLHF's log, with a stand-in for its trainers: test_openrlhf_training.py has the real ones."""

import logging
from types import SimpleNamespace

import pytest
import torch
from pcrm.openrlhf import PCRMDPOLoss, PCRMPairWiseLoss
from pcrm.openrlhf.metrics import LogsConstraint

from pcrm import Constraint


class Board:
    """A stand-in for the writers of TensorBoard and W&B."""

    def __init__(self):
        self.scalars = {}

    def add_scalar(self, name, value, step):
        self.scalars.setdefault(name, {})[step] = value

    def log(self, logs):
        (step,) = {value for name, value in logs.items() if name.endswith("global_step")}
        for name, value in logs.items():
            self.add_scalar(name, value, step)


class Trainer:
    """Calls the loss and its own methods as OpenRLHF's trainers do: two epochs of three steps of one pair."""

    def __init__(self, loss_fn, batches, wandb=False):
        self.loss_fn, self.train_dataloader, self.epochs = loss_fn, batches, 2
        self.strategy = SimpleNamespace(all_gather=lambda rows: torch.cat([rows, rows]), is_rank_0=lambda: True)
        self.board = Board()
        self._wandb, self._tensorboard = (self.board, None) if wandb else (None, self.board)

    def fit(self, args, consumed_samples=0, num_update_steps_per_epoch=None):
        for epoch in range(self.epochs):
            for at, batch in enumerate(self.train_dataloader, 1 + epoch * len(self.train_dataloader)):
                self.loss_fn(*batch)
                self.save_logs_and_checkpoints(args, at, None, {"loss": 1.0}, {})

    def save_logs_and_checkpoints(self, args, global_step, step_bar, logs_dict=None, client_states=None):
        if global_step % args.logger.logging_steps == 0:
            for name, value in logs_dict.items():
                self.board.add_scalar(f"train/{name}", value, global_step)
            self.evaluate(self.train_dataloader, global_step)

    def evaluate(self, eval_dataloader, steps=0):
        for batch in eval_dataloader:
            self.loss_fn(*batch)


class Ours(LogsConstraint, Trainer):
    def __init__(self, loss_fn, *args, **kwargs):
        super().__init__(loss_fn, *args, **kwargs)
        self._watch(loss_fn)


ARGS = SimpleNamespace(logger=SimpleNamespace(logging_steps=2))
MARGINS = (0.5, 4.0, -1.0)


@pytest.mark.parametrize("wandb", [False, True])
def test_each_log_has_the_pairs_since_the_last(wandb, caplog, monkeypatch):
    """Each value twice, as from two processes with the same pairs."""
    monkeypatch.setattr("pcrm.training.binding._ENOUGH_PAIRS", 4)
    batches = [(torch.tensor([m + 1]), torch.tensor([1.0]), torch.tensor([0.5])) for m in MARGINS]
    trainer = Ours(PCRMPairWiseLoss(Constraint(1.0, 0.0, 1.0)), batches, wandb)  # targets of 1.5
    trainer.fit(ARGS)
    found = trainer.board.scalars
    assert found["train/pcrm/residual"] == {2: 0.75, 4: -1.75, 6: 0.0}
    assert found["train/pcrm/over_target"] == {2: 0.5, 4: 0.0, 6: 0.5}
    assert found["eval/pcrm/over_target"] == dict.fromkeys((2, 4, 6), pytest.approx(1 / 3))
    assert found["train/pcrm/prior"] == dict.fromkeys((2, 4, 6), 0.5) == found["eval/pcrm/prior"]
    assert found["train/loss"].keys() == {2, 4, 6} and caplog.messages == []


def test_a_run_that_does_nothing_says_so(caplog, monkeypatch):
    monkeypatch.setattr("pcrm.training.binding._ENOUGH_PAIRS", 4)
    batches = [(torch.tensor([m]), *torch.zeros(3, 1)) for m in MARGINS]
    with caplog.at_level(logging.WARNING):
        Ours(PCRMDPOLoss(Constraint.fixed(90.0)), batches).fit(ARGS)
    (message,) = caplog.messages
    # z is a tenth of the log ratios. Step 4 is the first log of the second half, with steps 3 and 4 of two pairs each.
    assert "not binding: over 4 training pairs the mean margin is -0.025 and the target is 45" in message
    assert message.endswith("Set a lower --pcrm.delta, or train longer")


def test_half_precision_is_subtracted_in_float32():
    told = []
    loss_fn = PCRMPairWiseLoss(Constraint.fixed(2.0))
    loss_fn.observer = lambda margin, prior: told.append((margin, prior))
    chosen, rejected = (torch.tensor([x], dtype=torch.bfloat16, requires_grad=True) for x in (100.5, 0.125))
    loss_fn(chosen, rejected)
    ((margin, prior),) = told
    assert margin.tolist() == [100.375] and not margin.requires_grad and prior is None
