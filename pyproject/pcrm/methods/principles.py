"""Principles in the prompt of a reward model, as SALMON trains one (arXiv 2310.05910).

A reward model that reads principles with the prompt scores a response by them, and other
principles get other scores from the same model. A row says them in a column `principles`, a
list, each of them a text or an object

    text       what the prompt says
    name       what scores are called by; the text by default
    negation   what the prompt says instead where the principle is negated
    score      how much more the chosen response keeps to it than the rejected one: greater than
               0 where chosen does, less where rejected does, 0 where neither; in one unit for
               all principles of a row

all of whose keys but `text` are optional. `with_principles` makes training rows of such rows.
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

# Before the prompt: a plain response follows the prompt's last character.
TEMPLATE = "A good response keeps to these principles:\n{principles}\n\n{prompt}"
NEGATION = "A good response does not keep to this: {principle}"

_KEYS = ("text", "name", "negation", "score")


class Principle(NamedTuple):
    """One entry of the column `principles`; see the module. `score` and `negation` are None where it has none."""

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
    """A row whose prompt has some of its principles in it, some of them negated.

        dataset.map(pcrm.methods.principles.with_principles, fn_kwargs={"k": 3, "negate": 0.5})

    With d_i the `score` of principle i and s_i = -d_i where it is negated, d_i elsewhere, the
    drawn principle with the greatest |s_i|, the first of equal ones, says which response the
    row prefers (arXiv 2310.05910): where its s_i < 0, chosen and rejected are
    swapped. Where all s_i are 0 no response is preferred, and the paper leaves the row out:

        dataset.filter(lambda row: row["preference"] != "none")

    Without scores a pair is taken to prefer chosen by each of its principles alone. Then they
    are negated all or none, which swaps the pair or leaves it: of some negated ones and some
    others nothing would say which response they prefer.

    What is drawn depends on the seed and on the row's own texts alone, so that it is the same in
    every batch, process and epoch and for every order of `principles`: those with the k least
    hashes of (seed, prompt, chosen, rejected, text) in the order of these, each negated if
    another such hash, as a number in [0, 1), is less than `negate`.

    Args:
        row: `principles`, `prompt`, a text or a list of messages, and `chosen` and `rejected`,
            or neither; other columns are kept.
        template: What the prompt becomes; of messages, the content of the last one of the user.
            "{principles}" in it stands for the drawn principles, a line each after "- ", and
            "{prompt}" for what was there. All other braces stay.
        k: How many to draw, at least 1; all by default and where there are no more.
        negate: The chance that a principle, or a row without scores, is negated, in [0, 1].
        negation: What a negated principle without a `negation` becomes; "{principle}" in it
            stands for the text.
        seed: An integer.

    Returns:
        A new row: `principles` are the drawn texts, as they are in the prompt. A pair has
        `preference` too: "kept", "swapped" or "none".

    Raises:
        pcrm.data.preferences.RowError: no principles, or one that is none; some with a score and some
            without; no prompt, or one with no message of the user; `negate` with only one of
            chosen and rejected or none, whose preference could not follow.
        TypeError, ValueError: an argument of another kind, or out of its range.
    """
    if k is not None:
        _check.integer("k", k, low=1)
    if not 0 <= _check.number("negate", negate) <= 1:
        raise ValueError(f"negate is {negate!r}, must be in [0, 1]")
    _check.integer("seed", seed, -(2**63))
    if not isinstance(negation, str):
        raise TypeError(f"negation is {negation!r:.80}, must be a text")
    if "{principle}" not in negation:
        raise ValueError(f"negation is {negation!r:.80}, must have {{principle}} in it")
    principles = parse(row.get("principles"))
    pair = all(row.get(name) is not None for name in ("chosen", "rejected"))
    scored = [p.score is not None for p in principles]
    if any(scored) and not all(scored):
        has, lacks = scored.index(True), scored.index(False)
        raise RowError(f"principles[{lacks}] has no score, principles[{has}] has: all must, or none")
    if negate and not pair:
        raise RowError("has no chosen and rejected: a negated principle would leave its preference as it was")

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
    """The prompt with principles in it, by the template of `with_principles`.

    Raises:
        RowError: no prompt, or one that is neither a text nor messages with a text of the user.
        ValueError: a template without {principles} or {prompt}.
    """
    for name in ("{principles}", "{prompt}"):
        if not isinstance(template, str) or name not in template:
            raise ValueError(f"template is {template!r:.80}, must have {name} in it")
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    values = {"{principles}": "\n".join(f"- {text}" for text in texts)}
    if isinstance(prompt, str):
        return _filled(template, values | {"{prompt}": prompt})
    if prompt is None:
        raise RowError("has no prompt, which principles are put into")
    if not isinstance(prompt, list):
        raise RowError(f"prompt is {prompt!r:.80}, must be a text or a list of messages")
    for i in reversed(range(len(prompt))):
        message = prompt[i]
        if isinstance(message, Mapping) and message.get("role") == "user" and isinstance(message.get("content"), str):
            filled = _filled(template, values | {"{prompt}": message["content"]})
            return [*prompt[:i], {**message, "content": filled}, *prompt[i + 1 :]]
    raise RowError("prompt has no message of the user with a text, which principles are put into")


def parse(value: Any) -> list[Principle]:
    """The entries of a column `principles`, see the module.

    Raises:
        RowError: it is no list or has no entries; an entry, a key or a value that is none; two
            entries with one name.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list) or not value:
        raise RowError(f"principles is {value!r:.80}, must be a list of texts or objects")
    found: dict[str, int] = {}
    principles = []
    for i, entry in enumerate(value):
        principle = _parsed(f"principles[{i}]", {"text": entry} if isinstance(entry, str) else entry)
        if (other := found.setdefault(principle.name, i)) != i:
            raise RowError(f"principles[{i}] has the name of principles[{other}]: {principle.name!r:.80}")
        principles.append(principle)
    return principles


