"""The extension itself: its dependencies, its loading, its effects on the process."""

import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from helpers.project import ROOT
from pcrm._engine import dtypes, native


@pytest.fixture(scope="module")
def extension():
    return importlib.util.find_spec("pcrm._native._bridge").origin


def dynamic(path):
    with open(path, "rb") as file:
        section = next(s for s in ELFFile(file).iter_sections() if isinstance(s, DynamicSection))
        return [(t.entry.d_tag, getattr(t, "needed", "")) for t in section.iter_tags()]


def test_links_nothing_but_libc(extension):
    tags = dynamic(extension)
    needed = {name.split(".so")[0] for tag, name in tags if tag == "DT_NEEDED"}
    assert needed <= {"libc", "libm", "libdl", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64"}, needed
    assert not {"DT_RPATH", "DT_RUNPATH"} & {tag for tag, _ in tags}


def test_size(extension):
    with open(extension, "rb") as file:
        assert file.seek(0, 2) < 6 * 2**20


@pytest.mark.slow
def test_import_is_a_small_part_of_torchs():
    """At most a tenth of torch's processor time, in one process. It was 0.01."""
    spec = importlib.util.find_spec("pcrm._native._bridge")
    code = f"""
import importlib.util, time
spec = importlib.util.spec_from_file_location("_bridge", {spec.origin!r})
start = time.process_time()
importlib.util.module_from_spec(spec)
ours = time.process_time() - start
import torch
print(ours / (time.process_time() - start - ours))
"""
    assert float(subprocess.check_output([sys.executable, "-c", code])) < 0.1


def test_errors_carry_their_kind():
    bridge = native.library()
    with pytest.raises(RuntimeError, match=r"TypeError: dtype code must be .*, got 3"):
        bridge.bridge_Cosines(3, 1, 1, 0, 0, 0, True)
    with pytest.raises(TypeError, match=r"^dtype code must be .*, got 3"):
        native.call(bridge.bridge_Cosines, 3, 1, 1, 0, 0, 0, True)
    one = torch.ones(1)
    with pytest.raises(
        RuntimeError, match=r"^pcrm: internal error, please report it"
    ):  # a panic: no place for the result
        native.call(bridge.bridge_RewardLoss, 4, 1, 0, 0, 0, *[one.data_ptr()] * 3, 0.0, 0.0, 0, False)

    def other():
        raise RuntimeError("something else: entirely")

    with pytest.raises(RuntimeError, match=r"^something else: entirely"):
        native.call(other)


def test_dtypes_are_in_the_order_of_the_kernels():
    """Package gpu and driver.h are checked against the same list at compile time."""
    (names,) = re.findall(r"^enum \{ (PCRM_FLOAT32, .*) \};", (ROOT / "gpu" / "kernels.h").read_text(), flags=re.M)
    assert names.split(", ") == [f"PCRM_{dtype}".replace("torch.", "").upper() for dtype in dtypes.CUDA_CODES]
    assert list(dtypes.CUDA_CODES.values()) == list(range(len(dtypes.COMPUTE)))


def test_loading_needs_no_torch():
    """Commands that compute only in Go start without torch."""
    code = "import sys, pcrm._engine.native as native; native.library(); print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
