"""examples/quickstart.ipynb: it holds no outputs, and its cells run from top to bottom."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers.project import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]

# Runs the cells of its input in one namespace, as a kernel does, and prints the value that each ends with.
RUN = """
import ast, json, sys
names = {"__name__": "__main__"}
for i, source in enumerate(json.load(sys.stdin)):
    *body, last = ast.parse(source).body
    shown = isinstance(last, ast.Expr)
    exec(compile(ast.Module(body if shown else [*body, last], []), f"cell {i}", "exec"), names)
    if shown and (value := eval(compile(ast.Expression(last.value), f"cell {i}", "eval"), names)) is not None:
        print(value)
"""


def test_it_is_a_notebook_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["metadata"]["kernelspec"]["language"]) == (4, "python")
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(ids) == len(set(ids))
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and cell["source"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    for source in CODE:
        compile(source, "cell", "exec")


@pytest.mark.slow
def test_its_cells_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error:::pcrm", "-c", RUN],
        input=json.dumps(CODE),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        env=os.environ | {"MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "quickstart-out"
    assert (out / "margins.png").read_bytes().startswith(b"\x89PNG")
    assert all((out / name / "model.safetensors").is_file() for name in ("plain", "constrained"))
    assert "Constraint(" in done.stdout
    table = re.findall(
        r"^(plain|plain / [\d.]+|constrained) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", done.stdout, flags=re.M
    )
    assert [name.split()[0] for name, *_ in table] == ["plain", "plain", "constrained"]
    (plain, tempered, constrained) = (list(map(float, numbers)) for _, *numbers in table)
    assert plain[0] == tempered[0] > 0.55
    assert tempered[1] < plain[1], "the temperature calibrates"
    assert constrained[3] < plain[3], "the constraint narrows the margins"
