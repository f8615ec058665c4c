"""Which configurations train with pcrm, and which are errors, without Axolotl."""

import pytest
from pcrm.axolotl import keys
from pcrm.axolotl.arguments import FIELDS, PCRMKeys
from pcrm.axolotl.named import names_pcrm
from pcrm.trl import PCRMDPOConfig

DPO = {"rl": "dpo", "dpo_loss_type": ["pcrm"]}
REWARD = {"reward_model": True}


@pytest.mark.parametrize(
    "cfg",
    [
        DPO,
        DPO | {"dpo_loss_type": ["pcrm", "sft"], "dpo_loss_weights": [1.0, 0.1]},
        DPO | {"pcrm_preset": "dpo/length_ratio"},
        DPO | {"trainer_cls": keys.DPO_TRAINER},  # of a worker of Ray, which gets what the first process checked
        REWARD | {"pcrm_prior": "lexical"},
        REWARD | {"pcrm_prior": "column", "pcrm_beta1": "1e-1", "pcrm_beta3": 2},  # YAML has no number for 1e-1
        REWARD | {"pcrm_prior": "fixed", "pcrm_delta": "inf"},
    ],
)
def test_taken(cfg):
    assert names_pcrm(cfg, [])
    keys.check(cfg, [])


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (DPO | {"pcrm_betal": 1}, r"pcrm_betal is not a key of pcrm: did you mean pcrm_beta\d\?"),
        (REWARD | {"pcrm": True}, "pcrm is not a key of pcrm: the keys are pcrm_prior, "),
        (REWARD | {"trl": {"pcrm_beta1": 1}}, "pcrm_beta1 must be a top-level key, got trl.pcrm_beta1"),
        (REWARD | {"pcrm_prior": None}, "pcrm_prior must have a value, got none"),
        ({"rl": "dpo", "pcrm_cap": 9}, "dpo_loss_type must contain pcrm where pcrm_cap is set, got none"),
        (DPO | {"dpo_loss_type": ["sigmoid"], "pcrm_cap": 9}, r"pcrm_cap is set, got \['sigmoid'\]"),
        (DPO | {"dpo_loss_type": ["pcrm2"]}, r"dpo_loss_type must contain pcrm or TRL's losses, got \['pcrm2'\]"),
        (DPO | {"rl": "ipo"}, r"rl must be dpo with dpo_loss_type: \[pcrm\], got 'ipo'"),
        ({"dpo_loss_type": ["pcrm"]} | REWARD, "rl must be dpo .*, got None"),
        ({"rl": "orpo", "pcrm_prior": "lexical"}, "pcrm_prior must be used with rl: dpo .*, got rl: orpo"),
        ({"rl": "kto", "pcrm_prior": "lexical"} | REWARD, "pcrm_prior must be used with rl: dpo .*, got rl: kto"),
        ({"pcrm_prior": "lexical"}, "pcrm_prior must be used with rl: dpo .*, or reward_model: true, got neither"),
        ({"rl": "dpo", "loss_type": "pcrm"}, "loss_type must be one of Axolotl's losses, got 'pcrm'"),
        ({"rl": "dpo", "trl": {"loss_type": "pcrm"}}, "trl.loss_type must be one of Axolotl's losses, got 'pcrm'"),
        (DPO | {"trainer_cls": "my.Trainer"}, "trainer_cls must not be set .*, got my.Trainer"),
        (REWARD | {"pcrm_cap": 9, "sample_packing": True}, "sample_packing must be false for a reward model"),
        (DPO | {"pcrm_beta1": "much"}, "pcrm_beta1\n.*valid number"),
        (
            DPO | {"pcrm_beta3": -20},
            r"delta must be greater than 0 on all of \[0, 1\], got -0\.01998 at similarity 1",
        ),  # of DPO's preset, 20/.001
        (
            REWARD | {"pcrm_beta3": -11},
            r"delta must be greater than 0 on all of \[0, 1\], got -1.00999 at similarity 1",
        ),
        (REWARD | {"pcrm_delta": 4}, "pcrm_delta must not be set, got 4.0: pcrm_prior='length_ratio' does not use it"),
        (DPO | {"pcrm_priority_alpha": 0.5, "pcrm_group_by_prompt": True}, "pcrm_priority_alpha must be 0"),
    ],
)
def test_refused(cfg, message):
    assert names_pcrm(cfg, [])
    with pytest.raises(ValueError, match=message):
        keys.check(cfg, [])


def test_a_flag_that_axolotl_does_not_read():
    assert names_pcrm({}, ["axolotl", "train", "--pcrm-cap=9"])
    with pytest.raises(ValueError, match=r"^pcrm_cap must be set in the YAML file, got the flag --pcrm-cap=9, which"):
        keys.check(REWARD, ["axolotl", "train", "--pcrm-cap=9"])
    keys.check(REWARD | {"pcrm_cap": 9}, ["train.py", "--pcrm-cap=9"])  # python -m axolotl.cli.train reads it


def test_others_are_left_alone():
    cfg = {"rl": "dpo", "dpo_loss_type": ["sigmoid"], "wandb_project": "pcrm", "trl": {"beta": 0.1}, "lora_r": None}
    assert not names_pcrm(cfg, ["axolotl", "train", "pcrm.yaml", "--launcher", "python"])


def test_the_schema_has_every_field():
    """The defaults are those of the trainers' arguments."""
    fields = {name for name in PCRMDPOConfig.__dataclass_fields__ if name.startswith("pcrm_")}
    assert set(FIELDS) == set(PCRMKeys.model_fields) == fields
    assert set(PCRMKeys().model_dump().values()) == {None}
    taken = PCRMKeys(pcrm_seed="3", pcrm_prefix_sharing="true", pcrm_beta2="1e-3").model_dump(exclude_none=True)
    assert taken == {"pcrm_seed": 3, "pcrm_prefix_sharing": True, "pcrm_beta2": 0.001}
