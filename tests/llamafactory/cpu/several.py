"""Runs several configurations one after the other, as LLaMA-Factory takes longer to import than to train each.

    python several.py stock|pcrm one.yaml another.yaml ...

The losses of one.yaml are traced into one-trace, and what it raised is in one-error.
"""

import sys
from pathlib import Path

import pcrm


def main(which: str, *names: str) -> None:
    from llamafactory.train.tuner import run_exp
    from pcrm.llamafactory import patch

    for name in map(Path, names):
        sys.argv = ["llamafactory-cli", str(name)]
        try:
            with pcrm.trace(name.with_name(f"{name.stem}-trace")):
                if which == "stock":
                    run_exp()
                else:
                    patch.train([str(name)])
        except Exception as error:
            name.with_name(f"{name.stem}-error").write_text(f"{type(error).__name__}: {error}")
            if not isinstance(error, (ValueError, TypeError)):
                raise


if __name__ == "__main__":
    main(*sys.argv[1:])
