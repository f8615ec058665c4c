"""Rows shared out among processes: the scores of one process, its messages, and an end whatever happens to one of them."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.files import read, write
from helpers.killed import run_killed
from helpers.project import ROOT
from helpers.trainers import TWO_PROCESSES
from pcrm.cli import main
from pcrm.demo.world import generate
from pcrm.evaluate.score_rows import _by_prompt
from pcrm.evaluate.shared_out import Processes, device_of_process

PAIRS = generate(60, seed=5)
# Sums in float32 in another order, as in test_score.py; the scores of the tiny model are some 1e-2.
ROUNDING = {"rtol": 3e-5, "atol": 3e-7}


def rankings(pairs):
    """One of each prompt, with the chosen responses of all its pairs."""
    by_prompt = {}
    for row in pairs:
        by_prompt.setdefault(row["prompt"], []).append(row["chosen"])
    return [{"prompt": prompt, "responses": responses} for prompt, responses in by_prompt.items()]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("once", [False, True])
def test_parts(count, once):
    rows = dict(enumerate([*generate(400, seed=1), {"chosen": 3}, {"prompt": [{"role": 1}], "rejected": "\ud800"}]))
    parts = _by_prompt(rows, ("chosen", "rejected"), count, once)
    assert len(parts) == count
    assert sorted(i for part in parts for i in part) == list(rows)
    assert all(list(part) == sorted(part) and part == {i: rows[i] for i in part} for part in parts)
    at = {}
    for k, part in enumerate(parts):
        for row in part.values():
            assert at.setdefault(str(row.get("prompt", row)), k) == k, "a prompt is in one part"
    texts = [sum(len(str(row)) for row in part.values()) for part in parts]
    largest = max(
        sum(len(str(r)) for r in rows.values() if r.get("prompt") == row.get("prompt")) for row in rows.values()
    )
    assert max(texts) - min(texts) <= 3 * largest


def test_parts_of_few_rows():
    row = {"prompt": "a", "responses": ["b"]}
    assert sorted(map(len, _by_prompt({0: row, 1: row, 2: row}, ("responses",), 3, True))) == [0, 0, 3]
    assert _by_prompt({}, ("responses",), 2, True) == [{}, {}]
    # A ranking with many responses is as much as many with one, more so where each has the prompt once more.
    long, short = {"prompt": "a" * 99, "responses": ["b"] * 8}, {"prompt": "c" * 99, "responses": ["b"]}
    parts = _by_prompt(
        dict(enumerate([long, *({**short, "prompt": f"{i}" + "c" * 99} for i in range(8))])), ("responses",), 2, False
    )
    assert sorted(map(len, parts)) == [2, 7] or sorted(map(len, parts)) == [1, 8]


def test_no_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # some clusters set it for every process
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with Processes() as processes:
        assert (processes.count, processes.rank) == (1, 0)
        assert processes.everywhere(list, "ab") == ["a", "b"]
        assert processes.share_out(lambda kept, share, progress: [*kept, share, progress], ["c"], print) == [
            ["a", "b", "c", print]
        ]
    assert device_of_process("cuda:1") == "cuda:1"


def test_devices(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "1", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert device_of_process(None) is None, "there is no GPU"
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert device_of_process(None) == "cuda:1" and chosen == [1]
    assert device_of_process("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"^--device must be cpu with 4 processes, got 'cuda:1'. Omit it"):
        device_of_process("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match=r"^LOCAL_RANK must be less than the number of GPUs, 1, got 1. Start one process"
    ):
        device_of_process(None)


# Two processes without a launcher, forked after the imports. What they print is in files.
FORKED = """
import json, os, signal, sys, time
import torch.distributed
from helpers.launching import reserved_port
from pcrm.evaluate.shared_out import Processes

def make(case):
    if case == "make" and os.environ["RANK"] == "1":
        raise OSError("no such model")
    return case

