"""The metrics of a training run over its steps, from the `trainer_state.json` that the trainers write."""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from . import figures, page, style

_POLL = 2  # seconds between two looks at the file, and between two of the browser at the page
# What comes first, as TRL names it, and what is no metric.
_FIRST = ("loss", "accuracy", "rewards/accuracies", "margin", "rewards/margins")
_NOT = {"epoch", "step", "total_flos"}
_PARTS = {"": "training", "eval_": "evaluation"}


def write(path: str | os.PathLike[str], out: str | os.PathLike[str], *, watch: bool = False) -> None:
    """Write report.html and a figure a metric into a folder.

    Args:
        path: A `trainer_state.json`, or the output folder of a run: its own or that of its
            last checkpoint.
        watch: Look again every two seconds and write anew what has changed, for ever; an open
            page reads itself again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what a trainer writes, or holds no metrics yet.
    """
    last = None
    while True:
        file = _newest(Path(path))
        stamp = (file, os.stat(file).st_mtime_ns)
        if stamp != last:
            try:
                _draw(file, Path(out), refresh=_POLL if watch else None)
            except ValueError:
                # While it is being written, it is half there.
                if last is None and not watch:
                    raise
            else:
                print(f"{out}: report.html of {file}", flush=True)
            last = stamp
        if not watch:
            return
        time.sleep(_POLL)


def _newest(path: Path) -> Path:
    if path.is_file():
        return path
    found = [p for pattern in ("trainer_state.json", "checkpoint-*/trainer_state.json") for p in path.glob(pattern)]
    if not found:
        raise FileNotFoundError(
            f"{path}: there is no such file" if not path.is_dir() else f"{path}: holds no trainer_state.json"
        )
    return max(found, key=lambda p: p.stat().st_mtime_ns)


def _draw(file: Path, out: Path, *, refresh: int | None) -> None:
    metrics, steps, total = _metrics(file)
    with style.style():
        pictures = [figures.series(_slug(name), lines, name) for name, lines in metrics.items()]
    out.mkdir(parents=True, exist_ok=True)
    for f in pictures:
        (out / f"{f.name}.svg").write_text(style.standalone(f.svg), encoding="utf-8")
    html = page.render(
        title=file.resolve().parent.name,
        subtitle=f"step {steps:,} of {total:,}" if total else f"step {steps:,}",
        columns=[],
        rows=[],
        note="",
        figures=pictures,
        footer=f"pcrm {__version__}",
        refresh=refresh,
    )
    # At once, so that a browser that reads it again never sees half of it.
    part = out / ".report.html.part"
    part.write_text(html, encoding="utf-8")
    os.replace(part, out / "report.html")


def _metrics(file: Path) -> tuple[dict[str, dict[str, Any]], int, int]:
    """By metric and part of the data: steps and values. And the last step, and how many there will be."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        log = state["log_history"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: is no trainer_state.json: {error!r:.200}") from None
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for entry in log if isinstance(log, list) else []:
        if not isinstance(entry, dict) or "train_runtime" in entry:  # the summary at the end of a run
            continue
        for key, value in entry.items():
            prefix = "eval_" if key.startswith("eval_") else ""
            name = key.removeprefix(prefix)
            if name in _NOT or re.search(r"(runtime|per_second)$", name) or not isinstance(value, (int, float)):
                continue
            try:
                point = float(entry.get("step", math.nan)), float(value)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"{file}: is no trainer_state.json: step or {name!r:.80}: {error}") from None
            if math.isfinite(value):
                found.setdefault(name, {}).setdefault(_PARTS[prefix], []).append(point)
    if not found:
        raise ValueError(f"{file}: its log_history holds no metrics")

    def place(name: str) -> tuple[int, str]:
        if name in _FIRST:
            return _FIRST.index(name), name
        return len(_FIRST) + (0 if name.startswith("pcrm/") else 1), name

    lines = {
        name: {part: tuple(np.array(points, float).T) for part, points in sorted(parts.items(), reverse=True)}
        for name, parts in sorted(found.items(), key=lambda item: place(item[0]))
    }
    return lines, int(state.get("global_step", 0)), int(state.get("max_steps", 0))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
