"""Code that tests run in other processes and threads."""

import os
import subprocess
import sys

import torch
from pcrm._engine import native
from pcrm.functional import pcrm_loss

import pcrm
from helpers.project import ROOT


def python(code, **environment):
    """Run code in a new Python process, with additional environment variables."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        cwd=ROOT,
    )


def compute(_=None):
    """Compute a loss, a delta and a prior in the current process, and return the backend that was used."""
    chosen = torch.tensor([1.0, 2.0], requires_grad=True)
    prior = pcrm.priors.length_ratio([[1, 2, 3], [1]], [[1, 9], [1]])
    delta = pcrm.Constraint.preset("alpaca/length_ratio").delta(prior)
    loss = pcrm_loss(chosen, torch.zeros(2), delta)
    loss.backward()
    served = "torch" if native.chosen_library() is None else "go"
    return {"served": served, "numbers": [*prior.tolist(), loss.item(), *chosen.grad.tolist()]}