def work(case, share, progress=None):
    print("prints", share)
    if progress is not None and case == "first killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if progress is not None and case == "interrupted":
        signal.raise_signal(signal.SIGINT)
    if share == "second" and case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if share == "second" and case == "memory":
        raise torch.OutOfMemoryError("all is full")
    if share == "second" and case == "bug":
        return {}["key"]
    return [case, share]

def run(case):
    with Processes() as processes:
        if processes.rank:
            sys.stdout = open(os.devnull, "w")
            return processes.serve()
        if case == "help":
            sys.exit(0)
        processes.everywhere(make, case)
        try:
            print(processes.share_out(work, ["first", "second"], print))
        except KeyboardInterrupt:
            return 130
        return 0

found = {}
for case in ("good", "help", "make", "memory", "bug", "killed", "first killed", "interrupted"):
    with reserved_port() as port:
        children = []
        for rank in range(2):
            if not (child := os.fork()):
                os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                said = open(f"{case}-{rank}", "w")
                os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
                signal.alarm(60)
                sys.exit(run(case))
            children.append(child)
        found[case] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
json.dump(found, open("found.json", "w"))
"""


@pytest.mark.slow
def test_errors_and_ends(tmp_path):
    """Both processes end, and the first alone says what happened."""
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    subprocess.run(
        [sys.executable, "-c", FORKED], cwd=tmp_path, check=True, timeout=200, env=os.environ | {"PYTHONPATH": path}
    )
    found = json.loads((tmp_path / "found.json").read_text())
    said = {case: [(tmp_path / f"{case}-{rank}").read_text() for rank in range(2)] for case in found}
    assert found == {
        "good": [0, 0],
        "help": [0, 0],
        "make": [1, 1],
        "memory": [1, 1],
        "bug": [1, 1],
        "killed": [1, -9],
        "first killed": [-9, 1],
        "interrupted": [130, 1],
    }
    assert {case: other for case, (_, other) in said.items()} == dict.fromkeys(found, "")
    assert "[['good', 'first'], ['good', 'second']]\n" in said["good"][0]
    for case, last in (
        ("make", "OSError: In process 1 of 2: no such model"),
        ("memory", "torch.OutOfMemoryError: In process 1 of 2: all is full"),
        ("bug", "KeyError: 'key'"),
        ("killed", "ConnectionError: Another process ended early. Give the same command again to resume"),
    ):
        assert said[case][0].rstrip("\n").endswith(last), said[case][0]


# One start of two processes for several commands, with small shards.
COMMANDS = """
import json, sys
import pcrm.data.sources as sources, pcrm.evaluate.score_rows as score_rows
from pcrm.commands import optimize, score
from pcrm.evaluate.shared_out import Processes

sources._LOOK_ROWS, score_rows._SHARD_ROWS = 4, 8
with Processes() as processes:
    if processes.rank:
        sys.exit(processes.serve())
    for name, *arguments in json.load(open("commands.json")):
        assert {"optimize": optimize, "score": score}[name].run(arguments, processes) == 0
