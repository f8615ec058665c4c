"""`pcrm average`: the mean bit by bit, the other files of a checkpoint, every error, and kills at any moment."""

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from pcrm._engine import native
from pcrm.cli import main
from pcrm.evaluate.reward_model import RewardModel
from pcrm.methods.averaging import average
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

COMMAND = [sys.executable, "-m", "pcrm.cli", "average"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Digits of a number, and the exponent of the smallest normal number.
FORMATS = {torch.float32: (24, -126), torch.bfloat16: (8, -126), torch.float16: (11, -14)}


def rounded_once(x, dtype):
    """Round float64 to the nearest number of a dtype, ties to even, in units in the last place. torch
    converts to 16-bit dtypes via float32 and so rounds twice."""
    if dtype == torch.float64:
        return x
    digits, least = FORMATS[dtype]
    numbers = x.numpy()
    place = np.maximum(np.frexp(numbers)[1] - 1, least) - digits + 1
    exact = np.ldexp(np.rint(np.ldexp(numbers, -place)), place)
    return torch.from_numpy(np.where(np.isfinite(numbers), exact, numbers)).to(dtype)


def mean(tensors, weights, dtype):
    weights = weights or [1.0] * len(tensors)
    total = weights[0] * tensors[0].double()
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = total + weight * tensor.double()
    return rounded_once(total / sum(weights), dtype)


def differing(a, b):
    """Count the bytes in which two tensors differ, with all NaNs equal."""
    a, b = (x.masked_fill(x.isnan(), torch.nan) if x.is_floating_point() else x for x in (a, b))
    return int(np.count_nonzero(np.frombuffer(raw(a), np.uint8) != np.frombuffer(raw(b), np.uint8)))


def raw(x):
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensors(dtype, seed):
    """All kinds of numbers: of similar size, huge, tiny, equal, and zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(70001, generator=generator, dtype=torch.float64)
    spread = torch.randn(5000, generator=generator, dtype=torch.float64) * 2.0 ** torch.randint(
        -160, 128, (5000,), generator=generator
    )
    return {
        "large": normal.to(dtype),
        "score.weight": spread.to(dtype).view(50, 100),
        "near": (torch.arange(3001) / 3001 + 2.0**-9 * seed).to(dtype),
        "scalar": torch.tensor(1.5 + seed).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "zeros": torch.tensor([0.0, -0.0, -0.0 if seed else 0.0]).to(dtype),
        "position_ids": torch.arange(77).view(1, 77),
        "mask": torch.tensor([True, False]),
    }


def write(folder, weights, shards=None):
    """Write a checkpoint as one file, or as files with the given tensors; with config.json, without a tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    if shards is None:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file({name: weights[name] for name in shard}, folder / file, metadata={"format": "pt"})
        names |= dict.fromkeys(shard, file)
    assert names.keys() == weights.keys()
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def cut(kind):
    """Split the names of `tensors` into files: one file, or a different order and number for each kind."""
    names = sorted(tensors(torch.float32, 0))
    return {"single": None, "halves": [names[:4], names[4:]], "mixed": [names[::3], names[1::3], names[2::3]]}[kind]


def read(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.mark.parametrize(
    "kinds, weights",
    [
        (("single", "single", "single"), None),
        (("halves", "single", "mixed"), [0.3, 0.5, 0.1]),
        (("single", "mixed", "halves"), [0.0, 2.0, 1.0]),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bit_by_bit(tmp_path, dtype, kinds, weights):
    inputs = [tensors(dtype, seed) for seed in range(3)]
    models = [write(tmp_path / f"rm{i}", x, cut(k)) for i, (x, k) in enumerate(zip(inputs, kinds, strict=True))]
    done = average(models, tmp_path / "out", weights=weights)
    assert listing(tmp_path / "out") == listing(models[0])
    for name in ("config.json", "model.safetensors.index.json"):
        if (models[0] / name).exists():
            assert (tmp_path / "out" / name).read_bytes() == (models[0] / name).read_bytes()
    got = read(tmp_path / "out")
    assert got.keys() == inputs[0].keys()
    bad = 0
    for name, tensor in got.items():
        assert (tensor.dtype, tensor.shape) == (inputs[0][name].dtype, inputs[0][name].shape)
        want = inputs[0][name]
        if want.is_floating_point():
            want = mean([x[name] for x in inputs], weights, dtype)
            bad += int((~want.isfinite()).sum())
        assert differing(tensor, want) == 0, name
    assert done.tensors == len(got) and done.not_finite == bad
    assert done.bytes == sum(x.numel() * x.element_size() for x in got.values())
    assert done.weights == [w / sum(weights or [1.0] * 3) for w in weights or [1.0] * 3]
    for path in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", ["single", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_checkpoint_with_itself(tmp_path, dtype, kind):
    model = write(tmp_path / "rm", tensors(dtype, 1), cut(kind))
    for weights in (None, [0.1, 0.7, 0.3, 0.2, 5.0]):
        average([model] * 5, tmp_path / "out", weights=weights)
        assert listing(tmp_path / "out") == listing(model)
        for path in model.iterdir():
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("tier", ["scalar", "auto"])
def test_nan_and_infinity(tmp_path, capsys, tier):
    library = native.library()
    before = library.bridge_Tier()
    a, b = torch.ones(40), torch.ones(40)
    a[3], a[20], b[20], a[39], b[39] = torch.nan, torch.inf, -torch.inf, torch.inf, 3.0
    models = [write(tmp_path / name, {"fine": torch.ones(9), "x.weight": x}) for name, x in (("a", a), ("b", b))]
    library.bridge_SetTier(tier)
    try:
        assert main(["average", *map(str, models), "--out", str(tmp_path / "out")]) == 0
    finally:
        library.bridge_SetTier(before)
    assert "3 elements of the average are NaN or infinite, the first in tensor x.weight" in capsys.readouterr().err
    want = torch.ones(40)
    want[3], want[20], want[39] = torch.nan, torch.nan, torch.inf
    assert torch.equal(read(tmp_path / "out")["x.weight"].nan_to_num(5.0), want.nan_to_num(5.0))


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    """Reward models with the same start, in one file and in several, with other files that a run leaves."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("models")
    made = []
    for i in range(3):
        shutil.copytree(tiny, folder / f"rm{i}")
        model = AutoModelForSequenceClassification.from_pretrained(tiny)
        torch.manual_seed(i)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
        if i == 1:
            (folder / "rm1" / "model.safetensors").unlink()
        model.save_pretrained(folder / f"rm{i}", max_shard_size="20KB" if i == 1 else "5GB")
        made.append(folder / f"rm{i}")
    assert len(list(made[1].glob("*.safetensors"))) > 1
    return made


def changed(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_loads_and_scores(models, tmp_path, capsys, rows):
    """transformers loads a model whose parameters are the means. Other files are copied."""
    from transformers import AutoModelForSequenceClassification

    first = tmp_path / "rm0"
    shutil.copytree(models[0], first)
    changed(first, "config.json", transformers_version="4.0.0", attention_dropout=0.25)
    changed(first, "tokenizer_config.json", model_max_length=77)
    (first / "1_Pooling").mkdir()
    (first / "1_Pooling" / "config.json").write_text("{}")
    for name in ("generation_config.json", "chat_template.jinja", "modeling_own.py", "LICENSE"):
        (first / name).write_text("{}")
    carried = {p for p in listing(first) if p != "model.safetensors"}
    for name in ("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "trainer_state.json", "README.md"):
        (first / name).write_text("x")
    (first / "global_step9").mkdir()
    (first / "global_step9" / "zero.json").write_text("x")
    for other in models[1:]:
        shutil.copytree(other, tmp_path / other.name)
        (tmp_path / other.name / "chat_template.jinja").write_text("{}")
    argv = [str(tmp_path / m.name) for m in models]
    out = tmp_path / "new" / "out"
    assert main(["average", *argv, "--out", f"{out}/", "--weights", "2", "1", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(rf"{out}/: \d+ tensors, [\d,]+ bytes, weights 0.5 0.25 0.25\n", printed), printed
    assert set(listing(out)) == carried | {"model.safetensors"}
    for name in carried:
        assert not (out / name).is_file() or (out / name).read_bytes() == (first / name).read_bytes()
    assert listing(out.parent.parent) == sorted([*listing(tmp_path)]) and listing(out.parent)[0] == "out"

    parts = [dict(AutoModelForSequenceClassification.from_pretrained(m).named_parameters()) for m in models]
    mean_model = AutoModelForSequenceClassification.from_pretrained(models[0])
    with torch.no_grad():
        for name, p in mean_model.named_parameters():
            p.copy_(mean([x[name].detach() for x in parts], [2.0, 1.0, 1.0], torch.float32))
    (out / "modeling_own.py").unlink()
    model = RewardModel(str(out), device="cpu")
    ids = [model.encode("chosen", r["prompt"] + r["chosen"] + model.end) for r in rows[:8]]
    scores = model.score(ids)
    mean_model.config.pad_token_id = model.tokenizer.pad_token_id
    with torch.no_grad():
        want = [mean_model.eval()(torch.tensor([x])).logits.item() for x in ids]
    # One float32 forward pass for all or for each: sums of 32 products in another order.
    np.testing.assert_allclose(scores, want, rtol=0, atol=1e-5)
    alone = RewardModel(str(models[0]), device="cpu").score(ids)
    assert np.abs(scores - alone).max() > 0.01, "it is not the first model"


def test_tokenizer_where_there_is_one(models, tmp_path):
    """The tokenizer comes from the first model that has one. There may be none."""
    folders = []
    for model in models[:2]:
        folders.append(tmp_path / model.name)
        shutil.copytree(model, folders[-1])
    for path in folders[0].glob("*token*"):
        path.unlink()
    (folders[0] / "chat_template.jinja").write_text("one that is of no use")
    (folders[1] / "generation_config.json").write_text("{}")
    average(folders, tmp_path / "out")
    assert listing(tmp_path / "out") == sorted({*listing(models[0])})
    for name in set(listing(models[0])) - {"model.safetensors", "config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (folders[1] / name).read_bytes()
    bare = write(tmp_path / "bare", {"a": torch.ones(3)})
    average([bare, bare], tmp_path / "none")
    assert listing(tmp_path / "none") == ["config.json", "model.safetensors"]


def header_of(path, edit):
    """Change the header of a file, which may change its length."""
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = edit(data[8 : 8 + n])
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + n :])


def overlapping(header):
    entries = json.loads(header)
    names = [n for n in entries if n != "__metadata__"]
    entries[names[1]] |= {k: entries[names[0]][k] for k in ("data_offsets", "shape", "dtype")}
    return json.dumps(entries).encode()


def weights_of(folder, **edit):
    path = folder / "model.safetensors"
    save_file({k: v for k, v in (load_file(path) | edit).items() if v is not None}, path)


def swapped(folder):
    """Swap the ids of two tokens."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[5:7]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(tokenizer))


NORM = "model.norm.weight"
BAD = {
    "shape": (lambda m: weights_of(m, **{NORM: torch.ones(17)}), "{bad}/model.safetensors: tensor \"model.norm.weight\": must have shape [16], as in {good}/model.safetensors, got [17]"),
    "dtype": (lambda m: weights_of(m, **{NORM: torch.ones(16).half()}), "{bad}/model.safetensors: tensor \"model.norm.weight\": must be F32, as in {good}/model.safetensors, got F16"),
    "missing": (lambda m: weights_of(m, **{NORM: None}), "{bad}: tensor \"model.norm.weight\": is missing, but {good}/model.safetensors has it"),
    "more": (lambda m: weights_of(m, more=torch.ones(1)), "{bad}/model.safetensors: tensor \"more\": is missing from {good}"),
    "quantized": (lambda m: weights_of(m, **{NORM: torch.ones(16).to(torch.float8_e4m3fn)}), "{bad}/model.safetensors: header: \"model.norm.weight\": dtype must be one of BF16, BOOL, F16, F32, F64, I16, I32, I64, I8, U16, U32, U64, U8, got \"F8_E4M3\""),
    "truncated": (lambda m: os.truncate(m / "model.safetensors", 9000), "{bad}/model.safetensors: tensor \""),
    "cut in the header": (lambda m: os.truncate(m / "model.safetensors", 90), "{bad}/model.safetensors: header must have"),
    "huge header": (lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"), "{bad}/model.safetensors: header must have at most 104857600 bytes, got 18446744073709551615"),
    "overlap": (lambda m: header_of(m / "model.safetensors", overlapping), "{bad}/model.safetensors: tensor \""),
    "deep nesting": (lambda m: header_of(m / "model.safetensors", lambda h: b'{"a":' + b"[" * 10**6), "{bad}/model.safetensors: header must be a JSON object"),
    "twice": (lambda m: header_of(m / "model.safetensors", lambda h: h.rstrip()[:-1] + b',"model.norm.weight":{}}'), "{bad}/model.safetensors: header: \"model.norm.weight\" must not be repeated"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "{bad}: must contain model.safetensors or model.safetensors.index.json"),
    "a path": (lambda m: ((m / "model.safetensors").rename(m.parent / "x.safetensors"), (m / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')), "{bad}/model.safetensors.index.json: tensor \"a\": must be in a .safetensors file in the folder of the index, got \"../x.safetensors\""),
    "no config": (lambda m: (m / "config.json").unlink(), "{bad}/config.json: no such file or directory"),
    "no JSON": (lambda m: (m / "config.json").write_text("{"), "{bad}/config.json: must be JSON: "),
    "deep JSON": (lambda m: (m / "config.json").write_text("[" * 10**6), "{bad}/config.json: must be JSON: "),
    "JSON of a list": (lambda m: (m / "config.json").write_text("[]"), "{bad}/config.json: must be a JSON object, got list"),
    "config": (lambda m: changed(m, "config.json", num_attention_heads=4), "{bad}/config.json: num_attention_heads must be 2, as in {good}/config.json, got 4"),
    "one more setting": (lambda m: changed(m, "config.json", sliding_window=4), "{bad}/config.json: sliding_window must be null, as in {good}/config.json, got 4"),
    "a setting inside": (lambda m: changed(m, "config.json", rope_parameters={"rope_theta": 3.0, "rope_type": "default"}), "{bad}/config.json: rope_parameters.rope_theta must be 10000.0, as in {good}/config.json, got 3.0"),
    "no vocabulary": (lambda m: (m / "tokenizer.json").unlink(), "{bad}: tokenizer.json is missing, but {good} has one"),
    "chat template": (lambda m: (m / "chat_template.jinja").write_text("x"), "{bad}/chat_template.jinja: must be the same file as in {good}, got a different one"),
    "no chat template": (lambda m: (m / "chat_template.jinja").unlink(), "{bad}: chat_template.jinja is missing, but {good} has one"),
    "a special token": (lambda m: changed(m, "tokenizer_config.json", eos_token="<x>"), "{bad}/tokenizer_config.json: eos_token must be \"<eos>\", as in {good}/tokenizer_config.json, got \"<x>\""),
    "vocabulary": (swapped, "{bad}/tokenizer.json: model.vocab."),
    "module": (lambda m: ((m / "2_Dense").mkdir(), (m / "2_Dense" / "model.safetensors").write_bytes(b"x")), "{bad}/2_Dense/model.safetensors: separate weights of a module cannot be averaged"),
    "adapter": (lambda m: (m / "config.json").rename(m / "adapter_config.json"), "{bad}: must be a full model, got an adapter"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_refusals(models, tmp_path, capsys, kind):
    """Raised before anything is written, for each of the models. The message names the file."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    shutil.copytree(models[0], good)
    shutil.copytree(models[2], bad)
    edit, want = BAD[kind]
    edit(bad)
    before = listing(tmp_path)
    assert main(["average", str(good), str(bad), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert want.format(good=good, bad=bad) in error and error.startswith("pcrm average: ") and "Traceback" not in error
    assert main(["average", str(bad), str(good), "--out", str(tmp_path / "out")]) == 1
    assert listing(tmp_path) == before


def test_integers_differ(tmp_path):
    a, b = (write(tmp_path / f"rm{i}", tensors(torch.float32, 0)) for i in range(2))
    ids = torch.arange(77).view(1, 77)
    ids[0, 50] = 0
    weights_of(b, position_ids=ids)
    with pytest.raises(ValueError, match=r'rm1/model\.safetensors: tensor "position_ids": element 50 must equal'):
        average([a, b], tmp_path / "out")
    assert listing(tmp_path)[-1].startswith("rm1")


@pytest.mark.parametrize(
    "weights, message",
    [
        ([1.0], r"weights must have 2 elements, one per checkpoint, got 1"),
        ([], r"weights must have 2 elements, one per checkpoint, got 0"),
        ([1.0, -0.5], r"weights\[1\] must be at least 0 and finite, got -0\.5"),
        ([float("nan"), 1.0], r"weights\[0\] must be .*, got NaN"),
        ([1.0, float("inf")], r"weights\[1\] must be .*, got \+Inf"),
        ([0.0, 0.0], r"weights must have a finite sum greater than 0, got 0"),
    ],
)
def test_weights(tmp_path, weights, message):
    model = write(tmp_path / "rm", {"a": torch.ones(3)})
    with pytest.raises(ValueError, match=message):
        average([model, model], tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


def test_one_model(tmp_path, capsys):
    model = write(tmp_path / "rm", {"a": torch.ones(3)})
    assert main(["average", str(model), "--out", str(tmp_path / "out")]) == 1
    assert "models must have at least 2 elements, got 1" in capsys.readouterr().err
    with pytest.raises(ValueError, match="models must have at least 2 elements, got 0"):
        average([], tmp_path / "out")


def test_out(tmp_path):
    """Existing files are kept. An empty folder may exist. Files left by a kill are replaced."""
    model = write(tmp_path / "rm", {"a": torch.ones(3)})
    out, part = tmp_path / "out", tmp_path / "out.part"
    with pytest.raises(ValueError, match=r"rm: already exists"):
        average([model, model], model)
    out.mkdir()
    part.mkdir()
    (part / "model.safetensors").write_text("half")
    (part / "mine").write_text("x")
    with pytest.raises(
        ValueError, match=r"out\.part: cannot use this folder for temporary files: it already contains mine"
    ):
        average([model, model], out)
    assert listing(part) == ["mine", "model.safetensors"]
    (part / "mine").unlink()
    lock = os.open(part, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match=r"out: another process is writing it"):
        average([model, model], out)
    os.close(lock)
    average([model, model], out)
    assert listing(out) == ["config.json", "model.safetensors"] and not part.exists()


@pytest.fixture
def large(tmp_path):
    """256 MB of zeros in a sparse file, which takes no space."""
    model = tmp_path / "large"
    model.mkdir()
    (model / "config.json").write_text("{}")
    n = 1 << 28
    header = json.dumps({"a": {"dtype": "F32", "shape": [n // 4], "data_offsets": [0, n]}}).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + n)
    return model


# The command, which sends itself a signal after a sixteenth of the average.
ENDED = """
import os, sys
from pcrm.methods import averaging
whole = averaging.average
def ended(*models, progress, **options):
    def part(done, total):
        progress(done, total)
        if done >= total // 16:
            os.kill(os.getpid(), int(sys.argv[1]))
    return whole(*models, progress=part, **options)
averaging.average = ended
from pcrm.cli import main
sys.exit(main(["average", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_ended_in_the_middle(tmp_path, large, by):
    """A kill leaves no folder that looks complete, an interrupt leaves none. The same command then succeeds."""
    out, part = tmp_path / "out", tmp_path / "out.part"
    arguments = [str(large), str(large), "--out", str(out)]
    ended = subprocess.run(
        [sys.executable, "-c", ENDED, str(int(by)), *arguments], capture_output=True, text=True, timeout=200
    )
    if by == signal.SIGINT:
        assert (ended.returncode, ended.stdout) == (130, "")
        assert ended.stderr.endswith("pcrm average: interrupted; nothing was written\n")
        assert "Traceback" not in ended.stderr
        assert listing(tmp_path) == ["large", "large/config.json", "large/model.safetensors"]
        return
    assert ended.returncode == -9, ended.stderr
    assert not out.exists() and listing(part) == ["model.safetensors"]
    with pytest.raises(SafetensorError):
        load_file(part / "model.safetensors")
    subprocess.run([*COMMAND, *arguments], check=True, timeout=200, capture_output=True)
    assert listing(tmp_path)[-3:] == ["out", "out/config.json", "out/model.safetensors"]
    assert (out / "model.safetensors").stat().st_size == (large / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_no_space(tmp_path, large):
    """With a limit of 100 MB per file."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**8, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    argv = [*COMMAND, str(large), str(large), "--out", str(tmp_path / "out")]
    failed = subprocess.run(argv, capture_output=True, text=True, timeout=200, preexec_fn=limited)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert f"pcrm average: write {tmp_path}/out.part/model.safetensors: file too large" in failed.stderr
    assert listing(tmp_path) == ["large", "large/config.json", "large/model.safetensors"]


@pytest.mark.slow
def test_memory(tmp_path, large):
    """A tensor of 256 MB in two checkpoints needs under 24 MB: buffers, and Go's own heap."""
    code = """
import pathlib, re, sys
from pcrm.methods.averaging import average

def own():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

start, seen = own(), []
average([sys.argv[1]] * 2, sys.argv[2], progress=lambda done, total: seen.append(own()))
assert len(seen) == 16
print(max(seen) - start)
"""
    argv = [sys.executable, "-c", code, str(large), str(tmp_path / "out")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24 << 10
