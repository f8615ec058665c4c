"""New columns for the rows of a source, batch by batch, written to an output that survives a kill.

    RowPipeline(source, out, parse=..., adds=..., settings=..., input_name="IN").run(compute)

reads a batch, parses each row, computes the new columns of all good rows together, and writes them. The same call resumes
a killed run. It shows a progress bar, and it skips bad rows or stops at the first one. A command that needs all rows before
it writes one, or writes other rows than it reads, calls the steps of `run` itself: `batches`, `parsed`, `output.write`,
`finish`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from .._version import __version__
from .batches import Batch
from .preferences import RowError, listed
from .resumable import ResumableOutput
from .sources import Source
from .writers import Columns

T = TypeVar("T")


class BadRowError(ValueError):
    """A bad row that ends the run, because bad rows are not skipped. The message has the place of the row."""


class ParsedRows(Generic[T]):
    """The rows of a batch, parsed.

    Attributes:
        batch: The batch.
        values: The parsed good rows, by index in the batch.
        progress: Tells the progress bar which fraction of the batch is done.
    """

    def __init__(self, batch: Batch, skip: bool, progress: Callable[[float], None]) -> None:
        self.batch, self.progress = batch, progress
        self.values: dict[int, T] = {}
        self._skip = skip
        self._refused: dict[int, dict[str, Any]] = {}

    def refuse(self, i: int, error: RowError) -> None:
        """Treat row i as a bad row.

        Raises:
            BadRowError: Bad rows are not skipped.
        """
        if not self._skip:
            raise BadRowError(f"{self.batch.place(i)}: {error.message}") from None
        self.values.pop(i, None)
        self._refused[i] = {"place": self.batch.place(i), "error": error.message, "row": self.batch.original(i)}

    @property
    def kept(self) -> list[int]:
        """The indices of the good rows."""
        return list(self.values)

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """A report on each bad row."""
        return [self._refused[i] for i in sorted(self._refused)]


class RowPipeline(Generic[T]):
    """A source, the output for its rows, and a parser of rows. A context manager that holds the lock of the output.

    Args:
        source: The rows.
        out: The path of the output, see `ResumableOutput`.
        parse: Extracts from a row what the work needs. Raises RowError for a bad row.
        adds: The columns that the output gains.
        settings: Everything else that the new columns depend on. A resumed run must have the same settings.
        input_name: The name of the input in the message about a changed input.
        reads: The columns that `parse` reads. By default all of them.
        skip: Leave bad rows out instead of stopping at the first one, and list them in `OUT.skipped.jsonl`.
        batch_rows: Rows per batch, for slow work. By default as many as the source gives.
        unit: The unit of the progress bar.
        prior: How a new column `prior` is computed, see `ResumableOutput`. Without it, the record of the input is kept.

    Raises:
        ValueError: As from `ResumableOutput`.
    """

    def __init__(
        self,
        source: Source,
        out: str | os.PathLike[str],
        *,
        parse: Callable[[dict[str, Any]], T],
        adds: Iterable[str],
        settings: dict[str, Any],
        input_name: str,
        reads: Iterable[str] | None = None,
        skip: bool = False,
        batch_rows: int | None = None,
        unit: str = "rows",
        prior: dict[str, Any] | None = None,
    ) -> None:
        self.source, self._parse, self._adds = source, parse, tuple(adds)
        self._columns = None if reads is None else (*reads, *self._adds)
        self._skip, self._batch_rows, self._unit = skip, batch_rows, unit
        identity = {f"{input_name} ({key})": value for key, value in source.identity.items()}
        settings = settings | {"--split": source.split, "pcrm": __version__} | identity
        # The record of a column `prior` goes with the column.
        self.output = ResumableOutput(out, settings, skip=skip, prior=prior or source.prior)
        self._bar: Any = None

    def __enter__(self) -> RowPipeline[T]:
        self.output.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.close()
        self.output.__exit__(*exception)

    def run(self, compute: Callable[[ParsedRows[T]], Columns], description: str | None = None) -> ResumableOutput:
        """Write all rows with their new columns, resume a killed run, and return the finished output.

        Args:
            compute: Returns the new columns for the good rows of a batch. It may refuse some rows first.
            description: The text of the progress bar.

        Raises:
            BadRowError: A row is bad, and bad rows are not skipped.
            OSError, ValueError: As from `ResumableOutput` and `finish`.
        """
        with self:
            for batch in self.batches(self.output.position, description):
                rows = self.parsed(batch)
                columns = compute(rows)
                self.output.write(batch, columns, rows.kept, rows.skipped)
            return self.finish()

    def batches(self, start: int, description: str | None = None) -> Iterator[Batch]:
        """Batches from a position on, with a progress bar."""
        from tqdm import tqdm

        total, unit = self.source.total, f" {self._unit}"
        self._bar = tqdm(total=total, initial=start, desc=description, unit=unit, disable=None, mininterval=0.5)
        for batch in self.source.batches(start, self._batch_rows):
            if (fraction := self.source.fraction) is not None:
                self._bar.total = int(batch.end / fraction)
            yield batch
            self._bar.update(batch.end - self._bar.n)
        self._bar.close()

    def parsed(self, batch: Batch) -> ParsedRows[T]:
        """The rows of a batch, parsed.

        Raises:
            BadRowError: A row is bad, and bad rows are not skipped.
            ValueError: A row already has one of the new columns.
        """

        def progress(share: float) -> None:
            self._bar.update(batch.start + int(share * (batch.end - batch.start)) - self._bar.n)

        rows = ParsedRows[T](batch, self._skip, progress)
        for i, row in enumerate(batch.rows(self._columns)):
            try:
                if isinstance(row, RowError):
                    raise row
                if there := [name for name in self._adds if name in row]:
                    raise ValueError(f"{batch.place(i)}: {_taken(there[0])}")
                rows.values[i] = self._parse(row)
            except RowError as error:
                rows.refuse(i, error)
        return rows

    def finish(self) -> ResumableOutput:
        """Make the output from its shards.

        Raises:
            ValueError: No row was written.
        """
        output = self.output
        if (first := output.first_skipped) is not None and not output.rows:
            raise ValueError(
                f"{self.source.name}: at least one row must be good, got {output.skipped} bad rows. Nothing was written. The "
                f"first: {first['place']}: {first['error']}"
            )
        if not output.rows:
            raise ValueError(f"{self.source.name}: must have at least one row, got none")
        output.finish()
        return output


def check_new(source: Source, adds: Iterable[str]) -> None:
    """Check, before anything is loaded, that a table does not have the columns that a command adds.

    Raises:
        ValueError: It has one of them.
    """
    for name in adds:
        if name in (source.columns or ()):
            raise ValueError(f"{source.name}: {_taken(name)}")


def _taken(name: str) -> str:
    return f"must not have a column {name!r}, because this command adds one. Remove or rename the column"


def kind_of_rows(source: Source, kinds: Iterable[tuple[str, ...]], wanted: str) -> tuple[str, ...]:
    """Return the kind of the rows.

    For a table, this is the first kind whose columns it has; for lines, the kind of the first line that has one.

    Args:
        kinds: For each kind, the columns that its rows must have.
        wanted: A description of the kinds, for the error.

    Raises:
        ValueError: The rows are of none of the kinds, or there are no rows.
    """

    def kind_of(columns: Any) -> tuple[str, ...] | None:
        return next((kind for kind in kinds if all(name in columns for name in kind)), None)

    if (columns := source.columns) is not None:
        if (found := kind_of(columns)) is None:
            raise ValueError(f"{source.name}: must have the columns {wanted}, got {listed(columns)}")
        return found
    first = None
    for batch in source.batches():
        for i, row in enumerate(batch.rows()):
            if not isinstance(row, RowError) and (found := kind_of(row)) is not None:
                return found
            if first is None:
                place = batch.place(i).removeprefix(f"{source.name}, ")
                got = row.message if isinstance(row, RowError) else f"has the keys {listed(row)}"
                first = f"must have rows with {wanted}. The first, {place}, {got}"
    raise ValueError(f"{source.name}: {first or 'must have at least one row, got none'}")
