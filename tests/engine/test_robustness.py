"""The native library next to other activities in a process. Each case runs in a separate process.

See also tests/engine/test_backends.py (forks, DataLoader, `datasets.map`), tests/engine/test_native.py
(the file itself) and tests/engine/test_memory.py (a million calls).
"""

import ctypes.util
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys

import pytest
from helpers.processes import compute
from helpers.project import ROOT

sys.path.insert(0, str(ROOT / "buildtools"))
import pcrm_build

pytestmark = pytest.mark.slow

EXTENSION = importlib.util.find_spec("pcrm._native._bridge").origin

# The extension without pcrm, which imports torch.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("pcrm._native._bridge", {EXTENSION!r})
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
"""


def python(code, *arguments, timeout=120, **env):
    """Run code that can import the tests' modules, and return the JSON in its last line of output."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")} | env,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "before",
    [
        LOAD + 'assert "torch" not in sys.modules and "numpy" not in sys.modules',
        "import torch; torch.nn.functional.logsigmoid(torch.randn(2_000_000)).sum()  # torch now has its threads",
    ],
    ids=["before torch", "after torch"],
)
def test_import_order(before):
    code = before + "\nimport json\nfrom helpers.processes import compute\nprint(json.dumps(compute()))"
    assert python(code) == compute() | {"served": "go"}


def test_first_use_by_many_threads():
    """No thread mistakes a library that another thread is loading for one from before a fork."""
    code = """
import json, os, threading, time
import pcrm
from pcrm._engine import native
getpid = os.getpid
os.getpid = lambda: (time.sleep(0.02), getpid())[1]  # sleep between the lines that record the load
start, served = threading.Barrier(8), []
def use():
    start.wait()
    served.append(native.chosen_library() is not None)
threads = [threading.Thread(target=use) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(json.dumps(served))
"""
    assert python(code) == [True] * 8


@pytest.mark.parametrize(
    ("method", "used", "served"),
    [("spawn", False, "go"), ("forkserver", False, "go"), ("forkserver", True, "torch"), ("fork", True, "torch")],
)
def test_start_methods(method, used, served, tmp_path):
    """Forked children of a process that used Go compute with torch, all other children with Go."""
    (tmp_path / "uses_pcrm.py").write_text("from helpers.processes import compute\ncompute()\n")
    code = f"""
import json, multiprocessing
from helpers.processes import compute
if __name__ == "__main__":
    if {used and method == "fork"}:
        import uses_pcrm
    if {used and method == "forkserver"}:
        multiprocessing.set_forkserver_preload(["uses_pcrm"])
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        print(json.dumps(pool.map_async(compute, range(4), chunksize=1).get(100)))
"""
    path = os.pathsep.join([str(ROOT / "tests"), str(tmp_path)])
    for got in python(code, PYTHONPATH=path):
        assert got["served"] == served
        assert got["numbers"] == pytest.approx(compute()["numbers"], rel=1e-6)


# A call that takes some tenths of a second.
LONG = """
import json, os, signal, sys, threading
import numpy as np
from pcrm.evaluate import statistics
from helpers.processes import compute
pcrm = sys.modules["pcrm"]
pcrm.backends.set_num_threads(1)
points = np.random.default_rng(0).normal(size=(2, 20_000))
def long():
    statistics.lowess(*points, frac=0.1)
"""


def test_keyboard_interrupt():
    """The interrupt arrives in the main thread when the call ends, and the library still works."""
    code = (
        LONG
        + """
want, handler = compute(), signal.getsignal(signal.SIGINT)
caught = 0
for _ in range(2):
    begun = threading.Event()
    def interrupt():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        begun.set()
        while True:
            long()
    except KeyboardInterrupt:
        caught += 1
    thread.join()
long()
print(json.dumps([caught, compute() == want, signal.getsignal(signal.SIGINT) is handler is signal.default_int_handler]))
"""
    )
    assert python(code, timeout=200) == [2, True, True]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_process(name):
    """A signal ends the process as without Go: nothing is caught that Python does not catch."""
    code = LONG + 'signal.signal(signal.SIGINT, signal.SIG_DFL)\nlong()\nprint("ready", flush=True)\nwhile True: long()'
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as child:
        try:
            assert child.stdout.readline() == b"ready\n"
            child.send_signal(getattr(signal, name))
            assert child.wait(60) == -getattr(signal, name)
        finally:
            child.kill()


def test_go_and_openmp_threads_together():
    """More threads of each kind than processors, all busy at once: the same bits as one Go thread."""
    code = """
import json, torch, pcrm
from concurrent.futures import ThreadPoolExecutor
from pcrm.functional import pcrm_loss
from pcrm._engine import native
bridge = native.library()
x = torch.randn(1 << 19, generator=torch.Generator().manual_seed(0))  # more than one thread's worth for both
def go():
    chosen = x.clone().requires_grad_()
    loss = pcrm_loss(chosen, -x, 5.0)
    loss.backward()
    return loss.item(), chosen.grad.sum(dtype=torch.float64).item()
def openmp():
    return torch.nn.functional.logsigmoid(x).sum(dtype=torch.float64).item(), torch.get_num_threads()
torch.set_num_threads(3)
pcrm.backends.set_num_threads(1)
want = {go: go(), openmp: openmp()}
pcrm.backends.set_num_threads(0)
with ThreadPoolExecutor(6) as pool:
    work = [go, openmp] * 30
    same = [got == want[f] for f, got in zip(work, pool.map(lambda f: f(), work))]
print(json.dumps([all(same), native.call(bridge.bridge_NumThreads), torch.get_num_threads()]))
"""
    environment = {"GOMAXPROCS": "5", "OMP_WAIT_POLICY": "PASSIVE"}
    assert python(code, timeout=200, **environment) == [True, 5, 3]


