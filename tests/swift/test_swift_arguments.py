"""Read the constraint from ms-swift's arguments, without ms-swift."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pcrm.swift.arguments import prepare

BINDING = "[constraint]\nbeta1 = 1.1\nbeta2 = 0.001\nbeta3 = 0.9\n"


def arguments(kind="rm", loss="pcrm", **others):
    """Arguments as ms-swift has them when it creates its trainers."""
    defaults = {"center_rewards_coefficient": None, "beta": 0.1, "label_smoothing": 0}
    defaults |= {"packing": False, "padding_free": False}
    return SimpleNamespace(rlhf_type=kind, loss_type=loss, **defaults | others)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A function that writes the file that PCRM_CONFIG names."""

    def make(text):
        path = tmp_path / "pcrm.toml"
        path.write_text(text)
        monkeypatch.setenv("PCRM_CONFIG", str(path))

    monkeypatch.delenv("PCRM_CONFIG", raising=False)
    monkeypatch.delenv("PCRM_PRIOR_MODEL", raising=False)
    return make


@pytest.mark.parametrize("loss", [None, "sigmoid", ["sigmoid", "sft"]])
def test_other_losses_are_left_alone(config, loss):
    assert prepare(SimpleNamespace(loss_type=loss)) is False


@pytest.mark.parametrize(
    ("given", "text", "message"),
    [
        (arguments(loss=None), BINDING, "--loss_type must be pcrm where PCRM_CONFIG is set, got None: add --loss_type"),
        (
            arguments("dpo", ["sigmoid", "sft"]),
            BINDING,
            "PCRM_CONFIG is set, got sigmoid sft: add --loss_type pcrm, or uns",
        ),
        (arguments("kto"), None, "--rlhf_type must be rm or dpo with --loss_type pcrm, got kto"),
        (SimpleNamespace(loss_type="pcrm"), None, "--rlhf_type must be rm or dpo with --loss_type pcrm, got None"),
        (
            arguments("dpo", ["pcrm", "sft", "pcrm"]),
            None,
            "--loss_type must contain pcrm exactly once, got pcrm sft pcrm",
        ),
        (
            arguments("dpo", packing=True, padding_free=True),
            None,
            "--packing must be false with --loss_type pcrm, got true",
        ),
        (arguments("dpo", padding_free=True), None, "--padding_free must be false with --loss_type pcrm, got true"),
        (arguments(), "[constraint]\nbeta4 = 1.0\n", "beta4"),
        (arguments(), '[loss]\nform = "token"\n', "must be 'pair' for this trainer, got 'token'"),
        (
            arguments(center_rewards_coefficient=-1.0),
            None,
            "--center_rewards_coefficient must be finite and at least 0, got -1",
        ),
        (arguments("dpo", beta=0.0), None, "--beta must be finite and greater than 0, got 0"),
        (arguments("dpo", beta=0.2), "[dpo]\nbeta = 0.3\n", ", or left out, got 0.2"),
        (arguments("dpo", ["pcrm", "robust"]), "[loss]\nlabel_smoothing = 0.1\n", "got 0.1: robust would use it too"),
    ],
)
def test_refused(config, given, text, message):
    if text is not None:
        config(text)
    with pytest.raises(ValueError) as error:
        prepare(given)
    assert message in str(error.value)


def test_an_encoder_is_refused_where_nothing_uses_it(config, monkeypatch):
    monkeypatch.setenv("PCRM_PRIOR_MODEL", "encoder")
    with pytest.raises(ValueError, match="--loss_type must be pcrm where PCRM_PRIOR_MODEL is set, got None"):
        prepare(arguments(loss=None))
    with pytest.raises(
        ValueError,
        match=r"PCRM_CONFIG must be a pcrm\.toml with prior = 'cosine' where PCRM_PRIOR_MODEL is set, got none",
    ):
        prepare(arguments())
    config(BINDING)
    with pytest.raises(ValueError) as error:
        prepare(arguments())
    assert "PCRM_PRIOR_MODEL must not be set with the prior 'length_ratio', got 'encoder': remove it, or set" in str(
        error.value
    )
    config('[constraint]\nprior = "cosine"\ntarget_alike = 1.0\ntarget_unlike = 3.0\n')
    assert prepare(arguments()) is True


def test_the_file_sets_what_the_flags_leave(config):
    config(f"{BINDING}[loss]\ncenter_rewards_coefficient = 0.01\n[dpo]\nbeta = 0.3\n")
    reward, dpo = arguments(), arguments("dpo", ["pcrm", "sft"])
    assert prepare(reward) and prepare(dpo)
    assert (reward.center_rewards_coefficient, dpo.beta, dpo.label_smoothing) == (0.01, 0.3, 0)
    asked = arguments(center_rewards_coefficient=0.02)
    with pytest.raises(ValueError, match=r"coefficient must be 0\.01, as in .*pcrm\.toml, or left out, got 0\.02"):
        prepare(asked)


@pytest.mark.slow
def test_the_path_of_the_plugin_is_printed():
    """The plugin must be alone in its folder, because ms-swift puts the folder first on `sys.path`."""
    printed = subprocess.run([sys.executable, "-m", "pcrm.swift"], capture_output=True, text=True, check=True).stdout
    path = Path(printed.strip())
    assert path.name == "pcrm_plugin.py"
    assert [p.name for p in path.parent.iterdir() if p.suffix] == [path.name]
