"""A small world of prompts and responses whose true reward is known.

A prompt asks to explain a topic to an audience. A response is a sequence of sentences, and
its true reward is a sum over them (see `_REWARD`). Sentences on the topic help, each less
than the one before. Sentences that wander off, fill space or are rude hurt. An image helps a
child and a definition helps an expert, not the other way round. Each word costs a little.

Choices are sampled from the true rewards by the Bradley-Terry model, so they are as noisy as
real ones. The best possible reward model predicts the true difference. A model that is sure of
every pair has learned the noise.
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

# The reward of a sentence. "topic" is that of the first one on the topic; each further one earns 0.8 of the one before.
_REWARD = {"topic": 1.5, "off": -1.2, "filler": -0.5, "rude": -2.0, "fits": 1.8, "unfit": -1.0}
_PER_WORD = -0.02
# How often a rewritten sentence keeps its kind, and so its reward.
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
# No template has a full stop inside, so a sentence ends at a stop that white space follows.
_END = re.compile(r"(?<=[.!?])\s+")


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("(.+)".join(re.escape(part) for part in re.split(r"\{\d\}", template)))


_PATTERNS = {
    "topic": [_pattern(f"{{0}} {verb} {{1}}.") for verb in _VERBS],
    "image": [_pattern(t) for t in _IMAGES],
    "definition": [_pattern(t) for t in _DEFINITIONS],
}


def gold(prompt: str, response: str) -> float:
    """Return the true reward of any text as a response to a prompt of this world.

    Responses of `generate` get exactly the rewards that it gives them. A sentence must match word for word to count as on
    the topic, as an image or definition of it, as filler or as rude. Every other sentence counts as wandering off: it is
    about another topic, combines a word with itself, is cut off, or is not a sentence of this world. An empty text has
    reward 0.

    Raises:
        ValueError: The prompt does not ask to explain one of the topics to one of the audiences.
    """
    if (asked := _PROMPT.search(prompt)) is None:
        raise ValueError(
            f"prompt must ask to explain a topic of this world to one of its audiences, got {prompt!r:.80}"
        )
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
    """Return preference rows in TRL's standard format, with the true reward of both responses.

    Each row has `prompt`, `chosen`, `rejected`, `rating_chosen` and `rating_rejected`. Two of a prompt's five responses are
    new. Each of the others rewrites one sentence of an earlier response, often into another of the same kind, so pairs
    range from equal to quite different rewards. Equal seeds give equal rows.
    """
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    number = 0
    while len(rows) < pairs:
        topic, audience = rng.choice(list(_TOPICS)), rng.choice(_AUDIENCES)
        number += 1  # makes every prompt unique, as real ones are
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
