"""`pcrm reward`: `trl reward` with the constrained loss."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    from ..trl.command import train

    return train("reward", argv)
