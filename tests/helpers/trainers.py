"""Short runs of TRL's trainers and ours on the tiny models."""

import atexit
import contextlib
import os
import signal
import subprocess
import sys

import torch
from datasets import Dataset
from pcrm.trl import PCRMDPOConfig, PCRMDPOTrainer, PCRMRewardConfig, PCRMRewardTrainer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer


def _end_group():
    """End the process group in scripts with several processes: gloo's threads sometimes abort an interpreter at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    # An exception that ended the script is there by now, and its exit status stays.
    if "RANK" in os.environ and not hasattr(sys, "last_value"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


atexit.register(_end_group)

SETTINGS = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    # Adam would amplify the rounding of gradients that are truly zero.
    "optim": "sgd",
    "learning_rate": 0.1,
    "logging_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
STOCK = {"reward": (RewardTrainer, RewardConfig), "dpo": (DPOTrainer, DPOConfig)}
OURS = {"reward": (PCRMRewardTrainer, PCRMRewardConfig), "dpo": (PCRMDPOTrainer, PCRMDPOConfig)}


def load(kind, folder):
    torch.manual_seed(0)
    if kind == "dpo":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)


def joint(folder):
    """A reward model that also has the head of the language model in the folder."""
    model = load("reward", folder)
    model.lm_head = load("dpo", folder).lm_head
    return model


def build(kind, folder, out, data, *, stock=False, eval_data=None, model=None, trainer=None, **options):
    """A trainer of the tiny model in `folder`, reward or DPO, ours or the stock one."""
    trainer_class, config_class = (STOCK if stock else OURS)[kind]
    return trainer_class(
        model=load(kind, folder) if model is None else model,
        args=config_class(output_dir=str(out), **SETTINGS | options),
        train_dataset=data,
        eval_dataset=eval_data,
        processing_class=AutoTokenizer.from_pretrained(folder),
        **trainer or {},
    )


TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def launch(*command, timeout=300, **environment):
    """Run Python with these arguments on the CPU; return its output, or show it if it fails.

    Args:
        timeout: In seconds.
        environment: Variables of the process besides this one's.
    """
    ours = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "ACCELERATE_USE_CPU": "true"}
    environment = os.environ | ours | environment
    # A session of its own, so that a launcher's children do not outlive it.
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-5000:]
    return output


def steps(trainer):
    """The logged steps of training."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def logged(trainer):
    """The log of the batches since the last log."""
    trainer.log({})
    return trainer.state.log_history[-1]


def distance(a, b):
    """The largest difference between two trainers' parameters."""
    ours, theirs = (dict(t.model.named_parameters()) for t in (a, b))
    assert ours.keys() == theirs.keys()
    return max((ours[k].detach() - theirs[k].detach()).abs().max().item() for k in theirs)


def conversational(rows):
    def message(role, text):
        return [{"role": role, "content": text}]

    return Dataset.from_list(
        [
            {"prompt": message("user", r["prompt"])} | {k: message("assistant", r[k]) for k in ("chosen", "rejected")}
            for r in rows
        ]
    )


def plain(rows):
    return Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows])


def implicit(rows):
    """Rows without a separate prompt: both responses start with it."""
    return Dataset.from_list([{k: r["prompt"] + r[k] for k in ("chosen", "rejected")} for r in rows])


FORMATS = {"plain": plain, "conversational": conversational, "implicit": implicit}
