"""Data files that mean harm: each reader says what is wrong and where, in bounded memory and time.

One child process reads them all, with 3 GiB of address space more than it starts with: a crash, a
hang or a file that fills the memory ends it, and the lines it printed say which file that was.
"""

import faulthandler
import gzip
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcrm.data.sources import open_source, read_rows

from pcrm import cli

# What reading may take at its peak. A batch has up to 16 MiB and a line as much, and Python's
# objects for the JSON that has the most of them in its bytes, `[],[],`, are 22 times as large.
GROWTH = 22 * 2 * (16 << 20)

READERS = ("rows", "report", "fit", "to jsonl", "to parquet", "check")
OK = None  # is read as it is
# What takes seconds for its size is not read by all of them.
ONLY = {
    "jsonl: many objects": ("rows", "report"),
    "json: many objects": ("rows", "report"),
    "parquet: large rows": ("rows", "report"),
}
GOOD = {"chosen": "a b", "rejected": "c", "chosen_score": 1.5, "rejected_score": 2.5, "s": 0.5}


def line(**changes):
    return json.dumps(GOOD | changes).encode() + b"\n"


def with_value(column, value):
    """A second line, good but for a column's value, which stands there as given."""
    return line() + line(**{column: "@"}).replace(b'"@"', value)


def nested(depth):
    return b"[" * depth + b"]" * depth


NOT_JSON = r"x\.jsonl, line 2: must be JSON: "
DEEP = r"x\.jsonl, line 2: must be nested at most 64 deep"
NO_UTF8 = NOT_JSON + "'utf-8' codec can't decode byte 0xff"

# Contents of x.jsonl, and what which reader says; a text is what all of them say.
LINES = {
    "good": (line() * 2, OK),
    "binary": (line() + bytes(range(10)) * 9, NOT_JSON),
    "NULs": (line() + b"\0" * 99, NOT_JSON),
    "UTF-16": (line().decode().encode("utf-16"), r"x\.jsonl, line 1: must be JSON"),
    "invalid UTF-8": (with_value("chosen", b'"\xff"'), NO_UTF8),
    "nested 63": (with_value("x", nested(63)), OK),
    "nested 64": (with_value("x", nested(64)), dict.fromkeys(READERS, DEEP) | {"report": OK}),
    # Near Python's limit, where what comes after the parser would meet it.
    **{
        f"nested {depth}": (with_value("chosen", nested(depth)), f"{DEEP}|{NOT_JSON}maximum recursion depth")
        for depth in (900, 960, 975, 980, 985, 990)
    },
    "nested objects": (
        with_value("s", b'{"a":' * 900 + b"1" + b"}" * 900),
        dict.fromkeys(READERS, DEEP) | {"report": OK},
    ),
    "nested a million": (
        with_value("x", nested(10**6)),
        dict.fromkeys(READERS, NOT_JSON) | {"report": f"{NOT_JSON}|^$"},
    ),
    "400 digits": (
        with_value("chosen_score", b"9" * 400),
        {
            "report": r"line 2: chosen_score must be finite, got 9+",
            "to parquet": r"x\.jsonl: column 'chosen_score' must have values of one type",
        },
    ),
    "400 digits of a similarity": (
        with_value("s", b"9" * 400),
        {"fit": r"line 2: s must be a number in .* got 9{70,80}", "to parquet": "column 's'"},
    ),
    "5000 digits": (
        with_value("s", b"9" * 5000),
        dict.fromkeys(READERS, NOT_JSON + "Exceeds the limit") | {"report": f"{NOT_JSON}|^$"},
    ),
    "NaN": (with_value("s", b"NaN"), {"fit": r"line 2: s must be a number in \[0, 1\], got nan"}),
    "infinite": (with_value("chosen_score", b"-Infinity"), {"report": "line 2: chosen_score must be finite, got -inf"}),
    "lone surrogate": (
        with_value("chosen", rb'"\ud800"'),
        dict.fromkeys(("report", "to jsonl", "to parquet"), "line 2: chosen must be valid Unicode")
        | {"check": "line 2: chosen with its prompt must be valid Unicode"},
    ),
    "lone surrogate elsewhere": (
        with_value("x", rb'"\ud800"'),
        {"to parquet": r"x\.jsonl: column 'x' must be valid Unicode"},
    ),
    "lone surrogate in a key": (
        line() + line(**{"\ud800": 1}),
        {"to parquet": r"x\.jsonl: column '\\ud800' must be valid Unicode"},
    ),
    "terminal's escapes in a key": (
        b'{"\\u001b[2J\\u0007": 1}\n',
        dict.fromkeys(("report", "check"), r", got '\\x1b\[2J\\x07'$")
        | {"fit": "must have a column 's'"}
        | dict.fromkeys(
            ("to jsonl", "to parquet"),
            r"must have a key 'chosen', got '\\x1b\[2J\\x07'\. To leave out bad rows, add --on",
        ),
    ),
    "many keys": (
        json.dumps({f"key{i}": i for i in range(50_000)}).encode(),
        dict.fromkeys(("report", "check"), "key19 and 49980 more")
        | {"fit": "must have a column 's'"}
        | dict.fromkeys(("to jsonl", "to parquet"), "must have a key 'chosen', got .* key19 and 49980 more"),
    ),
    "long line": (
        line() + b'{"chosen": "' + b"a" * (16 << 20) + b'"}',
        r"x\.jsonl, line 2: a line must have at most 16777216 bytes",
    ),
    "many objects": (b'{"x": [' + b"[]," * (2 << 20) + b"1]}", {"report": "must have the keys chosen_score"}),
    "a key twice": (line() + b'{"chosen": 1, ' + line()[1:], OK),
    "two objects": (line() + line().strip() * 2, NOT_JSON + "Extra data"),
    "no object": (line() + b"[1]\n", r"x\.jsonl, line 2: must be a JSON object with keys, got \[1\]"),
}


