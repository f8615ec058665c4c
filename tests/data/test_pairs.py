"""`pcrm pairs`: against the pairs of each ranking in plain Python, and human ratings; formats, types, kills, docs/pairs.md."""

import gzip
import json
import random
import shlex
from datetime import datetime
from decimal import Decimal
from itertools import combinations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Json, List, Value, load_dataset, load_from_disk
from helpers.documents import blocks
from helpers.files import SMALL_BATCHES, SUFFIXES, lines, read, write
from helpers.killed import run_killed
from hypothesis import given, settings
from hypothesis import strategies as st
from pcrm.cli import main
from pcrm.data.json_values import json_parts


def pairs(source, out, *arguments):
    return main(["pairs", str(source), "--out", str(out), *arguments])


def fails(capsys, source, out, *arguments):
    capsys.readouterr()
    assert pairs(source, out, *arguments) == 1
    return capsys.readouterr().err


def message(role, content):
    return {"role": role, "content": content}


def rankings(n, seed=0, column="ratings"):
    """Rankings of one to five conversational responses, with ties."""
    made = random.Random(seed)
    rows = []
    for i in range(n):
        size = made.randint(1, 5)
        responses = [
            [message("assistant", f"{i} {j} ü"), message("user", "?")][: made.randint(1, 2)] for j in range(size)
        ]
        numbers = [made.randint(1, 3) for _ in range(size)]
        rows.append(
            {"id": i, "prompt": [message("user", f"q{i}")], "responses": responses, column: numbers, "x": [i / 8]}
        )
    return rows


def by_hand(rows):
    """The pairs of rankings, and how many ties there are."""
    made, ties = [], 0
    for row in rows:
        column, name, sign = ("ratings", "rating", 1) if row.get("ratings") is not None else ("ranks", "rank", -1)
        others = {k: v for k, v in row.items() if k not in ("responses", "ratings", "ranks")}
        for (a, x), (b, y) in combinations(zip(row["responses"], row[column], strict=True), 2):
            if x == y:
                ties += 1
                continue
            if sign * x < sign * y:
                (a, x), (b, y) = (b, y), (a, x)
            made.append(others | {"chosen": a, "rejected": b, f"{name}_chosen": x, f"{name}_rejected": y})
    return made, ties


@pytest.mark.parametrize("after", SUFFIXES)
@pytest.mark.parametrize("before", SUFFIXES)
def test_formats(tmp_path, before, after, capsys):
    rows = rankings(150, column="ranks" if after else "ratings")  # three shards
    source, out = write(tmp_path / f"in{before}", rows), tmp_path / f"out{after}"
    assert pairs(source, out) == 0
    want, ties = by_hand(rows)
    assert f"{out}: {len(want)} pairs from 150 rankings, {ties} ties left out\n" in capsys.readouterr().out
    got = read(out)
    assert got == want and list(got[0]) == list(want[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, out.name])


