"""Prior similarities of two responses: numbers s in [0, 1], 1 for alike.

They take token ids or texts and nothing of the model, so they can be computed once per
data set or in the collator. `annotate` does it for a batch of rows in any worker.
"""

from __future__ import annotations

import copy
import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

import torch

from .. import _check, backends
from .._engine import torch_reference
from .._engine.deltas import check_similarities
from .._engine.tensors import check_dense, is_addressable, is_readable, named_if_wrapped
from .._pretrained import load_tokenizer
from ..data import preferences
from ..settings.rules import COMPUTED_PRIORS

if TYPE_CHECKING:
    import numpy as np

    from .encoders import Encoder

    Column = torch.Tensor | array[int] | np.ndarray

NAMES = COMPUTED_PRIORS

_TEXTS = ("prompt", "chosen", "rejected")

_IMPORTED_IN = os.getpid()

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Ids = torch.Tensor | Sequence[Sequence[int]] | Any  # Any is an Arrow column


def length_ratio(chosen_ids: Ids, rejected_ids: Ids, *, pad_token_id: int | None = None) -> torch.Tensor:
    """Shorter by longer response, in tokens, after the tokens that both begin with.

        s = min(a, b) / max(a, b)

    where a and b count the tokens from the first difference on; 1 if both are empty, so
    identical responses are alike. Both rows may begin with the same prompt. (arXiv
    2404.00978, section 3.2.1.)

    Args:
        chosen_ids: A sequence of B sequences of token ids, an Arrow column of lists, whose
            ids are read where they lie, or an integer tensor of shape (B, L), padded on the
            right.
        rejected_ids: The same of the other responses; L may differ.
        pad_token_id: Ends a response, at the first place at or after the difference. None
            where nothing is padded: every id counts. If the pad token also occurs inside
            responses (pad equal to eos), pass sequences without padding and None.

    Returns:
        float32, shape (B,), on the device of `chosen_ids` if that is a tensor.

    Raises:
        TypeError: ids that are no integers.
        ValueError: a tensor of another shape, different numbers of rows, an id that is no
            int64, a negative pad id.
    """
    return _of_ids(chosen_ids, rejected_ids, pad_token_id, "bridge_LengthRatios", (), torch_reference.length_ratio)


def random_uniform(
    chosen_ids: Ids, rejected_ids: Ids, seed: int = 0, *, pad_token_id: int | None = None
) -> torch.Tensor:
    """What a random constraint takes in the place of a similarity: uniform in [0, 1).

    A hash of the seed and both rows of ids, so that a pair has the same number in every
    batch, process and epoch and after a resume. The rows count whole, a common prompt
    included, less the pad ids at their ends.

    Args:
        chosen_ids, rejected_ids, pad_token_id: As in `length_ratio`.
        seed: In [0, 2**64).

    Returns:
        float32, shape (B,).

    Raises:
        TypeError, ValueError: as in `length_ratio`; a seed out of its range.
    """
    seed = _check.integer("seed", seed, 0, 2**64)

    def plain(chosen: Sequence[int], rejected: Sequence[int], pad: int | None) -> float:
        return torch_reference.random_uniform(seed, chosen, rejected, pad)

    return _of_ids(chosen_ids, rejected_ids, pad_token_id, "bridge_RandomUniforms", (seed,), plain)


