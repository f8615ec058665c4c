"""Embeddings of texts from a pretrained encoder, with a cache on disk.

    Encoder("sentence-transformers/all-MiniLM-L6-v2").embed(texts)     # (N, D), for priors.cosine

Needs `pip install 'pcrm[encoders]'`.

The cache is in `$XDG_CACHE_HOME/pcrm/embeddings`, by default `~/.cache/pcrm/embeddings`. It has one
SQLite file for each model and pooling, readable only by its owner. Each embedding is stored under
the SHA-256 of its text, with a checksum: a damaged file is detected, and its texts are embedded
again. The cache grows without bound. You may delete any of its files while no process uses it.
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

    Weights are converted to float32, whatever the dtype of the checkpoint. Pickling an encoder
    stores its arguments only; the checkpoint is loaded again on unpickling.

    Args:
        model: The folder of a checkpoint or its name on the hub, in the format of
            sentence-transformers, transformers or model2vec. Models with a `StaticEmbedding` are
            about a hundred times as fast as small transformers.
        pooling: How to combine the vectors of a text's tokens: "mean", or "cls" for the vector of
            the first token, which the authors use with bert-base-cased (arXiv 2404.00978). None
            uses the pooling in the `modules.json` of a sentence-transformers checkpoint, and the
            mean for other checkpoints. A static encoder requires None.
        device: A torch device. The default is the GPU if there is one, else the CPU.
        batch_size: Number of texts in a forward pass, at least 1. Texts of similar length are
            batched together.
        max_length: Maximum number of tokens of a text, including special tokens. Longer texts are
            truncated. The default is the length that the checkpoint was made for; a static encoder
            reads whole texts. A model with relative, rotary or scaled positions accepts a larger
            maximum; a model with a table of positions does not.
        cache: Where to keep embeddings: a folder, True for the default folder, or False for no
            cache.

    Raises:
        ImportError: transformers is not installed or, for a sentence-transformers checkpoint,
            sentence-transformers is not installed or older than version 6.
        OSError: The checkpoint does not exist or cannot be read, its weights are not safetensors,
            or it needs its own code.
        TypeError: `batch_size` or `max_length` is not an integer.
        ValueError: An argument is out of range or not supported by a static encoder, or the
            tokenizer has no token to pad with.
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
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)} or None, got {pooling!r}")
        batch_size = _check.integer("batch_size", batch_size, 1)
        if max_length is not None:
            max_length = _check.integer("max_length", max_length, 1)
        self.model = _check.path("model", model)
        self._arguments = {
            "model": self.model,
            "pooling": pooling,
            "device": device,
            "batch_size": batch_size,
            "max_length": max_length,
            "cache": cache if isinstance(cache, bool) else _check.path("cache", cache),
        }
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
        """A SHA-256 of everything the embeddings depend on: the checkpoint's files (or its commit on the
        hub), the pooling and the maximum length.
        """
        content = self._body.commit or content_hash(Path(self.model))
        return hashlib.sha256(json.dumps([content, self.pooling, self.max_length]).encode()).hexdigest()

    @cached_property
    def _cache(self) -> EmbeddingCache | None:
        if self._cache_root is None:
            return None
        return EmbeddingCache(self._cache_root / f"{self.identity[:32]}.sqlite3")

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts, computing each distinct text once.

        New embeddings are written to the cache at the end of the call, all or none of them.

        Args:
            texts: N texts.

        Returns:
            A float32 tensor of shape (N, D) on the CPU.

        Raises:
            TypeError: An element is not a str; the message names its index.
            ValueError: A text is not valid Unicode, has no tokens, or has an embedding that is not
                finite.
            OSError: The cache cannot be read or written.
        """
        rows, bad = self.embed_all(texts)
        for i, reason in bad.items():
            raise ValueError(f"texts[{i}] {reason}")
        return rows

    def embed_all(self, texts: Sequence[str]) -> tuple[torch.Tensor, dict[int, str]]:
        """Like `embed`, but continue after a text without an embedding.

        Args:
            texts: N texts.

        Returns:
            The embeddings, and the reason for each text without one, by index in ascending order.
            Ignore the rows of these texts.

        Raises:
            TypeError, OSError: As in `embed`.
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
                    reasons[key] = f"has an embedding from {self.model} that is not finite"
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
        raise TypeError(f"texts[{i}] must be a text, got {type(text).__name__}")
    try:
        return hashlib.sha256(text.encode()).digest()
    except UnicodeEncodeError as error:
        raise ValueError(f"texts[{i}] must be valid Unicode: {error}") from None


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pcrm" / "embeddings"


def _modules(model: str) -> list[dict[str, str]] | None:
    """Return the modules of a sentence-transformers checkpoint, or None for another checkpoint."""
    from transformers.utils.hub import cached_file

    with loading(model, "its modules.json"):
        path = cached_file(model, "modules.json", _raise_exceptions_for_missing_entries=False)
        if path is None:
            return None
        modules = json.loads(Path(path).read_text(encoding="utf-8"))
        return [{name: str(module[name]) for name in ("type", "path")} for module in modules]


def _check_modules(model: str, modules: list[dict[str, str]]) -> None:
    """Check that every module of a checkpoint is part of sentence-transformers.

    Raises:
        OSError: A module is code from elsewhere.
    """
    with loading(model, "its modules.json"):
        for module in modules:
            if not module["type"].startswith("sentence_transformers."):
                raise ValueError(
                    f"the module {module['type']!r:.80} is not part of sentence-transformers, and pcrm runs no other code. "
                    "Set pooling to 'mean' or 'cls' to read the checkpoint without its modules"
                )


def _commit(model: str) -> str:
    """Return the commit of a sentence-transformers checkpoint on the hub. Static encoders have no config with it."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    return extract_commit_hash(cached_file(model, "modules.json"), None) or model


def content_hash(folder: Path) -> str:
    """Hash every file of a checkpoint, except files and folders whose names begin with a dot."""
    paths = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    total = hashlib.sha256()
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in paths):
        if not any(part.startswith(".") for part in name.split("/")):
            with path.open("rb") as file:
                total.update(json.dumps([name, hashlib.file_digest(file, "sha256").hexdigest()]).encode())
    return total.hexdigest()


class _SentenceTransformer:
    """A sentence-transformers checkpoint, with its own pooling."""

    def __init__(self, model: str, modules: list[dict[str, str]], device: str, max_length: int | None) -> None:
        import sentence_transformers

        if int(sentence_transformers.__version__.partition(".")[0]) < 6:
            raise ModuleNotFoundError(
                f"sentence-transformers must be at least version 6, got {sentence_transformers.__version__}: older versions "
                "run code from the checkpoint"
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
        own = self.model.max_seq_length or 0  # 0 means no limit
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
        """Return the indices of texts without tokens: transformers' models fail on them, other modules return zeros."""
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self.model[0], "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.num_special_tokens_to_add():
            return set()
        return {i for i, ids in enumerate(tokenizer(texts, verbose=False)["input_ids"]) if not ids}


class _Transformer:
    """A transformers checkpoint, pooled by this class."""

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
        # The longest first, so that running out of memory shows at once.
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