def packed(content):
    return gzip.compress(content, 1)


GZIPPED = {
    "long line": (packed(b"\0" * (200 << 20)), r"x\.jsonl\.gz, line 1: a line must have at most 16777216 bytes"),
    "blank lines": (packed(line() + b"\n" * 200_000), OK),
    "truncated": (packed(line() * 5000)[:-20], r"x\.jsonl\.gz, after line \d+: Compressed file ended"),
    "no gzip": (line(), r"x\.jsonl\.gz, after line 0: Not a gzipped file"),
    "damaged": (packed(os.urandom(5000))[:60] + b"\xff" * 99, r"x\.jsonl\.gz, after line 0: "),
    "wrong checksum": (packed(line())[:-8] + bytes(8), r"x\.jsonl\.gz, after line \d: CRC check failed"),
}


# Contents of x.json and of x.csv.
ARRAYS = {
    "good": (b"[" + line() + b"," + line() + b"]", OK),
    "spaces": (b"[" + line() + b" \n" * (20 << 20) + b"]", OK),
    "truncated": (b"[" + line(), r"x\.json, row 1: must have ',' or '\]' next"),
    "binary": (
        b"[" + bytes(range(256)),
        r"x\.json, row 0: must be JSON: Expecting value|x\.json, row 0: must be UTF-8",
    ),
    "invalid UTF-8": (b"[" + line() + b', {"chosen": "\xff"}]', r"x\.json, row 1: must be UTF-8, got the byte 0xff"),
    "nested a million": (b"[" * 10**6, r"x\.json, row 0: must be JSON: maximum recursion depth"),
    "long element": (
        b"[" + line() + b', {"x": "' + b"a" * (40 << 20),
        r"x\.json, row 1: must be a JSON value of at most",
    ),
    "many objects": (b'[{"x": [' + b"[]," * (2 << 20) + b"1]}]", {"report": "must have the keys chosen_score"}),
}
CSVS = {
    "good": (b"chosen,rejected,chosen_score,rejected_score,s\na b,c,1.5,2.5,0.5\n", OK),
    "empty": (b"", r"x\.csv: Empty CSV file"),
    "binary": (bytes(range(256)) * 99, r"x\.csv: "),
    "NULs": (b"chosen,rejected\n" + b"\0" * 99, r"x\.csv: CSV parse error: Row #2: Expected 2 columns, got 1"),
    "an open quote": (b'chosen,rejected\n"' + b"a,1\n" * (10 << 20), r"x\.csv: a row must have at most 16777216 bytes"),
    "a long row of short cells": (b"a" + b",a" * (10 << 20) + b"\n", r"x\.csv: "),
}


def written(path, columns, **options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({k: [v] * rows for k, v in GOOD.items()} | columns), path, **options)


