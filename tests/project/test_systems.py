"""Other systems than Linux, where there is no Go core: what their Python lacks is taken away here, as CI has Linux alone."""

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from helpers.project import ROOT
from pcrm._engine import native
from pcrm.data import file_lock, resumable

from pcrm import cli

PACKAGE = ROOT / "pyproject" / "pcrm"
ROWS = [
    {"prompt": "q", "chosen": "a" * i, "rejected": "b" * (40 - i), "prior": i / 40, "chosen_score": i / 9, "rejected_score": 1.0}
    for i in range(1, 40)
]  # fmt: skip
RANKING = {"prompt": "q", "responses": ["a", "b"], "ratings": [1, 2]}

# Runs each line of its input as a command, and prints for each its exit status and what it said on stderr.
RUN = """
import contextlib, io, json, sys
import pcrm.cli
assert "no-native" in pcrm.__file__
for line in sys.stdin:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = pcrm.cli.main(line.split())
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([line.strip(), code, errors.getvalue()]))
"""
WITH_TORCH = (
    "doctor",
    "check rows.jsonl",
    "pairs rankings.jsonl --out pairs.jsonl",
    "fit rows.jsonl --target-alike 1 --target-unlike 3",
    "prior pairs.jsonl --out lexical.parquet --prior lexical",
    "prior pairs.jsonl --out lengths.jsonl --prior length_ratio --tokenizer {tiny}",
    "score {tiny} pairs.jsonl --out scores.jsonl",
    "reward --model_name_or_path {tiny} --dataset_name data --output_dir rm --max_steps 1 --use_cpu --report_to none "
    "--per_device_train_batch_size 4 --gradient_checkpointing false --disable_tqdm true",
)
WITH_GO = (
    "compare rows.jsonl --model {tiny} --out compare",
    "report rows.jsonl --out report",
    "optimize rankings.jsonl --out optimize",
    "calibrate rows.jsonl --out calibrated.jsonl",
    "calibrate rows.jsonl --method temperature --fit-on rows.jsonl --out divided.jsonl --model {tiny} --save divided",
    "average {tiny} {tiny} --out average",
    "verify trace",
)


@pytest.mark.slow
def test_each_command_without_the_native_library(tmp_path, tiny, without_native):
    """It works, or says in one line what it lacks, before it reads or writes anything."""
    write_rows(tmp_path)
    commands = [line.format(tiny=tiny) for line in WITH_TORCH + WITH_GO]
    named = {line.split()[0] for line in commands} | {
        "demo",
        "dpo",
        "run",
        "openrlhf",
        "llamafactory",
    }  # these train as reward does
    assert named == set(cli._COMMANDS)
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": without_native},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for (command, code, said), line in zip(map(json.loads, done.stdout.splitlines()), commands, strict=True):
        assert command == line
        if line in commands[: len(WITH_TORCH)]:
            assert code == 0, (command, said)
        else:
            name = command.split()[0]
            want = f"pcrm {name}: this requires pcrm's native library, which is not available: the native extension is"
            assert code == 1 and said.startswith(want) and said.count("\n") == 1, (command, said)
    made = {path.name for path in tmp_path.iterdir()}
    assert made & {"compare", "report", "optimize", "calibrated.jsonl", "divided.jsonl", "divided", "average"} == set()


def write_rows(folder):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "rankings.jsonl").write_text(json.dumps(RANKING) + "\n")
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text((folder / "rows.jsonl").read_text())


# Imports every module of the package but those that need another framework. What other packages take of Linux they have by then.
IMPORT_ALL = """
import importlib, os, pkgutil, sys
import datasets, matplotlib.pyplot, sentence_transformers, torch, transformers, trl
for name in ("fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios"):
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "sched_getaffinity", "sync", "mkfifo", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC"):
    delattr(os, name)
import pcrm
names = [module.name for module in pkgutil.walk_packages(pcrm.__path__, "pcrm.", onerror=lambda _: None)]
integrations = {"axolotl", "llamafactory", "openrlhf", "swift"}
names = [n for n in names if n.split(".")[1] not in integrations and "_native._bridge" not in n and "__main__" not in n]
for name in names:
    importlib.import_module(name)
print(len(names), "fcntl" in sys.modules and sys.modules["fcntl"])
"""


