"""Which modules of the package import which: arrows point one way, and light modules stay light."""

import ast
import importlib.util
import re
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers.project import ROOT

PACKAGE = ROOT / "pyproject" / "pcrm"

# What `pcrm check`, `report`, `calibrate`, `fit`, `average` and `pairs` run. Loading torch takes longer than they do.
LIGHT = ["data/*.py", "evaluate/scores.py", "evaluate/statistics.py", "evaluate/length_bias.py", "evaluate/pages/*.py"]
LIGHT += [
    "axolotl/plugin.py",
    "axolotl/named.py",
    "evaluate/check_data.py",
    "evaluate/temperature.py",
    "evaluate/score_head.py",
    "_checkpoint_folder.py",
    "evaluate/fitted_constraint.py",
    "evaluate/report/*.py",
    *(f"commands/{name}.py" for name in ("check", "report", "calibrate", "fit", "average", "pairs", "_rows")),
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


def graph():
    """By the name of each module those of the package that it imports at any level, also for types alone."""
    paths = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    edges = {}
    for name, path in paths.items():
        found = imported(path)
        edges[name] = {m for m in found if m in paths and m != name}
        # `from .a import b` names package a as well as its module b, and needs no more than b.
        edges[name] -= {m for m in edges[name] if any(other.startswith(f"{m}.") for other in edges[name])}
    return edges


def circle(edges):
    """A circle of a graph, or None."""
    try:
        tuple(TopologicalSorter(edges).static_order())
    except CycleError as error:
        return error.args[1]
    return None


def test_no_circle_of_modules_or_packages():
    edges = graph()
    assert len(edges) > 100 and "pcrm._engine.dispatch" in edges["pcrm.functional"]
    assert circle(edges) is None
    packages = {}
    for module, others in edges.items():
        of = packages.setdefault(package_of(module), set())
        of |= {package_of(other) for other in others} - {package_of(module)}
    assert packages["pcrm.trl"] >= {"pcrm.settings", "pcrm.functional"}
    assert circle(packages) is None


def package_of(module):
    return ".".join(module.split(".")[:2])


def test_the_bridge_is_declared_as_it_is():
    """`_bridge.pyi` has each exported function of package bridge, with its arguments in their order."""
    found = {}
    for path in (ROOT / "bridge").glob("*.go"):
        if not path.name.endswith("_test.go"):
            for name, arguments in re.findall(r"^func ([A-Z]\w*)\(([^)]*)\)", path.read_text(), flags=re.M):
                found[name] = [part.split()[0] for part in arguments.replace("\n", " ").split(",") if part.strip()]
    declared = {
        node.name.removeprefix("bridge_"): [a.arg for a in node.args.args]
        for node in ast.parse((PACKAGE / "_native" / "_bridge.pyi").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert declared == found


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "experiments", "examples", "recipes"])
def test_what_others_import_of_the_package_is_there(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("pcrm"):
                if {"openrlhf", "swift"} & set(node.module.split(".")):  # need OpenRLHF and ms-swift
                    continue
                module = importlib.import_module(node.module)
                for alias in node.names:
                    there = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                    assert there, f"{path.relative_to(ROOT)}:{node.lineno}: {node.module} has no {alias.name}"
