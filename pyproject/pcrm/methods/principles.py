"""Put principles into the prompt of a reward model, as SALMON does in training (arXiv 2310.05910).

A reward model that reads principles along with the prompt judges a response by them. The same model
gives other scores for other principles. A row lists its principles in a column `principles`. Each
entry is a text or an object with the keys

    text       the principle, as written in the prompt
    name       the name of its score; the default is the text
    negation   the text to use instead when the principle is negated
    score      how much better the chosen response follows the principle than the rejected one:
               positive if chosen does, negative if rejected does, 0 if neither; in the same unit
               for all principles of a row

Only `text` is required. `with_principles` turns such rows into training rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import _check
from ..data.preferences import RowError, finite

# The principles come before the prompt, because a plain response follows the prompt's last character.
TEMPLATE = "A good response keeps to these principles:\n{principles}\n\n{prompt}"
NEGATION = "A good response does not keep to this: {principle}"

_KEYS = ("text", "name", "negation", "score")


class Principle(NamedTuple):
    """One entry of the column `principles`; see the module. `score` and `negation` are None if missing."""

    text: str
    name: str
    negation: str | None = None
    score: float | None = None


def with_principles(
    row: Mapping[str, Any],
    *,
    template: str = TEMPLATE,
    k: int | None = None,
    negate: float = 0.0,
    negation: str = NEGATION,
    seed: int = 0,
) -> dict[str, Any]:
    """Put some of a row's principles into its prompt, some of them negated.

        dataset.map(pcrm.methods.principles.with_principles, fn_kwargs={"k": 3, "negate": 0.5})

    Let d_i be the `score` of principle i, and s_i = -d_i if it is negated, else d_i. The drawn
    principle with the largest |s_i| (the first, if several are equal) decides which response the
    row prefers: if its s_i < 0, chosen and rejected are swapped. If all s_i are 0, no response is
    preferred. The paper leaves out such rows:

        dataset.filter(lambda row: row["preference"] != "none")

    Without scores, the chosen response of a pair is assumed to be the better one by each of the
    principles. Then either all principles are negated, which swaps the pair, or none, because a
    mixture would not determine which response is preferred.

    The draw depends only on the seed and on the row's texts. It is the same in every batch, process
    and epoch, and for every order of `principles`. The k principles with the smallest hashes of
    (seed, prompt, chosen, rejected, text) are drawn, in the order of the hashes. Each is negated if
    another such hash, as a number in [0, 1), is less than `negate`. Source: arXiv 2310.05910.

    Args:
        row: A row with `principles`, `prompt` (a text or a list of messages), and both of `chosen`
            and `rejected` or neither. Other columns are kept.
        template: The new prompt or, for messages, the new content of the last user message.
            "{principles}" stands for the drawn principles, each on a line after "- ", and "{prompt}"
            for the original text. All other braces stay as they are.
        k: The number of principles to draw, at least 1. The default is all of them.
        negate: The probability, in [0, 1], that a principle is negated or, without scores, that all
            principles of the row are.
        negation: The text for a negated principle that has no `negation`. "{principle}" stands for
            its text.
        seed: An integer.

    Returns:
        A new row in which `principles` are the drawn texts, as they are in the prompt. A pair also
        has `preference`: "kept", "swapped" or "none".

    Raises:
        pcrm.data.preferences.RowError: Principles are missing or invalid; some have a score and some
            have not; the prompt is missing or has no user message; or `negate` is set for a row
            without both chosen and rejected, whose preference could not be swapped.
        TypeError, ValueError: An argument has the wrong type or is out of range.
    """
    if k is not None:
        _check.integer("k", k, low=1)
    if not 0 <= _check.number("negate", negate) <= 1:
        raise ValueError(f"negate must be in [0, 1], got {negate!r}")
    _check.integer("seed", seed, -(2**63))
    if not isinstance(negation, str):
        raise TypeError(f"negation must be a text, got {negation!r:.80}")
    if "{principle}" not in negation:
        raise ValueError(f"negation must contain {{principle}}, got {negation!r:.80}")
    principles = parse(row.get("principles"))
    pair = all(row.get(name) is not None for name in ("chosen", "rejected"))
    scored = [p.score is not None for p in principles]
    if any(scored) and not all(scored):
        has, lacks = scored.index(True), scored.index(False)
        raise RowError(
            f"principles[{lacks}] must have a score, because principles[{has}] has one: give all a score, or none"
        )
    if negate and not pair:
        raise RowError("chosen and rejected are missing: negate requires both, because a negation may swap them")

    texts = [seed, *(_canonical(row.get(name)) for name in ("prompt", "chosen", "rejected"))]
    drawn = sorted(principles, key=lambda p: _uniform(*texts, "draw", p.text))[:k]
    negated = [_uniform(*texts, "negate", p.text if scored[0] else "") < negate for p in drawn]
    lines = [_negated(p, negation) if n else p.text for p, n in zip(drawn, negated, strict=True)]
    new = dict(row) | {"prompt": into_prompt(row.get("prompt"), lines, template), "principles": lines}
    if pair:
        signed = [(1.0 if p.score is None else p.score) * (-1 if n else 1) for p, n in zip(drawn, negated, strict=True)]
        score = max(signed, key=abs)
        new["preference"] = "kept" if score > 0 else "swapped" if score < 0 else "none"
        if score < 0:
            new["chosen"], new["rejected"] = row["rejected"], row["chosen"]
    return new


def into_prompt(prompt: Any, texts: list[str], template: str = TEMPLATE) -> Any:
    """Return the prompt with principles in it.

    Args:
        prompt: A text or a list of messages.
        texts: The principles.
        template: See `with_principles`.

    Returns:
        The new prompt, of the same kind as `prompt`.

    Raises:
        pcrm.data.preferences.RowError: The prompt is missing, or is neither a text nor a list of
            messages with a text from the user.
        ValueError: The template lacks {principles} or {prompt}.
    """
    for name in ("{principles}", "{prompt}"):
        if not isinstance(template, str) or name not in template:
            raise ValueError(f"template must contain {name}, got {template!r:.80}")
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    values = {"{principles}": "\n".join(f"- {text}" for text in texts)}
    if isinstance(prompt, str):
        return _filled(template, values | {"{prompt}": prompt})
    if prompt is None:
        raise RowError("prompt is missing: principles are put into it")
    if not isinstance(prompt, list):
        raise RowError(f"prompt must be a text or a list of messages, got {prompt!r:.80}")
    for i in reversed(range(len(prompt))):
        message = prompt[i]
        if isinstance(message, Mapping) and message.get("role") == "user" and isinstance(message.get("content"), str):
            filled = _filled(template, values | {"{prompt}": message["content"]})
            return [*prompt[:i], {**message, "content": filled}, *prompt[i + 1 :]]
    raise RowError("prompt must have a user message with a text: principles are put into it")


def parse(value: Any) -> list[Principle]:
    """Parse the value of a column `principles`. See the module for its format.

    Raises:
        pcrm.data.preferences.RowError: The value is not a list or is empty; an entry, a key or a
            value is invalid; or two entries have the same name.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list) or not value:
        raise RowError(f"principles must be a list of texts or objects, got {value!r:.80}")
    found: dict[str, int] = {}
    principles = []
    for i, entry in enumerate(value):
        principle = _parsed(f"principles[{i}]", {"text": entry} if isinstance(entry, str) else entry)
        if (other := found.setdefault(principle.name, i)) != i:
            raise RowError(
                f"principles[{i}] must have a unique name, got {principle.name!r:.80}, as principles[{other}]"
            )
        principles.append(principle)
    return principles


