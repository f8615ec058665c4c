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


@pytest.mark.usefixtures("trl_as_it_was")
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
        ("score x y --out z --batch-size 0", "--batch-size must be at least 1, got 0"),
        ("prior x --out z --batch-size -3", "--batch-size must be at least 1, got -3"),
        ("optimize x --out z --samples 0", "--samples must be at least 1, got 0"),
        ("demo --pairs many", "argument --pairs: invalid int value: 'many'"),
    ],
)
def test_a_misspelled_flag(capsys, arguments, said):
    command, *_ = arguments.split()
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments.split())
    assert capsys.readouterr().err == f"pcrm {command}: error: {said}\nSee pcrm {command} --help\n"


@pytest.mark.parametrize("command", ["report x", "optimize x", "compare x --model y", "demo"])
def test_an_output_folder_that_is_a_file(capsys, tmp_path, command):
    file = tmp_path / "file"
    file.write_text("x")
    name, *rest = command.split()
    with pytest.raises(SystemExit, match="2"):
        cli.main([name, *rest, "--out", str(file)])
    assert f"pcrm {name}: error: --out must be a folder, got the file {file}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "{}/x.jsonl"), "{}/x.jsonl: must be a file, got a folder"),
        (("check", ""), "the name of a data set must not be empty, got ''"),
        (("average", "{}/x", "{}/y", "--out", "{}/z"), "{}/x/config.json: no such file or directory"),
        (
            ("fit", "{}/x", "--target-alike", "1", "--target-unlike", "3", "--out", "{}/f.toml", "--plot", "{}/f.xyz"),
            "--plot must end in one of .",
        ),
    ],
)
def test_bad_input_ends_in_one_line(capsys, tmp_path, arguments, said):
    (tmp_path / "x.jsonl").mkdir()
    command, *rest = (argument.format(tmp_path) for argument in arguments)
    assert cli.main([command, *rest]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"pcrm {command}: {said.format(tmp_path)}") and error.count("\n") == 1


def test_an_interrupted_command_ends_in_one_line(capsys, monkeypatch):
    from pcrm.commands import check

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "main", interrupted)
    assert cli.main(["check", "x"]) == 130
    assert capsys.readouterr().err == "pcrm check: interrupted\n"