def cosine(a: torch.Tensor, b: torch.Tensor, angular: bool = True) -> torch.Tensor:
    """Cosine of the embeddings of two responses, as an angle or raw.

        c = a.b / (|a| |b|) clamped to [0, 1]
        s = (pi - acos(c)) / pi, in [0.5, 1], or c itself where `angular` is False

    (arXiv 2404.00978, section 3.2.2; the raw cosine is what the authors' DPO code takes.)

    Args:
        a: Embeddings of the chosen responses, shape (B, D), float16, bfloat16, float32 or
            float64.
        b: Those of the others, of the same shape, dtype and device.
        angular: Whether to turn the cosine into an angle.

    Returns:
        Shape (B,), float64 for float64, else float32. No gradient flows through it.

    Raises:
        TypeError: no floating-point tensors, or different dtypes.
        ValueError: another shape than (B, D), different shapes or devices; a row that is all
            zeros or has a NaN, named by its index (looked at on the CPU).
    """
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, torch.Tensor) or x.dtype not in _FLOATS:
            raise TypeError(
                f"{name} is {x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}, must be a floating-point tensor"
            )
        check_dense(name, x)
        if x.dim() != 2 or x.shape[1] == 0:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, must be (B, D)")
    if a.shape != b.shape or a.device != b.device:
        raise ValueError(f"b has shape {tuple(b.shape)} on {b.device}, a has {tuple(a.shape)} on {a.device}")
    if a.dtype != b.dtype:
        raise TypeError(f"b has dtype {b.dtype}, a has {a.dtype}")
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    a, b = a.detach(), b.detach()
    native = backends.native_for("a", a, b)
    if native is None:
        with named_if_wrapped(a=a, b=b):
            result = torch_reference.cosine(a, b, angular).to(dtype)
            norms = {"a": a.double().norm(dim=1), "b": b.double().norm(dim=1)} if a.is_cpu else {}
        for name, norm in norms.items():
            good = (norm > 0) & norm.isfinite()
            if is_readable(good) and not good.all():
                raise ValueError(
                    f"{name}[{int((~good).nonzero()[0])}] has the norm {norm[~good][0].item():g}: it has no direction"
                )
        return result
    if a.dtype == torch.bfloat16:
        a, b = a.float(), b.float()
    a, b = a.resolve_neg().contiguous(), b.resolve_neg().contiguous()
    result = torch.empty(len(a), dtype=dtype, device="cpu")
    backends.call(
        native.bridge_Cosines, a.element_size(), *a.shape, result.data_ptr(), a.data_ptr(), b.data_ptr(), angular
    )
    return result


def lexical(chosen: Sequence[str], rejected: Sequence[str], *, words: bool = False) -> torch.Tensor:
    """Cosine of the n-gram counts of two responses, for machines with no encoder.

        s = sum_g A[g] B[g] / sqrt(sum_g A[g]^2 sum_g B[g]^2)

    over the n-grams of 3 to 5 characters, which need no idea of what a word is in the
    language at hand, or of 1 and 2 words. Texts are compared in lower case with runs of
    white space as one space. Equal texts have exactly 1, a text and an empty one 0. The Go
    package's documentation of Lexical says it to the letter.

    Args:
        chosen: The texts of the preferred responses, B of them.
        rejected: Those of the others.
        words: Whether to take n-grams of words.

    Returns:
        float32, shape (B,).

    Raises:
        TypeError: an element is no text, named by its index.
        ValueError: different numbers of texts; a text that is no valid Unicode.
    """
    if len(chosen) != len(rejected):
        raise ValueError(f"rejected has {len(rejected)} texts, chosen has {len(chosen)}")
    columns = [_Ragged.of_texts(*column) for column in (("chosen", chosen), ("rejected", rejected))]
    native = backends.native()
    if native is None:
        pairs = zip(chosen, rejected, strict=True)
        return torch.tensor([torch_reference.lexical(a, b, words) for a, b in pairs], dtype=torch.float32, device="cpu")
    result = torch.empty(len(chosen), dtype=torch.float32, device="cpu")
    backends.call(
        native.bridge_Lexicals, len(chosen), result.data_ptr(), *columns[0].addresses, *columns[1].addresses, words
    )
    return result


