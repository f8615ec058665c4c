"""Which modules of the package import which: arrows point one way, and light modules stay light."""

import ast

import pytest
from helpers.project import ROOT

PACKAGE = ROOT / "pyproject" / "pcrm"

# What `pcrm report`, `calibrate`, `fit` and `average` run. Loading torch takes longer than they do.
LIGHT = ["data/*.py", "evaluate/scores.py", "evaluate/statistics.py", "evaluate/length_bias.py", "evaluate/pages/*.py"]
LIGHT += [
    "evaluate/report/*.py",
    *(f"commands/{name}.py" for name in ("report", "calibrate", "fit", "average", "_rows")),
]


def imported(path):
    """The modules that a file imports, at any level, by their absolute names."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("pattern", LIGHT)
def test_light_modules_do_not_import_torch(pattern):
    paths = list(PACKAGE.glob(pattern))
    assert paths
    heavy = {"torch", "transformers", "trl"}
    assert [(str(p), name) for p in paths for name in imported(p) if name.partition(".")[0] in heavy] == []


def test_nothing_but_the_command_line_imports_commands():
    importers = [p for p in PACKAGE.rglob("*.py") if any(name.startswith("pcrm.commands") for name in imported(p))]
    assert [str(p) for p in importers if p.parent != PACKAGE / "commands"] == []


def test_libraries_take_no_namespace():
    users = {p for p in PACKAGE.rglob("*.py") if "argparse" in imported(p) and "argparse.Namespace" in p.read_text()}
    assert [str(p) for p in users if p.parent != PACKAGE / "commands"] == []