def load(path: str | os.PathLike[str]) -> list[Principle]:
    """Read principles from a JSON file that holds a list in the format of the column `principles`.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file holds no such list. The message begins with the file's name.
    """
    try:
        return parse(json.loads(Path(path).read_text(encoding="utf-8-sig")))
    except RowError as error:
        raise ValueError(f"{os.fspath(path)}: {error.message}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: must be JSON: {error}") from None


def _parsed(place: str, entry: Any) -> Principle:
    if not isinstance(entry, Mapping):
        raise RowError(f"{place} must be a text or an object with a key 'text', got {entry!r:.80}")
    entry = {key: value for key, value in entry.items() if value is not None}  # Arrow has None for a missing key
    if unknown := [key for key in entry if key not in _KEYS]:
        raise RowError(f"{place} must have only the keys {', '.join(_KEYS)}, got {unknown[0]!r}")
    if "text" not in entry:
        raise RowError(f"{place}.text is missing")
    for key in _KEYS[:3]:
        if key in entry and (not isinstance(entry[key], str) or not entry[key].strip()):
            raise RowError(f"{place}.{key} must be a non-empty text, got {entry[key]!r:.80}")
    score = entry.get("score")
    if score is not None:
        score = finite(f"{place}.score", score)
    return Principle(entry["text"], entry.get("name", entry["text"]), entry.get("negation"), score)


def _negated(principle: Principle, negation: str) -> str:
    return principle.negation or negation.replace("{principle}", principle.text)


def _filled(template: str, values: dict[str, str]) -> str:
    """Fill the template in one pass, because a prompt may contain braces."""
    return re.sub(r"\{(?:principles|prompt)\}", lambda match: values[match[0]], template)


def _canonical(value: Any) -> Any:
    """Return a column's value in a form that is the same from JSON and from Arrow, which has None for a missing key."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _canonical(v) for key, v in sorted(value.items()) if v is not None}
    return [_canonical(v) for v in value] if isinstance(value, (list, tuple)) else value


def _uniform(*parts: Any) -> float:
    """Hash texts and integers to a number in [0, 1)."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits, so that the float64 is less than 1
