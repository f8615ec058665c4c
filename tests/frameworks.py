"""Print a table of the results of `make test-frameworks`: versions, and how many tests passed.

make test-frameworks            # ends with this table
python tests/frameworks.py --write      # also writes the table to docs/compat.md
"""

import argparse
import platform
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compat.md"
HEADING = "## Other frameworks\n"
# The name of each framework and of its package, by the folder of its tests.
FRAMEWORKS = {
    "llamafactory": ("LLaMA-Factory", "llamafactory"),
    "axolotl": ("Axolotl", "axolotl"),
    "swift": ("ms-swift", "ms_swift"),
    "unsloth": ("Unsloth", "unsloth"),
}
WITH = ("trl", "transformers", "torch")


def versions(python, names):
    """Return the versions of packages as that Python finds them. Its own packages precede those of .venv."""
    code = "import sys, importlib.metadata as m; print(*(m.version(name) for name in sys.argv[1:]))"
    return subprocess.run(
        [python, "-c", code, *names], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()


def row(framework):
    """Return the row of a framework, and whether all of its tests passed."""
    name, package = FRAMEWORKS[framework]
    results = ROOT / "build" / "frameworks" / f"{framework}.xml"
    if not results.is_file():
        raise SystemExit(f"{results.relative_to(ROOT)} is missing: run make test-{framework} first")
    suite = ElementTree.parse(results).getroot()[0]
    total, failures, errors, skipped = (int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped"))
    found = versions(ROOT / f".venv-{framework}" / "bin" / "python", (package, *WITH))
    cells = [f"{name} {found[0]}", *found[1:], total - failures - errors - skipped, failures + errors, skipped]
    return f"| {' | '.join(map(str, cells))} |", not failures + errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table to docs/compat.md")
    args = parser.parse_args()
    rows, passed = zip(*map(row, FRAMEWORKS), strict=True)
    table = "\n".join(
        [f"| | {' | '.join(WITH)} | passed | failed | skipped |", f"|---{'|---' * (len(WITH) + 3)}|", *rows]
    )
    print(table)
    if args.write and all(passed):
        text = (
            f"{HEADING}\n`make test-frameworks` runs the commands of each of these frameworks on the CPU. `python tests/frameworks.py "
            f"--write` wrote this table of\nthe last run, with Python {platform.python_version()}:\n\n{table}\n"
        )
        PAGE.write_text(PAGE.read_text().partition(HEADING)[0].rstrip("\n") + "\n\n" + text)
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