def annotate(
    batch: Any,
    *,
    prior: str = "lexical",
    model: str | os.PathLike[str] | Encoder | None = None,
    tokenizer: Any = None,
    with_prompt: bool = False,
    angular: bool = True,
    **encoder: Any,
) -> Any:
    """A batch of preference rows with a column `prior`, for data sets of any size.

        dataset.map(partial(pcrm.priors.annotate, prior="lexical"), batched=True, num_proc=8)
        ray_dataset.map_batches(pcrm.priors.annotate, fn_kwargs={"prior": "cosine", "model": path})

    It can be pickled, loads the native library where it first runs, and reads a model or a
    tokenizer once per process. In a forked child of a process that has used the native
    library the same numbers are computed by Python, the lexical ones some thirty times
    slower: spawn workers, or let the parent leave it alone.

    Args:
        batch: A mapping of columns (a dict, a batch of `datasets`, NumPy arrays as Ray gives
            them), a pyarrow Table or RecordBatch, or a pandas DataFrame. Its columns `chosen` and `rejected`,
            and `prompt` if it has one, are in one of TRL's formats, see `pcrm.data.preferences`. Columns
            of the type `Json` of `datasets` are decoded in tables and in batches of `datasets`;
            NumPy and pandas have only their texts, so let Ray give tables (`batch_format="pyarrow"`).
        prior: "length_ratio", "lexical" or "cosine".
        model: What embeds for the cosine: a checkpoint's folder or hub name, or an `Encoder`.
        tokenizer: What splits texts for the length ratio: a checkpoint's folder or hub name,
            or a tokenizer of transformers. Without one the batch has the columns `chosen_ids`
            and `rejected_ids`.
        with_prompt: Whether to compare prompt + response, as the authors do, and not the
            responses alone.
        angular: See `cosine`.
        encoder: `pooling`, `device`, `batch_size`, `max_length` and `cache` of an `Encoder`, where
            `model` is none.

    Returns:
        The batch, of the same kind, with the column; the batch that came in is not changed.
        float32 in arrays and tables, floats in lists.

    Raises:
        ValueError: an unknown prior; a model or tokenizer that is missing or has nothing to do;
            a column that is missing, or `prior`, which is there already.
        pcrm.preferences.RowError: a ValueError that names the row, from 0 in this batch, the column
            and the value; also of a response that the model has no embedding for.
        ImportError: there is no transformers: pip install 'pcrm[encoders]'.
    """
    is_table, is_frame = hasattr(batch, "append_column"), hasattr(batch, "assign")
    names = list(batch.column_names if is_table else batch.columns if is_frame else batch)
    if "prior" in names:
        raise ValueError("the batch has a column 'prior' already: remove or rename it")
    ids = prior == "length_ratio" and tokenizer is None
    for name in ("chosen_ids", "rejected_ids") if ids else ("chosen", "rejected"):
        if name not in names:
            hint = ", or a tokenizer" if ids else ""
            raise ValueError(
                f"prior={prior!r} needs a column {name!r}{hint}: the columns are {', '.join(map(str, names))}"
            )
        if isinstance(batch[name], str):
            raise ValueError(f"{name} is one text, must be a column of them: map a data set with batched=True")

    def column(name: str) -> Any:
        return batch[name].tolist() if is_frame else batch[name]

    if ids:
        _check_prior(prior, model, tokenizer, encoder)
        sides = ("chosen_ids", "rejected_ids")
        result = length_ratio(*(batch[side] if is_table else _unpacked(column(side)) for side in sides))
    else:
        if is_table:
            from ..data.sources import rows_of

            found = rows_of(batch.select([name for name in _TEXTS if name in names]))
        else:
            chosen, rejected = column("chosen"), column("rejected")
            if len(chosen) != len(rejected):
                raise ValueError(f"rejected has {len(rejected)} rows, chosen has {len(chosen)}")
            prompts = column("prompt") if "prompt" in names else [None] * len(chosen)
            if len(prompts) != len(chosen):
                raise ValueError(f"prompt has {len(prompts)} rows, chosen has {len(chosen)}")
            found = (dict(zip(_TEXTS, row, strict=True)) for row in zip(prompts, chosen, rejected, strict=True))
        pairs = []
        for i, row in enumerate(found):
            try:
                if isinstance(row, preferences.RowError):
                    raise row
                pairs.append(
                    preferences.texts(row.get("prompt"), row["chosen"], row["rejected"], with_prompt=with_prompt)
                )
            except preferences.RowError as error:
                raise preferences.RowError(error.message, i) from None
        result = of_texts(
            [a for a, _ in pairs],
            [b for _, b in pairs],
            prior=prior,
            model=model,
            tokenizer=tokenizer,
            angular=angular,
            **encoder,
        )
    if is_table:
        import pyarrow

        return batch.append_column("prior", pyarrow.array(result.numpy()))
    if is_frame:
        return batch.assign(prior=result.numpy())
    first = batch[names[0]]
    annotated = copy.copy(batch)  # of datasets' lazy batches too: what is not touched is not decoded
    annotated["prior"] = (
        result.numpy() if hasattr(first, "dtype") and not isinstance(first, torch.Tensor) else result.tolist()
    )
    return annotated