# Everything that the mode of the floating-point unit affects: denormals as operands and as results,
# in float32 and float64, and the C library's rounding mode.
MODE = f"""
import ctypes, json, sys, threading
import numpy as np, torch
libm = ctypes.CDLL({ctypes.util.find_library("m")!r})
def arithmetic():
    numbers = []
    for tiny, kind in ((1e-310, np.float64), (1e-40, np.float32)):
        a, least = np.full(33, tiny, kind), np.full(33, np.finfo(kind).tiny, kind)
        t, u = torch.from_numpy(a), torch.from_numpy(least)
        for operand, result in ((a, least), (t, u)):
            # A denormal operand with a normal result, a normal one with a denormal, and both.
            numbers += [float(x[0]) for x in (operand * kind(2.0**60), result / 4, operand + operand)]
        third = np.ones(33, kind) / kind(3)
        numbers += [third[0].hex() if kind is np.float64 else float(third[0]).hex(), float(-third[0]).hex()]
    return [*numbers, libm.fegetround()]
def mode():
    there = []
    thread = threading.Thread(target=lambda: there.append(arithmetic()))
    thread.start()
    thread.join()
    return arithmetic() + there
def calls():
    compute()
    x = torch.randn(1 << 18, requires_grad=True)  # with Go's own threads
    pcrm.functional.pcrm_loss(x, -x.detach(), 5.0).backward()
"""


def test_floating_point_mode_is_left_alone():
    """The import and calls do not change it, in the calling thread or in new ones, even if the user has set it."""
    code = (
        MODE
        + """
alone = mode()
import pcrm
from helpers.processes import compute
from pcrm._engine import native
native.library()
loaded = mode()
calls()
used = mode()
flushes = torch.set_flush_denormal(True)
flushed = mode()
calls()
after = mode()
torch.set_flush_denormal(False)  # otherwise the printed numbers would be zeros
print(json.dumps([alone, loaded, used, flushes, flushed, after]))
"""
    )
    alone, loaded, used, flushes, flushed, after = python(code)
    assert alone[0] == 1e-310 * 2.0**60 and alone[1] > 0, "the machine has denormals"
    assert alone == loaded == used
    assert flushed == after
    assert not flushes or flushed != alone, "what is looked at shows such a mode"


OTHER = """
package main

import "C"
import "runtime"

type node struct{ next *node }

// Work makes garbage in goroutines, collects it, and recovers from a fault of its own in each.
//
//export Work
func Work(goroutines C.longlong) C.longlong {
	recovered := make(chan C.longlong)
	for range goroutines {
		go func() {
			defer func() {
				if recover() != nil {
					recovered <- 1
				}
			}()
			var list *node
			for range 1000 {
				list = &node{list}
			}
			runtime.GC()
			for {
				list = list.next // at the end a nil pointer, which is a signal
			}
		}()
	}
	var sum C.longlong
	for range goroutines {
		sum += <-recovered
	}
	return sum
}

func main() {}
"""


@pytest.fixture(scope="module")
def other_runtime(tmp_path_factory):
    """A shared library built with the project's Go, which has its own runtime."""
    try:
        go, cc = pcrm_build._go(), pcrm_build._cc(platform.machine())
    except RuntimeError as error:
        pytest.skip(f"needs what builds the extension: {error}")
    folder = tmp_path_factory.mktemp("other")
    (folder / "go.mod").write_text("module other\n\ngo 1.26\n")
    (folder / "main.go").write_text(OTHER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CGO_")}
    environment |= {"CC": cc, "CGO_ENABLED": "1", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=mod"}
    command = [go, "build", "-buildmode=c-shared", "-o", "other.so", "."]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder / "other.so"


@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_another_go_runtime(other_runtime, order):
    """Two Go runtimes, loaded in either order, busy at once. Each recovers from faults, which are signals."""
    code = """
import ctypes, json, sys
from concurrent.futures import ThreadPoolExecutor
import pcrm, torch
from pcrm.functional import pcrm_loss
from helpers.processes import compute
from pcrm._engine import native
def load():
    library = ctypes.CDLL(sys.argv[1])
    library.Work.argtypes, library.Work.restype = [ctypes.c_longlong], ctypes.c_longlong
    return library.Work
if sys.argv[2] == "before":
    work = load()
bridge = native.library()
want = compute()
if sys.argv[2] == "after":
    work = load()
one = torch.ones(1)
def fault():
    # No memory for the result: a nil pointer in Go.
    try:
        native.call(bridge.bridge_RewardLoss, 4, 1, 0, 0, 0, *[one.data_ptr()] * 3, 0.0, 0.0, 0, False)
    except RuntimeError as error:
        return "internal error" in str(error)
def large():
    x = torch.ones(1 << 18)
    return abs(pcrm_loss(x, x, float("inf")).item() - 0.6931472) < 1e-6
with ThreadPoolExecutor(4) as pool:
    jobs = [lambda: compute() == want, lambda: work(20) == 20, fault, large] * 10
    print(json.dumps(list(pool.map(lambda job: job(), jobs))))
"""
    assert python(code, str(other_runtime), order, timeout=200) == [True] * 40
