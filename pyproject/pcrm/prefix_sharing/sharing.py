"""Hooks on a decoder that pack a batch into trees before the forward pass and unpack it afterwards."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd

from .. import _check
from .plan import Packed, pack

Tensor = torch.Tensor

# Rows with a shorter common prefix are not shared: the mask would cost more than the tokens.
_MIN_SHARED = 16
# Trees have at most this many tokens, or twice the longest row: the cost of attention and its mask is quadratic.
_BUDGET = 2048

# Maximum distance between a token's hidden states in the shared and in the plain pass, relative to its norm, in units of
# sqrt(layers) * eps of the compute dtype. Half types accumulate in float32, so less of their rounding shows. The worst
# token of six rows of SmolLM2-135M is 2.1 units off in float32 and 0.44 in bfloat16. If a single token is visible that
# should not be, the distances are 300,000 and 4.6.
_UNITS, _UNITS_OF_HALF = 20, 2

# torch.compile must not trace the plan, whose shapes differ for each batch.
_uncompiled: Any = torch.compiler.disable

_ATTENTIONS = ("eager", "sdpa", "flex_attention")
_ATTRIBUTE = "_pcrm_prefix_sharing"


class PrefixSharingError(RuntimeError):
    """A model's results with and without shared prefixes differ, or its forward pass bypasses its decoder."""


def enable(model: Any, *, min_shared: int = _MIN_SHARED, budget: int | None = None) -> None:
    """Make a decoder compute the common prefixes of a batch's rows only once.

    Outputs, losses and gradients stay the same up to rounding. This works with any causal decoder of transformers with
    eager, sdpa or flex attention, and with PEFT, gradient checkpointing, mixed precision, DDP and torch.compile (which
    sees the packed batch). The decoder computes the packed batch; a head on top of it sees the rows that it expects.
    Batches without common prefixes pass through unchanged, and so does generation with a cache.

    The first batch in training and the first in evaluation are computed both ways, without gradients and dropout, to check
    that the results agree.

    Args:
        model: The model, possibly wrapped by PEFT, DDP or torch.compile.
        min_shared: Rows with a shorter common prefix are computed separately.
        budget: Maximum number of tokens that share one attention mask, whose size grows with their square. Further rows
            form another tree, which repeats the prefix. The default is 2048 or twice the longest row, whichever is larger.

    Raises:
        TypeError: `model` is not a model of transformers, or an option is not an integer.
        ValueError: The model does not support prefix sharing (the message says why) or uses it already, or an option is out
            of range. Later, from the model: padding on the left without position ids that count from 0 in each row, or
            inputs that are not token ids.
        PrefixSharingError: From the model at its first batch: the shared and the plain pass differ, or the forward pass
            bypasses the decoder.
    """
    model, decoder = _decoder(model)
    if hasattr(decoder, _ATTRIBUTE):
        raise ValueError("model must not share prefixes already, got one that does: call disable first")
    if (reason := why_not(model)) is not None:
        raise ValueError(reason)
    setattr(decoder, _ATTRIBUTE, _Sharing(model, decoder, min_shared, budget))


def disable(model: Any) -> None:
    """Undo `enable`.

    Raises:
        TypeError: `model` is not a model of transformers.
        ValueError: The model does not share prefixes.
    """
    _, decoder = _decoder(model)
    if not hasattr(decoder, _ATTRIBUTE):
        raise ValueError("model must share prefixes, got one that does not: call enable first")
    getattr(decoder, _ATTRIBUTE).remove()
    delattr(decoder, _ATTRIBUTE)


def saved_share(input_ids: Tensor, attention_mask: Tensor) -> float:
    """Return the fraction of a batch's tokens, without padding, that prefix sharing need not compute.

    Args:
        input_ids, attention_mask: The batch, padded on the right, shape (N, L).

    Returns:
        A number in [0, 1).
    """
    lengths = attention_mask.cpu().sum(1).clamp(min=1)
    packed = pack(input_ids, lengths, min_shared=_MIN_SHARED, budget=_budget(int(lengths.max())))
    return 1 - len(packed.gather.unique()) / int(lengths.sum())


def is_enabled(model: Any) -> bool:
    """Return whether a model shares prefixes.

    Raises:
        TypeError: `model` is not a model of transformers.
    """
    return hasattr(_decoder(model)[1], _ATTRIBUTE)


def _budget(longest: int) -> int:
    """Maximum length of a tree, given the length of the longest row."""
    return max(_BUDGET, 2 * longest)


@contextlib.contextmanager
def share_prefixes(model: Any, *, min_shared: int = _MIN_SHARED, budget: int | None = None) -> Iterator[None]:
    """Enable prefix sharing within a `with` block; see `enable`."""
    enable(model, min_shared=min_shared, budget=budget)
    try:
        yield
    finally:
        disable(model)


