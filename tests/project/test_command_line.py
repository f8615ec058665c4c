"""The command line: its help by groups, misspelled commands, and one style for each command."""

import pytest
from helpers.project import ROOT

from pcrm import cli


def test_help_has_each_command_in_a_group(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert cli.main([]) == 2
    assert capsys.readouterr().err == shown
    modules = {p.stem for p in (ROOT / "pyproject" / "pcrm" / "commands").glob("[a-z]*.py")}
    lines = [line.split(maxsplit=1) for line in shown.splitlines() if line.startswith("  ")]
    assert {name for name, _ in lines} == modules == set(cli._COMMANDS)
    assert len(lines) == len(modules), "each command once"
    groups = [line for line in shown.splitlines() if line.endswith(":") and " " not in line]
    assert groups == ["Data:", "Train:", "Evaluate:", "Tools:"]
    for _, text in lines:
        assert text[0].isupper() and not text.endswith("."), text
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("typed", "near"), [("priro", "prior"), ("compere", "compare"), ("Check", "check"), ("reports", "report")]
)
def test_a_misspelled_command(capsys, typed, near):
    assert cli.main([typed, "x"]) == 2
    assert capsys.readouterr().err == f"pcrm: {typed!r} is not a pcrm command. Did you mean {near}? See pcrm --help\n"


def test_a_command_that_is_nothing_like_another(capsys):
    assert cli.main(["zzz\x1b[31m"]) == 2
    said = capsys.readouterr().err
    assert said == "pcrm: 'zzz\\x1b[31m' is not a pcrm command. See pcrm --help\n"


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_help_ends_with_two_examples(capsys, command):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    *_, title, first, second = capsys.readouterr().out.rstrip().splitlines()
    assert title == "examples:"
    for example in (first, second):
        assert example.startswith("  ") and f"pcrm {command}" in example and len(example) <= 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "compare x --model y --learning-rte 1",
            "unrecognized arguments: --learning-rte 1. Did you mean --learning-rate?",
        ),
        ("compare x --model y --ephocs=1", "unrecognized arguments: --ephocs=1. Did you mean --epochs?"),
        ("compare x --model y --zzz", "unrecognized arguments: --zzz"),
        ("compare x", "the following arguments are required: --model"),
        ("check x --tokeniser y", "unrecognized arguments: --tokeniser y. Did you mean --tokenizer?"),
        ("score x y --out z --batchsize 4", "unrecognized arguments: --batchsize 4. Did you mean --batch-size?"),
        ("fit x --targt-alike 1", "one of the arguments --target-alike --win-alike is required"),
        ("average x --out y --wieghts 2", "unrecognized arguments: --wieghts 2. Did you mean --weights?"),
        ("run", "the following arguments are required: SCRIPT, ARGUMENTS"),
        ("demo --pairs many", "argument --pairs: invalid int value: 'many'"),
    ],
)
def test_a_misspelled_flag(capsys, arguments, said):
    command, *_ = arguments.split()
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments.split())
    assert capsys.readouterr().err == f"pcrm {command}: error: {said}\nSee pcrm {command} --help\n"
