"""The settings of a constraint: the same rules everywhere, tested with pcrm/testdata/settings.json.

pcrm/settings_test.go tests Go with the same rows.
"""

import argparse
import json
import math
import re
import subprocess
import sys
from decimal import Decimal

import pytest
import yaml
from helpers.project import ROOT

import pcrm
from pcrm import settings

CASES = json.loads((ROOT / "pcrm" / "testdata" / "settings.json").read_text())


def number(value):
    """JSON has NaN and infinities as texts."""
    return float(value) if value in ("inf", "nan") else value


def given(case):
    return {name: number(value) for name, value in case["given"].items()}


def wanted(case):
    if "targets" in case:
        return settings.Targets(**case["targets"])
    values = {name: number(value) for name, value in case["constraint"].items()}
    if "delta" in values:
        return pcrm.Constraint.fixed(**values)
    return pcrm.Constraint.random(**values) if "low" in values else pcrm.Constraint(**values)


def through_python(case, _):
    return settings.constraint_of(given(case), case["task"])


def through_toml(case, folder):
    def spelled(value):
        return json.dumps(value) if isinstance(value, (str, bool)) else str(value)

    file = folder / "pcrm.toml"
    lines = [f"{name} = {spelled(value)}" for name, value in given(case).items()]
    file.write_text("\n".join(["[constraint]", *lines]))
    if "targets" in case:
        with pytest.raises(ValueError, match=r"pcrm\.toml:\d: constraint\..*(to data first|are the betas): use the"):
            pcrm.Constraint.from_toml(file, case["task"])
    elif "error" not in case:
        assert pcrm.Constraint.from_toml(file, case["task"]) == wanted(case)
    config = settings.load_config(file, case["task"])
    return config.prior, config.constraint


def config_class(case):
    from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig

    return PCRMDPOConfig if case["task"] == "dpo" else PCRMRewardConfig


def through_fields(case, folder):
    fields = {f"pcrm_{name}": value for name, value in given(case).items()}
    config = config_class(case)(output_dir=str(folder), bf16=False, **fields).pcrm_settings()
    return config.prior, config.constraint


def through_parser(case, arguments):
    from trl import TrlParser

    (config,) = TrlParser([config_class(case)], exit_on_error=False).parse_args_and_config(arguments)
    settings = config.pcrm_settings()
    return settings.prior, settings.constraint


def through_yaml(case, folder):
    fields = {f"pcrm_{name}": value for name, value in given(case).items()}
    (folder / "config.yaml").write_text(yaml.safe_dump({"output_dir": str(folder), "bf16": False, **fields}))
    return through_parser(case, ["--config", str(folder / "config.yaml")])


def through_flags(case, folder):
    flags = [word for name, value in given(case).items() for word in (f"--pcrm_{name}", str(value))]
    return through_parser(case, ["--output_dir", str(folder), "--bf16", "false", *flags])


def through_openrlhf(case, _):
    from pcrm.commands import openrlhf
    from pcrm.openrlhf import patch

    flags = [f"--pcrm.{name}={value}" for name, value in given(case).items()]
    seen = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(patch, "replacements", lambda _, config, **options: seen.append(config))
        monkeypatch.setattr(patch, "run", lambda *_: None)
        monkeypatch.setattr(openrlhf.os, "environ", {"RANK": "0"})
        openrlhf.main(["train_dpo" if case["task"] == "dpo" else "train_rm", *flags])
    return seen[0].prior, seen[0].constraint


ENTRIES = {
    "python": through_python,
    "toml": through_toml,
    "fields": through_fields,
    "yaml": through_yaml,
    "flags": through_flags,
    "openrlhf": through_openrlhf,
}
# A flag is a text, which argparse converts to a number or rejects itself.
TEXTS = ("a text", "a truth value", "a fraction", "a number")