def _decoder(model: Any) -> tuple[Any, Any]:
    """Return the model of transformers without its wrappers, and its part that computes hidden states."""
    while (inner := getattr(model, "module", None) or getattr(model, "_orig_mod", None)) is not None:
        model = inner
    if hasattr(model, "get_base_model"):  # PEFT's
        model = model.get_base_model()
    decoder = getattr(model, "base_model", None)
    if decoder is None or not hasattr(decoder, "config"):
        raise TypeError(f"model must be a model of transformers, got {type(model).__name__}")
    return model, decoder


def why_not(model: Any, longest: int | None = None) -> str | None:
    """Return why a model does not support prefix sharing, or None if it does.

    Args:
        model: As for `enable`.
        longest: Length of the longest row in tokens; None if unknown.

    Raises:
        TypeError: `model` is not a model of transformers.
    """
    decoder = _decoder(model)[1]
    config = decoder.config.get_text_config()
    name = type(decoder).__name__
    if getattr(decoder, "_unsloth_fast_path", False):
        return (
            f"model must use the attention of transformers to share prefixes, got {name} with Unsloth's attention, which ignores "
            "the mask in training: set pcrm_prefix_sharing=False, or load the model with transformers"
        )
    if config.is_encoder_decoder:
        return f"model must be a decoder to share prefixes, got {name}, which has an encoder"
    if getattr(decoder, "_is_stateful", False):
        return (
            f"model must consist of attention layers to share prefixes, got {name}, whose layers carry a state from token to "
            "token: a state cannot branch"
        )
    attention = config._attn_implementation
    if attention not in _ATTENTIONS:
        return (
            f"the attention of the model must be one of {', '.join(_ATTENTIONS)} to share prefixes, got {attention}, "
            "which accepts no mask: load the model with attn_implementation='sdpa'"
        )
    causal = [module.is_causal for module in decoder.modules() if hasattr(module, "is_causal")]
    if not causal or not all(causal) or not getattr(config, "is_causal", True):
        return f"model must be causal to share prefixes, got {name}, in which tokens attend to later ones"
    if kinds := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return (
            f"layers must use full or sliding attention to share prefixes, got {name} with {', '.join(sorted(kinds))}"
        )
    if getattr(config, "alibi", False):
        return f"model must accept position ids to share prefixes, got {name} with ALiBi, whose distances count the tokens between"
    parameters = inspect.signature(decoder.forward).parameters
    for wanted in ("input_ids", "attention_mask", "position_ids"):
        if wanted not in parameters:
            return f"model must accept {wanted} to share prefixes, got {name}, which does not"
    return None if longest is None else _beyond_window(config, longest)


