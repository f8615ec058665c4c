"""What all tests share: an offline environment, both backends, tiny models made on the spot."""

import os

# Before transformers and TRL are imported: no test asks a hub or draws a bar.
os.environ.update(CI="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers.models import make_tiny
from helpers.project import ROOT
from pcrm._engine import choice, native

import pcrm

# A shell starts what is in the background with SIGINT ignored, and children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = ROOT.parent / "shared" / "data"


# Set by test_cuda.py for the processes that it starts with a fake CUDA driver.
FAKE_CUDA = os.environ.get("PCRM_TEST_FAKECUDA")


@pytest.fixture(params=["go", "torch", *(["cuda"] if FAKE_CUDA else [])])
def backend(request):
    if request.param == "cuda":
        request.getfixturevalue("fake_device")
        yield "cuda"
        return
    with pcrm.backends.use_backend(request.param):
        yield request.param


@pytest.fixture
def fake_device(monkeypatch):
    """Losses of CPU tensors take the path of CUDA tensors, from the choice of the backend on.

    The fake driver's device memory is the host's, so host addresses work. The answers of
    torch about a stream are invented.
    """
    from types import SimpleNamespace

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0x5EAF))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(
        choice,
        "native_for_loss",
        lambda *_: native.chosen_library() if native.backend == "go" else choice.cuda_device(0),
    )


@pytest.fixture(scope="session")
def without_native(tmp_path_factory):
    """The package as it is where the extension could not be built."""
    folder = tmp_path_factory.mktemp("no-native")
    shutil.copytree(
        os.path.dirname(pcrm.__file__), folder / "pcrm", ignore=shutil.ignore_patterns("_bridge*.so", "__pycache__")
    )
    info = {"native": False, "reason": "the native extension is built on Linux, and this is beos"}
    (folder / "pcrm" / "_native" / "build_info.json").write_text(json.dumps(info))
    return str(folder)


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory):
    """The environment of a process that finds the fake driver."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("the fake CUDA driver needs a C++ compiler, and there is no c++ on PATH")
    folder = tmp_path_factory.mktemp("fakecuda")
    # _FORTIFY_SOURCE would take its threads' jumps for an attack.
    flags = ["-O2", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-w"]
    source = ROOT / "gpu" / "testdata" / "fakecuda" / "fakecuda.cpp"
    subprocess.run([compiler, *flags, "-o", folder / "libcuda.so.1", source], check=True)
    return {"LD_LIBRARY_PATH": str(folder), "PCRM_TEST_FAKECUDA": "1"}


@pytest.fixture
def trl_as_it_was(monkeypatch):
    """What the commands put behind TRL's names ends with the test."""
    import trl
    from trl.trainer import dpo_trainer, reward_trainer

    for module in (trl, trl.trainer):
        for name in ("RewardConfig", "RewardTrainer", "DPOConfig", "DPOTrainer"):
            monkeypatch.setattr(module, name, getattr(module, name))
    for module, name in ((reward_trainer, "RewardTrainer"), (dpo_trainer, "DPOTrainer")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(trl, "TrlParser", trl.TrlParser)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", sys.path[:])


@pytest.fixture(scope="session")
def golden():
    return json.loads((ROOT / "tests" / "golden" / "vectors.json").read_text())["cases"]


def shared_data(name):
    """The path of real data, which lies beside the project on some machines."""
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"{path.relative_to(ROOT.parent)} is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def real_pairs():
    """The path of real human preferences."""
    return shared_data("tldr_train_pairs.jsonl.gz")


@pytest.fixture(scope="session")
def real_rankings():
    """The path of the human ratings that the preferences of `real_pairs` are made of."""
    return shared_data("tldr_train_ratings.jsonl")


@pytest.fixture(scope="session")
def rows():
    from pcrm.demo.world import generate

    return generate(64, seed=0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, rows):
    """The folder of a tiny random reward model with its tokenizer."""
    from transformers import LlamaForSequenceClassification

    return make_tiny(tmp_path_factory.mktemp("tiny"), rows, LlamaForSequenceClassification, num_labels=1)


@pytest.fixture(scope="session", params=["transformers", "sentence-transformers", "static"])
def no_special_tokens(request, tmp_path_factory, tiny):
    """The folder of a tiny random encoder whose tokenizer adds no tokens, so that an empty text has none."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, StaticEmbedding, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    if request.param == "static":
        module = StaticEmbedding(tokenizer, embedding_dim=8)
        SentenceTransformer(modules=[module], device="cpu").save(str(folder))
        return folder
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for part in (BertModel(BertConfig(vocab_size=len(tokenizer), **size)), tokenizer):
        part.save_pretrained(folder)
    if request.param == "sentence-transformers":
        inner = Transformer(str(folder))
        folder = tmp_path_factory.mktemp("encoder")
        SentenceTransformer(modules=[inner, Pooling(16)], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory, rows):
    """The folder of a tiny random language model with its tokenizer."""
    from transformers import LlamaForCausalLM

    return make_tiny(tmp_path_factory.mktemp("policy"), rows, LlamaForCausalLM)
