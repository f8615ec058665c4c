"""Embeddings on disk: an SQLite database for each encoder, with a row for each text.

A row has the SHA-256 of the text, the embedding as little-endian float32, and a checksum of both,
because SQLite does not detect a flipped bit in a value.

Each call opens and closes the database, so threads and forked children share nothing. The journal
is SQLite's default, the rollback journal. It survives kills and full disks, and it works on network
file systems, where a write-ahead log does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

_TABLE = "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, embedding BLOB NOT NULL, checksum BLOB NOT NULL)"
_KEYS_A_QUERY = 500  # SQLite takes at least 999 parameters
_PATIENCE = 60.0  # seconds to wait for another process, which holds the lock for a fraction of a second


class _Damaged(OSError):
    """The file is not a database, is not a cache of embeddings, or its content has changed."""


class EmbeddingCache:
    """The embeddings of one encoder, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, keys: Collection[bytes]) -> dict[bytes, torch.Tensor]:
        """Return the cached embeddings, by the SHA-256 of their texts.

        A damaged file is removed with a warning and counts as empty, so its texts are embedded again.

        Raises:
            OSError: The file cannot be read.
        """
        if not self.path.exists():
            return {}
        try:
            return self._read(list(keys))
        except _Damaged as error:
            self._remove(error)
            return {}

    def put(self, keys: Sequence[bytes], rows: torch.Tensor) -> None:
        """Store the embeddings of texts: all of them or, on an error, none.

        Raises:
            OSError: The file cannot be written.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._create()
        try:
            self._write(keys, rows)
        except _Damaged as error:
            self._remove(error)
            self._create()
            self._write(keys, rows)

    def _create(self) -> None:
        # SQLite creates a new database with the umask's mode, and its journal with the mode of the database.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))

    def _read(self, keys: list[bytes]) -> dict[bytes, torch.Tensor]:
        found: dict[bytes, torch.Tensor] = {}
        with self._database("read") as database:
            database.text_factory = bytes  # a flipped bit can turn a blob into a text that is not UTF-8
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if not tables:  # another process has just created the file
                return {}
            if tables != [b"embeddings"]:
                raise _Damaged("it is not a cache of embeddings")
            for begin in range(0, len(keys), _KEYS_A_QUERY):
                part = keys[begin : begin + _KEYS_A_QUERY]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, embedding, checksum FROM embeddings WHERE key IN ({marks})"
                for key, embedding, checksum in database.execute(query, part):
                    if not isinstance(embedding, bytes) or _checksum(key, embedding) != checksum:
                        raise _Damaged("a checksum does not match")
                    found[key] = torch.from_numpy(np.frombuffer(embedding, "<f4").astype(np.float32))
        return found

    def _write(self, keys: Sequence[bytes], rows: torch.Tensor) -> None:
        embeddings = (row.tobytes() for row in rows.numpy().astype("<f4", copy=False))
        with self._database("written") as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(_TABLE)
            database.executemany(
                "INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?)",
                ((key, x, _checksum(key, x)) for key, x in zip(keys, embeddings, strict=True)),
            )
            database.execute("COMMIT")

    @contextlib.contextmanager
    def _database(self, verb: str) -> Iterator[sqlite3.Connection]:
        try:
            uri = f"{self.path.absolute().as_uri()}?mode=rw"
            connection = sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)
            with contextlib.closing(connection):
                yield connection
        except sqlite3.Error as error:
            # SQLITE_ERROR: another program's table lacks one of the columns.
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
                sqlite3.SQLITE_ERROR,
            ):
                raise _Damaged(str(error)) from None
            raise OSError(
                f"{self.path}: the embedding cache cannot be {verb}: {error}. "
                "Free disk space, fix the permissions, or turn the cache off (cache=False or --no-cache)"
            ) from error

    def _remove(self, error: _Damaged) -> None:
        warnings.warn(
            f"{self.path}: removed a damaged embedding cache ({error}). Its texts are embedded again",
            RuntimeWarning,
            stacklevel=5,
        )
        # SQLite does not apply a leftover journal to a new database.
        self.path.unlink(missing_ok=True)


def _checksum(key: bytes, embedding: bytes) -> bytes:
    return hashlib.blake2b(key + embedding, digest_size=16).digest()
