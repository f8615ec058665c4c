"""FSDP: two processes with sharded parameters train the same model as one process.

accelerate shards nothing on a CPU, so the processes pretend to have GPUs: helpers/sharded.py.
"""

from __future__ import annotations

import dataclasses

import pytest
from helpers.project import ROOT
from helpers.sharded import (
    BFLOAT16,
    DEMONSTRATIONS,
    EXACT,
    TOKEN,
    Alone,
    Runs,
    assert_as_one_process,
    assert_bfloat16,
    assert_written_once,
    make_workplace,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return Alone(make_workplace(tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module", params=["fsdp1", "fsdp"])
def name(request):
    return request.param


def case_for(name, case):
    """The case with an optimizer that is the same after a resume.

    FSDP1 loses Adam's state, with TRL's own trainers too. FSDP2 cannot load an optimizer without a state.
    """
    sgd = {"optim": "sgd", "learning_rate": 1.0}
    return dataclasses.replace(case, options=case.options | sgd) if name == "fsdp1" else case


@pytest.fixture(scope="module")
def runs(name, tmp_path_factory):
    """With the configuration of docs/distributed.md, but for what needs a GPU."""
    config = ("--config_file", str(ROOT / "examples" / "accelerate" / f"{name}.yaml"), "--mixed_precision", "no")
    needs_gpu = ("--fsdp_sync_module_states", "false", "--fsdp_cpu_ram_efficient_loading", "false")
    cases = [*(case_for(name, case) for case in EXACT), *BFLOAT16, DEMONSTRATIONS, TOKEN]
    return Runs(cases, make_workplace(tmp_path_factory.mktemp(name)), *config, *needs_gpu)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_as_one_process(runs, alone, name, case):
    """docs/distributed.md shows how to save a complete model if checkpoints are sharded."""
    # PEFT 0.21 looks for modules by names that FSDP1 changes, and saves an adapter without weights.
    assert_as_one_process(runs, alone, case_for(name, case), saved=not (case.lora and name == "fsdp1"))


@pytest.mark.parametrize("case", BFLOAT16, ids=lambda case: case.name)
def test_bfloat16(runs, alone, name, case):
    # Under FSDP2 a model returns logits in bfloat16, and TRL computes log probabilities of 6.5, to 0.016 each, from them.
    coarse = name == "fsdp" and case.kind == "dpo"
    assert_bfloat16(runs, alone, case, 0.1 if coarse else 1e-2)


@pytest.mark.parametrize("case", [*EXACT, *BFLOAT16], ids=lambda case: case.name)
def test_the_model_is_sharded(runs, name, case):
    """On a CPU, accelerate would silently train with DDP."""
    for found in runs.found[case.name]:
        assert {"fsdp1": "FullyShardedDataParallel", "fsdp": "FSDPModule"}[name] in found["wrapper"]
        assert 0.45 < found["held"] / found["parameters"] < 0.55


def test_pcrm_toml_is_written_once(runs):
    assert_written_once(runs)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (TOKEN, "pcrm_form must be 'pair' with FSDP, got 'token'"),
        (DEMONSTRATIONS, "pcrm_sft_eta must be 0 for reward models with FSDP or ZeRO-3, got 0.5"),
    ],
    ids=["token", "demonstrations"],
)
def test_refused(runs, case, message):
    assert runs.found[case.name] == [{"error": message}] * 2