def test_human_ratings_become_the_pairs_that_were_published(tmp_path, real_rankings, real_pairs):
    assert pairs(real_rankings, tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == gzip.decompress(real_pairs.read_bytes())


def test_lines_keep_what_they_have(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        '{"id": 12345678901234567890123, "responses": ["\\u00fc\\ud83d\\ude00",\t"b" ,"ü"], "ratings":[1.10, 2e0 ,2],'
        ' "x": 1e400, "y": {"b": 1, "a": [ ]}, "\\u00fc": 0.1000000000000000055511151231257827, "ü ": 0, "ranks": null }\n\n'
        '{"ranks":[2,1],"responses":["a",""]}\n'
    )
    assert pairs(source, out) == 0
    others = '"id": 12345678901234567890123, "x": 1e400, "y": {"b": 1, "a": [ ]}, "\\u00fc": 0.1000000000000000055511151231257827, "ü ": 0'
    assert out.read_text().splitlines() == [
        f'{{{others}, "chosen": "b", "rejected": "\\u00fc\\ud83d\\ude00", "rating_chosen": 2e0, "rating_rejected": 1.10}}',
        f'{{{others}, "chosen": "ü", "rejected": "\\u00fc\\ud83d\\ude00", "rating_chosen": 2, "rating_rejected": 1.10}}',
        '{"chosen": "", "rejected": "a", "rank_chosen": 1, "rank_rejected": 2}',
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(JSON, max_size=4),
    st.dictionaries(st.text(), JSON, max_size=4),
    st.sampled_from([None, 0, "\t", "\r\n "]),
    st.booleans(),
)
def test_parts_of_json_are_the_values_as_they_are_written(elements, members, indent, ascii_only):
    def dumped(value):
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    def again(texts):  # NaN is not equal to itself
        return [json.dumps(json.loads(text)) for text in texts]

    assert again(json_parts(dumped(elements))) == list(map(json.dumps, elements))
    assert again(json_parts(dumped(members))) == [json.dumps(x) for member in members.items() for x in member]


NUMBERS = [[Decimal("1.10"), Decimal("2.25")], [Decimal("-3.00"), Decimal("7.50")]]


@pytest.mark.parametrize(
    "responses",
    [
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ],
    ids=["large", "fixed", "dictionary"],
)
def test_tables_keep_their_types(tmp_path, responses):
    times = pa.array([datetime(2020, 1, 2, 3, 4, 5, 6), None], pa.timestamp("ns", "UTC"))
    table = pa.table(
        {
            "time": times,
            "view": pa.array(["a long text that is no inline view", None], pa.string_view()),
            "responses": pa.array([["a", "b"], ["c", "d"]], responses),
            "n": pa.array([Decimal("1.1000000000000000000001"), None], pa.decimal128(30, 22)),
            "ratings": pa.array(NUMBERS, pa.list_(pa.decimal128(5, 2))),
        }
    ).replace_schema_metadata({"kept": "yes"})
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, source)
    assert pairs(source, out) == 0
    got = pq.read_table(out)
    element, number = responses.value_type, pa.decimal128(5, 2)
    types = {
        **{name: table.schema.field(name).type for name in ("time", "view", "n")},
        **{"chosen": element, "rejected": element, "rating_chosen": number, "rating_rejected": number},
    }
    assert dict(zip(got.schema.names, got.schema.types, strict=True)) == types
    assert got.schema.metadata == {b"kept": b"yes"}
    for name in ("time", "view", "n"):
        assert got[name].equals(pa.chunked_array([table[name].combine_chunks()])), name
    assert got["chosen"].to_pylist() == ["b", "d"] and got["rejected"].to_pylist() == ["a", "c"]
    assert got["rating_chosen"].to_pylist() == [x[1] for x in NUMBERS]
    assert got["rating_rejected"].to_pylist() == [x[0] for x in NUMBERS]


@pytest.mark.parametrize(
    "responses",
    [
        List(List({"role": Value("string_view"), "content": Value("string_view")})),
        List(List(Json())),
        List(Json()),
        Json(),
    ],
    ids=["views", "messages", "responses", "all"],
)
@pytest.mark.parametrize("suffix", [".jsonl", ""])
def test_messages_keep_their_features(tmp_path, responses, suffix):
    """Also JSON texts, the feature `Json` of `datasets`, at any depth."""
    rows = [row | {"ranks": None} for row in rankings(9)] + [row | {"ratings": None} for row in rankings(9, 1, "ranks")]
    numbers = {"ratings": Json() if responses == Json() else List(Value("int8")), "ranks": List(Value("float32"))}
    prompt = List({"role": Value("string"), "content": Value("string")})
    features = Features({"id": Value("int64"), "prompt": prompt, "responses": responses, "x": Json(), **numbers})
    source, out = tmp_path / "in", tmp_path / f"out{suffix}"
    Dataset.from_list(rows, features=features).save_to_disk(source)
    assert pairs(source, out) == 0
    names = ("rating_chosen", "rating_rejected", "rank_chosen", "rank_rejected")
    assert read(out) == [dict.fromkeys(names) | pair for pair in by_hand(rows)[0]]
    if not suffix:
        response = Json() if responses == Json() else responses.feature
        rating = Json() if responses == Json() else Value("int8")
        kinds = dict(zip(names, (rating, rating, Value("float32"), Value("float32")), strict=True))
        others = {name: features[name] for name in ("id", "prompt", "x")}
        assert load_from_disk(str(out)).features == others | {"chosen": response, "rejected": response} | kinds


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_ranked_by_either_column(tmp_path, suffix):
    rows = [{"responses": ["a", "b"], "ratings": [1, 2]}, {"responses": ["c", "d"], "ranks": [1, 2]}]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / f"out{suffix}"
    assert pairs(source, out) == 0
    assert [{k: v for k, v in row.items() if v is not None} for row in read(out)] == by_hand(rows)[0]