def of_texts(
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    prior: str = "lexical",
    model: str | os.PathLike[str] | Encoder | None = None,
    tokenizer: Any = None,
    angular: bool = True,
    **encoder: Any,
) -> torch.Tensor:
    """A prior of texts, by its name: what `annotate` does when it has the responses.

    Args, Raises: as in `annotate`.

    Returns:
        float32, shape (B,).
    """
    how: dict[str, Any] = {"prior": prior, "model": model, "tokenizer": tokenizer, "angular": angular, **encoder}
    result, errors = of_texts_and_errors(chosen, rejected, **how)
    for error in errors.values():
        raise error
    return result


def of_texts_and_errors(
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    prior: str = "lexical",
    model: str | os.PathLike[str] | Encoder | None = None,
    tokenizer: Any = None,
    angular: bool = True,
    **encoder: Any,
) -> tuple[torch.Tensor, dict[int, preferences.RowError]]:
    """`of_texts` that goes on after a row without a prior, as of an empty response to an encoder.

    Returns:
        float32, shape (B,), NaN for rows without a prior, and their errors by row, in ascending
        order.
    """
    _check_prior(prior, model, tokenizer, encoder)
    if prior == "lexical":
        return lexical(chosen, rejected), {}
    if prior == "length_ratio":
        if tokenizer is None:
            raise ValueError("prior='length_ratio' needs a tokenizer to split texts")
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = _tokenizer(os.fspath(tokenizer), os.getpid())
        # Of no texts at all a tokenizer makes nothing that has ids.
        ids = [tokenizer(list(t), add_special_tokens=False)["input_ids"] if t else [] for t in (chosen, rejected)]
        return length_ratio(ids[0], ids[1]), {}
    if os.getpid() != _IMPORTED_IN:
        torch.set_num_threads(1)  # a forked child has none of the threads that torch would wait for
    if isinstance(model, (str, os.PathLike)):
        model = _encoder(os.fspath(model), os.getpid(), **encoder)
    assert model is not None
    embeddings, reasons = model.embed_all([*chosen, *rejected])
    for i in (embeddings.norm(dim=1) == 0).nonzero().flatten().tolist():
        reasons.setdefault(i, f"gets an embedding of {model.model} that is zero and has no direction")
    errors: dict[int, preferences.RowError] = {}
    for i, reason in sorted(reasons.items()):
        side, texts, row = ("chosen", chosen, i) if i < len(chosen) else ("rejected", rejected, i - len(chosen))
        errors.setdefault(row, preferences.RowError(f"{side} {reason}: {texts[row]!r:.80}", row))
    result = torch.full((len(chosen),), torch.nan, dtype=torch.float32, device=embeddings.device)
    good = [row for row in range(len(chosen)) if row not in errors]
    a, b = (embeddings[[row + start for row in good]] for start in (0, len(chosen)))
    result[good] = cosine(a, b, angular)
    return result, dict(sorted(errors.items()))


def _check_prior(prior: str, model: Any, tokenizer: Any, encoder: dict[str, Any]) -> None:
    if prior not in NAMES:
        raise ValueError(f"prior is {prior!r}, must be one of {', '.join(NAMES)}")
    if prior == "cosine" and model is None:
        raise ValueError("prior='cosine' needs a model")
    if prior != "cosine" and model is not None:
        raise ValueError(f"prior={prior!r} has no use for a model")
    if prior != "length_ratio" and tokenizer is not None:
        raise ValueError(f"prior={prior!r} has no use for a tokenizer")
    if encoder and not isinstance(model, (str, os.PathLike)):
        raise ValueError(f"{', '.join(encoder)}: only with the path or name of a model")


