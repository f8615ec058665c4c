"""The embedding cache without an encoder: damage, kills, a full disk, concurrent processes."""

import hashlib
import itertools
import multiprocessing
import os
import re
import resource
import signal
import sqlite3

import pytest
import torch
from pcrm.priors import _embedding_cache
from pcrm.priors._embedding_cache import EmbeddingCache

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

FORK = multiprocessing.get_context("fork")


def keys_of(name, n):
    return [hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(n)]


def rows_of(n, seed=0):
    return torch.randn(n, 384, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "folder" / "a file?#.sqlite3")


def assert_holds(cache, keys, rows):
    found = cache.get(keys)
    assert len(found) == len(keys) and torch.equal(torch.stack([found[key] for key in keys]), rows)


def in_child(function):
    """Return the exit code of a forked child that calls the function; negative for a signal."""
    child = FORK.Process(target=function)
    child.start()
    child.join(60)
    return child.exitcode


def test_what_is_put_is_got(cache):
    keys, rows = keys_of("text", 1203), rows_of(1203)
    assert cache.get(keys) == {}
    cache.put(keys[:700], rows[:700])
    cache.put(keys, rows)
    assert_holds(cache, keys, rows)
    assert cache.get([*keys_of("other", 2), keys[5]]).keys() == {keys[5]} and cache.get([]) == {}
    assert [p.name for p in cache.path.parent.iterdir()] == [cache.path.name]


def test_bytes_of_an_embedding_are_little_endian_float32(cache):
    keys = keys_of("text", 1)
    cache.put(keys, torch.tensor([[1.0, -2.5]]))
    ((key, embedding),) = sqlite3.connect(cache.path).execute("SELECT key, embedding FROM embeddings").fetchall()
    assert key == keys[0] and embedding.hex() == "0000803f000020c0"


def test_private_whatever_the_umask(cache, monkeypatch):
    monkeypatch.setattr(_embedding_cache, "_checksum", lambda *_: bytes(modes()))
    before = os.umask(0)

    def modes():
        return {path.stat().st_mode & 0o777 for path in cache.path.parent.iterdir()} == {0o600}

    try:
        cache.put(keys_of("text", 3), rows_of(3))
    finally:
        os.umask(before)
    assert cache.path.parent.stat().st_mode & 0o777 == 0o700 and modes()


def flipped(content):
    """Flip a bit of an embedding, which SQLite does not detect."""
    at = content.index(rows_of(20)[7].numpy().tobytes()[:64])
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def foreign(_):
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE mine (x)")
        return database.serialize()


DAMAGE = {
    "bit": (flipped, "a checksum does not match"),
    "cut": (lambda content: content[: len(content) // 2], "database disk image is malformed"),
    "text": (lambda _: b"text" * 100, "file is not a database"),
    "foreign": (foreign, "it is not a cache of embeddings"),
    "columns": (lambda content: content.replace(b"checksum", b"chequers"), "no such column: checksum"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_not_trusted(cache, damage):
    keys, rows = keys_of("text", 20), rows_of(20)
    cache.put(keys, rows)
    change, reason = DAMAGE[damage]
    cache.path.write_bytes(change(cache.path.read_bytes()))
    message = f"^{re.escape(str(cache.path))}: removed a damaged embedding cache \\({reason}"
    with pytest.warns(RuntimeWarning, match=message):
        assert cache.get(keys) == {}
    cache.put(keys, rows)
    assert_holds(cache, keys, rows)


def test_damage_that_only_a_write_meets(cache):
    cache.put(keys_of("text", 20), rows_of(20))
    cache.path.write_bytes(b"text" * 100)
    with pytest.warns(RuntimeWarning, match=r"removed a damaged embedding cache \(file is not a database"):
        cache.put(keys_of("other", 2), rows_of(2))
    assert_holds(cache, keys_of("other", 2), rows_of(2))


def test_an_empty_file_is_one_that_is_being_made(cache):
    cache.path.parent.mkdir()
    cache.path.touch()
    assert cache.get(keys_of("text", 2)) == {}
    cache.put(keys_of("text", 2), rows_of(2))
    assert_holds(cache, keys_of("text", 2), rows_of(2))


def test_killed_while_it_writes(cache, monkeypatch):
    """Killed after 4 of 6 MB, more than SQLite keeps in memory. So the file holds half of them until the rollback."""
    keys, rows = keys_of("text", 100), rows_of(100)
    cache.put(keys, rows)
    size = cache.path.stat().st_size
    calls, checksum = itertools.count(), _embedding_cache._checksum

    def kill(*values):
        if next(calls) == 2700:
            os.kill(os.getpid(), signal.SIGKILL)
        return checksum(*values)

    monkeypatch.setattr(_embedding_cache, "_checksum", kill)
    assert in_child(lambda: cache.put(keys_of("lost", 4000), rows_of(4000))) == -signal.SIGKILL
    monkeypatch.undo()
    assert cache.path.stat().st_size > 2 * size and len(list(cache.path.parent.iterdir())) == 2, "a journal"
    assert_holds(cache, keys, rows)
    assert cache.get(keys_of("lost", 4000)) == {}
    assert cache.path.stat().st_size == size and len(list(cache.path.parent.iterdir())) == 1


def test_a_full_disk(cache):
    """Simulated by a file size limit: nothing from the failed call is kept, everything from earlier calls is."""
    keys, rows = keys_of("text", 20), rows_of(20)
    cache.put(keys, rows)

    def put():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        message = f"^{re.escape(str(cache.path))}: the embedding cache cannot be written: .*cache=False"
        with pytest.raises(OSError, match=message):
            cache.put(keys_of("more", 2000), rows_of(2000))

    assert in_child(put) == 0
    assert_holds(cache, keys, rows)
    assert cache.get(keys_of("more", 2000)) == {}


def test_a_folder_in_its_place(cache):
    cache.path.mkdir(parents=True)
    with pytest.raises(OSError, match=r"the embedding cache cannot be read: .*cache=False"):
        cache.get(keys_of("text", 1))


def test_forked_children_write_at_once(cache):
    """Each child writes its own and shared rows, and reads the parent's."""
    cache.put(keys_of("parent", 50), rows_of(50))

    def work(k):
        for i in range(10):
            cache.put(keys_of(f"{k} {i}", 20) + keys_of(f"all {i}", 20), torch.cat([rows_of(20, k), rows_of(20, i)]))
            assert_holds(cache, keys_of("parent", 50), rows_of(50))

    children = [FORK.Process(target=work, args=(k,)) for k in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 3
    for i in range(10):
        assert_holds(cache, keys_of(f"all {i}", 20), rows_of(20, i))
        for k in range(3):
            assert_holds(cache, keys_of(f"{k} {i}", 20), rows_of(20, k))
