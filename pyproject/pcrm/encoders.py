"""Embeddings of texts by a pretrained encoder, each computed once and kept on disk.

    Encoder("sentence-transformers/all-MiniLM-L6-v2").embed(texts)     # (N, D), for priors.cosine

Needs `pip install 'pcrm[encoders]'`.

The cache is `$XDG_CACHE_HOME/pcrm/embeddings`, by default `~/.cache/pcrm/embeddings`: a folder
for each model and way of pooling, readable by its owner only, of safetensors files. An
embedding is found by the SHA-256 of its text and carries a checksum, so that a damaged file
is recognized and its texts embedded anew. It grows without bound; any of it may be deleted
at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .tokens import load_tokenizer

POOLINGS = ("mean", "cls")

# An embed call writes one file; so many small ones become one, so that a search opens few
# and a merge holds at most 64 MiB.
_SMALL_FILES, _SMALL_BYTES = 16, 4 << 20


class Encoder:
    """A pretrained text encoder.

    Args:
        model: The folder of a checkpoint or its name on the hub, of sentence-transformers or
            transformers.
        pooling: What becomes of the vectors of a text's tokens: their "mean", or "cls", the
            first of them, as the authors take from bert-base-cased (arXiv 2404.00978).
            None is what the checkpoint says where it is one of sentence-transformers, by the
            `modules.json` in it, else the mean.
        device: A torch device; by default the GPU where there is one, else the CPU.
        batch_size: Texts in a forward pass. Texts of like length are put together.
        max_length: Tokens of a text, special ones included; what is over is cut off. By
            default what the checkpoint was made for.
        cache: Where embeddings are kept: a folder, True for the default place, False for
            nowhere.

    Weights are float32 whatever the checkpoint has. An encoder is pickled as its arguments
    and read again where it arrives.

    Raises:
        ImportError: there is no transformers (or sentence-transformers, for its checkpoints).
        OSError: there is no such checkpoint, or its weights are no safetensors.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        pooling: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
        max_length: int | None = None,
        cache: bool | str | os.PathLike[str] = True,
    ) -> None:
        if pooling not in (None, *POOLINGS):
            raise ValueError(f"pooling is {pooling!r}, must be one of {', '.join(POOLINGS)} or None")
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}, must be an integer of at least 1")
        self._arguments = {
            "model": os.fspath(model),
            "pooling": pooling,
            "device": device,
            "batch_size": batch_size,
            "max_length": max_length,
            "cache": cache if isinstance(cache, bool) else os.fspath(cache),
        }
        self.model = os.fspath(model)
        self.batch_size = batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            if pooling is None and _is_sentence_transformer(self.model):
                self.pooling = "checkpoint"
                self._body: Any = _SentenceTransformer(self.model, self.device, max_length)
            else:
                self.pooling = pooling or "mean"
                self._body = _Transformer(self.model, self.pooling, self.device, max_length)
        except OSError as error:
            raise OSError(f"{self.model}: cannot be read as an encoder: {error}") from error
        self.max_length: int = self._body.max_length
        self._cache_root = None if cache is False else _default_cache() if cache is True else Path(cache)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Encoder, **self._arguments), ()

    @cached_property
    def identity(self) -> str:
        """What the embeddings depend on: a SHA-256 of the checkpoint's files, or of its commit
        on the hub, with the pooling and the greatest length.
        """
        content = self._body.commit or content_hash(Path(self.model))
        return hashlib.sha256(json.dumps([content, self.pooling, self.max_length]).encode()).hexdigest()

    @cached_property
    def _cache(self) -> _Cache | None:
        return None if self._cache_root is None else _Cache(self._cache_root / self.identity[:32])

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """The embeddings of texts, each distinct one computed once.

        What the cache lacks is computed and written to it at the end of the call, all of it
        or nothing.

        Returns:
            float32, shape (N, D), on the CPU.

        Raises:
            TypeError: an element is no text, named by its index.
            ValueError: a text that is no valid Unicode, has no tokens, or whose embedding is
                not finite.
            OSError: the cache cannot be written.
        """
        keys = [_key(i, text) for i, text in enumerate(texts)]
        place: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            place.setdefault(key, i)
        known = self._cache.get(place) if self._cache is not None else {}
        missing = [key for key in place if key not in known]
        if missing:
            rows = self._body.embed([texts[place[key]] for key in missing], self.batch_size)
            if not (finite := rows.isfinite().all(1)).all():
                worst = place[missing[int((~finite).nonzero()[0])]]
                raise ValueError(f"texts[{worst}]: {self.model} gives it an embedding that is not finite")
            if self._cache is not None:
                self._cache.put(missing, rows)
            known.update(zip(missing, rows, strict=True))
        if not keys:
            return self._body.embed(["a"], 1)[:0]
        return torch.stack([known[key] for key in keys])