# By process: what a child inherits over a fork is not used there, such as a CUDA context.
@lru_cache(maxsize=2)
def _encoder(model: str, process: int, **settings: Any) -> Encoder:
    from .encoders import Encoder

    return Encoder(model, **settings)


@lru_cache(maxsize=2)
def _tokenizer(name: str, process: int) -> Any:
    return load_tokenizer(name)


def forget_models() -> None:
    """Drop the encoders and tokenizers that `annotate` keeps in this process, and their memory on a GPU."""
    _encoder.cache_clear()
    _tokenizer.cache_clear()


def prior_tensor(column: Iterable[Any]) -> torch.Tensor:
    """A data set's column of priors as float32.

    Raises:
        TypeError, ValueError: an element is not a number in [0, 1], named by its index.
    """
    # A data set in the format of NumPy or torch gives scalars of theirs. NumPy's masked one has the item 0.
    plain = (x.item() if getattr(x, "ndim", None) == 0 and not hasattr(x, "mask") else x for x in column)
    prior = torch.tensor([_check.number(f"prior[{i}]", value) for i, value in enumerate(plain)], dtype=torch.float32)
    check_similarities(prior, "prior")
    return prior


def _unpacked(column: Any) -> Any:
    """A column of ids: NumPy's arrays as what `length_ratio` takes."""
    return column if isinstance(column, torch.Tensor) else list(column)


def _of_ids(
    chosen_ids: Ids,
    rejected_ids: Ids,
    pad_token_id: int | None,
    function: str,
    first: tuple[int, ...],
    plain: Callable[..., float],
) -> torch.Tensor:
    """A number a pair of rows, by a function of the bridge or by its plain twin."""
    if pad_token_id is not None:
        pad_token_id = _check.integer("pad_token_id", pad_token_id)
    _check_ids("chosen_ids", chosen_ids)
    _check_ids("rejected_ids", rejected_ids)
    n = len(chosen_ids)
    if len(rejected_ids) != n:
        raise ValueError(f"rejected_ids has {len(rejected_ids)} rows, chosen_ids has {n}")
    device = chosen_ids.device if isinstance(chosen_ids, torch.Tensor) else torch.device("cpu")
    native = backends.native()
    if native is None:
        rows = zip(_rows("chosen_ids", chosen_ids), _rows("rejected_ids", rejected_ids), strict=True)
        return torch.tensor([plain(a, b, pad_token_id) for a, b in rows], dtype=torch.float32, device=device)
    result = torch.empty(n, dtype=torch.float32, device="cpu")
    chosen, rejected = _Ragged.of_ids("chosen_ids", chosen_ids), _Ragged.of_ids("rejected_ids", rejected_ids)
    pad = -1 if pad_token_id is None else pad_token_id
    backends.call(getattr(native, function), n, result.data_ptr(), *first, *chosen.addresses, *rejected.addresses, pad)
    return result.to(device)


def _check_ids(name: str, ids: Ids) -> None:
    if isinstance(ids, torch.Tensor):
        check_dense(name, ids)
        if not is_addressable(ids):
            raise TypeError(
                f"{name} must be a plain tensor, got a {type(ids).__name__}: pass a DTensor's full_tensor() or a list of rows"
            )
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} has dtype {ids.dtype}, must be int64 or int32")
        if ids.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(ids.shape)}, must be (B, L)")
    elif not _is_arrow(ids) and (not isinstance(ids, Sequence) or isinstance(ids, (str, bytes))):
        raise TypeError(
            f"{name} is a {type(ids).__name__}, must be a tensor, an Arrow column or a sequence of sequences of ids"
        )


def _is_arrow(ids: Ids) -> bool:
    """Whether it is a column of pyarrow, polars or another library with Arrow's interface."""
    return hasattr(ids, "__arrow_c_array__") or hasattr(ids, "__arrow_c_stream__")