"""
ONE_SHARD = "import pcrm.data.sources as d, pcrm.evaluate.score_rows as s; d._LOOK_ROWS, s._SHARD_ROWS = 4, 8; "


@pytest.mark.slow
def test_scores_are_those_of_one_process(tmp_path, monkeypatch, tiny):
    """Pairs with bad rows, rankings in `pcrm optimize`, and an output that one process had begun and was killed."""
    monkeypatch.chdir(tmp_path)
    bad = {"prompt": "one", "chosen": 3, "rejected": "b"}
    write(tmp_path / "pairs.jsonl", [*PAIRS[:20], bad, *PAIRS[20:], bad | {"chosen": "a" * 5000}])
    write(tmp_path / "pool.jsonl", rankings(PAIRS))
    skip = ["--on-error", "skip"]
    commands = [
        ["score", str(tiny), "pairs.jsonl", "--out", "pairs-OUT.jsonl", *skip],
        ["score", str(tiny), "pairs.jsonl", "--out", "killed-OUT.jsonl", *skip],
        ["optimize", "pool.jsonl", "--proxy", str(tiny), "--gold", str(tiny), "--out", "OUT"],
    ]
    for count, of in enumerate(("one", "two"), 1):
        given = [[word.replace("OUT", of) for word in command] for command in commands]
        if count == 1:
            assert [main(command) for command in given] == [0, 0, 0]
            continue
        code = f"{ONE_SHARD}from pcrm.cli import main; main({given[1]!r})"
        run_killed(code, at=("os.rename", r"\.parts/\d+-\d+-\d+\.jsonl$", 4))
        begun = [p.name for p in (tmp_path / "killed-two.jsonl.parts").glob("*-*.jsonl")]
        assert len(begun) == 3
        (tmp_path / "commands.json").write_text(json.dumps(given))
        (tmp_path / "commands.py").write_text(COMMANDS)
        subprocess.run([sys.executable, *TWO_PROCESSES, "commands.py"], check=True, timeout=200)
    for name in ("pairs", "killed"):
        one, two = (read(tmp_path / f"{name}-{of}.jsonl") for of in ("one", "two"))
        assert [without_scores(row) for row in two] == [without_scores(row) for row in one] == PAIRS
        for column in ("chosen_score", "rejected_score"):
            np.testing.assert_allclose([row[column] for row in two], [row[column] for row in one], **ROUNDING)
        skipped = [(tmp_path / f"{name}-{of}.jsonl.skipped.jsonl").read_bytes() for of in ("one", "two")]
        assert skipped[0] == skipped[1] and skipped[0].count(b"\n") == 2
    one, two = (read(tmp_path / of / "proxies" / f"{tiny.name}.jsonl") for of in ("one", "two"))
    assert [without_scores(row) for row in two] == [without_scores(row) for row in one] == rankings(PAIRS)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a["scores"], b["scores"], **ROUNDING)


def without_scores(row):
    return {name: value for name, value in row.items() if "score" not in name}


@pytest.mark.slow
def test_a_bad_row_of_another_process(tmp_path, monkeypatch, tiny, capfd):
    """One message of the command in docs/score.md, and what is done is kept: one process goes on without the row."""
    (line,) = re.findall("^torchrun --nproc_per_node 8 (-m pcrm .*)", (ROOT / "docs/score.md").read_text(), flags=re.M)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward-model").symlink_to(tiny)
    rows = [{"response": row["chosen"]} for row in generate(1100, seed=2)]
    write(tmp_path / "pairs.jsonl", [*rows, {"response": 3}])  # the last in the order of texts, so the other process's
    done = subprocess.run([sys.executable, *TWO_PROCESSES, *line.split()], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    message = "pcrm score: pairs.jsonl, line 1101: response must be a text or a list of messages, got 3. To leave out bad rows, add --on-error skip"
    assert done.stderr.count("must be a text") == 1 and message in done.stderr, done.stderr
    (shard,) = (tmp_path / "pairs-scores.jsonl.parts").glob("*-*.jsonl")
    before = shard.read_bytes()
    assert before.count(b"\n") == 1024
    assert main([*line.split()[2:], "--on-error", "skip"]) == 0
    assert "pairs-scores.jsonl: 1100 rows, 1 skipped: " in capfd.readouterr().out
    made = tmp_path / "pairs-scores.jsonl"
    assert made.read_bytes().startswith(before)
    assert [without_scores(row) for row in read(made)] == rows


def test_reinforcement_learning_is_for_one_process(monkeypatch, capsys):
    class Two(Processes):
        def __init__(self):
            self.count, self.rank = 2, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("pcrm.evaluate.shared_out.Processes", Two)
    with pytest.raises(SystemExit, match="2"):
        main(
            ["optimize", "pool.jsonl", "--out", "out", "--proxy", "m", "--gold", "o/n", "--policy", "p", "--rl", "rloo"]
        )
    assert (
        "error: --rl requires a single process, got 2. First run without --rl under torchrun" in capsys.readouterr().err
    )
