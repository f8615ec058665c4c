"""`pcrm dpo`: `trl dpo` with the constrained loss."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    from ..trl.patch import train

    train("dpo", argv)
    return 0
