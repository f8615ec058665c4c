"""A user's script: OpenRLHF's trainer, data set and flags, and one line of ours."""

import runpy

from openrlhf.trainer import rm_trainer
from pcrm.openrlhf import PCRMPairWiseLoss

from pcrm import Constraint

stock = rm_trainer.RewardModelTrainer


def make(**arguments):
    trainer = stock(**arguments)
    trainer.loss_fn = PCRMPairWiseLoss(Constraint(1.1, 0.001, 0.9))
    return trainer


rm_trainer.RewardModelTrainer = make
runpy.run_module("openrlhf.cli.train_rm", run_name="__main__", alter_sys=True)