def same(text, rows):
    """A column of one text, which Parquet keeps once."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])


def tables():
    """Functions that write x.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    no_utf8 = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    deep = pa.array([1])
    for _ in range(1000):
        deep = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), deep)
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])

    def duplicate(path):
        pq.write_table(pa.Table.from_pylist([GOOD]).append_column("chosen", [["d"]]), path)

    def cut(path, size):
        written(path, {"x": list(range(9))})
        os.truncate(path, os.path.getsize(path) - size)

    def footer(path):
        written(path, {"x": list(range(9))})
        with open(path, "r+b") as file:
            file.seek(-8, 2)
            file.write(b"\xff\xff\xff\x7f")

    return {
        "good": (lambda path: written(path, {"x": [1]}), OK),
        "empty": (lambda path: path.write_bytes(b""), r"x\.parquet: "),
        "no Parquet": (lambda path: path.write_bytes(bytes(range(256))), r"x\.parquet: "),
        "truncated": (lambda path: cut(path, 100), r"x\.parquet: "),
        "huge footer": (footer, r"x\.parquet: "),
        "invalid UTF-8": (lambda path: written(path, {"chosen": no_utf8}), r"x\.parquet, after row 0: .*Invalid UTF8"),
        "invalid UTF-8 elsewhere": (
            lambda path: written(path, {"x": no_utf8}),
            r"x\.parquet, after row 0: .*Invalid UTF8",
        ),
        "two columns of a name": (duplicate, r"x\.parquet: column names must be unique, got chosen"),
        "deep": (lambda path: written(path, {"x": deep}), r"x\.parquet: .*deeply nested"),
        "no such date": (
            lambda path: written(path, {"x": pa.array([2**31 - 1], pa.int32()).view(pa.date32())}),
            {
                "rows": r"x\.parquet, row 0: must have values that Python can represent",
                "to jsonl": r"x\.parquet, row 0: must have values that JSON can represent",
            },
        ),
        "a struct's key twice": (
            lambda path: written(path, {"x": twice}),
            {
                "rows": r"x\.parquet, row 0: must have values that Python can represent",
                "to jsonl": r"x\.parquet, row 0: must have values that JSON can represent",
            },
        ),
        "NaN": (lambda path: written(path, {"s": [float("nan")]}), {"fit": r"row 0: s must be .* got nan"}),
        "infinite": (
            lambda path: written(path, {"chosen_score": [float("inf")]}),
            {"report": "row 0: chosen_score must be finite, got inf"},
        ),
        "bytes": (
            lambda path: written(path, {"x": [b"\xff"]}),
            {"to jsonl": r"x\.parquet, row 0: must have values that JSON can represent"},
        ),
        # A gigabyte in a file of some kilobytes: read by the batch.
        "large rows": (
            lambda path: written(path, {"chosen": same("x" * (1 << 19), 2000)}, compression="zstd", store_schema=False),
            OK,
        ),
        # Arrow unpacks 64 rows at once, 4 GiB here: more than there is.
        "too large rows": (
            lambda path: written(path, {"chosen": same("x" * (1 << 26), 64)}, compression="zstd", store_schema=False),
            r"x\.parquet, after row 0: .*(malloc|realloc|allocat|capacity)",
        ),
    }


def folders():
    """Functions that damage a folder of save_to_disk."""

    def replace(name, content):
        return lambda folder: (folder / name).write_bytes(content)

    def truncated(folder):
        (data,) = folder.glob("*.arrow")
        os.truncate(data, os.path.getsize(data) - 400)

    def offsets(folder):
        """The offsets of the texts `chosen` point far beyond them, which only a look at them shows."""
        (data,) = folder.glob("*.arrow")
        content = data.read_bytes()
        at = content.index(b"".join(i.to_bytes(4, "little") for i in (0, 3, 6, 9)))
        data.write_bytes(content[: at + 8] + (2**31 - 1).to_bytes(4, "little") + content[at + 12 :])

    return {
        "good": (lambda folder: None, OK),
        "no JSON": (replace("state.json", b"{"), "folder: must be a folder from `save_to_disk`"),
        "deep JSON": (replace("state.json", b"[" * 100_000), "folder: must be a folder from `save_to_disk`"),
        "other JSON": (replace("state.json", b"[]"), "folder: must be a folder from `save_to_disk`"),
        "no info": (
            lambda folder: (folder / "dataset_info.json").unlink(),
            "folder: must be a folder from `save_to_disk`",
        ),
        "truncated": (truncated, "folder: must be a folder from `save_to_disk`|folder, after row 0: "),
        "offsets": (offsets, "folder, after row 0: "),
        "no splits": (
            replace("dataset_dict.json", b"[]"),
            "dataset_dict.json: must be a JSON object with the key 'splits'",
        ),
        "deep splits": (
            replace("dataset_dict.json", b"[" * 100_000),
            "dataset_dict.json: must be a JSON object with the key 'splits'",
        ),
        "other splits": (replace("dataset_dict.json", b'{"splits": {"train": 1}}'), "must be a list of names"),
    }


