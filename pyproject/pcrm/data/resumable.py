"""An output that is written as shards first, so that a killed run can resume.

    OUT.parts/manifest.json                           settings and input that determine the output
    OUT.parts/000000000000-000000004096-4095.jsonl    4,095 rows from these positions of the input
    OUT.parts/000000000000-000000004096-4095.skipped  rows at these positions that were left out, and why
    OUT.parts/000000000000-000000004096-4095.counts   other counts of the command

    OUT.skipped.jsonl                                 beside the output: all rows that were left out
    .OUT.prior.json                                   how the column `prior` was computed; Parquet stores it inside

A shard is on the disk completely or not at all. So a process may be killed at any moment, and the next one continues after
the last shard. The output itself appears at the end, in one step.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .file_lock import try_lock
from .prior_record import PRIOR_KEY, prior_record_path
from .writers import to_json_lines, to_table

if TYPE_CHECKING:
    import pyarrow as pa

    from .batches import Batch
    from .writers import Columns

_SHARD = re.compile(r"(\d{12})-(\d{12})-(\d+)\.(?:jsonl|gz|arrow)")
_BESIDE_SHARD = re.compile(r"\d{12}-\d{12}-\d+\.(?:skipped|counts)")


class ResumableOutput:
    """The output of one command, new or resumed. A context manager that holds its lock.

    Args:
        path: The output: a file that ends in .jsonl, .jsonl.gz or .parquet, or a folder for `datasets.load_from_disk`. An
            existing output is replaced when everything is done.
        settings: Everything that the rows depend on, as JSON. A resumed run must have the same settings.
        skip: Whether rows may be left out. They are listed in `OUT.skipped.jsonl`.
        prior: How the column `prior` of the output is computed, as JSON, for `Source.prior` to read.

    Attributes:
        parts: The folder of the shards.
        skipped_path: The file that lists the rows that were left out.
        position: The position of the input to continue from.
        rows, skipped: The numbers of rows that were written and left out.
        counts: Other counts, by name.

    Raises:
        ValueError: The name has another ending, or belongs to a folder with other content, a device, a pipe or a socket;
            the folder of the shards is a link; the run to resume had other settings; another process writes the output.
        OSError: The folder of the shards cannot be created.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: dict[str, Any],
        *,
        skip: bool,
        prior: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.skip = Path(path), skip
        self.prior = None if prior is None else json.dumps(prior)
        name = self.path.name
        if name in ("", ".."):  # a rename must be able to replace it, and its shards lie beside it
            raise ValueError(f"--out must be a file or a folder with a name, got {os.fspath(path)!r}")
        self.suffix = next((s for s in (".jsonl", ".jsonl.gz", ".parquet") if name.endswith(s)), "")
        if self.path.exists() and not (self.path.is_file() or self.path.is_dir()):  # whoever has it open would lose it
            raise ValueError(f"--out must be a file or a folder, got {self.path}, which is neither")
        if self.suffix:
            if self.path.is_dir():
                raise ValueError(f"--out must be a file if its name ends in {self.suffix}, got the folder {self.path}")
        elif self.path.suffix in (".json", ".gz", ".csv", ".arrow", ".txt") or self.path.is_file():
            raise ValueError(f"--out must end in .jsonl, .jsonl.gz or .parquet, or be a folder, got {self.path}")
        elif self.path.is_dir() and any(self.path.iterdir()) and not (self.path / "state.json").is_file():
            raise ValueError(
                f"--out must be an empty folder, a data set to replace or a new name, got {self.path} with other files in it"
            )
        self.settings = settings
        self.parts = self.path.with_name(name + ".parts")
        self.skipped_path = self.path.with_name(name + ".skipped.jsonl")
        self.position = self.rows = self.skipped = 0
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> ResumableOutput:
        for folder in (self.parts, self._removed):
            if folder.is_symlink():  # to another disk, from which no rename is possible, or to somebody else's data
                raise ValueError(f"{folder} must be a folder, got a link to {os.readlink(folder)}. Remove the link")
        # A folder is renamed before it is removed: a folder with its own name is always complete.
        shutil.rmtree(self._removed, ignore_errors=True)
        self.parts.mkdir(parents=True, exist_ok=True)
        self._lock = (self.parts / "lock").open("wb")
        if not try_lock(self._lock):
            self._lock.close()
            raise ValueError(f"{self.path}: another process is writing it. Wait until it ends, or stop it")
        try:
            self._begin()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.parts.is_dir() and not self.rows:  # nothing that another run could resume
            self._remove_parts()
        self._lock.close()

    @property
    def _removed(self) -> Path:
        return self.parts.with_name(self.parts.name + ".removed")

    def _remove_parts(self) -> None:
        if sys.platform == "win32":  # Windows cannot rename a folder with an open file in it
            self._lock.close()
        self.parts.rename(self._removed)
        shutil.rmtree(self._removed)

    def _begin(self) -> None:
        manifest = self.parts / "manifest.json"
        settings = json.loads(json.dumps(self.settings))
        if not manifest.is_file() or not self._shards():
            beside = [p for p in self.parts.iterdir() if _BESIDE_SHARD.fullmatch(p.name)]  # of an unfinished shard
            others = {p.name for p in self.parts.iterdir() if p.suffix != ".part"} - {p.name for p in beside}
            if others := others - {"lock", manifest.name}:
                raise ValueError(
                    f"{self.parts} is needed for unfinished output, but contains {min(others)}. Move that file, or use another --out"
                )
            for path in beside:
                path.unlink()
            with self._written(manifest) as file:
                file.write(json.dumps(settings, indent=1).encode())
            return
        begun = json.loads(manifest.read_text(encoding="utf-8"))
        if changed := [key for key in begun | settings if begun.get(key) != settings.get(key)]:
            was, now = (json.dumps(x.get(changed[0])) for x in (begun, settings))
            raise ValueError(
                f"{changed[0]} must be {was} to resume {self.parts}, got {now}. Give the original command to resume, or "
                "remove the folder to start over"
            )
        for start, end, rows, path in self._shards():
            if start != self.position:  # an earlier shard was lost in a power cut: this one is made again
                path.unlink()
                continue
            self.position, self.rows = end, self.rows + rows
            if (side := path.with_suffix(".skipped")).is_file():
                self.skipped += side.read_bytes().count(b"\n")
            if (side := path.with_suffix(".counts")).is_file():
                self.counts.update(json.loads(side.read_bytes()))
        if self.skipped and not self.skip:
            raise ValueError(
                f"--on-error must be skip to resume {self.parts}, which has left out {self.skipped} rows, got fail. Add "
                "--on-error skip, or remove the folder to start over"
            )

    def _shards(self) -> list[tuple[int, int, int, Path]]:
        matches = ((_SHARD.fullmatch(p.name), p) for p in sorted(self.parts.iterdir()))
        return [(int(m[1]), int(m[2]), int(m[3]), p) for m, p in matches if m]

    def write(
        self,
        batch: Batch,
        columns: Columns,
        kept: list[int],
        skipped: list[dict[str, Any]],
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Write the rows `kept` of a batch with more columns, the reports on the other rows, and other counts."""
        base = f"{batch.start:012d}-{batch.end:012d}-{len(kept)}"
        if skipped:  # before the rows, whose file completes the shard
            with self._written(self.parts / f"{base}.skipped") as file:
                file.writelines(json.dumps(s, ensure_ascii=False, default=str).encode() + b"\n" for s in skipped)
        if counts:
            with self._written(self.parts / f"{base}.counts") as file:
                file.write(json.dumps(counts).encode())
        if self.suffix in (".jsonl", ".jsonl.gz"):
            lines = to_json_lines(batch, kept, columns)
            if self.suffix == ".jsonl.gz":
                lines = gzip.compress(lines, 6, mtime=0) if lines else b""
            with self._written(self.parts / f"{base}{self.path.suffix}") as file:
                file.write(lines)
        else:
            import pyarrow as pa

            table = to_table(batch, kept, columns)
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with (
                self._written(self.parts / f"{base}.arrow") as file,
                pa.ipc.new_file(file, table.schema, options=options) as writer,
            ):
                writer.write_table(table)
        self.position, self.rows = batch.end, self.rows + len(kept)
        self.skipped += len(skipped)
        self.counts.update(counts or {})

    @property
    def first_skipped(self) -> dict[str, Any] | None:
        """The report on the first row that was left out, as given to `write`."""
        for *_, path in self._shards():
            if (side := path.with_suffix(".skipped")).is_file():
                with side.open("rb") as file:
                    return json.loads(file.readline())
        return None

    def finish(self) -> None:
        """Make the output from the shards, and remove them.

        Raises:
            ValueError: The columns of the shards have incompatible types.
        """
        shards = [path for *_, path in self._shards()]
        prior_record_path(self.path).unlink(missing_ok=True)  # of an earlier output
        if self.suffix in (".jsonl", ".jsonl.gz"):
            self._concatenated(shards, self.path)
        elif self.suffix == ".parquet":
            import pyarrow.parquet as pq

            self._merged(shards, self.path, pq.ParquetWriter)
        else:
            self._saved(shards)
        if self.skipped:
            self._concatenated([p for s in shards if (p := s.with_suffix(".skipped")).is_file()], self.skipped_path)
        elif self.skip:
            self.skipped_path.unlink(missing_ok=True)
        if self.prior is not None and self.suffix != ".parquet":
            with self._written(prior_record_path(self.path)) as file:
                file.write(self.prior.encode() + b"\n")
        self._remove_parts()

    def _concatenated(self, shards: list[Path], path: Path) -> None:
        with self._written(path) as out:
            for shard in shards:
                with shard.open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)

    def _merged(self, shards: list[Path], path: Path, writer: Callable[[Any, pa.Schema], Any]) -> None:
        import pyarrow as pa

        def tables() -> Iterator[pa.Table]:
            for shard in shards:
                with pa.memory_map(str(shard)) as file, pa.ipc.open_file(file) as reader:
                    yield reader.read_all()

        try:
            schema = pa.unify_schemas((t.schema for t in tables()), promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(f"{self.path}: each column must have values of one type: {error}") from None
        if self.prior is not None:
            schema = schema.with_metadata({**(schema.metadata or {}), PRIOR_KEY: self.prior.encode()})
        try:
            with self._written(path) as file, writer(file, schema) as out:
                for table in tables():
                    missing = [field for field in schema if field.name not in table.column_names]
                    for field in missing:
                        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
                    out.write_table(table.select(schema.names).cast(schema))
        except pa.ArrowNotImplementedError as error:  # Parquet has no views in lists, unions or intervals
            raise ValueError(
                f"{path}: Parquet cannot store the type of a column: {error}. Write a folder or .jsonl instead"
            ) from None

    def _saved(self, shards: list[Path]) -> None:
        import pyarrow as pa
        from datasets import Dataset

        whole, saved = self.parts / "whole.stream", self.parts / "saved.part"
        self._merged(shards, whole, pa.ipc.new_stream)
        shutil.rmtree(saved, ignore_errors=True)
        Dataset.from_file(str(whole)).save_to_disk(saved)
        if self.path.exists():
            shutil.rmtree(self.parts / "replaced.part", ignore_errors=True)
            self.path.rename(self.parts / "replaced.part")
        saved.rename(self.path)

    @contextmanager
    def _written(self, path: Path) -> Iterator[BinaryIO]:
        """A file that gets its name when all of it is on the disk."""
        part = self.parts / f"{path.name}.part"
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            kept = f". {self.rows} rows are kept: give the same command again to resume" if self.rows else ""
            raise OSError(error.errno, f"{error.strerror or error}{kept}", str(path)) from error
        # A shard that a power cut loses is made again. Windows cannot open folders.
        if path.parent == self.parts or sys.platform == "win32":
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
