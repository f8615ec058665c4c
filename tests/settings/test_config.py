"""Reading `pcrm.toml` in Python. The meaning of its settings is tested in test_settings.py."""

import math
import os
import subprocess
import sys

import pytest
from pcrm.settings import Targets, load_config

import pcrm


def write(tmp_path, text):
    path = tmp_path / "pcrm.toml"
    path.write_text(text)
    return path


def test_everything(tmp_path):
    path = write(
        tmp_path,
        """
[constraint]
prior = "column"
beta1 = 12.0
beta2 = 0.01
beta3 = -4
floor = 2.0
cap = inf

[loss]
form = "pair"
label_smoothing = 0.1
center_rewards_coefficient = 0.01

[dpo]
beta = 0.2
""",
    )
    config = load_config(path)
    assert config.constraint == pcrm.Constraint.from_toml(str(path)) == pcrm.Constraint(12, 0.01, -4, 2, math.inf)
    assert (config.prior, config.form) == ("column", "pair")
    assert (config.label_smoothing, config.center_rewards_coefficient, config.dpo_beta) == (0.1, 0.01, 0.2)


def test_defaults_and_kinds(tmp_path):
    config = load_config(write(tmp_path, ""))
    assert (config.prior, config.constraint, config.dpo_beta) == ("length_ratio", Targets(1, 3), 0.1)
    assert load_config(
        write(tmp_path, '[constraint]\nprior = "fixed"\ndelta = inf')
    ).constraint == pcrm.Constraint.fixed(math.inf)
    random = load_config(write(tmp_path, '[constraint]\nprior = "random"\nlow = 4.5\nhigh = 6\nseed = 7')).constraint
    assert random == pcrm.Constraint.random(4.5, 6, seed=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[constraint]\nbeta4 = 1", r"pcrm\.toml:2: constraint\.beta4 is not a key"),
        ('[constraint]\n\nbeta1 = "x"', r"pcrm\.toml:3: constraint\.beta1 must be a number, got 'x'"),
        (
            "[constraint]\nbeta1 = 10\nbeta3 = -20",
            r"pcrm\.toml:3: constraint\.delta must be greater than 0 on all of \[0, 1\], got -10\.0\d* at similarity 1",
        ),
        (
            "[constraint]\ndelta = 5",
            r"pcrm\.toml:2: constraint\.delta must not be set, got 5: prior='length_ratio' does not use it",
        ),
        ("[loss]\nlabel_smoothing = 0.7", r"pcrm\.toml:2: loss\.label_smoothing must be in \[0, 0\.5\), got 0\.7"),
        ("[dpo]\nbeta = 1e400", r"pcrm\.toml:2: dpo\.beta must be a number of at most 1\.79769e\+308"),
        (
            "[constraint]\ncap = -1.8e9_999_999_999_999_999_999\n",
            r"pcrm\.toml:2: constraint\.cap must be a number of at",
        ),
        (
            f"[constraint]\nprior = 'random'\nseed = {2**63}",
            r"pcrm\.toml:3: constraint\.seed must be in \[0, 2\*\*63\), got 9223372036854775808",
        ),
        (f"[constraint]\nbeta1 = {'1' * 5000}\n\n", r"pcrm\.toml:2: TOML is malformed: Exceeds the limit"),
        ("# of \u2028 one \x85 line\n[loss]\nform = 'x'", r"pcrm\.toml:3: loss\.form must be one of"),
        (
            '[constraint]\nprior = """\n[loss]\nform = 1"""\n[loss]\nform = "x"',
            r"pcrm\.toml:6: loss\.form must be one of",
        ),
        ("[loss", r"pcrm\.toml:1: TOML is malformed"),
    ],
)
def test_errors_name_file_line_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, text))


def test_missing_file(tmp_path):
    with pytest.raises(OSError, match=r"No such file.*none\.toml"):
        pcrm.Constraint.from_toml(tmp_path / "none.toml")


@pytest.mark.slow
def test_what_is_no_file(tmp_path):
    """Reading a pipe would block in Go, where Python's signals do not arrive. So test it in a child with a time limit."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    load = "import sys; from pcrm.settings import load_config; load_config(sys.argv[1])"
    for name in ("pipe", "link", "."):
        path = tmp_path / name
        child = subprocess.run([sys.executable, "-c", load, path], capture_output=True, text=True, timeout=60)
        assert child.stderr.strip().endswith(f"OSError: {path}: must be a regular file"), child.stderr


def test_random_constraint(backend):
    c = pcrm.Constraint.random(4, 5, seed=3)
    assert c.is_random and not c.is_fixed and repr(c) == "Constraint.random(low=4.0, high=5.0, seed=3)"
    assert c.delta(0.0) == 4 and c.delta(0.25) == 4.25
    assert pcrm.Constraint.preset("tldr/random") == pcrm.Constraint.random(5, 6)
    for message, arguments in {
        "low must be finite and greater than 0, got 0": (0, 1),
        "high must be finite and at least low, which is 4, got 3": (4, 3),
        r"seed must be in \[0, 2\*\*64\), got -1": (4, 5, -1),
        "high must be a number, got nan": (4, math.nan),
    }.items():
        with pytest.raises(ValueError, match=message):
            pcrm.Constraint.random(*arguments)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_reads_it_too(tmp_path):
    """A forked child cannot use the native library after its parent has."""
    path = write(tmp_path, "[constraint]\npreset = 'tldr/cosine'")
    parent = pcrm.Constraint.from_toml(path)
    parent.delta(0.5)
    child = os.fork()
    if child == 0:
        os._exit(0 if pcrm.Constraint.from_toml(path) == parent else 4)
    assert os.waitpid(child, 0)[1] == 0
