"""`pcrm reward`: `trl reward` with the constrained loss."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    from ..trl.command import train

    train("reward", argv)
    return 0