def expected():
    """For each case its reader's messages, by (case, reader)."""
    kinds = {"jsonl": LINES, "gz": GZIPPED, "json": ARRAYS, "csv": CSVS, "parquet": tables(), "folder": folders()}
    return {
        (f"{kind}: {name}", reader): said.get(reader) if isinstance(said, dict) else said
        for kind, cases in kinds.items()
        for name, (_, said) in cases.items()
        for reader in ONLY.get(f"{kind}: {name}", READERS)
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-5000:]
    return [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]


@pytest.mark.slow
def test_says_what_is_wrong_and_where(found):
    """A ValueError that names the file, and the line or row where there is one; or the file is read."""
    said = {(f["case"], f["reader"]): f for f in found if f["reader"] in READERS}
    wrong = []
    wanted = expected()
    assert said.keys() == wanted.keys()
    for key, want in wanted.items():
        error, message = said[key]["error"], said[key]["message"]
        if want is None or (error is None and re.search(want, "")):
            if error is not None:
                wrong.append((key, error, message))
        elif error not in ("ValueError", "RowError") or not re.search(want, message):
            wrong.append((key, want, error, message))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.slow
def test_messages_are_short_and_plain(found):
    """What a file holds neither fills a terminal nor gives it orders."""
    for f in found:
        assert len(f["message"]) < 600, f
        # Arrow's own words on damaged bytes are made plain where they are printed.
        assert f["reader"] == "damaged" or f["message"].replace("\n", "").isprintable(), f


def test_a_terminal_is_given_no_orders(capsys):
    assert cli.main(["fit", "x\x1b[2J.jsonl", "--target-alike", "1", "--target-unlike", "2", "--out", "y.toml"]) == 1
    assert capsys.readouterr().err == "pcrm fit: x\\x1b[2J.jsonl: no such file\n"


@pytest.mark.slow
def test_memory_is_bounded(found):
    # Too large rows are there to run out of memory: how much of it Arrow got before depends on how
    # its buffer grew, in place or by a copy.
    bounded = [f for f in found if f["case"] != "parquet: too large rows"]
    assert len(bounded) < len(found)
    largest = max(bounded, key=lambda f: f["grown"])
    assert largest["grown"] < GROWTH, largest


@pytest.mark.slow
def test_damaged_parquet_files(found):
    """Any byte may be wrong: an error of ours, or rows."""
    damaged = [f for f in found if f["reader"] == "damaged"]
    assert len(damaged) == 200 and sum(f["error"] is None for f in damaged) < 150
    for f in damaged:
        assert f["error"] in (None, "ValueError"), f
        assert f["error"] is None or "x.parquet" in f["message"], f