def _arrow_lists(name: str, ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """The values and offsets of an Arrow column of ids as int64, not copied where they are."""
    import numpy as np
    import pyarrow
    import pyarrow.compute

    column = pyarrow.chunked_array(ids if hasattr(ids, "__arrow_c_stream__") else [pyarrow.array(ids)])
    kind, types = column.type, pyarrow.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not lists or not types.is_integer(kind.value_type):
        raise TypeError(f"{name} has the Arrow type {kind}, must be a list of integers")
    if column.null_count:
        raise TypeError(f"{name}[{pyarrow.compute.index(column.is_null(), True)}] is null, must be a list of ids")
    parts = [chunk.flatten() for chunk in column.chunks]
    if any(part.null_count for part in parts):
        row = next(i for i, x in enumerate(column) if x.values.null_count)
        raise TypeError(f"{name}[{row}] is no sequence of integers: it has a null")
    arrays = [part.to_numpy() for part in parts] or [np.empty(0, np.int64)]
    values = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum(pyarrow.compute.call_function("list_value_length", [column]), out=offsets[1:])
    if values.dtype == np.uint64 and (over := values >= 2**63).any():
        raise _out_of_range(name, int(np.searchsorted(offsets, over.argmax(), "right")) - 1)
    return values.astype(np.int64, copy=False), offsets


def _rows(name: str, ids: Ids) -> Sequence[Sequence[int]]:
    """The rows as integers; an error names the first that has something else."""
    if isinstance(ids, torch.Tensor):
        return ids.tolist()
    if _is_arrow(ids):
        values, offsets = (x.tolist() for x in _arrow_lists(name, ids))
        return [values[start:end] for start, end in pairwise(offsets)]
    rows = []
    for i, row in enumerate(ids):
        try:
            if not _holds_ids(type(row)):
                raise TypeError(f"it is a {type(row).__name__}")
            rows.append(array("q", row))
        except TypeError as error:
            raise TypeError(f"{name}[{i}] is no sequence of integers: {error}") from None
        except OverflowError:
            raise _out_of_range(name, i) from None
    return rows


def _out_of_range(name: str, row: int) -> ValueError:
    return ValueError(f"{name}[{row}] has an id that is not in [-2**63, 2**63)")


def _holds_ids(kind: type) -> bool:
    """Whether rows of that type may: the numbers in bytes and the keys of a mapping are none."""
    return hasattr(kind, "__getitem__") and not issubclass(kind, (Mapping, str, bytes, bytearray))


def _address(x: Column) -> int:
    if isinstance(x, torch.Tensor):
        return x.data_ptr()
    return x.buffer_info()[0] if isinstance(x, array) else x.ctypes.data


class _Ragged:
    """Rows as Go reads them: values and offsets, kept alive together."""

    def __init__(self, values: Column, offsets: Column) -> None:
        self.keep = (values, offsets)
        self.addresses = (*map(_address, self.keep), len(values))

    @classmethod
    def of_ids(cls, name: str, ids: Ids) -> _Ragged:
        if isinstance(ids, torch.Tensor):
            rows, width = ids.shape
            # Not flatten, which keeps the strides of a single column or row.
            values = ids.detach().to("cpu", torch.int64).contiguous().view(-1)
            return cls(values, torch.arange(rows + 1, device="cpu") * width)
        if _is_arrow(ids):
            return cls(*_arrow_lists(name, ids))
        try:
            if not all(map(_holds_ids, set(map(type, ids)))):
                raise TypeError("not sequences")
            values = array("q", chain.from_iterable(ids))
        except (TypeError, OverflowError):
            _rows(name, ids)
            raise
        return cls(values, array("q", accumulate(map(len, ids), initial=0)))

    @classmethod
    def of_texts(cls, name: str, texts: Sequence[str]) -> _Ragged:
        encoded = []
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"{name}[{i}] is a {type(text).__name__}, must be a text")
            try:
                encoded.append(text.encode())
            except UnicodeEncodeError as error:
                raise ValueError(f"{name}[{i}] is no valid Unicode: {error}") from None
        return cls(array("B", b"".join(encoded)), array("q", accumulate(map(len, encoded), initial=0)))