def test_a_column_with_no_ranks_gives_no_column(tmp_path):
    source, out = (
        write(tmp_path / "in.parquet", [{"responses": ["a", "b"], "ratings": [1, 2], "ranks": None}]),
        tmp_path / "o",
    )
    assert pairs(source, out) == 0
    assert load_from_disk(str(out)).column_names == ["chosen", "rejected", "rating_chosen", "rating_rejected"]


def test_numbers_that_are_never_null_in_their_lists(tmp_path):
    number = pa.list_(pa.field("item", pa.int8(), nullable=False))
    columns = {"responses": [["a", "b"]] * 2, "ratings": pa.array([[2, 1], None], number)}
    columns["ranks"] = pa.array([None, [1, 2]], number)
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table(columns), source)
    assert pairs(source, out) == 0
    assert pq.read_table(out)["rank_chosen"].to_pylist() == [None, 1]


def test_a_parquet_file_of_datasets_is_read_by_datasets(tmp_path):
    """The metadata of its schema, which say the features of columns that are no more, are not in the way."""
    Dataset.from_list(rankings(5)).to_parquet(tmp_path / "in.parquet")
    assert pairs(tmp_path / "in.parquet", tmp_path / "out.parquet") == 0
    got = load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train")
    assert got.to_list() == by_hand(rankings(5))[0]


GOOD = {"responses": ["a", "b"], "ratings": [1, 2]}
TIE = {"responses": ["a", "b"], "ratings": [1, 1]}
ALONE = {"responses": ["a"], "ratings": [1]}