def _key(i: int, text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"texts[{i}] is a {type(text).__name__}, must be a text")
    try:
        return hashlib.sha256(text.encode()).digest()
    except UnicodeEncodeError as error:
        raise ValueError(f"texts[{i}] is no valid Unicode: {error}") from None


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pcrm" / "embeddings"


def _is_sentence_transformer(model: str) -> bool:
    if os.path.isdir(model):
        return os.path.isfile(os.path.join(model, "modules.json"))
    from transformers.utils.hub import cached_file

    return cached_file(model, "modules.json", _raise_exceptions_for_missing_entries=False) is not None


def content_hash(folder: Path) -> str:
    """Of every file of a checkpoint but those whose names begin with a dot."""
    paths = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    total = hashlib.sha256()
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in paths):
        if not any(part.startswith(".") for part in name.split("/")):
            with path.open("rb") as file:
                total.update(json.dumps([name, hashlib.file_digest(file, "sha256").hexdigest()]).encode())
    return total.hexdigest()


class _SentenceTransformer:
    """A checkpoint of sentence-transformers, with the pooling that it names."""

    def __init__(self, model: str, device: str, max_length: int | None) -> None:
        from sentence_transformers import SentenceTransformer

        # Never pickle: weights that are no safetensors are an error.
        self.model = SentenceTransformer(model, device=device, model_kwargs={"use_safetensors": True}).float().eval()
        if max_length is not None:
            self.model.max_seq_length = max_length
        self.max_length: int = self.model.max_seq_length or 0  # 0: it has no limit
        config = getattr(getattr(self.model[0], "auto_model", None), "config", None)
        self.commit: str | None = None if os.path.isdir(model) else getattr(config, "_commit_hash", None) or model

    def embed(self, texts: list[str], batch_size: int) -> torch.Tensor:
        rows: Any = self.model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
        return rows.float().cpu()


class _Transformer:
    """A checkpoint of transformers, pooled here."""

    def __init__(self, model: str, pooling: str, device: str, max_length: int | None) -> None:
        from transformers import AutoModel

        self.pooling = pooling
        self.tokenizer = load_tokenizer(model)
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModel.from_pretrained(model, use_safetensors=True).float().eval().to(device)
        config = self.model.config
        limit = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 1 << 62)
        if max_length is not None and max_length > limit:
            raise ValueError(f"max_length is {max_length}, {model} takes at most {limit} tokens")
        self.max_length: int = max_length or limit
        self.commit: str | None = None if os.path.isdir(model) else getattr(config, "_commit_hash", None) or model
        self.dimension = config.hidden_size

    @torch.inference_mode()
    def embed(self, texts: list[str], batch_size: int) -> torch.Tensor:
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        length = [len(ids) for ids in encoded["input_ids"]]
        if 0 in length:
            raise ValueError(f"the text {texts[length.index(0)]!r} has no tokens")
        # The longest first: what does not fit into memory says so at once.
        order = sorted(range(len(texts)), key=lambda i: -length[i])
        result = torch.empty(len(texts), self.dimension)
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            rows = {name: [column[i] for i in part] for name, column in encoded.items()}
            batch = self.tokenizer.pad(rows, return_tensors="pt").to(self.model.device)
            hidden = self.model(**batch).last_hidden_state
            if self.pooling == "cls":
                pooled = hidden[:, 0]
            else:
                mask = batch["attention_mask"][:, :, None].to(hidden.dtype)
                pooled = (hidden * mask).sum(1) / mask.sum(1)
            result[part] = pooled.float().cpu()
        return result


