"""ZeRO-3: two processes that share the parameters train what one process trains.

DeepSpeed lies in the environment of `make test-openrlhf`. The processes pretend to have GPUs: helpers/sharded.py.
"""

from __future__ import annotations

import pytest
from helpers.launching import cpu_environment
from helpers.project import ROOT
from helpers.sharded import (
    BFLOAT16,
    DEMONSTRATIONS,
    EXACT,
    Alone,
    Runs,
    assert_as_one_process,
    assert_bfloat16,
    assert_written_once,
    make_workplace,
)

# Slow, so that it is not run once more with an older OpenRLHF, which it does not use.
pytestmark = [pytest.mark.openrlhf, pytest.mark.slow]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return Alone(make_workplace(tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """With the configuration of docs/distributed.md, but for accelerate's bfloat16, which needs a GPU."""
    folder = make_workplace(tmp_path_factory.mktemp("zero3"))
    config = ("--config_file", str(ROOT / "examples" / "accelerate" / "zero3.yaml"), "--mixed_precision", "no")
    environment = cpu_environment(folder / "cache", folder / "trace")
    environment = {name: environment[name] for name in ("PATH", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR")}
    return Runs([*EXACT, *BFLOAT16, DEMONSTRATIONS], folder, *config, **environment)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_as_one_process(runs, alone, case):
    assert_as_one_process(runs, alone, case)


@pytest.mark.parametrize("case", BFLOAT16, ids=lambda case: case.name)
def test_bfloat16(runs, alone, case):
    assert_bfloat16(runs, alone, case)


@pytest.mark.parametrize("case", [*EXACT, *BFLOAT16], ids=lambda case: case.name)
def test_the_model_is_sharded(runs, case):
    for found in runs.found[case.name]:
        assert "DeepSpeedEngine" in found["wrapper"]
        assert 0.45 < found["held"] / found["parameters"] < 0.55


def test_pcrm_toml_is_written_once(runs):
    assert_written_once(runs)


def test_demonstrations_are_refused(runs):
    message = "pcrm_sft_eta must be 0 for reward models with FSDP or ZeRO-3, got 0.5"
    assert runs.found[DEMONSTRATIONS.name] == [{"error": message}] * 2
