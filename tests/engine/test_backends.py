"""Backends: the setting, forks, and machines without the native library."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.processes import compute, python
from helpers.project import ROOT
from pcrm._engine import native

from pcrm import backends


def test_choice():
    assert backends.get_backend() == "auto"
    with backends.use_backend("torch"):
        assert backends.get_backend() == "torch" and native.chosen_library() is None
    assert backends.get_backend() == "auto" and native.chosen_library() is not None
    with pytest.raises(ValueError, match="backend must be one of auto, go, cuda, torch, got 'cpu'"):
        backends.set_backend("cpu")


@pytest.mark.slow
def test_environment():
    out = python("import pcrm; print(pcrm.backends.get_backend())", PCRM_BACKEND="torch")
    assert out.stdout.strip() == "torch", out.stderr
    out = python("import pcrm.functional", PCRM_BACKEND="gpu")
    assert "ValueError: PCRM_BACKEND must be one of auto, go, cuda, torch, got 'gpu'" in out.stderr


@pytest.mark.slow
def test_import_loads_no_native_library():
    """So a process may fork and use the library in the child."""
    code = """
import sys, pcrm, pcrm.functional
from pcrm._engine import native
loaded = lambda: "pcrm._native._bridge" in sys.modules
print(loaded(), native.chosen_library() is not None, loaded())
"""
    assert python(code).stdout == "False True True\n"


FORK = """
import json, os, sys, torch, pcrm
sys.path.insert(0, "tests")
from helpers.processes import compute
pcrm.backends.set_backend("go")
parent = compute()
# From here on torch has OpenMP threads, which a forked child lacks.
torch.nn.functional.logsigmoid(torch.randn(2_000_000)).sum()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    try:
        os.write(writer, json.dumps(compute()).encode())
    finally:
        os._exit(0)
os.close(writer)
with os.fdopen(reader) as answer:
    print(json.dumps([parent, json.loads(answer.read())]))
"""


@pytest.mark.slow
def test_fork_after_use():
    """The child takes the torch path, whatever the setting, and does not hang.

    Runs in a separate process, so that torch's threads do not depend on other tests.
    """
    out = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert out.returncode == 0, out.stderr
    parent, child = json.loads(out.stdout)
    assert (parent["served"], child["served"]) == ("go", "torch")
    assert child["numbers"] == pytest.approx(parent["numbers"], rel=1e-6)
    assert child["numbers"][:2] == parent["numbers"][:2], "the prior has the same bits"


FORK_FIRST = """
import json, os, sys
sys.path.insert(0, "tests")
from helpers.processes import compute
reader, writer = os.pipe()
if os.fork() == 0:
    try:
        os.write(writer, json.dumps(compute()).encode())
    finally:
        os._exit(0)
os.close(writer)
with os.fdopen(reader) as answer:
    print(json.dumps([json.loads(answer.read()), compute()]))
"""


@pytest.mark.slow
def test_first_use_in_a_forked_child():
    """Go computes in the child, and afterwards in the parent."""
    out = subprocess.run([sys.executable, "-c", FORK_FIRST], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == [compute() | {"served": "go"}] * 2


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        assert torch.utils.data.get_worker_info() is not None
        return torch.tensor(compute()["numbers"])


def test_data_loader_workers_after_use():
    want = compute()
    loader = torch.utils.data.DataLoader(
        Pairs(), num_workers=2, batch_size=4, multiprocessing_context="fork", timeout=60
    )
    for batch in loader:
        torch.testing.assert_close(batch, torch.tensor(want["numbers"]).expand(4, -1))


def test_datasets_map_after_use():
    from datasets import Dataset

    want = compute()["numbers"]
    rows = Dataset.from_dict({"i": list(range(8))}).map(compute, num_proc=2)
    assert set(rows["served"]) == {"torch"}
    for numbers in rows["numbers"]:
        assert numbers == pytest.approx(want, rel=1e-6)


@pytest.mark.slow
def test_without_native_library_torch_computes_and_says_so_once(without_native):
    code = """
import warnings, torch
warnings.simplefilter("always")
import pcrm
assert "no-native" in pcrm.__file__
from pcrm.functional import pcrm_loss
for _ in range(3):
    x = torch.ones(2, requires_grad=True)
    pcrm_loss(x, torch.zeros(2), pcrm.Constraint.preset("alpaca/length_ratio").delta(torch.ones(2))).backward()
print(pcrm.priors.length_ratio([[1, 2]], [[1]]), pcrm.Constraint.fit([0.1, 0.9], target_alike=1, target_unlike=3))
"""
    out = python(code, PYTHONPATH=without_native)
    assert out.returncode == 0, out.stderr
    assert out.stderr.count("RuntimeWarning") == 1
    assert "pcrm computes with torch instead of its Go core: the native extension is built on Linux" in out.stderr


@pytest.mark.slow
def test_without_native_library_go_is_an_error(without_native):
    out = python("import pcrm; pcrm.backends.set_backend('go')", PYTHONPATH=without_native)
    assert "NativeLibraryError: backend 'go' is not available: the native extension is built on Linux" in out.stderr
    out = python("import pcrm; pcrm.priors.length_ratio([[1]], [[1]])", PYTHONPATH=without_native, PCRM_BACKEND="go")
    assert "NativeLibraryError: backend 'go' is not available" in out.stderr


def test_threads():
    """The GIL is released during a call: four concurrent threads get the same results as one."""
    from concurrent.futures import ThreadPoolExecutor

    want = compute()["numbers"]
    with ThreadPoolExecutor(4) as pool:
        assert all(r["numbers"] == want for r in pool.map(compute, range(400)))