class _Cache:
    """Embeddings on disk, those of one model.

    A file has the sorted keys, the embeddings and their checksums; it is written whole or
    not at all and never changed. Memory is that of the answer: files are mapped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, tuple[np.ndarray, torch.Tensor, torch.Tensor]] = {}

    def get(self, keys: Iterable[bytes]) -> dict[bytes, torch.Tensor]:
        wanted = np.array(sorted(keys), dtype="S32")
        return {key: row for path in self._files() for key, row in self._found(path, wanted).items()}

    def _found(self, path: Path, wanted: np.ndarray | None) -> dict[bytes, torch.Tensor]:
        """What a file has of the wanted keys, of all keys where that is None.

        Of a damaged file nothing: it is removed, and what it had is embedded anew.
        """
        from safetensors import SafetensorError

        found: dict[bytes, torch.Tensor] = {}
        try:
            table, rows, sums = self._table(path)
            if wanted is None:
                wanted = table
            if not len(table):
                return {}
            at = np.searchsorted(table, wanted).clip(max=len(table) - 1)
            hits = table[at] == wanted
            for key, i in zip(wanted[hits].tolist(), at[hits].tolist(), strict=True):
                key = key.ljust(32, b"\0")  # NumPy's strings end at their last byte that is not 0
                row = rows[i].clone()
                if _checksum(key, row) != sums[i].numpy().tobytes():
                    raise ValueError("a checksum does not fit")
                found[key] = row
        except FileNotFoundError:  # another process merged it into a greater one
            return {}
        except (SafetensorError, ValueError, TypeError) as error:
            warnings.warn(f"{path} is damaged and removed: {error}", RuntimeWarning, stacklevel=4)
            self._open.pop(path.name, None)
            path.unlink(missing_ok=True)
            return {}
        return found

    def put(self, keys: list[bytes], rows: torch.Tensor) -> None:
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._write(keys, rows)
        sizes = {path: _size(path) for path in self._files()}
        small = [path for path, size in sizes.items() if size < _SMALL_BYTES]
        if len(small) < _SMALL_FILES:
            return
        together = {key: row for path in small for key, row in self._found(path, None).items()}
        merged = self._write(list(together), torch.stack(list(together.values())))
        for path in small:
            if path != merged:
                path.unlink(missing_ok=True)

    def _write(self, keys: list[bytes], rows: torch.Tensor) -> Path:
        from safetensors.torch import save_file

        order = sorted(range(len(keys)), key=keys.__getitem__)
        table = b"".join(keys[i] for i in order)
        rows = rows[order].contiguous()
        sums = b"".join(_checksum(keys[i], row) for i, row in zip(order, rows, strict=True))
        path = self.folder / f"{hashlib.sha256(table).hexdigest()[:32]}.safetensors"
        handle, part = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        try:
            tensors = {
                "keys": torch.frombuffer(bytearray(table), dtype=torch.uint8).view(-1, 32),
                "embeddings": rows,
                "checksums": torch.frombuffer(bytearray(sums), dtype=torch.uint8).view(-1, 16),
            }
            save_file(tensors, part)
            os.chmod(part, 0o600)
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
        return path

    def _files(self) -> list[Path]:
        paths = sorted(self.folder.glob("*.safetensors"))
        names = {path.name for path in paths}
        for gone in self._open.keys() - names:
            del self._open[gone]
        return paths

    def _table(self, path: Path) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        if path.name not in self._open:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                keys, rows, sums = (file.get_tensor(name) for name in ("keys", "embeddings", "checksums"))
            if keys.shape[1:] != (32,) or sums.shape != (len(keys), 16) or len(rows) != len(keys):
                raise ValueError("it is no file of embeddings")
            self._open[path.name] = keys.numpy().view("S32").ravel(), rows, sums
        return self._open[path.name]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process merged it
        return _SMALL_BYTES


def _checksum(key: bytes, row: torch.Tensor) -> bytes:
    return hashlib.blake2b(key + row.numpy().tobytes(), digest_size=16).digest()
