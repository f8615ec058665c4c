"""The row pipeline: what it does of its own, whatever a command computes."""

import json
import re
from pathlib import Path

import pytest
from helpers.files import lines, read, write
from pcrm.data.preferences import RowError
from pcrm.data.row_pipeline import BadRowError, RowPipeline
from pcrm.data.sources import open_source


def number(row):
    if not isinstance(row["x"], int):
        raise RowError(f"x is {row['x']!r}, must be an integer")
    return row["x"]


def squares(rows):
    """The squares of numbers, and no more than 100."""
    for i in [i for i, x in rows.values.items() if x > 100]:
        rows.refuse(i, RowError("x is too large"))
    return {"square": [x * x for x in rows.values.values()]}


def pipeline(source, out, **options):
    options = {"parse": number, "adds": ["square"], "settings": {}, "input_name": "IN"} | options
    return RowPipeline(open_source(source), out, **options)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr("pcrm.data.sources._LOOK_ROWS", 2)
    return write(tmp_path / "in.jsonl", [{"x": i} for i in range(10)])


def test_rows_keep_their_order_and_gain_columns(tmp_path, source):
    out = tmp_path / "out.jsonl"
    done = pipeline(source, out, batch_rows=4).run(squares)
    assert read(out) == [{"x": i, "square": i * i} for i in range(10)]
    assert (done.rows, done.skipped, done.parts.exists()) == (10, 0, False)


def test_rows_that_parse_or_compute_refuse(tmp_path, source):
    source.write_bytes(lines([{"x": 1}, {"x": "a"}, {"x": 1000}, {"x": 2}]) + b"[]\n")
    out = tmp_path / "out.jsonl"
    with pytest.raises(BadRowError, match=re.escape(f"{source}, line 2: x is 'a', must be an integer")):
        pipeline(source, out).run(squares)
    assert not out.exists() and not Path(f"{out}.parts").exists()
    done = pipeline(source, out, skip=True).run(squares)
    assert read(out) == [{"x": 1, "square": 1}, {"x": 2, "square": 4}]
    said = [json.loads(line) for line in done.skipped_path.read_bytes().splitlines()]
    assert [s["place"] for s in said] == [f"{source}, line {n}" for n in (2, 3, 5)]
    assert [s["error"] for s in said][1] == "x is too large" and said[0]["row"] == '{"x": "a"}'


def test_a_run_goes_on_with_the_batch_that_ended_the_last_one(tmp_path, source):
    out, seen = tmp_path / "out.jsonl", []

    def ends_in_the_third(rows):
        seen.append(rows.batch.start)
        if seen == [0, 4, 8]:
            raise KeyboardInterrupt
        return squares(rows)

    with pytest.raises(KeyboardInterrupt):
        pipeline(source, out, batch_rows=4).run(ends_in_the_third)
    with pytest.raises(ValueError, match=r"power must be null to resume .*, got 3"):
        pipeline(source, out, batch_rows=4, settings={"power": 3}).run(squares)
    pipeline(source, out, batch_rows=4).run(ends_in_the_third)
    assert seen == [0, 4, 8, 8]
    assert read(out) == [{"x": i, "square": i * i} for i in range(10)]


def test_what_a_kill_before_the_first_shard_leaves_is_no_hindrance(tmp_path, source):
    out, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    parts.mkdir()
    left = parts / "000000000000-000000000004-4.skipped"
    left.write_bytes(lines([{"place": "line 3", "error": "of another input"}]))
    source.write_bytes(lines([{"x": i} for i in range(9)] + [{"x": "a"}]))
    done = pipeline(source, out, skip=True, batch_rows=4).run(squares)
    assert (done.rows, done.skipped, parts.exists()) == (9, 1, False)
    assert [s["place"] for s in read(done.skipped_path)] == [f"{source}, line 10"]
    parts.mkdir()
    (parts / "mine.skipped").touch()
    with pytest.raises(ValueError, match=r"is needed for unfinished output, but contains mine\.skipped"):
        pipeline(source, out, skip=True).run(squares)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"x": 1}, {"x": 2, "square": 4}],
            "in.jsonl, line 2: must not have a column 'square', because this command adds one",
        ),
        ([], "in.jsonl: must have at least one row, got none"),
        ([{"x": None}], "at least one row must be good, got 1 bad rows. Nothing was written. The first: "),
    ],
)
def test_nothing_to_write(tmp_path, source, rows, message):
    source.write_bytes(lines(rows))
    with pytest.raises(ValueError, match=re.escape(message)):
        pipeline(source, tmp_path / "out.jsonl", skip=True).run(squares)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl"]