def load(path: str | os.PathLike[str]) -> list[Principle]:
    """The principles of a JSON file, a list as in the column `principles`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such list; the message begins with the file.
    """
    try:
        return parse(json.loads(Path(path).read_text(encoding="utf-8-sig")))
    except RowError as error:
        raise ValueError(f"{os.fspath(path)}: {error.message}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: is not JSON: {error}") from None


def _parsed(place: str, entry: Any) -> Principle:
    if not isinstance(entry, Mapping):
        raise RowError(f"{place} is {entry!r:.80}, must be a text or an object with text")
    entry = {key: value for key, value in entry.items() if value is not None}  # what Arrow makes of a missing key
    if unknown := [key for key in entry if key not in _KEYS]:
        raise RowError(f"{place} has a key {unknown[0]!r}, its keys may be {', '.join(_KEYS)}")
    if "text" not in entry:
        raise RowError(f"{place} has no text")
    for key in _KEYS[:3]:
        if key in entry and (not isinstance(entry[key], str) or not entry[key].strip()):
            raise RowError(f"{place}.{key} is {entry[key]!r:.80}, must be a text that is not empty")
    score = entry.get("score")
    if score is not None:
        score = finite(f"{place}.score", score)
    return Principle(entry["text"], entry.get("name", entry["text"]), entry.get("negation"), score)


def _negated(principle: Principle, negation: str) -> str:
    return principle.negation or negation.replace("{principle}", principle.text)


def _filled(template: str, values: dict[str, str]) -> str:
    """In one pass: a prompt may have braces of its own."""
    return re.sub(r"\{(?:principles|prompt)\}", lambda match: values[match[0]], template)


def _canonical(value: Any) -> Any:
    """A column's value, the same whether it comes of JSON or of Arrow, which has None for a missing key."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _canonical(v) for key, v in sorted(value.items()) if v is not None}
    return [_canonical(v) for v in value] if isinstance(value, (list, tuple)) else value


def _uniform(*parts: Any) -> float:
    """A number in [0, 1) that is a hash of texts and integers."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # the bits of a float64, which then is less than 1
