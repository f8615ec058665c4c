"""The parser of the commands: help that ends with examples, and errors that suggest the flag you meant."""

from __future__ import annotations

import argparse
import difflib
import os
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps the line breaks of its description and ends with examples.

    Args:
        prog: The command, as `pcrm compare`.
        description: What it does.
        examples: Command lines.
        usage: The usage line, if not argparse's own.
        allow_abbrev: Whether the user may abbreviate flags.
    """

    def __init__(
        self, prog: str, description: str, *examples: str, usage: str | None = None, allow_abbrev: bool = True
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog="\n  ".join(["examples:", *examples]) + "\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=allow_abbrev,
        )

    def check_counts(self, args: argparse.Namespace, *names: str) -> None:
        """Exit with an error if one of these attributes is less than 1. None passes."""
        for name in names:
            value = getattr(args, name)
            if value is not None and value < 1:
                self.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")

    def check_folder(self, flag: str, path: str | os.PathLike[str]) -> None:
        """Exit with an error if the path of an output folder is a file."""
        if os.path.isfile(path):
            self.error(f"{flag} must be a folder, got the file {os.fspath(path)}")

    def error(self, message: str) -> NoReturn:
        """Exit with the message, and suggest a flag for a misspelled one. Print no usage, which has many lines."""
        wrong = message.removeprefix("unrecognized arguments: ")
        near: list[str] = []
        if wrong != message:
            near = difflib.get_close_matches(wrong.split()[0].partition("=")[0], self._option_string_actions, 1, 0.7)
        hint = f". Did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: error: {message}{hint}\nSee {self.prog} --help\n")
