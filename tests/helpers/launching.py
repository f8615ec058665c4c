"""Start OpenRLHF and DeepSpeed on a CPU."""

import contextlib
import os
import socket
import sys
from pathlib import Path

from helpers.project import ROOT

CPU = ROOT / "tests" / "openrlhf" / "cpu"
BIN = Path(sys.executable).parent


def cpu_environment(cache, trace):
    """The environment of such a process, with these folders for the hub's cache and the recorded steps."""
    return {name: value for name, value in os.environ.items() if name != "PCRM_BACKEND"} | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # of ninja
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(CPU)])),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(cache),
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions"),  # compiled by make
        "PCRM_TRACE": str(trace),
    }


@contextlib.contextmanager
def reserved_port():
    """A port that no other process is given meanwhile.

    It stays bound here without being listened on, so that a server that reuses addresses, as torch's
    does, may have it.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
