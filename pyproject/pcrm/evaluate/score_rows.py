"""The scores of a reward model as new columns of a file of rows, for `pcrm score` and `pcrm optimize`.

Rows of one kind get the scores of their responses:

    chosen, rejected    pairs: chosen_score and rejected_score
    responses           rankings: scores, one for each response, in their order
    response            single responses: score
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.preferences import RowError, inputs, listed
from ..data.resumable import ResumableOutput
from ..data.row_pipeline import ParsedRows, RowPipeline, check_new, kind_of_rows
from ..data.sources import Source
from ..data.writers import Columns
from ..methods import principles
from ..methods.principles import Principle
from .reward_model import RewardModel

# The columns that make a row one of a kind, and those of its scores.
_SCORES = {
    ("chosen", "rejected"): ("chosen_score", "rejected_score"),
    ("responses",): ("scores",),
    ("response",): ("score",),
}
_BY_PRINCIPLE = "scores_by_principle"
_READS = ("prompt", "principles", "tools", "chat_template_kwargs", *(name for kind in _SCORES for name in kind))

# What is in memory at once and what a kill loses: a minute's work of a small model on a CPU.
# More would hardly pad less.
_SHARD_ROWS = 512

Kind = tuple[str, ...]
# What the model reads for each response of a row, by the name of a principle, None for all of them, and its own.
_Encoded = dict[tuple[str | None, str], list[int]]


@dataclass
class PrinciplePrompts:
    """Principles that are put into the prompts.

    Attributes:
        given: The principles; None where each row has its own.
        template: What a prompt becomes, see `principles.into_prompt`.
    """

    given: list[Principle] | None
    template: str = principles.TEMPLATE

    def __post_init__(self) -> None:
        principles.into_prompt("", [], self.template)  # checks the template

    def prompts(self, row: dict[str, Any]) -> dict[str | None, Any]:
        """The row's prompt with all of its principles, and by the name of each with it alone."""
        found = principles.parse(row.get("principles")) if self.given is None else self.given
        prompt = row.get("prompt")
        together = principles.into_prompt(prompt, [p.text for p in found], self.template)
        return {None: together} | {p.name: principles.into_prompt(prompt, [p.text], self.template) for p in found}


def kind_to_score(source: Source) -> Kind:
    """Which kind of rows a source has: its columns of texts.

    Raises:
        ValueError: The rows are of no kind, or a table has scores already.
    """
    kind = kind_of_rows(source, _SCORES, "chosen and rejected, responses or response")
    check_new(source, _SCORES[kind])
    return kind


def add_scores(
    source: Source,
    out: str | os.PathLike[str],
    model: RewardModel,
    kind: Kind,
    *,
    asked: PrinciplePrompts | None = None,
    skip: bool = False,
) -> ResumableOutput:
    """Write the rows of a source with a model's scores of them. Killed, the same call goes on where it was.

    Args:
        out: The output, see `data.resumable`.
        kind: The columns of texts that the rows have, see the module.
        asked: The principles in the prompts. Then `scores_by_principle` has the scores by each of them.
        skip: Leave bad rows out instead of ending at the first.

    Raises:
        BadRowError: A row is bad, or a score is not finite, and bad rows are not skipped.
        OSError, ValueError: As from `RowPipeline`.
    """
    # Not the batch size, the device or the sharing of prefixes, which move no more than a score's last bits: what was
    # too large for one of them goes on with another.
    settings: dict[str, Any] = {"MODEL": model.identity, "--dtype": model.dtype, "--max-length": model.max_length}
    if asked is not None:
        settings |= {"--principles": asked.given or "column", "--principle-template": asked.template}
    pipeline = RowPipeline(
        source,
        out,
        parse=lambda row: _encoded(row, kind, model, asked),
        reads=_READS,
        adds=(*_SCORES[kind], *([_BY_PRINCIPLE] if asked else [])),
        settings=settings,
        input_name="DATA",
        skip=skip,
        batch_rows=_SHARD_ROWS,
    )
    return pipeline.run(lambda rows: _scores(rows, kind, model, asked))


def _encoded(row: dict[str, Any], kind: Kind, model: RewardModel, asked: PrinciplePrompts | None) -> _Encoded:
    for name in kind:
        if name not in row:
            raise RowError(f"has no {name}, its keys are {listed(row)}")
    if kind == ("responses",):
        if not isinstance(row["responses"], list) or not row["responses"]:
            raise RowError(f"responses is {row['responses']!r:.80}, must be a list of texts or lists of messages")
        responses = {f"responses[{i}]": response for i, response in enumerate(row["responses"])}
    else:
        responses = {name: row[name] for name in kind}
    tools, options = row.get("tools"), row.get("chat_template_kwargs")
    return {
        (principle, name): model.encode(name, value, tools, options)
        for principle, prompt in (asked.prompts(row) if asked else {None: row.get("prompt")}).items()
        for name, value in zip(responses, inputs(prompt, responses, end=model.end), strict=True)
    }


def _scores(rows: ParsedRows[_Encoded], kind: Kind, model: RewardModel, asked: PrinciplePrompts | None) -> Columns:
    encoded = rows.values.copy()
    scores = model.score([ids for row in encoded.values() for ids in row.values()], rows.progress)
    ends = np.cumsum([len(row) for row in encoded.values()], dtype=int)[:-1]
    good: list[dict[str | None, np.ndarray]] = []
    for (i, row), numbers in zip(encoded.items(), np.split(scores, ends), strict=False):
        for (principle, name), score in zip(row, numbers, strict=True):
            if not np.isfinite(score):
                by = "" if principle is None else f" by the principle {principle!r:.80}"
                rows.refuse(i, RowError(f"{name} gets the score {score} of {model.name}{by}"))
                break
        else:
            names = list(dict.fromkeys(principle for principle, _ in row))
            good.append(dict(zip(names, numbers.reshape(len(names), -1), strict=True)))
    together = [row[None] for row in good]
    if kind == ("responses",):
        columns: dict[str, Any] = {"scores": together}
    else:
        table = np.array(together, np.float32).reshape(-1, len(kind))
        columns = dict(zip(_SCORES[kind], table.T, strict=True))
    if asked:
        columns[_BY_PRINCIPLE] = [
            [{"principle": name} | _named(kind, numbers) for name, numbers in row.items() if name is not None]
            for row in good
        ]
    return columns


def _named(kind: Kind, numbers: np.ndarray) -> dict[str, Any]:
    return {"scores": numbers} if kind == ("responses",) else dict(zip(_SCORES[kind], numbers, strict=True))
