"""Which configurations ask for the constraint, and which are errors, without LLaMA-Factory."""

import pytest
from pcrm.llamafactory.keys import NAMES, check_environment, check_names, is_constrained

from pcrm import cli

LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo")


@pytest.mark.parametrize(
    ("stage", "pref_loss", "given", "asked"),
    [
        ("dpo", "pcrm", [], True),
        ("rm", "pcrm", [], True),
        ("dpo", None, ["pcrm_beta1"], True),
        ("rm", None, ["pcrm_prior"], True),
        ("rm", "sigmoid", ["pcrm_prior"], True),  # a reward model has no use for the key
        ("dpo", "pcrm", ["pcrm_beta1"], True),
        ("dpo", None, [], False),
        ("dpo", "ipo", [], False),
        ("rm", None, [], False),
        ("sft", None, [], False),
        ("kto", "sigmoid", [], False),
    ],
)
def test_what_asks_for_the_constraint(stage, pref_loss, given, asked):
    assert is_constrained(stage, pref_loss, given, LOSSES) is asked


@pytest.mark.parametrize(
    ("stage", "pref_loss", "given", "message"),
    [
        ("dpo", "ipo", ["pcrm_beta1"], "pref_loss must be 'pcrm' where pcrm_beta1 is set, got 'ipo'"),
        ("dpo", "sigmoid", ["pcrm_prior"], "pref_loss must be 'pcrm' where pcrm_prior is set, got 'sigmoid'"),
        ("sft", None, ["pcrm_prior"], "stage must be rm or dpo where pcrm_prior is set, got 'sft'"),
        ("ppo", "pcrm", [], "stage must be rm or dpo where pref_loss is 'pcrm', got 'ppo'"),
        ("kto", "pcrm", ["pcrm_cap"], "stage must be rm or dpo where pref_loss is 'pcrm', got 'kto'"),
        ("dpo", "pcmr", [], "pref_loss must be one of pcrm, sigmoid, hinge, ipo, kto_pair, orpo, simpo, got 'pcmr'"),
        ("dpo", "sigmiod", [], "got 'sigmiod': did you mean sigmoid?"),
        ("dpo", "PCRM", ["pcrm_beta1"], "pref_loss must be one of pcrm"),
    ],
)
def test_refused_together(stage, pref_loss, given, message):
    with pytest.raises(ValueError) as error:
        is_constrained(stage, pref_loss, given, LOSSES)
    assert message in str(error.value)


def test_names():
    check_names(["stage", "learning_rate", *NAMES])
    with pytest.raises(
        ValueError, match=r"^pcrm_betal is not a key of this configuration: did you mean pcrm_beta\d\?$"
    ):
        check_names(["stage", "pcrm_betal"])
    with pytest.raises(
        ValueError, match=r"^pcrm is not a key of this configuration: the keys are pcrm_prior, .*, pcrm_p"
    ):
        check_names(["pcrm"])
    with pytest.raises(ValueError, match=r"^PCRM_BETA1 is not"):
        check_names(["PCRM_BETA1"])


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("USE_RAY", "1", "Ray's workers"), ("USE_MCA", "true", "Megatron's"), ("USE_V1", "Y", "v1")],
)
def test_what_goes_around_the_trainers(name, value, reason):
    with pytest.raises(ValueError, match=f"^{name} must not be set with the constraint, got '{value}': .*{reason}"):
        check_environment({name: value})
    check_environment({name: "0"})
    check_environment({})


def test_help_names_the_keys_and_the_launchers(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["llamafactory", "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for form in ("pcrm llamafactory train", "-m pcrm.llamafactory train", "pcrm_beta1", "pcrm_prefix_sharing"):
        assert form in text


@pytest.mark.parametrize(
    ("argv", "message"), [([], "arguments are required: command"), (["webui"], "invalid choice: 'webui'")]
)
def test_other_commands_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["llamafactory", *argv])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
