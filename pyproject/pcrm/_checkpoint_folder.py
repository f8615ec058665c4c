"""Checkpoint folders: find the files that belong to a model, and create a new folder atomically."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

# Files that belong to a model besides its weights. This is an allowlist, because a run leaves files of many
# kinds and sizes next to them. _FOLDERS are the folders that sentence-transformers and transformers create.
_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"}
_FOLDERS = re.compile(r"\d+_[A-Za-z]+|additional_chat_templates")
_LICENSES = re.compile(r"(LICENSE|NOTICE)(\..*)?", re.IGNORECASE)
# Files about the training or results of one model, or about its weights.
_NOT_CARRIED = re.compile(
    r"trainer_state\.json|(all|train|eval|test|predict)_results\.json|.*\.index\.json|zero_to_fp32\.py"
)


def files_of_model(folder: Path) -> dict[str, Path]:
    """Return the files of a checkpoint that belong with its weights, by their names in the folder."""
    files = {path.name: path for path in sorted(folder.iterdir()) if _belongs(path)}
    for module in module_folders(folder):
        files |= {f"{module.name}/{path.name}": path for path in sorted(module.iterdir()) if _belongs(path)}
    return files


def module_folders(folder: Path) -> list[Path]:
    """Return the subfolders of a checkpoint that belong to the model."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and _FOLDERS.fullmatch(path.name)]


def _belongs(path: Path) -> bool:
    known = path.suffix in _SUFFIXES or _LICENSES.fullmatch(path.name)
    return bool(known) and not _NOT_CARRIED.fullmatch(path.name) and path.is_file()


def check_free(out: Path) -> None:
    """Check that a folder can be created at `out`.

    Raises:
        ValueError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: already exists and is not an empty folder. Remove it or choose another")


@contextlib.contextmanager
def new_folder(out: Path, names: set[str]) -> Iterator[Path]:
    """Yield a new folder for files of these names. It becomes `out` at the end of the block, or is removed on an error.

    Raises:
        ValueError: `out` is not empty, another process is writing it, or the temporary folder already exists
            with other files in it.
    """
    import fcntl  # does not exist on Windows, where the library that writes such folders does not exist either

    check_free(out)
    out = Path(os.path.realpath(out))  # renaming would not follow a link
    part = out.with_name(f"{out.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    lock = os.open(part, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another process is writing it") from None
        if not part.is_dir() or not os.path.samestat(os.stat(part), os.fstat(lock)):  # it was, until just now
            raise ValueError(f"{out}: another process has just written it")
        there = {p.relative_to(part).as_posix() for p in part.rglob("*") if not p.is_dir()}
        if there - names:
            raise ValueError(
                f"{part}: cannot use this folder for temporary files: it already contains {min(there - names)}. "
                "Move or remove it"
            )
        try:
            _clear(part)
            yield part
            _sync(part)
            part.replace(out)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        _sync_folder(out.parent)
    finally:
        os.close(lock)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_folder(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
