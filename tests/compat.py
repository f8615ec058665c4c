"""Run the tests of the trainers with several versions of TRL: `make compat`.

Each version is installed into its own folder, without its dependencies, and takes precedence over the
installed one. Writes docs/compat.md.
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from frameworks import HEADING
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("1.0.0", "1.5.1", "1.9.2", "1.14.2", "newest")
FILES = ("trl/test_trl_invariants.py", "trl/test_trl_modes.py", "trl/test_trl_metrics.py")

PAGE = """\
# Tested versions

## TRL

`make compat` runs three test files with each of these versions: `tests/trl/test_trl_invariants.py` (whole training runs: unconstrained
runs match the stock trainer, Go matches torch, gradient accumulation, resuming, evaluation), `tests/trl/test_trl_modes.py` (DPO's
options, LoRA, bfloat16, the token form and more) and `tests/trl/test_trl_metrics.py` (the metrics, with one and with two processes).
Not tested in CI: versions between the oldest and the newest. The last run used
{with_}:

| TRL | passed | failed | skipped |
|---|---|---|---|
{rows}

Two tests check a different behavior in older versions. Before 1.14, Liger uses a DPO loss of its own, which pcrm rejects. Before 1.9,
`evaluate()` accepts only prepared data, both in our trainers and in the stock ones.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".compat", help="folder for the installed versions (default: %(default)s)"
    )
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    args = parser.parse_args()
    rows, failed = [], False
    for wanted in (bar := tqdm(args.versions)):
        bar.set_description(f"trl {wanted}")
        folder = args.folder / wanted
        if not folder.is_dir() or wanted == "newest":
            package = "trl>=1.0,<2" if wanted == "newest" else f"trl=={wanted}"
            install = ("pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(folder), package)
            subprocess.run([sys.executable, "-m", *install], check=True)
        (metadata,) = importlib.metadata.distributions(name="trl", path=[str(folder)])
        with tempfile.TemporaryDirectory() as temporary:
            results = Path(temporary) / "results.xml"
            tests = [str(ROOT / "tests" / name) for name in FILES]
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", f"--junitxml={results}", *tests],
                env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            suite = ElementTree.parse(results).getroot()[0]
        total, failures, errors, skipped = (int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped"))
        if done.returncode:
            failed = True
            print(done.stdout[-5000:], file=sys.stderr)
        rows.append(f"| {metadata.version} | {total - failures - errors - skipped} | {failures + errors} | {skipped} |")
    names = ("torch", "transformers", "accelerate", "peft")
    with_ = ", ".join([*(f"{n} {importlib.metadata.version(n)}" for n in names), f"Python {platform.python_version()}"])
    if tuple(args.versions) == VERSIONS and not failed:
        page = ROOT / "docs" / "compat.md"
        _, heading, others = page.read_text().partition(HEADING)  # tests/frameworks.py's
        page.write_text(PAGE.format(with_=with_, rows="\n".join(rows)) + (f"\n{heading}{others}" if heading else ""))
    print("\n".join(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
