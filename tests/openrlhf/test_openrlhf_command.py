"""Errors of `pcrm openrlhf` before OpenRLHF is imported."""

import importlib.util

import pcrm.openrlhf
import pytest
from pcrm.openrlhf import patch

from pcrm import cli


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: command"),
        (["train_ppo_ray"], "invalid choice: 'train_ppo_ray'"),
        (["train_rm", "--pcrm.beta4", "1"], "--pcrm.beta4 is not a flag of this command: did you mean --pcrm.beta1?"),
        (["train_rm", "--pcrm_beta1=1"], "--pcrm_beta1 is not a flag of this command: did you mean --pcrm.beta1?"),
        (["train_rm", "--pcrm.beta", "1"], "--pcrm.beta is not a flag of this command"),
        (["train_rm", "--pcrm.beta1", "much"], "--pcrm.beta1: invalid float value: 'much'"),
        (["train_rm", "--model.loss_type", "logexp"], "--model.loss_type must be 'sigmoid', got 'logexp', for which"),
        (["train_rm", "--model.loss_type=Sigmoid"], "--model.loss_type must be 'sigmoid', got 'Sigmoid'"),
        (["train_rm", "--pcrm.prior", "length"], "--pcrm.prior must be one of length_ratio, "),
        (["train_rm", "--pcrm.preset", "alpaca/length"], "preset must be one of "),
        (
            ["train_rm", "--pcrm.delta", "4.5"],
            "--pcrm.delta must not be set, got 4.5: --pcrm.prior='length_ratio' does not use it",
        ),
        (["train_dpo", "--pcrm.prior", "fixed"], "--pcrm.delta is missing"),
        (["train_rm", "--pcrm.prior", "column", "--pcrm.beta3", "1"], "--pcrm.beta1 is missing"),
        (["train_rm", "--pcrm.prior", "fixed", "--pcrm.delta", "-1"], "delta must be greater than 0, got -1"),
        (
            ["train_rm", "--pcrm.prior", "fixed", "--pcrm.delta", "4", "--pcrm.cap", "5"],
            "--pcrm.cap must not be set, got 5.0",
        ),
        (["train_rm", "--pcrm.prior", "cosine", "--pcrm.preset", "alpaca/fixed"], "got 'alpaca/fixed', which is for"),
        (["train_dpo", "--pcrm.prior", "random", "--pcrm.low", "2"], "--pcrm.high is missing"),
        (["train_rm", "--pcrm.prior", "random", "--pcrm.low", "4", "--pcrm.high", "2"], "at least low, which is 4"),
        (
            ["train_rm", "--pcrm.beta3", "-11"],
            "delta must be greater than 0 on all of [0, 1], got -1.00999 at similarity 1",
        ),
        (
            ["train_dpo", "--pcrm.beta3", "-20"],
            "delta must be greater than 0 on all of [0, 1], got -0.01998 at similarity 1",
        ),  # of dpo's preset, 20/.001
        (["train_rm", "--pcrm.config", "nowhere.toml"], "nowhere.toml"),
        (
            ["train_rm", "--pcrm.prefix_sharing"],
            "--ds.attn_implementation must be sdpa or eager with --pcrm.prefix_sharing, got OpenRLHF's default, flash_att",
        ),
        (
            ["train_dpo", "--pcrm.prefix_sharing", "--ds.attn=kernels-community/vllm-flash-attn3"],
            "--ds.attn_implementation must be sdpa or eager with --pcrm.prefix_sharing, got kernels-community/vllm-flash",
        ),
        (
            ["train_rm", "--pcrm.prefix_sharing", "--attn_implementation", "sdpa", "--packing_samples"],
            "--ds.packing_samples (which ring attention requires) must not be set with --pcrm.prefix_sharing",
        ),
    ],
)
def test_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["openrlhf", *argv])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[loss]\nform = "token"\n', "must be 'pair', because OpenRLHF scores responses and not tokens, got 'token'"),
        ("[constraint]\nbeta4 = 1.0\n", "beta4"),
    ],
)
def test_refused_file(tmp_path, capsys, text, message):
    path = tmp_path / "pcrm.toml"
    path.write_text(text)
    with pytest.raises(SystemExit):
        cli.main(["openrlhf", "train_rm", "--pcrm.config", str(path)])
    error = capsys.readouterr().err
    assert str(path) in error and message in error


@pytest.mark.parametrize("flag", [[], ["--pcrm.prefix_sharing"]])
def test_prefix_sharing_reaches_the_trainer_and_openrlhf_its_own_flags(flag, monkeypatch):
    seen = []
    monkeypatch.setattr(patch, "replacements", lambda command, settings, **options: seen.append(options) or {})
    monkeypatch.setattr(patch, "run", lambda command, replaced, argv: seen.append(argv))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    assert cli.main(["openrlhf", "train_rm", *flag, "--ds.attn_implementation", "sdpa"]) == 0
    assert seen == [{"computed": False, "prefix_sharing": bool(flag)}, ["--ds.attn_implementation", "sdpa"]]


def test_help_names_each_launcher(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["openrlhf", "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for form in ("pcrm openrlhf train_rm", "deepspeed --module pcrm.openrlhf", "torchrun", "--pcrm.preset"):
        assert form in text


def test_without_openrlhf_a_line_says_so(capsys):
    if importlib.util.find_spec("openrlhf.datasets" if importlib.util.find_spec("openrlhf") else "openrlhf"):
        pytest.skip("OpenRLHF is installed")
    assert cli.main(["openrlhf", "train_rm"]) == 1
    assert "pip install 'pcrm[openrlhf]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        pcrm.openrlhf.PCRMDPOTrainer  # noqa: B018
    with pytest.raises(AttributeError, match="PCRMTrainer"):
        pcrm.openrlhf.PCRMTrainer  # noqa: B018
