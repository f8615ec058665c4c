"""The parser of a command: help that ends with examples, and errors that name the flag that was meant."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps the lines of its description and ends with examples.

    Args:
        prog: The command, as `pcrm compare`.
        description: What it does.
        examples: Command lines.
    """

    def __init__(self, prog: str, description: str, *examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n  ".join(["examples:", *examples]) + "\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """End with the message, the flag that a misspelled one is near, and no usage of many lines."""
        wrong = message.removeprefix("unrecognized arguments: ")
        near: list[str] = []
        if wrong != message:
            near = difflib.get_close_matches(wrong.split()[0].partition("=")[0], self._option_string_actions, 1, 0.7)
        hint = f". Did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: error: {message}{hint}\nSee {self.prog} --help\n")