# TRL creates about three hundred flags again for each file.
@pytest.mark.parametrize("entry", [pytest.param(d, marks=pytest.mark.slow if d == "yaml" else ()) for d in ENTRIES])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_same_rules_through_every_entry(case, entry, tmp_path, capsys):
    if "error" not in case:
        prior, constraint = ENTRIES[entry](case, tmp_path)
        assert (prior, constraint) == (case["prior"], wanted(case))
        return
    with pytest.raises((TypeError, ValueError, SystemExit, argparse.ArgumentError)) as caught:
        ENTRIES[entry](case, tmp_path)
    message = f"{caught.value} {capsys.readouterr().err}"
    is_text = entry in ("yaml", "flags", "openrlhf") and case["name"].endswith(TEXTS)
    for word in case["error"][: 1 if is_text else None]:
        assert word in message


@pytest.mark.parametrize("case", [case for case in CASES if "constraint" in case], ids=lambda case: case["name"])
def test_constraints_of_the_table_are_valid_as_they_are(case):
    assert eval(repr(wanted(case)), {"Constraint": pcrm.Constraint, "inf": math.inf}) == wanted(case)


@pytest.mark.slow
def test_settings_need_neither_trl_nor_the_native_library(tmp_path):
    """Other frameworks' plugins read settings too, and so do installations without the extension."""
    (tmp_path / "pcrm.toml").write_text("[constraint]\npreset = 'tldr/cosine'\ncap = 40\n")
    code = """
import sys
import sys
from decimal import Decimal
sys.modules["pcrm._native._bridge"] = None
from pcrm.settings import load_config, settings_of
assert load_config(sys.argv[1]).constraint.cap == 40
assert settings_of({"prior": "fixed"}).constraint.delta(0.5) == 4.5
assert not {"trl", "transformers", "datasets", "accelerate"} & sys.modules.keys()
"""
    child = subprocess.run([sys.executable, "-c", code, tmp_path / "pcrm.toml"], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize(
    ("given", "task", "message"),
    [
        ({"beta9": 1.0}, "reward", "a setting must be one of prior, .*, got 'beta9'"),
        ({}, "sft", "task must be one of reward, dpo, got 'sft'"),
        ({"preset": "nope"}, "dpo", "x_preset must be one of .*, got 'nope'"),
        ({"cap": Decimal("1e400")}, "dpo", "x_cap must be a number of at most 1.79769e"),
    ],
)
def test_errors_name_what_was_given(given, task, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        settings.constraint_of(given, task, "x_")


def test_a_file_takes_no_settings_beside_it(tmp_path):
    file = tmp_path / "pcrm.toml"
    file.write_text("[constraint]\nprior = 'cosine'\n[loss]\nform = 'token'\n")
    agreeing = settings.settings_of({"prior": "cosine"}, config=file, form="token")
    assert (agreeing.prior, agreeing.form) == ("cosine", "token")
    with pytest.raises(ValueError, match=r"x_prior must be 'cosine', as in .*pcrm\.toml, got 'lexical'"):
        settings.settings_of({"prior": "lexical"}, config=file, prefix="x_")
    with pytest.raises(ValueError, match=r"x_form must be 'token', as in .*pcrm\.toml, got 'pair'"):
        settings.settings_of({}, config=file, form="pair", prefix="x_")
    with pytest.raises(
        ValueError, match=r"x_beta1 must not be set together with x_config, got 3: put all settings into the file"
    ):
        settings.settings_of({"beta1": 3}, config=file, prefix="x_")


def test_the_task_of_a_file_is_its_readers(tmp_path):
    """One pcrm.toml serves reward models and DPO, each with its own published betas."""
    from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig

    file = tmp_path / "pcrm.toml"
    file.write_text("[constraint]\nprior = 'cosine'\ncap = 90\n")
    options = {"output_dir": str(tmp_path), "bf16": False, "pcrm_config": str(file)}
    assert PCRMRewardConfig(**options).pcrm_constraint() == pcrm.Constraint(20, 0.001, -15, cap=90)
    assert PCRMDPOConfig(**options).pcrm_constraint() == pcrm.Constraint(30, 0.001, -25, cap=90)


def test_the_trainers_seed_draws_no_deltas(tmp_path):
    """A random constraint depends only on its own seed, so that it is the same everywhere."""
    from pcrm.trl import PCRMRewardConfig

    options = {"output_dir": str(tmp_path), "bf16": False, "pcrm_prior": "random"}
    assert PCRMRewardConfig(**options, seed=9).pcrm_constraint().seed == 0
    assert PCRMRewardConfig(**options, pcrm_seed=7).pcrm_constraint().seed == 7


def test_documentation(tmp_path):
    page = (ROOT / "docs" / "settings.md").read_text()
    (tmp_path / "pcrm.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    config = settings.load_config(tmp_path / "pcrm.toml")
    assert config.constraint == pcrm.Constraint(10, 0.001, -5, 2, 12)
    # Each example and its meaning.
    wanted = {
        "none": ("length_ratio", *[settings.Targets(1, 3)] * 2),
        "beta1=12": ("length_ratio", pcrm.Constraint(12, 0.001, -5), None),
        "preset=tldr/cosine": ("cosine", pcrm.Constraint.preset("tldr/cosine"), pcrm.Constraint.preset("tldr/cosine")),
        "prior=column": ("column", *[settings.Targets(1, 3)] * 2),
        "prior=column, preset=tldr/cosine, cap=50": ("column", *[pcrm.Constraint(30, 0.001, -25, cap=50)] * 2),
        "prior=lexical, beta1=2": ("lexical", None, None),
        "prior=fixed": ("fixed", pcrm.Constraint.fixed(4.5), None),
        "prior=random, low=4.5": ("random", pcrm.Constraint.random(4.5, 5), None),
        "preset=alpaca/fixed, delta=3": ("fixed", *[pcrm.Constraint.fixed(3)] * 2),
        "target_alike=1, target_unlike=3": ("length_ratio", *[settings.Targets(1, 3)] * 2),
        "prior=lexical, win_alike=0.7, win_unlike=0.95": (
            "lexical",
            *[settings.Targets(pcrm.margin_of(0.7), pcrm.margin_of(0.95))] * 2,
        ),
        "target_alike=1": ("length_ratio", None, None),
        "target_alike=1, target_unlike=3, beta2=0.1": ("length_ratio", None, None),
    }
    rows = [
        row.split(" | ")[0].strip("|` ")
        for row in page.split("For example:")[1].split("##")[0].split("\n")[4:]
        if row.strip("| ")
    ]
    assert rows[: len(wanted)] == list(wanted)
    for row, (prior, *constraints) in wanted.items():
        values = {} if row == "none" else dict(pair.split("=") for pair in row.split(", "))
        values |= {name: float(value) for name, value in values.items() if name not in ("prior", "preset")}
        for task, constraint in zip(("reward", "dpo"), constraints, strict=True):
            if constraint is None:
                with pytest.raises(ValueError, match=r"is missing|delta must be|the curve is fitted to the targets"):
                    settings.constraint_of(values, task)
            else:
                assert settings.constraint_of(values, task) == (prior, constraint)


def test_published_settings_of_the_documentation():
    page = (ROOT / "docs" / "settings.md").read_text().split("## Published settings")[1]
    seen = set()
    for row in re.findall(r"^\| (`.*`) \| (.*) \|$", page, re.MULTILINE):
        numbers = [float(x) for x in re.findall(r"[\d.]+", row[1])]
        for name in re.findall(r"`(.*?)`", row[0]):
            seen.add(name)
            preset = settings.presets()[name]
            values = [abs(v) for k, v in preset.items() if k != "prior"]
            assert numbers == (values if len(values) == len(numbers) else None), name
    assert seen == settings.presets().keys()