def _beyond_window(config: Any, longest: int) -> str | None:
    """Return an error if a row exceeds a layer's sliding window, which an explicit mask would disable; else None."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or longest <= window or (kinds is not None and "sliding_attention" not in kinds):
        return None
    if not getattr(config, "use_sliding_window", True):
        return None
    return f"rows must fit into the model's sliding window of {window} tokens to share prefixes, got {longest} tokens"


class _Sharing:
    """The hooks that `enable` installs on a decoder."""

    def __init__(self, model: Any, decoder: Any, min_shared: int, budget: int | None) -> None:
        self._min_shared = _check.integer("min_shared", min_shared, 1)
        self._budget = None if budget is None else _check.integer("budget", budget, 1)
        self._config = decoder.config.get_text_config()
        self._names = list(inspect.signature(decoder.forward).parameters)
        self._gather: Tensor | None = None  # of the current batch
        self._first: tuple[dict[str, Any], dict[str, Any]] | None = None  # the caller's arguments and the packed ones
        self._checked: set[bool] = (
            set()
        )  # separately for training and evaluation, in which a model may compute differently
        self._called = False
        self._handles = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after),
        ]
        if model is not decoder:
            self._handles.append(model.register_forward_hook(self._was_called))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _was_called(self, model: Any, *_: Any) -> None:
        if not self._called:
            raise PrefixSharingError(
                f"the forward pass of {type(model).__name__} must call its decoder to share prefixes, got one that bypasses it: "
                "this model does not support prefix sharing"
            )
        self._handles.pop().remove()

    def _before(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._called, self._gather = True, None
        given = dict(zip(self._names, args, strict=False)) | kwargs
        if given.get("use_cache") or given.get("past_key_values") is not None:
            return None  # generation
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is None:
            raise ValueError("input_ids must be token ids to share prefixes, got None: embeddings are not supported")
        if given.get("output_attentions") or self._config.output_attentions:
            raise ValueError(
                "output_attentions must be False with prefix sharing, which has no attention matrix per row, got True"
            )
        packed = self._packed(ids, mask, given.get("position_ids"))
        checked = decoder.training in self._checked
        if checked and packed.ids.numel() >= ids.numel():
            return None
        self._gather = packed.gather
        inside = given | {
            "input_ids": packed.ids,
            "attention_mask": _mask(packed.ends, self._config._attn_implementation, decoder.dtype),
            "position_ids": packed.positions,
            "use_cache": False,
        }
        if not checked:
            self._first = given, inside
        return (), inside

    @_uncompiled
    def _packed(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> Packed:
        rows, width = ids.shape
        if mask is not None and mask.dim() != 2:
            raise ValueError(
                f"attention_mask must have shape {(rows, width)} to share prefixes, got {tuple(mask.shape)}"
            )
        # All at once on the CPU: each access to a device's value would synchronize.
        real = torch.ones(rows, width, dtype=torch.bool) if mask is None else mask.bool().cpu()
        count = real.sum(1, keepdim=True)
        pads = real.int().argmax(1, keepdim=True)  # number of pads before a row
        places = torch.arange(width) - pads  # position of each token in its row
        if bool((real != ((places >= 0) & (places < count))).any()):
            raise ValueError("attention_mask must not have padding inside a row to share prefixes, got 1 0 1")
        if positions is not None:
            if bool(((positions.cpu() != places) & real).any()):
                raise ValueError("position_ids must count from 0 in each row to share prefixes, got other positions")
        elif bool(pads.any()):
            raise ValueError(
                "attention_mask must be padded on the right to share prefixes without position_ids, got a 1 after a 0: "
                "set tokenizer.padding_side = 'right'"
            )
        lengths = count[:, 0].clamp(min=1)  # a row of only padding is computed as its first pad
        longest = int(lengths.max())
        if (reason := _beyond_window(self._config, longest)) is not None:
            raise ValueError(reason)
        budget = _budget(longest) if self._budget is None else self._budget
        if not bool(pads.any()):
            return pack(ids, lengths, min_shared=self._min_shared, budget=budget)
        # The plan expects rows without padding on the left.
        ids = ids.gather(1, ((torch.arange(width) + pads) % width).to(ids.device))
        packed = pack(ids, lengths, min_shared=self._min_shared, budget=budget)
        return packed._replace(gather=packed.gather.gather(1, places.clamp(min=0).to(ids.device)))

    def _after(self, decoder: Any, args: Any, output: Any) -> Any:
        if self._gather is None:
            return None
        if isinstance(output, tuple):
            raise ValueError("return_dict must be True with prefix sharing, got False")
        gather, self._gather = self._gather, None
        output.last_hidden_state = _unpacked(output.last_hidden_state, gather)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(_unpacked(x, gather) for x in output.hidden_states)
        if output.get("router_logits") is not None:  # per token, regardless of rows
            output.router_logits = tuple(x[gather.flatten()] for x in output.router_logits)
        if self._first is not None:
            (given, inside), self._first = self._first, None
            self._compare(decoder, given, inside, gather)
            self._checked.add(decoder.training)
        return output

    @torch.no_grad()
    def _compare(self, decoder: Any, given: dict[str, Any], inside: dict[str, Any], gather: Tensor) -> None:
        """Compute the batch both ways without dropout; raise an error if the results differ by more than rounding."""
        with _without_dropout(decoder):
            plain = decoder.forward(**given | {"use_cache": False}).last_hidden_state
            shared = _unpacked(decoder.forward(**inside).last_hidden_state, gather)
        kind = plain.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else plain.dtype
        mask = given.get("attention_mask")
        if mask is not None:
            plain, shared = plain[mask.bool()], shared[mask.bool()]
        finite = plain.isfinite().all(-1)  # ignore non-finite states, which the model itself produces
        plain, shared = plain[finite].double(), shared[finite].double()
        size = plain.norm(dim=-1).clamp(min=torch.finfo(plain.dtype).tiny)  # the state of a token may be 0
        apart = max(((shared - plain).norm(dim=-1) / size).tolist(), default=0.0)
        units = _UNITS if torch.finfo(dtype).bits >= 32 else _UNITS_OF_HALF
        most = units * torch.finfo(dtype).eps * self._config.num_hidden_layers**0.5
        if not apart <= most:
            raise PrefixSharingError(
                f"the hidden states of {type(decoder).__name__} with and without shared prefixes must differ by at most {most:.1e} "
                f"of a token's norm, got {apart:.1e}: this model does not support prefix sharing. Please report this"
            )


@contextlib.contextmanager
def _without_dropout(decoder: Any) -> Iterator[None]:
    """Disable dropout and checkpointing, but keep the training mode, by which a model may choose its attention."""
    before = []
    for module in decoder.modules():
        for name, value in list(vars(module).items()):
            rate = "dropout" in name or "jitter" in name or (name == "p" and isinstance(module, _DropoutNd))
            if (rate and type(value) is float) or (name == "gradient_checkpointing" and value):
                before.append((module, name, value))
                setattr(module, name, type(value)(0))
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _unpacked(x: Tensor, gather: Tensor) -> Tensor:
    return x.flatten(0, 1)[gather]


def _mask(ends: Tensor, attention: str, dtype: torch.dtype) -> Any:
    """Return the attention mask in which q attends to k if and only if k <= q < ends[k]."""
    width = ends.shape[1]
    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(
            lambda b, _, q, k: (k <= q) & (q < ends[b, k]), len(ends), None, width, width, device=str(ends.device)
        )
    at = torch.arange(width, device=ends.device)
    sees = (at <= at[:, None]) & (at[:, None] < ends[:, None, :])
    if attention == "sdpa":
        return sees[:, None]
    # eager adds its mask to the logits.
    return torch.where(sees, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
