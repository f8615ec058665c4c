"""Compile gpu/kernels.cu to gpu/kernels.ptx with NVRTC, which needs neither a GPU nor a toolkit.

    python buildtools/pcrm_ptx.py NVRTC_FOLDER            # write gpu/kernels.ptx
    python buildtools/pcrm_ptx.py NVRTC_FOLDER --check    # fail if gpu/kernels.ptx is out of date

NVRTC_FOLDER is the folder into which `pip install --target` installed NVRTC. `make ptx` and
`make ptx-check` do this. The version is pinned, because newer versions write PTX that older drivers
reject. Version 12.1 writes PTX 8.1, which driver 530 and newer accept.
"""

from __future__ import annotations

import ctypes
import difflib
import sys
from pathlib import Path

GPU = Path(__file__).resolve().parent.parent / "gpu"
NVRTC_PACKAGE = "nvidia-cuda-nvrtc-cu12==12.1.105"
# sm_70 (2017) is the oldest architecture with independent threads. Drivers compile its PTX for any later device.
OPTIONS = ("--gpu-architecture=compute_70", "--std=c++17")
HEADERS = ("kernels.h", "pcrm_math.h")


def compile_ptx(nvrtc_folder: Path) -> str:
    """Return the PTX of kernels.cu."""
    libraries = nvrtc_folder / "nvidia" / "cuda_nvrtc" / "lib"
    # NVRTC looks up its built-in functions by library name, so that library must be loaded first.
    ctypes.CDLL(str(libraries / "libnvrtc-builtins.so.12.1"), mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(libraries / "libnvrtc.so.12"))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p

    def checked(code: int) -> None:
        if code != 0:
            raise RuntimeError(f"NVRTC: {nvrtc.nvrtcGetErrorString(code).decode()}\n{log()}")

    program = ctypes.c_void_p()

    def text(kind: str) -> str:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer)
        return buffer.value.decode()

    def log() -> str:
        return text("ProgramLog") if program else ""

    def strings(values: tuple[str, ...]):
        return (ctypes.c_char_p * len(values))(*(v.encode() for v in values))

    source = (GPU / "kernels.cu").read_bytes()
    headers = tuple((GPU / name).read_text() for name in HEADERS)
    checked(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), source, b"kernels.cu", len(HEADERS), strings(headers), strings(HEADERS)
        )
    )
    checked(nvrtc.nvrtcCompileProgram(program, len(OPTIONS), strings(OPTIONS)))
    return text("PTX")


def main(argv: list[str]) -> int:
    if argv[:1] == ["package"]:  # for the Makefile
        print(NVRTC_PACKAGE)
        return 0
    target = GPU / "kernels.ptx"
    ptx = compile_ptx(Path(argv[0]))
    if argv[1:] != ["--check"]:
        target.write_text(ptx)
        return 0
    found = target.read_text() if target.is_file() else ""
    if found == ptx:
        return 0
    sys.stdout.writelines(
        list(difflib.unified_diff(found.splitlines(True), ptx.splitlines(True), str(target), "kernels.cu compiled"))[
            :40
        ]
    )
    print("gpu/kernels.ptx must match gpu/kernels.cu: run make ptx", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