@pytest.mark.slow
def test_imports_need_nothing_of_linux():
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:pcrm", "-c", IMPORT_ALL],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    count, lock = done.stdout.split()
    assert int(count) > 90 and lock == "None"


@pytest.fixture
def windows(monkeypatch):
    """What of Windows an output meets: its locks, no folders to open, no renaming of a folder with an open file."""
    open_files = set()

    def locking(descriptor, mode, size):
        assert (mode, size) == (2, 1)
        file = os.fstat(descriptor).st_ino
        if any(other != descriptor and os.fstat(other).st_ino == file for other in still_open(open_files)):
            raise PermissionError(errno.EACCES, "Permission denied")
        open_files.add(descriptor)

    rename, open_file = Path.rename, os.open

    def renamed(self, target):
        inside = {path.stat().st_ino for path in self.rglob("*")} if self.is_dir() else set()
        if any(os.fstat(descriptor).st_ino in inside for descriptor in still_open(open_files)):
            raise PermissionError(errno.EACCES, "Access is denied", str(self))
        return rename(self, target)

    def opened(path, *arguments, **options):
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(file_lock, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(resumable, "sys", types.SimpleNamespace(platform="win32"))
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os, "open", opened)
    # What shutil does on Windows; from 3.13 on it chooses once, at its import.
    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    if hasattr(shutil, "_rmtree_impl"):
        monkeypatch.setattr(shutil, "_rmtree_impl", shutil._rmtree_unsafe)


def still_open(descriptors):
    for descriptor in descriptors:
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        yield descriptor


def test_outputs_on_windows(tmp_path, windows, capsys):
    write_rows(tmp_path)
    source, out = tmp_path / "rankings.jsonl", tmp_path / "pairs.jsonl"
    for _ in range(2):  # the second replaces the first
        assert cli.main(["pairs", str(source), "--out", str(out)]) == 0, capsys.readouterr().err
        assert json.loads(out.read_text())["chosen"] == "b"
    with resumable.ResumableOutput(out, {}, skip=False):
        assert cli.main(["pairs", str(source), "--out", str(out)]) == 1
        assert f"{out}: another process is writing it" in capsys.readouterr().err
    assert not (tmp_path / "pairs.jsonl.parts").exists()


@pytest.mark.parametrize(
    ("platform", "system"), [("darwin", "macOS"), ("win32", "Windows"), ("freebsd14", "freebsd14")]
)
def test_other_systems_compute_with_torch(monkeypatch, recwarn, platform, system):
    """And without a warning, as there is nothing to be done about it."""
    monkeypatch.setattr(native, "loaded", None)
    monkeypatch.setattr(native, "unavailable", None)
    monkeypatch.setattr(native, "sys", types.SimpleNamespace(platform=platform, modules=sys.modules))
    monkeypatch.setitem(sys.modules, "pcrm._native._bridge", None)
    reason = f"it is built on Linux only, and this is {system}$"
    assert native.chosen_library() is None and not recwarn.list
    with pytest.raises(native.NativeLibraryError, match=f"^this requires pcrm's native library, .*: {reason}"):
        native.library()
    monkeypatch.setattr(native, "backend", "go")
    with pytest.raises(native.NativeLibraryError, match=f"^backend 'go' is not available: {reason}"):
        native.chosen_library()


def test_texts_name_their_encoding():
    """Without one Windows takes that of the country."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and not any(k.arg == "encoding" for k in node.keywords) and is_text(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def is_text(call):
    """Whether a call reads, writes or opens a text, with no encoding by position."""
    method = call.func.attr if isinstance(call.func, ast.Attribute) else None
    if method in ("read_text", "write_text"):
        return len(call.args) == (method == "write_text")
    if method == "open" and isinstance(call.func.value, ast.Name) and call.func.value.id in ("os", "gzip"):
        return False
    if method != "open" and not (isinstance(call.func, ast.Name) and call.func.id == "open"):
        return False
    modes = [
        n.value for a in call.args for n in ast.walk(a) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    return not any("b" in mode for mode in modes)
