"""New columns for the rows of a source, batch by batch, into an output that survives a kill.

    RowPipeline(source, out, parse=..., adds=..., settings=..., input_name="IN").run(compute)

reads a batch, parses each row, computes the new columns of the good ones together and writes them. The same call
goes on where a killed one was. It shows a progress bar, and it leaves bad rows out or ends at the first. Work that
needs all rows before it writes one, or writes other rows than it reads, calls the steps of `run` itself: `batches`,
`parsed`, `output.write`, `finish`.
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
    """A bad row that ends the run, where bad rows are not skipped. The message has its place."""


class ParsedRows(Generic[T]):
    """The rows of a batch, parsed.

    Attributes:
        batch: Where they are from.
        values: What the good rows were parsed into, by their index in the batch.
        progress: Tells the progress bar which share of the batch is done.
    """

    def __init__(self, batch: Batch, skip: bool, progress: Callable[[float], None]) -> None:
        self.batch, self.progress = batch, progress
        self.values: dict[int, T] = {}
        self._skip = skip
        self._refused: dict[int, dict[str, Any]] = {}

    def refuse(self, i: int, error: RowError) -> None:
        """Take row i for a bad one.

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
        """What is to be said of each bad row."""
        return [self._refused[i] for i in sorted(self._refused)]


class RowPipeline(Generic[T]):
    """A source, the output that its rows go into, and how a row is read; a context manager that holds the output's lock.

    Args:
        source: The rows.
        out: The output's path, see `ResumableOutput`.
        parse: What the work needs of a row, made of the row; RowError for a bad one.
        adds: The columns that the output gains.
        settings: Whatever else the new columns depend on. Going on needs the same.
        input_name: What the message about another input calls it.
        reads: The columns that `parse` reads; by default all of them.
        skip: Leave bad rows out instead of ending at the first, and list them in `OUT.skipped.jsonl`.
        batch_rows: Rows at once, where the work is slow; by default as many as a source gives.
        unit: What the progress bar counts.
        prior: How a new column `prior` is computed, see `ResumableOutput`; without one, the input's record is kept.

    Raises:
        ValueError: A table has one of the new columns already; as from `ResumableOutput`.
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
        # What is known of a column `prior` goes along with it.
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
        """Write all rows with their new columns, from where a killed run was, and return the finished output.

        Args:
            compute: The new columns of the good rows of a batch. It may refuse some before.
            description: What the progress bar says.

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
        """Batches from a position on, under a progress bar."""
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
            ValueError: A row has one of the new columns already.
        """

        def progress(share: float) -> None:
            self._bar.update(batch.start + int(share * (batch.end - batch.start)) - self._bar.n)

        rows = ParsedRows[T](batch, self._skip, progress)
        for i, row in enumerate(batch.rows(self._columns)):
            try:
                if isinstance(row, RowError):
                    raise row
                if there := [name for name in self._adds if name in row]:
                    raise ValueError(f"{batch.place(i)}: has a column {there[0]!r} already: remove or rename it")
                rows.values[i] = self._parse(row)
            except RowError as error:
                rows.refuse(i, error)
        return rows

    def finish(self) -> ResumableOutput:
        """Put the output in its place.

        Raises:
            ValueError: No row was written.
        """
        output = self.output
        if (first := output.first_skipped) is not None and not output.rows:
            raise ValueError(
                f"{self.source.name}: all {output.skipped} rows were refused, so there is nothing to write. The first: "
                f"{first['place']}: {first['error']}"
            )
        if not output.rows:
            raise ValueError(f"{self.source.name}: holds no rows")
        output.finish()
        return output


def check_new(source: Source, adds: Iterable[str]) -> None:
    """Check, before anything is loaded, that a table has none of the columns that are to be added.

    Raises:
        ValueError: It has one.
    """
    for name in adds:
        if name in (source.columns or ()):
            raise ValueError(f"{source.name}: has a column {name!r} already: remove or rename it")


def kind_of_rows(source: Source, kinds: Iterable[tuple[str, ...]], wanted: str) -> tuple[str, ...]:
    """Which kind the rows are: the first whose columns the table has, or the first line that is of a kind.

    Args:
        kinds: The columns that make a row one of each kind.
        wanted: The kinds in words, for the error where there is none.

    Raises:
        ValueError: The rows are of no kind, or there are none.
    """

    def kind_of(columns: Any) -> tuple[str, ...] | None:
        return next((kind for kind in kinds if all(name in columns for name in kind)), None)

    if (columns := source.columns) is not None:
        if (found := kind_of(columns)) is None:
            raise ValueError(f"{source.name}: has no columns {wanted}; its columns are {listed(columns)}")
        return found
    first = None
    for batch in source.batches():
        for i, row in enumerate(batch.rows()):
            if not isinstance(row, RowError) and (found := kind_of(row)) is not None:
                return found
            if first is None:
                of = row.message if isinstance(row, RowError) else f"its keys are {listed(row)}"
                first = f" with {wanted}; of the first, {batch.place(i).removeprefix(f'{source.name}, ')}, {of}"
    raise ValueError(f"{source.name}: holds no rows{first or ''}")
