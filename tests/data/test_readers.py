"""One right answer from every reader: the same rows in JSON Lines, Parquet, folders and streams."""

import codecs
import gzip
import json
import re
import resource
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Json, List, Value, load_dataset, load_from_disk
from helpers.files import SMALL_BATCHES, SUFFIXES, read, write
from pcrm.cli import main
from pcrm.data.arrow_rows import rows_of
from pcrm.data.preferences import RowError
from pcrm.data.sources import open_source, read_rows
from pcrm.evaluate.scores import read as read_scores
from pcrm.methods import principles
from pcrm.priors import prior_tensor
from pcrm.settings import load_config

import pcrm


def message(role, content, **more):
    return {"role": role, "content": content, **more}


# Values of changing keys, which `datasets` stores as JSON texts.
VARIED = [
    {
        "prompt": [message("user", f"weather {i}?")],
        "chosen": [message("assistant", f"It is sunny on day {i}. ü", thinking="look up"), message("user", "sure?")],
        "rejected": [message("assistant", f"I do not know {i}.")],
        "tools": [
            {"name": "a", "parameters": {"x": {"type": "string"}}},
            {"name": "b", "parameters": {"y": [1, None]}},
        ],
        "principles": ["Be brief.", {"text": "Be kind.", "score": 0.5}],
        "any": [7, "text", None, [1.5, {}], {"a": True}][i % 5],
    }
    for i in range(9)
]
FEATURES = Features(
    {
        "prompt": List({"role": Value("string"), "content": Value("string")}),
        "chosen": List(Json()),
        "rejected": Json(),
        "tools": List({"name": Value("string"), "parameters": Json()}),
        "principles": List(Json()),
        "any": Json(),
    }
)


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Folder of the same rows in every format that can hold them."""
    folder = tmp_path_factory.mktemp("varied")
    write(folder / "in.jsonl", VARIED)
    data = Dataset.from_list(VARIED, features=FEATURES)
    assert data.to_list() == VARIED
    data.save_to_disk(folder / "saved")
    DatasetDict(train=data).save_to_disk(folder / "parts")
    data.to_parquet(folder / "in.parquet")
    (folder / "files").mkdir()
    data.to_parquet(folder / "files" / "train.parquet")
    return folder


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet", "saved", "parts", "files"])
def test_json_columns_are_the_values_of_their_texts(varied, name):
    assert [row for _, row in read_rows(varied / name)] == VARIED


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("part", [3, 7, 1 << 20])
def test_a_json_array_has_the_rows_of_json_lines(tmp_path, monkeypatch, indent, part):
    monkeypatch.setattr("pcrm.data.json_values._PART", part)
    rows = [*VARIED, {"text": 'two\nlines, a [ and a "quote\\"', "number": 1.5, "empty": {}}]
    path = tmp_path / "in.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8-sig")
    assert list(read_rows(path)) == [(f"{path}, row {i}", row) for i, row in enumerate(rows)]
    (tmp_path / "empty.json").write_text(" [ ]\n")
    assert list(read_rows(tmp_path / "empty.json")) == []


def test_a_json_array_keeps_its_digits_and_becomes_lines(tmp_path):
    (tmp_path / "in.json").write_text('[\n  {"chosen": "a b",\n   "rejected": "a", "x": 1.50}\n]\n')
    assert main(["prior", str(tmp_path / "in.json"), "--out", str(tmp_path / "out.jsonl")]) == 0
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert line.startswith('{"chosen": "a b", "rejected": "a", "x": 1.50, "prior": ')


def test_json_lines_may_be_called_json(tmp_path):
    (tmp_path / "in.json").write_text('\n{"a": 1}\n{"a": 2}\n')
    assert list(read_rows(tmp_path / "in.json")) == [
        (f"{tmp_path / 'in.json'}, line {i}", {"a": i - 1}) for i in (2, 3)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[{"a": 1}', "row 1: must have ',' or ']' next, as in a JSON array, got 'the end of the file'"),
        (b'[{"a": 1} {"a": 2}]', "row 1: must have ',' or ']' next, as in a JSON array, got '{'"),
        (b'[{"a": 1},]', "row 1: must be JSON: Expecting value"),
        (b'[{"a": 1}]]', "row 1: must have nothing after the JSON array, got more text"),
        (b'[{"a": \xff}]', "row 0: must be UTF-8, got the byte 0xff"),
        (b'[{"a": 1}, {"a": "\xff"}]', "row 1: must be UTF-8, got the byte 0xff"),
        ('[{"a": 1}, {"a": "ü'.encode()[:-1], "row 1: must be UTF-8, got the byte 0xc3"),
        (b'[{"a": 1}, 2]', "row 1: must be a JSON object with keys, got 2"),
        (b"[" * 100_000, "row 0: must be JSON: maximum recursion depth exceeded"),
        (b'[{"a": "' + b"x" * (16 << 20) + b'"}]', "row 0: must be a JSON value of at most 16777216 bytes"),
        (b'[{"a": "' + b"x" * (20 << 20), "row 0: must be a JSON value of at most 16777216 bytes"),
    ],
    ids=range(11),
)
def test_arrays_that_are_not_json_are_named_with_the_row(tmp_path, text, message):
    (tmp_path / "in.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{tmp_path}/in.json, {message}')}"):
        list(read_rows(tmp_path / "in.json"))


CSV = 'prompt,chosen,rejected,prior,id\r\nQ: ,"a ""b"",\nc",12,0.5,7\r\nR: ,1,2,,8\r\n'


def test_csv_has_texts_and_numbers(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(CSV, encoding="utf-8-sig", newline="")
    rows = [
        {"prompt": "Q: ", "chosen": 'a "b",\nc', "rejected": "12", "prior": 0.5, "id": 7},
        {"prompt": "R: ", "chosen": "1", "rejected": "2", "prior": None, "id": 8},
    ]
    assert list(read_rows(path)) == [(f"{path}, row {i}", row) for i, row in enumerate(rows)]
    source = open_source(path)
    assert (source.columns, source.total) == (["prompt", "chosen", "rejected", "prior", "id"], 2)


def test_a_column_of_csv_is_numbers_only_if_all_of_it_is(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("whole,real,text,none\n" + "1,2,3,\n" * 500 + "4,5e-1,NA,\n")
    assert [row for _, row in read_rows(path)][::500] == [
        {"whole": 1, "real": 2.0, "text": "3", "none": None},
        {"whole": 4, "real": 0.5, "text": "NA", "none": None},
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_commands_read_csv_and_arrays_as_they_read_lines(tmp_path, suffix):
    rows = [{"chosen": f"a {i}", "rejected": "a b", "id": i} for i in range(9)]
    write(tmp_path / "in.jsonl", rows)
    (tmp_path / "in.json").write_text(json.dumps(rows))
    (tmp_path / "in.csv").write_text("chosen,rejected,id\n" + "".join(f"a {i},a b,{i}\n" for i in range(9)))
    made = []
    for name in ("in.jsonl", "in.json", "in.csv"):
        out = tmp_path / f"{name}.out{suffix}"
        assert main(["prior", str(tmp_path / name), "--out", str(out)]) == 0
        made.append(read(out))
    assert made[0] == made[1] == made[2] and len(made[0]) == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Empty CSV file"),
        (b"a,b\n1\n", "Row #2: Expected 2 columns, got 1"),
        (b"a,b\n1,\xff\n", "Row #2: CSV conversion error to string: invalid UTF8"),
        (b"a,a\n1,2\n", "column names must be unique, got a, a"),
        (b'a,b\n"' + b"x" * (33 << 20) + b'",1\n', "a row must have at most 16777216 bytes. Is a quote missing?"),
    ],
    ids=range(5),
)
def test_bad_csv_is_named(tmp_path, capsys, text, message):
    (tmp_path / "in.csv").write_bytes(text)
    with pytest.raises(ValueError, match=rf"in\.csv: .*{re.escape(message)}") as error:
        list(read_rows(tmp_path / "in.csv"))
    assert len(str(error.value)) < 500
    assert main(["check", str(tmp_path / "in.csv")]) == 1
    assert "in.csv" in "".join(capsys.readouterr())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["in.parquet", "saved", "files"])
def test_json_columns_keep_their_type_in_tables(varied, tmp_path, name, suffix):
    out = tmp_path / f"out{suffix}"
    assert main(["prior", str(varied / name), "--out", str(out)]) == 0
    got = load_dataset("parquet", data_files=str(out), split="train").to_list() if "parquet" in suffix else read(out)
    prior = pcrm.priors.annotate({k: [row[k] for row in VARIED] for k in ("prompt", "chosen", "rejected")})["prior"]
    assert [row.pop("prior") for row in got] == pytest.approx(prior)
    assert got == VARIED
    if suffix == ".parquet":
        assert pq.read_schema(out).field("any").type == pa.json_()
    elif not suffix:
        assert load_from_disk(str(out)).features == FEATURES | {"prior": Value("float32")}


def json_array(*texts):
    return pa.array(texts, pa.json_())


def test_json_texts_are_found_at_any_depth():
    texts = json_array('{"a": 1}', None, "[2]", '"b"')
    offsets = pa.array([0, 2, None, 4], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, texts)
    of_field = pa.field("f", pa.string(), metadata={"ARROW:extension:name": "arrow.json"})  # as before pyarrow 19
    table = pa.table(
        {
            "list": lists,
            "large": pa.LargeListArray.from_arrays(pa.array([0, 2, 3, 4]), texts),
            "fixed": pa.FixedSizeListArray.from_arrays(texts[:3], 1),
            "struct": pa.StructArray.from_arrays([texts[:3], lists], ["x", "y"]),
            "map": pa.MapArray.from_arrays(pa.array([0, 1, 1, 2], pa.int32()), pa.array(["k", "l"]), texts[2:]),
            "text": pa.array(['{"a": 1}'] * 3),
        }
    ).append_column(of_field, [["[1]", None, "null"]])
    decoded = [[{"a": 1}, None], [[2], "b"], None]
    want = {
        "list": decoded,
        "large": [[{"a": 1}, None], [[2]], ["b"]],
        "fixed": [[{"a": 1}], [None], [[2]]],
        "struct": [{"x": x, "y": y} for x, y in zip([{"a": 1}, None, [2]], decoded, strict=True)],
        "map": [[("k", [2])], [], [("l", "b")]],
        "text": ['{"a": 1}'] * 3,
        "f": [[1], None, None],
    }
    assert rows_of(table) == [{name: values[i] for name, values in want.items()} for i in range(3)]
    assert rows_of(table.to_batches()[0]) == rows_of(table)


@pytest.mark.parametrize(
    ("text", "error"),
    [("{", "chosen must be JSON: "), ("[" * 65 + "]" * 65, "chosen must be nested at most 64 deep")],
)
def test_json_texts_that_are_none_are_bad_rows(tmp_path, capsys, text, error):
    good = json.dumps([message("assistant", "a")])
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"chosen": json_array(good, text, good), "rejected": json_array(good, good, good)}), source)
    assert main(["prior", str(source), "--out", str(out)]) == 1
    assert f"{source}, row 1: {error}" in capsys.readouterr().err
    assert main(["prior", str(source), "--out", str(out), "--on-error", "skip"]) == 0
    assert [row["prior"] for row in read(out)] == [1.0, 1.0]
    with pytest.raises(RowError, match=f"row 1: {error}"):
        pcrm.priors.annotate(pq.read_table(source))


def test_annotate_decodes_json_columns_of_tables(varied):
    want = pcrm.priors.annotate({k: [row[k] for row in VARIED] for k in ("prompt", "chosen", "rejected")})["prior"]
    table = pq.read_table(varied / "in.parquet")
    for batch in (table, table.combine_chunks().to_batches()[0]):
        made = pcrm.priors.annotate(batch)
        assert made["prior"].to_pylist() == pytest.approx(want)
        assert made.schema.field("any").type == pa.json_()
    mapped = load_from_disk(str(varied / "saved")).map(pcrm.priors.annotate, batched=True)
    assert mapped["prior"][:] == pytest.approx(want)


PAIR = {"prompt": "p", "chosen": "a b c", "rejected": "a b d"}


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a b c", None, "a"], pa.string_view()),
        pa.array(["a b c", None, "a"], pa.large_string()),
        pa.array(["a b c", None, "a"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type)[:12],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_left_out_of_every_type_of_column(tmp_path, column, suffix):
    source, out = tmp_path / "in.parquet", tmp_path / f"out{suffix}"
    extra = pa.array([b"x", b"y", None], pa.binary_view()) if suffix in (".parquet", "") else pa.nulls(3)
    pq.write_table(pa.table({"chosen": column, "rejected": column, "extra": extra}), source)
    assert main(["prior", str(source), "--out", str(out), "--on-error", "skip"]) == 0
    assert [row["chosen"] for row in read(out)] == [column[0].as_py(), column[2].as_py()]
    assert [row["extra"] for row in read(out)] == [extra[0].as_py(), extra[2].as_py()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_views_inside_of_lists(tmp_path, capsys, suffix):
    """Arrow cannot write them to Parquet, and that is said."""
    features = List({"role": Value("string_view"), "content": Value("string_view")})
    columns = {name: [[message("user", "a b c")], None, [message("user", "a")]] for name in ("chosen", "rejected")}
    source, out = tmp_path / "in", tmp_path / f"out{suffix}"
    Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, features))).save_to_disk(source)
    failed = main(["prior", str(source), "--out", str(out), "--on-error", "skip"])
    if suffix == ".parquet":
        assert failed and f"{out}: Parquet cannot store the type of a column: " in capsys.readouterr().err
    else:
        assert [row["chosen"] for row in read(out)] == [columns["chosen"][0], columns["chosen"][2]]


def verdict(path, rows):
    """What the report makes of the rows in a file: its numbers, or what it says is wrong with which row."""
    try:
        (scores,) = read_scores([str(write(path, rows))])
    except ValueError as error:
        return str(error).replace(str(path), "FILE").replace("line 1:", "row 0:")
    return [x if x is None else x.tolist() for x in (scores.chosen, scores.scores, scores.single, scores.chosen_length)]


SCORES = {"chosen_score": 1.5, "rejected_score": 1}


@pytest.mark.parametrize(
    "row",
    [
        SCORES,
        SCORES | PAIR,
        {"chosen_score": True, "rejected_score": False},
        {"chosen_score": "1.5", "rejected_score": "2"},
        SCORES | {"chosen": 100, "rejected": 2},
        SCORES | {"chosen": True, "rejected": False},
        SCORES | {"chosen": 1.5, "rejected": 2.5},
        SCORES | {"prior": "0.5"},
        SCORES | {"chosen_length": True, "rejected_length": 3},
        {"scores": [True, False], "ratings": [1, 2]},
        {"scores": ["1", "2"], "ratings": [1, 2]},
        {"scores": [1, 2], "ratings": [0.5, 2], "responses": [1, 2]},
        {"scores": 1.5, "ratings": [1]},
        {"score": "1"},
        {"score": 2, "response": 3},
        {"score": 2**60 + 1},
    ],
    ids=str,
)
def test_report_says_the_same_of_lines_and_of_tables(tmp_path, row):
    """Also where another column has a null, which sends a table row by row."""
    want = verdict(tmp_path / "a.jsonl", [row, row])
    assert verdict(tmp_path / "a.parquet", [row, row]) == want
    other = "response" if "chosen_score" in row else "prompt"
    assert verdict(tmp_path / "b.parquet", [row | {other: "p"}, row | {other: None}]) == want


def test_json_columns_are_no_texts_to_the_report(tmp_path):
    """A text of JSON is longer than what it says."""
    chosen = json_array('[{"role": "assistant", "content": "four"}]', '[{"role": "assistant", "content": "five5"}]')
    table = pa.table({"chosen_score": [1.0, 2.0], "rejected_score": [0.0, 0.0], "chosen": chosen, "rejected": chosen})
    pq.write_table(table, tmp_path / "a.parquet")
    (scores,) = read_scores([str(tmp_path / "a.parquet")])
    assert scores.chosen_length.tolist() == [4, 5]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_decimals_are_numbers(tmp_path, suffix):
    numbers = [Decimal(f"{x:.6f}") for x in np.random.default_rng(0).normal(size=40)]
    columns = {"chosen_score": numbers, "rejected_score": numbers[::-1], "chosen": ["abc"] * 40, "rejected": ["d"] * 40}
    columns["prior"] = [abs(x) / 10 for x in numbers]
    source, out, toml = tmp_path / "in.parquet", tmp_path / f"out{suffix}", tmp_path / "pcrm.toml"
    pq.write_table(pa.table(columns), source)
    (scores,) = read_scores([str(source)])
    assert scores.chosen.tolist() == list(map(float, numbers))
    assert main(["calibrate", str(source), "--out", str(out)]) == 0
    assert [float(row["chosen_score"]) for row in read(out)] == list(map(float, numbers))
    assert main(["fit", str(out), "--target-alike", "1", "--target-unlike", "3", "--out", str(toml)]) == 0
    want = pcrm.Constraint.fit([float(x) for x in columns["prior"]], target_alike=1, target_unlike=3)
    assert pcrm.Constraint.from_toml(toml) == want
    assert prior_tensor(columns["prior"]).tolist() == np.float32(columns["prior"]).tolist()


def test_decimals_that_no_float_has_are_not_written_as_json(tmp_path, capsys):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"chosen": ["a"], "rejected": ["b"], "x": [Decimal("0.12345678901234567890123")]}), source)
    assert main(["prior", str(source), "--out", str(tmp_path / "out.jsonl")]) == 1
    assert f"{source}, row 0: must have values that JSON can represent: Decimal('0.1234" in capsys.readouterr().err
    assert main(["prior", str(source), "--out", str(tmp_path / "out.parquet")]) == 0


def marked(path):
    """The file with a UTF-8 byte order mark at its start."""
    content = path.read_bytes()
    gz = path.name.endswith(".gz")
    content = codecs.BOM_UTF8 + (gzip.decompress(content) if gz else content)
    path.write_bytes(gzip.compress(content) if gz else content)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_byte_order_mark_is_ignored_in_lines(tmp_path, suffix):
    rows = [PAIR | SCORES | {"i": i, "prior": i / 9} for i in range(3)]
    source = marked(write(tmp_path / f"in{suffix}", rows))
    assert [row for _, row in read_rows(source)] == rows
    (scores,) = read_scores([str(source)])
    assert scores.chosen.tolist() == [1.5] * 3
    assert main(["calibrate", str(source), "--out", str(tmp_path / "out.jsonl"), "--method", "penalty"]) == 0
    assert not (tmp_path / "out.jsonl").read_bytes().startswith(codecs.BOM_UTF8)
    assert [row["i"] for row in read(tmp_path / "out.jsonl")] == [0, 1, 2]


def test_a_byte_order_mark_is_ignored_in_settings(tmp_path):
    toml, given = tmp_path / "pcrm.toml", tmp_path / "principles.json"
    toml.write_text("[constraint]\nprior = 'fixed'\ndelta = 3.5")
    assert load_config(marked(toml)).constraint == pcrm.Constraint.fixed(3.5)
    given.write_text('["Be kind."]')
    assert [p.text for p in principles.load(marked(given))] == ["Be kind."]


def test_a_byte_order_mark_is_ignored_in_a_template(tmp_path, tiny):
    template, given = tmp_path / "template.txt", tmp_path / "principles.json"
    given.write_text('["Be kind."]')
    template.write_text("{principles}\n{prompt}\n")
    source, scored = write(tmp_path / "in.jsonl", [PAIR]), []
    for name in ("plain", "marked"):
        argv = ["score", str(tiny), str(source), "--out", str(tmp_path / f"{name}.jsonl")]
        assert main([*argv, "--principles", str(given), "--principle-template", str(template)]) == 0
        scored.append(read(tmp_path / f"{name}.jsonl"))
        marked(template)
    assert scored[0] == scored[1]


@pytest.mark.parametrize("before", SUFFIXES)
def test_all_rows_refused_is_an_error(tmp_path, capsys, before):
    source, out = write(tmp_path / f"in{before}", [{"chosen": 1, "rejected": "b"}] * 5), tmp_path / "out.jsonl"
    out.write_text("before")
    assert main(["prior", str(source), "--out", str(out), "--on-error", "skip"]) == 1
    error = capsys.readouterr().err
    place = f"{source}, {'line 1' if 'jsonl' in before else 'row 0'}"
    assert (
        f"{source}: at least one row must be good, got 5 bad rows. Nothing was written. The first: {place}: chosen must"
        in error
    )
    assert out.read_text() == "before" and {p.name for p in tmp_path.iterdir()} == {source.name, "out.jsonl"}


def limited(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.slow
def test_a_full_disk_before_the_first_shard_keeps_nothing_and_says_nothing_else(tmp_path):
    source, out = write(tmp_path / "in.jsonl", [PAIR | {"x": "x" * 99}] * 100), tmp_path / "out.jsonl"
    argv = [sys.executable, "-c", SMALL_BATCHES, "prior", str(source), "--out", str(out)]
    failed = subprocess.run(argv, capture_output=True, text=True, timeout=60, preexec_fn=limited(1000))
    assert failed.returncode == 1 and ": file too large" in failed.stderr and "kept" not in failed.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_an_output_without_a_name_is_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", [PAIR])
    assert main(["prior", "in.jsonl", "--out", name]) == 1
    assert f"--out must be a file or a folder with a name, got '{name}'" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("end", [".parts", ".parts.removed"])
def test_a_link_in_the_place_of_the_shards_is_refused(tmp_path, capsys, end):
    source, out = write(tmp_path / "in.jsonl", [PAIR]), tmp_path / "out.jsonl"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    link = tmp_path / f"out.jsonl{end}"
    link.symlink_to("elsewhere")
    assert main(["prior", str(source), "--out", str(out)]) == 1
    assert f"{link} must be a folder, got a link to elsewhere. Remove the link" in capsys.readouterr().err
    assert link.is_symlink() and (tmp_path / "elsewhere" / "precious").exists() and not out.exists()


def fitted(data, toml, *options):
    targets = ("--target-alike", "1", "--target-unlike", "3")
    return main(["fit", str(data), *targets, "--out", str(toml), "--force", *options])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fit_writes_the_prior_that_was_computed(tmp_path, capsys, rows, suffix):
    source, out, toml = write(tmp_path / "in.jsonl", rows), tmp_path / f"out{suffix}", tmp_path / "pcrm.toml"
    assert main(["prior", str(source), "--out", str(out)]) == 0
    assert open_source(out).prior == {"prior": "lexical", "with_prompt": False}
    assert fitted(out, toml) == 0 and load_config(toml).prior == "lexical"
    assert fitted(out, toml, "--prior", "column") == 0 and load_config(toml).prior == "column"
    assert fitted(out, toml, "--prior", "length_ratio") == 1
    assert f"--prior must be lexical for {out}, got length_ratio: the record of its column" in capsys.readouterr().err
    # What no trainer computes is found in a column alone.
    assert main(["prior", str(source), "--out", str(out), "--with-prompt"]) == 0
    assert fitted(out, toml) == 0 and load_config(toml).prior == "column"
    # Another output of that name has no such record.
    assert main(["score", "none", str(source), "--out", str(out)]) == 1
    write(tmp_path / "scores.jsonl", [row | SCORES for row in rows])
    assert main(["calibrate", str(tmp_path / "scores.jsonl"), "--out", str(out)]) == 0
    assert open_source(out).prior is None


def test_a_folder_of_files_with_records_loads(tmp_path, rows):
    """As `load_dataset` reads every file of a folder that is not hidden."""
    source = write(tmp_path / "in.jsonl", rows)
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        assert main(["prior", str(source), "--out", str(tmp_path / "data" / f"{part}.jsonl")]) == 0
    parts = load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in parts.items()} == {"train": len(rows), "test": len(rows)}


def test_a_table_keeps_the_record_of_its_prior(tmp_path, rows):
    """Through commands that add other columns."""
    source, out, after = (
        write(tmp_path / "in.jsonl", [r | SCORES for r in rows]),
        *(tmp_path / f"{x}.parquet" for x in "ab"),
    )
    assert main(["prior", str(source), "--out", str(out)]) == 0
    assert main(["calibrate", str(out), "--out", str(after), "--method", "penalty"]) == 0
    assert open_source(after).prior == {"prior": "lexical", "with_prompt": False}


@pytest.mark.slow
def test_fit_writes_the_prior_that_it_is_told(tmp_path, rows):
    data = [row | {"prior": i / 64, "mine": 1 - i / 64} for i, row in enumerate(rows)]
    source, toml = write(tmp_path / "in.jsonl", data), tmp_path / "pcrm.toml"
    assert fitted(source, toml) == 0 and load_config(toml).prior == "column"
    assert fitted(source, toml, "--prior", "length_ratio") == 0 and load_config(toml).prior == "length_ratio"
    # A record is of the column `prior` alone.
    (tmp_path / ".in.jsonl.prior.json").write_text('{"prior": "lexical"}')
    assert fitted(source, toml, "--column", "mine") == 0 and load_config(toml).prior == "column"
    assert fitted(source, toml) == 0 and load_config(toml).prior == "lexical"


def test_a_record_that_is_none_is_named(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [PAIR | {"prior": 0.5}])
    for text in ("{", "[]", '{"prior": 3}'):
        (tmp_path / ".in.jsonl.prior.json").write_text(text)
        assert fitted(source, tmp_path / "pcrm.toml") == 1
        assert ".in.jsonl.prior.json must be a JSON object with the key 'prior', got " in capsys.readouterr().err
