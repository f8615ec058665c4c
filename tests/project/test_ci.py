"""CI runs every test: `.ci/run` reaches each of the Makefile's tests, and each Python test exactly once."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter

import pytest
from helpers.project import ROOT

TESTS = ROOT / "tests"
MAKEFILE = (ROOT / "Makefile").read_text()
RULES = {name: needs.split() for name, needs in re.findall(r"^([a-z][a-z0-9-]*):([^=#\n]*)$", MAKEFILE, flags=re.M)}
PHONY = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.M)[0].split())
MARKERS = [
    line.split(":")[0]
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
]
# tests/engine/test_cuda.py starts pytest on this one, with a fake driver.
STARTED_BY_A_TEST = {"cuda_cases.py"}


def reached(targets):
    """The targets with all that they need."""
    found, waiting = set(), list(targets)
    while waiting:
        name = waiting.pop()
        if name in RULES and name not in found:
            found.add(name)
            waiting += RULES[name]
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a process for which `make` only notes what it was asked for, and where it does."""
    folder = tmp_path_factory.mktemp("ci")
    (folder / "make").write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(folder / "asked"))}\n')
    (folder / "make").chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}, folder / "asked"


@pytest.fixture(scope="module")
def asked(environment):
    """The targets that `.ci/run` asks make for, in order."""
    variables, record = environment
    subprocess.run(["bash", str(ROOT / ".ci" / "run")], check=True, env=variables, timeout=60)
    return record.read_text().split()


@pytest.fixture(scope="module")
def commands(asked):
    """The pytest commands of CI: an expression of markers, folders, and whether it is a run of its own kind.

    With a variable before it, or `-k`, a command runs tests once more with something else.
    """
    variables = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    dry = subprocess.run(
        ["make", "--dry-run", *asked],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = []
    for line in dry.stdout.splitlines():
        words = shlex.split(line) if " -m pytest" in line else []
        if not words:
            continue
        start = words.index("pytest") + 1
        options = words[start:]
        again = "=" in words[0] or "-k" in options
        expression = options[options.index("-m") + 1]
        folders = [word for word in options if word.startswith("tests")]
        found.append((expression, folders, again))
    return found


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Every test that pytest finds, and the names of its markers."""
    folder = tmp_path_factory.mktemp("items")
    (folder / "all_items.py").write_text(
        "import json, os\n"
        "def pytest_collection_finish(session):\n"
        "    found = {item.nodeid: [mark.name for mark in item.iter_markers()] for item in session.items}\n"
        "    open(os.environ['ALL_ITEMS'], 'w').write(json.dumps(found))\n"
    )
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-qq",
            "-p",
            "all_items",
            "-p",
            "no:cacheprovider",
            "-m",
            "",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "ALL_ITEMS": str(folder / "items.json")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "items.json").read_text())


@pytest.mark.slow
def test_each_python_test_is_run_once(commands, items):
    assert len(items) > 2000
    runs = Counter()
    for expression, folders, again in commands:
        code = compile(expression, "markers", "eval")
        for name, markers in items.items():
            chosen = eval(code, {"__builtins__": {}}, {marker: marker in markers for marker in MARKERS})
            if chosen and not again and (not folders or name.startswith(tuple(f"{f}/" for f in folders))):
                runs[name] += 1
    assert {name: runs[name] for name in items if runs[name] != 1} == {}


@pytest.mark.slow
def test_each_file_of_tests_is_found(items):
    found = {name.split("::")[0] for name in items}
    files = {
        str(path.relative_to(ROOT)): path.name
        for path in TESTS.rglob("*.py")
        if re.search(r"^ *def test_", path.read_text(), flags=re.M)
    }
    assert {name for path, name in files.items() if path not in found} == STARTED_BY_A_TEST
    assert all(name in (TESTS / "engine" / "test_cuda.py").read_text() for name in STARTED_BY_A_TEST)


@pytest.mark.slow
def test_each_marker_is_used(items):
    used = {marker for markers in items.values() for marker in markers}
    assert set(MARKERS) <= used


def test_each_target_is_run_or_said_not_to_be(asked):
    """What CI does not run is listed in docs/testing.md, with the reason."""
    page = (ROOT / "docs" / "testing.md").read_text().split("## What CI does not run\n")[1].split("\n## ")[0]
    not_run = set(re.findall(r"^\| `make ([a-z-]+)`", page, flags=re.M))
    run = reached(asked)
    run |= {name for name in PHONY if RULES[name] and all(need in run for need in RULES[name])}
    assert sorted(PHONY - run - not_run) == []
    assert sorted(run & not_run) == []
    assert {name for name in PHONY if name.startswith("test")} <= run


def test_all_is_what_ci_runs(asked):
    assert len(asked) == len(set(asked))
    assert reached(["test-all"]) - {"test-all"} == reached(asked) - {"lint", "asm-check", "ptx-check"}
    (command,) = re.findall(r"^(make test)\b", (ROOT / "README.md").read_text(), flags=re.M)
    assert command.removeprefix("make ") in asked


def test_each_package_with_go_tests_is_in_the_module():
    """`go test ./...` does not look into other modules."""
    others = [path.parent for path in ROOT.rglob("go.mod") if path.parent != ROOT]
    folders = {path.parent for name in ("pcrm", "gpu", "bridge") for path in (ROOT / name).rglob("*_test.go")}
    assert len(folders) > 5
    assert not [f for f in folders if any(f.is_relative_to(other) for other in others)]


def test_no_test_imports_another():
    """What two files of tests use lies in tests/helpers, so that each can be moved or changed alone."""
    modules = {path.stem for path in TESTS.rglob("test_*.py")}
    for path in TESTS.rglob("*.py"):
        # Also in the scripts that tests hold as texts.
        imports = re.findall(r"\b(?:from|import) +([\w., ]+)", path.read_text())
        assert not modules & {name for words in imports for name in re.split(r"[., ]+", words)}, path.name


def test_each_test_is_in_the_folder_of_a_package():
    """Folders are named after packages of pcrm. `losses` and `project` test several packages, and Unsloth has no package."""
    packages = {path.parent.name.lstrip("_") for path in (ROOT / "pyproject" / "pcrm").glob("*/__init__.py")}
    files = sorted(TESTS.rglob("test_*.py"))
    assert {path.parent.relative_to(TESTS).as_posix() for path in files} <= packages | {"losses", "project", "unsloth"}
    assert len({path.name for path in files}) == len(files)


def test_each_file_of_tests_that_is_named_is_there():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "recipes" / "README.md"]
    named = {
        (page.name, path)
        for page in pages
        # A path, or a name without one, which is no path.
        for path in re.findall(r"(?<![\w./-])(?:[\w.-]+/)*test_\w+\.py|tests/[\w./-]+\.\w+", page.read_text())
    }
    assert len(named) > 50
    assert sorted((page, path) for page, path in named if not (ROOT / path).is_file()) == []
