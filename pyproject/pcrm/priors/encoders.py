"""Embeddings of texts by a pretrained encoder, each computed once and kept on disk.

    Encoder("sentence-transformers/all-MiniLM-L6-v2").embed(texts)     # (N, D), for priors.cosine

Needs `pip install 'pcrm[encoders]'`.

The cache is `$XDG_CACHE_HOME/pcrm/embeddings`, by default `~/.cache/pcrm/embeddings`: an SQLite
file for each model and way of pooling, readable by its owner only. An embedding is found by the
SHA-256 of its text and carries a checksum, so that a damaged file is recognized and its texts
embedded anew. It grows without bound; any file may be deleted while no process uses it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from .. import _check
from .._pretrained import load_config, load_model, load_tokenizer, loading, longest, pad_token_id
from ._embedding_cache import EmbeddingCache

POOLINGS = ("mean", "cls")


class Encoder:
    """A pretrained text encoder.

    Args:
        model: The folder of a checkpoint or its name on the hub, of sentence-transformers,
            transformers or model2vec. Models with a `StaticEmbedding` are some hundred times as fast as
            small transformers.
        pooling: What becomes of the vectors of a text's tokens: their "mean", or "cls", the
            first of them, as the authors take from bert-base-cased (arXiv 2404.00978).
            None is what the checkpoint says where it is one of sentence-transformers, by the
            `modules.json` in it, else the mean. A static encoder has no other.
        device: A torch device; by default the GPU where there is one, else the CPU.
        batch_size: Texts in a forward pass. Texts of like length are put together.
        max_length: Tokens of a text, special ones included; the rest is cut off. By default
            what the checkpoint was made for; a static encoder reads texts whole. A model with relative, rotary or
            scaled positions takes more, one with a table of positions does not.
        cache: Where embeddings are kept: a folder, True for the default place, False for
            nowhere.

    Weights are float32 whatever the checkpoint has. An encoder is pickled as its arguments
    and read again where it arrives.

    Raises:
        ImportError: There is no transformers, or, for checkpoints of sentence-transformers, no
            sentence-transformers of at least version 6.
        OSError: There is no such checkpoint, its weights are not safetensors, it needs code of
            its own, or it cannot be read.
        TypeError: `batch_size` or `max_length` is not an integer.
        ValueError: An argument is out of its range or has no use for a static encoder, or the tokenizer has no token
            to pad with.
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
        batch_size = _check.integer("batch_size", batch_size, 1)
        if max_length is not None:
            max_length = _check.integer("max_length", max_length, 1)
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
        modules = _modules(self.model)
        if modules and modules[0]["type"].endswith(".StaticEmbedding"):
            for name, value in (("pooling", pooling), ("max_length", max_length)):
                if value is not None:
                    raise ValueError(
                        f"{name} must be None for {self.model}, got {value!r}: a static encoder averages all tokens"
                    )
        if pooling is None and modules is not None:
            _check_modules(self.model, modules)
            self.pooling = "checkpoint"
            self._body: Any = _SentenceTransformer(self.model, modules, self.device, max_length)
        else:
            self.pooling = pooling or "mean"
            self._body = _Transformer(self.model, self.pooling, self.device, max_length)
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
    def _cache(self) -> EmbeddingCache | None:
        if self._cache_root is None:
            return None
        return EmbeddingCache(self._cache_root / f"{self.identity[:32]}.sqlite3")

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """The embeddings of texts, each distinct one computed once.

        What the cache lacks is computed and written to it at the end of the call, all of it
        or nothing.

        Returns:
            float32, shape (N, D), on the CPU.

        Raises:
            TypeError: An element is not a text, named by its index.
            ValueError: A text is not valid Unicode, has no tokens, or gets an embedding that is
                not finite.
            OSError: The cache cannot be written.
        """
        rows, bad = self.embed_all(texts)
        for i, reason in bad.items():
            raise ValueError(f"texts[{i}] {reason}")
        return rows

    def embed_all(self, texts: Sequence[str]) -> tuple[torch.Tensor, dict[int, str]]:
        """`embed` that goes on after a text without an embedding.

        Returns:
            The embeddings, and for each text that has none the reason, by its index in
            ascending order. The rows of these texts mean nothing.

        Raises:
            TypeError, OSError: As from `embed`.
            ValueError: A text is not valid Unicode.
        """
        keys = [_key(i, text) for i, text in enumerate(texts)]
        place: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            place.setdefault(key, i)
        known = self._cache.get(place) if self._cache is not None else {}
        reasons: dict[bytes, str] = {}
        if missing := [key for key in place if key not in known]:
            rows, empty = self._body.embed([texts[place[key]] for key in missing], self.batch_size)
            finite = rows.isfinite().all(1).tolist()
            for i, key in enumerate(missing):
                if i in empty:
                    reasons[key] = f"has no tokens for {self.model}"
                elif not finite[i]:
                    reasons[key] = f"gets an embedding of {self.model} that is not finite"
            good = [i for i, key in enumerate(missing) if key not in reasons]
            if self._cache is not None and good:
                self._cache.put([missing[i] for i in good], rows[good])
            known.update(zip(missing, rows, strict=True))
        if not keys:
            return self._body.embed(["a"], 1)[0][:0], {}
        return torch.stack([known[key] for key in keys]), {
            i: reasons[key] for i, key in enumerate(keys) if key in reasons
        }


