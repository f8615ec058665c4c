"""A small world of prompts and responses whose true reward is known.

A prompt asks for an explanation of a topic to an audience. A response is a row of
sentences, and its true reward is a sum over them (see `_REWARD`): sentences on the
topic help, each less than the one before; those that wander off, fill space or are rude
hurt; an image helps a child and a definition an expert, not the other way round. Each
word costs a little.

People's choices are sampled from the true rewards by Bradley-Terry, so they are noisy as
real ones are: the best that a reward model can do is the true difference, and one that
is sure of every pair has learnt the noise.
"""

from __future__ import annotations

import math
import random
import re
from typing import Any

_TOPICS = {
    "the tides": ("the moon", "sea level", "the shore", "gravity", "the harbor"),
    "bread": ("the yeast", "the dough", "the oven", "the flour", "the crust"),
    "rain": ("the clouds", "water vapor", "the drops", "warm air", "the puddles"),
    "bees": ("the queen", "the hive", "the nectar", "the workers", "the pollen"),
    "magnets": ("the poles", "iron filings", "the field", "the compass", "electric current"),
    "glass": ("the sand", "the furnace", "the molten sheet", "the blower", "slow cooling"),
    "sleep": ("the brain", "the dreams", "the inner clock", "deep breathing", "melatonin"),
    "money": ("the bank", "the coins", "the lender", "the prices", "interest"),
    "volcanoes": ("the magma", "the crater", "the ash", "the plates", "hot gas"),
    "music": ("the strings", "the rhythm", "the melody", "the scale", "the drum"),
    "trees": ("the roots", "the leaves", "the bark", "the sap", "sunlight"),
    "trains": ("the rails", "the engine", "the brakes", "the signals", "the wheels"),
}
_AUDIENCES = ("a child", "an expert")
_VERBS = ("changes", "carries", "shapes", "needs", "slows", "warms", "feeds", "moves", "holds", "follows")
_FILLERS = (
    "There is a lot one could say here.",
    "This is an interesting question that many people ask.",
    "As everybody knows, things are what they are.",
)
_RUDE = ("Honestly, you should know this already.", "Just look it up somewhere else.")
_IMAGES = ("Imagine {0} as a big friendly toy.", "It is like a game where {0} plays with {1}.")
_DEFINITIONS = ("Formally, {0} is a function of {1}.", "In the literature, {0} is modeled by {1}.")

# What a sentence is worth. "topic" is for the first one, each further one brings 0.8 of the one before.
_REWARD = {"topic": 1.5, "off": -1.2, "filler": -0.5, "rude": -2.0, "fits": 1.8, "unfit": -1.0}
_PER_WORD = -0.02
# How often a rewritten sentence keeps its kind, and with it its worth.
_SAME_KIND = 0.5
_KINDS = ("topic", "topic", "topic", "off", "filler", "rude", "image", "definition")


def _sentence(rng: random.Random, kind: str, topic: str) -> str:
    if kind == "filler":
        return rng.choice(_FILLERS)
    if kind == "rude":
        return rng.choice(_RUDE)
    if kind == "off":
        topic = rng.choice([t for t in _TOPICS if t != topic])
    a, b = rng.sample(_TOPICS[topic], 2)
    if kind in ("image", "definition"):
        return rng.choice(_IMAGES if kind == "image" else _DEFINITIONS).format(a, b)
    return f"{a.capitalize()} {rng.choice(_VERBS)} {b}."


def _true_reward(sentences: list[tuple[str, str]], audience: str) -> float:
    fitting = "image" if audience == "a child" else "definition"
    worth, on_topic = 0.0, 0
    for kind, text in sentences:
        if kind == "topic":
            worth += _REWARD["topic"] * 0.8**on_topic
            on_topic += 1
        elif kind in ("image", "definition"):
            worth += _REWARD["fits" if kind == fitting else "unfit"]
        else:
            worth += _REWARD[kind]
        worth += _PER_WORD * len(text.split())
    return worth


