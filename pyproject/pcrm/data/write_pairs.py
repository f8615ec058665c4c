"""The comparisons of a file of rankings as rows of pairs, for `pcrm pairs`. See `rankings` for their format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from .arrow_rows import taken
from .batches import Batch, LineBatch, TableBatch
from .json_values import json_parts
from .rankings import ADDED, RANKED_BY, comparisons, paired, ranking_column
from .resumable import ResumableOutput
from .row_pipeline import RowPipeline, kind_of_rows
from .sources import open_source

if TYPE_CHECKING:
    import pyarrow as pa

# Rankings in memory at once. A ranking of 64 responses makes 2,016 pairs, each with the prompt.
_SHARD_ROWS = 64


class _Ranking(NamedTuple):
    column: str  # the column that ranks the responses
    found: list[tuple[int, int]]  # the comparisons
    ties: int


def write_pairs(
    rankings: str | os.PathLike[str], out: str | os.PathLike[str], *, split: str = "train", skip: bool = False
) -> ResumableOutput:
    """Write the comparisons of rankings as rows of pairs. After a kill, the same call resumes.

    The pairs are those of `rankings.pairs`. The pairs of a ranking follow each other, in the order of its responses. All
    values stay as they are: JSON Lines keep digits and escapes, tables keep the types of their columns.

    Args:
        rankings: The rankings, see `data.sources`.
        out: The output, see `data.resumable`. Its `counts` has the numbers of "rankings" and "ties" that were read.
        split: The split to read, if the data set has splits.
        skip: Leave bad rows out instead of stopping at the first one.

    Raises:
        BadRowError: A row is bad, and `skip` is False.
        OSError, ValueError: As from `open_source` and `RowPipeline`; there is no comparison.
    """
    source = open_source(rankings, split)
    kind_of_rows(source, [("responses", name) for name in RANKED_BY], "responses and ratings or ranks")
    pipeline = RowPipeline(
        source,
        out,
        parse=_parsed,
        reads=("prompt", "responses", *RANKED_BY),
        adds=ADDED,
        settings={},
        input_name="RANKINGS",
        skip=skip,
        batch_rows=_SHARD_ROWS,
        unit="rankings",
    )
    output = pipeline.output
    with pipeline:
        for batch in pipeline.batches(output.position):
            rows = pipeline.parsed(batch)
            counts = {"rankings": len(rows.values), "ties": sum(ranking.ties for ranking in rows.values.values())}
            made = _pairs(batch, rows.values)
            output.write(made, {}, list(range(len(made))), rows.skipped, counts)
        if not output.rows and (count := output.counts["rankings"]):
            raise ValueError(
                f"{source.name}: must have responses to compare, got {count} rankings with a single response or only ties"
            )
        return pipeline.finish()


def _parsed(row: dict[str, Any]) -> _Ranking:
    found, column = comparisons(row), ranking_column(row)
    size = len(row["responses"])
    return _Ranking(column, found, size * (size - 1) // 2 - len(found))


def _pairs(batch: Batch, rankings: dict[int, _Ranking]) -> Batch:
    """The pairs of the rankings of a batch. `rankings` is by index in the batch."""
    rows = [i for i, ranking in rankings.items() for _ in ranking.found]
    if isinstance(batch, LineBatch):
        lines = [line for i, ranking in rankings.items() for line in _lines(batch.lines[i], ranking)]
        return batch.replaced(lines, rows)
    return batch.replaced(_table(batch, rankings, rows), rows)


def _lines(line: bytes, ranking: _Ranking) -> Iterator[bytes]:
    """The pairs of a ranking as lines, with all values exactly as the ranking's line writes them."""
    parts = json_parts(line.decode())
    keys = {json.loads(key): key for key in parts[::2]}
    row: dict[str, Any] = dict(zip(map(json.loads, parts[::2]), parts[1::2], strict=True))
    row |= {name: json_parts(row[name]) for name in ("responses", ranking.column)}
    for pair in paired(row, ranking.column, ranking.found):
        fields = [f"{keys.get(name) or json.dumps(name)}: {text}" for name, text in pair.items()]
        yield f"{{{', '.join(fields)}}}".encode()


def _table(batch: TableBatch, rankings: dict[int, _Ranking], rows: list[int]) -> pa.Table:
    """The pairs of rankings as a table. Columns keep their types, and elements keep the types they had in their lists."""
    import pyarrow as pa

    table = batch.arrow
    fields, columns = [], []
    for name, names in {"responses": ADDED[:2], **RANKED_BY}.items():
        if name not in table.column_names or pa.types.is_null(table.schema.field(name).type):
            continue
        # Null for pairs that the other column ranks.
        used = [(i, r.found if name in ("responses", r.column) else [None] * len(r.found)) for i, r in rankings.items()]
        for side, new in enumerate(names):
            field, column = _elements(batch, name, [(i, pair and pair[side]) for i, found in used for pair in found])
            fields.append(field.with_name(new).with_nullable(True))
            columns.append(column)
    others = taken(table.select([name for name in table.column_names if name not in ("responses", *RANKED_BY)]), rows)
    schema = pa.schema([*others.schema, *fields], others.schema.metadata)
    return pa.Table.from_arrays([*others.columns, *columns], schema=schema).combine_chunks()


def _elements(
    batch: TableBatch, name: str, places: Iterable[tuple[int, int | None]]
) -> tuple[pa.Field, pa.ChunkedArray]:
    """Elements of the lists in a column, given by (row, index), and their field. An index of None gives null.

    Raises:
        ValueError: The column does not hold lists.
    """
    import pyarrow as pa

    field, column = batch.arrow.schema.field(name), batch.arrow[name]
    if (inside := getattr(field.type, "value_field", None)) is not None:
        nothing = pa.nulls(1, inside.type)
        pieces = [nothing if j is None else column[i].values.slice(j, 1) for i, j in places]
        return inside, pa.chunked_array(pieces, inside.type)
    texts: list[str | None] = []  # JSON
    for i, j in places:
        value = column[i].as_py()
        if j is not None and not isinstance(value, str):
            raise ValueError(f"{batch.name}: {name!r} must be a column of lists, got {field.type}")
        texts.append(None if j is None else json_parts(value.strip())[j])
    return field, pa.chunked_array([pa.array(texts, field.type)])