@pytest.mark.parametrize(("before", "after"), list(zip(SUFFIXES, SUFFIXES[::-1], strict=True)))
def test_bad_rows(tmp_path, before, after, capsys):
    bad = [GOOD | {"ratings": [1, 2, 3]}, GOOD | {"responses": None}, GOOD | {"ratings": None}]
    source, out = write(tmp_path / f"in{before}", [GOOD, bad[0], TIE, *bad[1:], GOOD]), tmp_path / f"out{after}"
    place = f"{source}, " + ("line 2" if "jsonl" in before else "row 1")
    error = f"{place}: ratings must have one number for each of the 2 responses, got 3. To leave out bad rows, add --on-error skip"
    assert error in fails(capsys, source, out)
    assert not out.exists()
    assert pairs(source, out, "--on-error", "skip") == 0
    side = tmp_path / f"out{after}.skipped.jsonl"
    assert capsys.readouterr().out == f"{out}: 2 pairs from 3 rankings, 1 ties left out, 3 skipped: {side}\n"
    assert read(out) == by_hand([GOOD, GOOD])[0]
    said = read(side)
    assert said[0]["place"] == place
    assert [s["error"].partition(",")[0] for s in said] == [
        "ratings must have one number for each of the 2 responses",
        "responses must be a non-empty list",
        "a ranking must have a key 'ratings' or 'ranks'",
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_nothing_to_compare(tmp_path, suffix, out, capsys):
    source = write(tmp_path / f"in{suffix}", [TIE, ALONE])
    error = fails(capsys, source, tmp_path / out)
    assert f"{source}: must have responses to compare, got 2 rankings with a single response or only ties" in error
    assert [p.name for p in tmp_path.iterdir()] == [source.name]
    source = write(tmp_path / f"in{suffix}", [{"responses": [], "ratings": []}] * 2)
    error = fails(capsys, source, tmp_path / out, "--on-error", "skip")
    assert f"{source}: at least one row must be good, got 2 bad rows. Nothing was written. The first: " in error


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_files_of_another_kind(tmp_path, suffix, capsys):
    for rows, said in (
        ([{"chosen": "a", "rejected": "b"}], "responses and ratings or ranks"),
        ([GOOD | {"rank_chosen": 1}], "must not have a column 'rank_chosen', because this command adds one"),
        ([GOOD | {"chosen": "a"}], "must not have a column 'chosen', because this command adds one"),
    ):
        source = write(tmp_path / f"in{suffix}", rows)
        for skip in ((), ("--on-error", "skip")):
            assert said in fails(capsys, source, tmp_path / "out.jsonl", *skip)
    with pytest.raises(SystemExit):
        pairs(source, source)
    assert "--out must be another file than RANKINGS" in capsys.readouterr().err


def test_lists_of_another_type_are_told_of(tmp_path, capsys):
    tensor = pa.fixed_shape_tensor(pa.int32(), [2])
    ratings = pa.ExtensionArray.from_storage(tensor, pa.array([[1, 2]], pa.list_(pa.int32(), 2)))
    pq.write_table(pa.table({"responses": pa.array([["a", "b"]]), "ratings": ratings}), tmp_path / "in.parquet")
    error = fails(capsys, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert f"in.parquet: 'ratings' must be a column of lists, got {tensor}" in error


def test_what_json_cannot_hold_is_named_by_its_ranking(tmp_path, capsys):
    source = tmp_path / "in.parquet"
    pq.write_table(
        pa.table({"responses": [["a", "b", "c"]] * 2, "ratings": [[1, 2, 3]] * 2, "x": [None, b"x"]}), source
    )
    assert f"{source}, row 1: must have values that JSON can represent: b'x'" in fails(
        capsys, source, tmp_path / "out.jsonl"
    )


SHARD = ("os.rename", r"\.parts/\d+-\d+-\d+\.(jsonl|gz|arrow)$")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_kill_at_any_moment(tmp_path, monkeypatch, suffix, capsys):
    """A process is killed before its first shard is there and in the middle, and started again: the same bytes and counts."""
    monkeypatch.setattr("pcrm.data.sources._LOOK_ROWS", 5)
    rows = rankings(400)
    source = write(tmp_path / "in.jsonl", [*rows[:9], {"responses": 3}, *rows[9:]])
    out, whole = tmp_path / f"out{suffix}", tmp_path / "whole" / f"out{suffix}"
    assert pairs(source, whole, "--on-error", "skip") == 0
    for at, shards in (((*SHARD, 1), 0), ((*SHARD, 4), 3)):
        run_killed(SMALL_BATCHES, "pairs", source, "--on-error", "skip", "--out", out, at=at)
        found = [p for p in (tmp_path / f"{out.name}.parts").glob("*-*") if p.suffix in (".jsonl", ".gz", ".arrow")]
        assert len(found) == shards
    capsys.readouterr()
    assert pairs(source, out, "--on-error", "skip") == 0
    want, ties = by_hand(rows)
    said = f"{out}: {len(want)} pairs from 400 rankings, {ties} ties left out, 1 skipped: "
    assert capsys.readouterr().out.startswith(said)
    assert out.read_bytes() == whole.read_bytes()
    assert read(out) == want and not list(tmp_path.glob("*.parts*"))


def test_documentation(tmp_path, monkeypatch, capsys):
    """docs/pairs.md: the commands make of its ranking the pairs that it prints."""
    commands, before, after = blocks("docs/pairs.md", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rankings.jsonl").write_text(before)
    for command in commands.splitlines():
        assert main(shlex.split(command)[1:]) == 0, command
    assert (tmp_path / "pairs.jsonl").read_text() == after
    assert lines(read(tmp_path / "pairs.parquet")).decode() == after