_PROMPT = re.compile(rf"explain ({'|'.join(_TOPICS)}) to ({'|'.join(_AUDIENCES)})\.")
# A sentence ends where the next one begins with a capital: no template has a full stop inside.
_END = re.compile(r"(?<=[.!?])\s+")


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("(.+)".join(re.escape(part) for part in re.split(r"\{\d\}", template)))


_PATTERNS = {
    "topic": [_pattern(f"{{0}} {verb} {{1}}.") for verb in _VERBS],
    "image": [_pattern(t) for t in _IMAGES],
    "definition": [_pattern(t) for t in _DEFINITIONS],
}


def gold(prompt: str, response: str) -> float:
    """The true reward of any text as the response to a prompt of this world; of `generate`'s own exactly theirs.

    A sentence counts as what it is word for word: on the topic, an image or a definition of it, filler,
    rude. Every other one counts as wandering off: of another topic, of a word with itself, cut off in
    the middle, or no sentence of this world at all. An empty text is worth 0.

    Raises:
        ValueError: the prompt does not ask to explain one of the topics to one of the audiences.
    """
    if (asked := _PROMPT.search(prompt)) is None:
        raise ValueError(f"prompt is {prompt!r:.80}, must ask to explain a topic of this world to one of its audiences")
    topic, audience = asked.groups()
    sentences = [(_kind(text, topic), text) for text in _END.split(response.strip()) if text]
    return _true_reward(sentences, audience)


def _kind(text: str, topic: str) -> str:
    if text in _FILLERS:
        return "filler"
    if text in _RUDE:
        return "rude"
    for kind, patterns in _PATTERNS.items():
        for pattern in patterns:
            if (match := pattern.fullmatch(text)) is not None:
                parts = list(match.groups())
                if kind == "topic":
                    parts[0] = next((p for p in _TOPICS[topic] if p.capitalize() == parts[0]), "")
                if len(set(parts)) == len(parts) and set(parts) <= set(_TOPICS[topic]):
                    return kind
    return "off"


def generate(pairs: int, seed: int, pairs_per_prompt: int = 5) -> list[dict[str, Any]]:
    """Preference rows in TRL's standard format, with the true reward of both responses.

    Each has `prompt`, `chosen`, `rejected`, `rating_chosen`, `rating_rejected`. Two of a
    prompt's five responses are written afresh; the others rewrite one sentence of an
    earlier one, mostly into another of its own kind, so that pairs run from worth the same
    to quite different. Equal seeds give equal rows.
    """
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    number = 0
    while len(rows) < pairs:
        topic, audience = rng.choice(list(_TOPICS)), rng.choice(_AUDIENCES)
        number += 1  # makes every prompt another one, as real ones are
        prompt = f"Question {number}: explain {topic} to {audience}.\n"
        drafts: list[list[tuple[str, str]]] = []
        for i in range(5):
            if i >= 2:
                draft = list(rng.choice(drafts))
                place = rng.randrange(len(draft))
                kind = draft[place][0] if rng.random() < _SAME_KIND else rng.choice(_KINDS)
                draft[place] = (kind, _sentence(rng, kind, topic))
            else:
                kinds = rng.choices(_KINDS, k=rng.randint(1, 7))
                draft = [(kind, _sentence(rng, kind, topic)) for kind in kinds]
            drafts.append(draft)
        responses = [(" ".join(text for _, text in d), _true_reward(d, audience)) for d in drafts]
        candidates = [(a, b) for i, a in enumerate(responses) for b in responses[:i] if a[0] != b[0]]
        for a, b in rng.sample(candidates, min(pairs_per_prompt, len(candidates))):
            if rng.random() >= 1 / (1 + math.exp(b[1] - a[1])):
                a, b = b, a
            rows.append(
                {"prompt": prompt, "chosen": a[0], "rejected": b[0], "rating_chosen": a[1], "rating_rejected": b[1]}
            )
    return rows[:pairs]
