"""`pcrm dpo`: `trl dpo` with the constrained loss."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    from ..trl.command import train

    train("dpo", argv)
    return 0