def _key(i: int, text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"texts[{i}] is a {type(text).__name__}, must be a text")
    try:
        return hashlib.sha256(text.encode()).digest()
    except UnicodeEncodeError as error:
        raise ValueError(f"texts[{i}] is no valid Unicode: {error}") from None


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pcrm" / "embeddings"


def _modules(model: str) -> list[dict[str, str]] | None:
    """The modules of a checkpoint of sentence-transformers, None for another."""
    from transformers.utils.hub import cached_file

    with loading(model, "its modules.json"):
        path = cached_file(model, "modules.json", _raise_exceptions_for_missing_entries=False)
        if path is None:
            return None
        modules = json.loads(Path(path).read_text(encoding="utf-8"))
        return [{name: str(module[name]) for name in ("type", "path")} for module in modules]


def _check_modules(model: str, modules: list[dict[str, str]]) -> None:
    """
    Raises:
        OSError: One of the modules is code outside sentence-transformers.
    """
    with loading(model, "its modules.json"):
        for module in modules:
            if not module["type"].startswith("sentence_transformers."):
                raise ValueError(
                    f"the module {module['type']!r:.80} is not one of sentence-transformers, and pcrm runs no other code. "
                    "pooling='mean' or 'cls' reads the checkpoint without its modules"
                )


def _commit(model: str) -> str:
    """Of a checkpoint of sentence-transformers on the hub. A static encoder has no configuration that says it."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    return extract_commit_hash(cached_file(model, "modules.json"), None) or model


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

    def __init__(self, model: str, modules: list[dict[str, str]], device: str, max_length: int | None) -> None:
        import sentence_transformers

        if int(sentence_transformers.__version__.partition(".")[0]) < 6:
            raise ModuleNotFoundError(
                "sentence-transformers must be at least 6, as older ones run code of a checkpoint, "
                f"got {sentence_transformers.__version__}"
            )
        for module in modules:
            if module["type"].endswith(".Transformer"):
                load_config(model, subfolder=module["path"])
        with loading(model, "the encoder"):
            loaded = sentence_transformers.SentenceTransformer(
                model, device=device, model_kwargs={"use_safetensors": True}, trust_remote_code=False
            )
            self.model = loaded.float().eval()
        inner = getattr(self.model[0], "auto_model", None)
        config = getattr(inner, "config", None)
        own = self.model.max_seq_length or 0  # 0: it has no limit
        self.max_length: int = max_length or own if config is None else longest(model, inner, own, max_length)
        if self.max_length != own:
            self.model.max_seq_length = self.max_length
        self.commit: str | None = None if os.path.isdir(model) else _commit(model)

    def embed(self, texts: list[str], batch_size: int) -> tuple[torch.Tensor, set[int]]:
        empty = self._empty(texts)
        rows: Any = self.model.encode(
            [text for i, text in enumerate(texts) if i not in empty] or ["a"],
            batch_size=batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        result = torch.full((len(texts), rows.shape[1]), torch.nan, dtype=torch.float32, device="cpu")
        if good := [i for i in range(len(texts)) if i not in empty]:
            result[good] = rows.float().cpu()
        return result, empty

    def _empty(self, texts: list[str]) -> set[int]:
        """The texts without tokens, on which transformers' models fail. Other modules make zeros of them."""
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self.model[0], "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.num_special_tokens_to_add():
            return set()
        return {i for i, ids in enumerate(tokenizer(texts, verbose=False)["input_ids"]) if not ids}


class _Transformer:
    """A checkpoint of transformers, pooled here."""

    def __init__(self, model: str, pooling: str, device: str, max_length: int | None) -> None:
        from transformers import AutoModel

        self.pooling = pooling
        self.tokenizer = load_tokenizer(model)
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"
        self.model = load_model(AutoModel, model).float().eval().to(device)
        config = self.model.config
        pad = pad_token_id(model, self.tokenizer, self.tokenizer.pad_token_id, config.get_text_config().pad_token_id)
        self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(pad)
        self.max_length = longest(model, self.model, min(self.tokenizer.model_max_length, 1 << 62), max_length)
        self.commit: str | None = None if os.path.isdir(model) else getattr(config, "_commit_hash", None) or model
        self.dimension = config.hidden_size

    @torch.inference_mode()
    def embed(self, texts: list[str], batch_size: int) -> tuple[torch.Tensor, set[int]]:
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        length = [len(ids) for ids in encoded["input_ids"]]
        empty = {i for i, n in enumerate(length) if not n}
        # The longest first: what does not fit into memory says so at once.
        order = sorted((i for i in range(len(texts)) if i not in empty), key=lambda i: -length[i])
        result = torch.full((len(texts), self.dimension), torch.nan, dtype=torch.float32, device="cpu")
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
        return result, empty
