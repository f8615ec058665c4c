"""Read and check the tables of a `pcrm.toml`. `resolve` interprets `[constraint]`."""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from .. import _check
from .rules import SETTINGS

FORMS = ("pair", "token")
_KEYS: dict[str, tuple[str, ...]] = {
    "constraint": SETTINGS,
    "loss": ("form", "label_smoothing", "center_rewards_coefficient"),
    "dpo": ("beta",),
}
# Thirty times the length of what `pcrm fit` writes. Go has the same limit: its reader takes a second for this length.
_LONGEST = 16 << 10


@dataclass(frozen=True)
class Document:
    """The settings in a file: those of the constraint as written, the others with their defaults."""

    name: str
    lines: dict[str, int]
    constraint: dict[str, Any]
    form: Literal["pair", "token"]
    label_smoothing: float
    center_rewards_coefficient: float
    dpo_beta: float

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Prefix the message of an error about `[constraint]` with file, line and key."""
        with _located(self.name, self.lines, "constraint"):
            yield


def read(path: str | os.PathLike[str]) -> Document:
    """Read a file as described in `pcrm.settings.load_config`.

    Raises:
        OSError, ValueError: As in `load_config`, except for errors in the meaning of `[constraint]`.
    """
    name = _check.path("path", path)
    text = _text(path, name)
    try:
        tables = tomllib.loads(text, parse_float=_float)
    except ValueError as error:  # also from int(), which takes at most 4300 digits
        reason, _, where = str(error).partition(" (at ")
        at = re.match(r"line (\d+)", where)
        number = re.search(r"[\d_]{4300}", text)
        line = int(at[1]) if at else text.count("\n", 0, number.start() if number else None) + 1
        raise ValueError(f"{name}:{line}: TOML is malformed: {reason}") from None
    except RecursionError:
        raise ValueError(f"{name}:1: TOML is malformed: nested too deeply") from None
    lines = _lines(text)
    for table, values in tables.items():
        if table not in _KEYS:
            raise ValueError(f"{name}:{lines.get(table, 1)}: {table} is not a table: the tables are {', '.join(_KEYS)}")
        if not isinstance(values, dict):
            raise ValueError(f"{name}:{lines.get(table, 1)}: {table} must be a table, got {values!r:.80}")
        for key in values:
            if key not in _KEYS[table]:
                at = lines.get(f"{table}.{key}", lines.get(table, 1))
                known = ", ".join(_KEYS[table])
                raise ValueError(f"{name}:{at}: {table}.{key} is not a key: the keys of [{table}] are {known}")
    if "seed" in (constraint := tables.get("constraint", {})):
        with _located(name, lines, "constraint"):
            _check.integer("seed", constraint["seed"])  # the limit of TOML's integers and of Go's reader
    with _located(name, lines, "loss"):
        loss = _loss(tables.get("loss", {}))
    with _located(name, lines, "dpo"):
        beta = _check.positive("beta", tables.get("dpo", {}).get("beta", 0.1))
    return Document(name, lines, constraint, *loss, beta)


def _float(text: str) -> float | Decimal:
    # Only `inf` is infinite. A number that overflows to infinity would, as a delta, train the unconstrained loss.
    value = float(text)
    return Decimal("1e400").copy_sign(Decimal(value)) if math.isinf(value) and "inf" not in text else value


def _text(path: str | os.PathLike[str], name: str) -> str:
    # Opening a pipe without a writer would block.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{name}: must be a regular file")
    with open(descriptor, "rb") as file:
        data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        line = 1 + data[:_LONGEST].count(b"\n")
        raise ValueError(f"{name}:{line}: TOML must be at most {_LONGEST} bytes long")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].count(b"\n")
        raise ValueError(f"{name}:{line}: TOML is malformed: not UTF-8") from None


def _loss(values: dict[str, Any]) -> tuple[Any, float, float]:
    form = _check.one_of("form", values.get("form", "pair"), FORMS)
    smoothing = _check.label_smoothing(values.get("label_smoothing", 0.0))
    center = _check.at_least_0("center_rewards_coefficient", values.get("center_rewards_coefficient", 0.0))
    for key, value in (("label_smoothing", smoothing), ("center_rewards_coefficient", center)):
        if form == "token" and value:
            raise ValueError(f'{key} must be 0 with form = "token", which does not use it, got {value:g}')
    return form, smoothing, center


@contextlib.contextmanager
def _located(name: str, lines: dict[str, int], table: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        # A message begins with the name of the wrong setting. The cause may be several keys or a missing
        # one; an error about delta is reported at the line of a beta.
        keys = (str(error).split(" ")[0], "beta3", "beta1", "beta2", "floor", "cap", "low", "high", "preset", "prior")
        line = next((lines[f"{table}.{k}"] for k in keys if f"{table}.{k}" in lines), lines.get(table, 1))
        raise ValueError(f"{name}:{line}: {table}.{error}") from None


def _lines(text: str) -> dict[str, int]:
    """Return the line of each table and dotted key, for messages. `tomllib` does not report them."""
    lines: dict[str, int] = {}
    table = ""
    # Lines inside a multi-line string are not keys.
    text = re.sub(r'"""(?s:.*?)"""|\'\'\'(?s:.*?)\'\'\'', lambda string: "\n" * string[0].count("\n"), text)
    for number, line in enumerate(text.split("\n"), 1):
        if header := re.match(r"\s*\[+\s*([^\[\]#]+?)\s*\]", line):
            table = header[1]
            lines.setdefault(table, number)
            continue
        outer = table
        for key in re.findall(r"(?:^\s*|[{,]\s*)([\w.\"'-]+)\s*=", line):
            key = re.sub("[\"']", "", f"{outer}.{key}").strip(".")
            lines.setdefault(key, number)
            if re.search(r"=\s*{", line):
                outer = key
    return lines