@given(st.lists(st.binary(max_size=40) | st.text('[]{}":,1e-\\u d8\n', max_size=40).map(str.encode), max_size=5))
def test_any_lines(lines):
    """Objects, or the line that is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.jsonl")
        path.write_bytes(b"\n".join(lines))
        try:
            assert all(isinstance(row, dict) and row for _, row in read_rows(path))
        except ValueError as error:
            assert re.match(rf"{re.escape(str(path))}, line [1-9]\d*: must be ", str(error))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved", "streamed"])
def test_batches_end_at_the_same_rows_wherever_the_first_begins(kind, tmp_path, monkeypatch):
    """Large rows end a batch early, and a pass that was killed goes on in the same batches."""
    from datasets import Dataset

    monkeypatch.setattr("pcrm.data.sources._BATCH_BYTES", 3000)
    monkeypatch.setattr("pcrm.data.sources._BATCH_ROWS", 21)
    monkeypatch.setattr("pcrm.data.sources._LOOK_ROWS", 7)
    chance = random.Random(1)
    data = Dataset.from_list([{"i": i, "x": "x" * chance.choice((1, 1, 30, 1000))} for i in range(200)])
    path = tmp_path / ("x" if kind in ("saved", "streamed") else f"x.{kind}")
    if kind == "jsonl":
        data.to_json(path)
    elif kind == "json":
        path.write_text(json.dumps(data.to_list(), indent=1))
        monkeypatch.setattr("pcrm.data.json_values._PART", 100)
    elif kind == "csv":
        data.to_csv(path)
        monkeypatch.setattr("pcrm.data.csv_tables._BLOCK", 2000)
    elif kind == "saved":
        data.save_to_disk(path)
    else:
        path.parent.joinpath("x").mkdir()
        data.to_parquet(path if kind == "parquet" else path / "x.parquet", batch_size=33)

    def batches(start):
        return [(b.start, b.end, [row["i"] for row in b.rows()]) for b in open_source(path).batches(start)]

    whole = batches(0)
    assert [i for _, _, rows in whole for i in rows] == list(range(200))
    sizes = [end - start for start, end, _ in whole]
    assert max(sizes) == 21 and min(sizes[:-1]) < 15, sizes
    for n, (start, _, _) in enumerate(whole):
        assert batches(start) == whole[n:]


# The child.


def peak(reset=False):
    """Bytes of memory at the highest since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def read(case, reader, function):
    faulthandler.dump_traceback_later(100, exit=True)
    before, error = peak(reset=True), None
    try:
        function()
    except Exception as e:
        error = e
    faulthandler.cancel_dump_traceback_later()
    name = None if error is None else type(error).__name__ if not isinstance(error, ValueError) else "ValueError"
    print(
        json.dumps(
            {"case": case, "reader": reader, "error": name, "message": str(error or ""), "grown": peak() - before}
        ),
        flush=True,
    )


def child():
    import shutil

    import pcrm.priors.annotate_file  # noqa: F401  (before memory is limited, as the command imports it late)
    import pyarrow  # noqa: F401
    from datasets import Dataset
    from pcrm.commands import prior
    from pcrm.evaluate import check_data, fitted_constraint, scores

    size = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + (3 << 30),) * 2)

    def convert(path, out):
        shutil.rmtree(f"{out}.parts", ignore_errors=True)
        prior.main([str(path), "--out", out])

    def check_all(path):
        for found in check_data.check(open_source(path)).findings:
            if found.id.startswith("unreadable"):
                raise ValueError(*found.examples[:1] or [found.message])

    def read_all(case, path):
        for reader, function in zip(
            READERS,
            (
                lambda: [None for _ in read_rows(path)],
                lambda: scores.read([str(path)]),
                lambda: fitted_constraint.read_similarities(open_source(path), "s"),
                lambda: convert(path, "out.jsonl"),
                lambda: convert(path, "out.parquet"),
                lambda: check_all(path),
            ),
            strict=True,
        ):
            if reader in ONLY.get(case, READERS):
                read(case, reader, function)

    for name, (content, _) in LINES.items():
        Path("x.jsonl").write_bytes(content)
        read_all(f"jsonl: {name}", Path("x.jsonl"))
    for name, (content, _) in GZIPPED.items():
        Path("x.jsonl.gz").write_bytes(content)
        read_all(f"gz: {name}", Path("x.jsonl.gz"))
    for kind, cases in (("json", ARRAYS), ("csv", CSVS)):
        for name, (content, _) in cases.items():
            Path(f"x.{kind}").write_bytes(content)
            read_all(f"{kind}: {name}", Path(f"x.{kind}"))
    for name, (write, _) in tables().items():
        write(Path("x.parquet"))
        read_all(f"parquet: {name}", Path("x.parquet"))
    for name, (damage, _) in folders().items():
        folder = Path("folder")
        shutil.rmtree(folder, ignore_errors=True)
        Dataset.from_list([GOOD] * 9).save_to_disk(folder)
        damage(folder)
        read_all(f"folder: {name}", folder)

    written(Path("x.parquet"), {"x": [[{"role": "user", "content": "b"}]] * 9})
    content = Path("x.parquet").read_bytes()
    chance = random.Random(0)
    for number in range(100):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 5))):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 127, 128, 255, chance.randrange(256)))
        Path("x.parquet").write_bytes(damaged)
        read(f"{number}", "damaged", lambda: [None for _ in read_rows("x.parquet")])
        read(f"{number}", "damaged", lambda: convert("x.parquet", "out.jsonl"))


if __name__ == "__main__":
    child()
