"""Add the scores of a reward model as columns to a file of rows, for `pcrm score` and `pcrm optimize`.

Rows of one kind get the scores of their responses:

    chosen, rejected    pairs: chosen_score and rejected_score
    responses           rankings: scores, one for each response, in their order
    response            single responses: score
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.batches import Row
from ..data.preferences import RowError, inputs, listed
from ..data.resumable import ResumableOutput
from ..data.row_pipeline import ParsedRows, RowPipeline, check_new, kind_of_rows
from ..data.sources import Source
from ..data.writers import Columns
from ..methods import principles
from ..methods.principles import Principle
from .reward_model import RewardModel
from .shared_out import Processes, device_of_process

# For each kind of rows, by its columns of texts: the columns of its scores.
_SCORES = {
    ("chosen", "rejected"): ("chosen_score", "rejected_score"),
    ("responses",): ("scores",),
    ("response",): ("score",),
}
_BY_PRINCIPLE = "scores_by_principle"
_READS = ("prompt", "principles", "tools", "chat_template_kwargs", *(name for kind in _SCORES for name in kind))

# Rows per process that are in memory at once, and that a kill loses: about a minute for a small model on a CPU. With more
# rows there would be hardly less padding.
_SHARD_ROWS = 512

Kind = tuple[str, ...]
# The token ids of each response of a row, by (principle, response). The principle is None for all principles together.
_Encoded = dict[tuple[str | None, str], list[int]]


@dataclass
class PrinciplePrompts:
    """Principles to insert into the prompts.

    Attributes:
        given: The principles, or None if each row has its own.
        template: The template of the new prompt, see `principles.into_prompt`.
    """

    given: list[Principle] | None
    template: str = principles.TEMPLATE

    def __post_init__(self) -> None:
        principles.into_prompt("", [], self.template)  # validates the template

    def prompts(self, row: dict[str, Any]) -> dict[str | None, Any]:
        """The row's prompt with all of its principles under None, and with each single principle under its name."""
        found = principles.parse(row.get("principles")) if self.given is None else self.given
        prompt = row.get("prompt")
        together = principles.into_prompt(prompt, [p.text for p in found], self.template)
        return {None: together} | {p.name: principles.into_prompt(prompt, [p.text], self.template) for p in found}


def kind_to_score(source: Source) -> Kind:
    """The kind of rows of a source: its columns of texts.

    Raises:
        ValueError: The rows are of no kind, or a table already has scores.
    """
    kind = kind_of_rows(source, _SCORES, "chosen and rejected, responses or response")
    check_new(source, _SCORES[kind])
    return kind


def load_models(asked: list[dict[str, Any]]) -> dict[str, RewardModel]:
    """Load reward models, by name. For `Processes.everywhere`.

    Args:
        asked: The arguments of each model.

    Raises:
        OSError, TypeError, ValueError: As from `RewardModel` and `device_of_process`.
    """
    models = {}
    for arguments in asked:
        device = device_of_process(arguments["device"])
        models[arguments["model"]] = RewardModel(**{**arguments, "device": device})
    return models


def add_scores(
    source: Source,
    out: str | os.PathLike[str],
    model: RewardModel,
    kind: Kind,
    *,
    asked: PrinciplePrompts | None = None,
    skip: bool = False,
    processes: Processes | None = None,
) -> ResumableOutput:
    """Write the rows of a source with a model's scores. After a kill, the same call resumes.

    Args:
        out: The output, see `data.resumable`.
        kind: The columns of texts of the rows, see the module.
        asked: Principles for the prompts. Adds `scores_by_principle` with the scores by each of them.
        skip: Leave bad rows out instead of stopping at the first one.
        processes: The processes that share the rows. `load_models` must have loaded the model in each. By default this
            process does everything.

    Raises:
        BadRowError: A row is bad or a score is not finite, and `skip` is False.
        OSError, ValueError: As from `RowPipeline`.
        OSError, ValueError, RuntimeError: As from `Processes.share_out`.
    """
    count = processes.count if processes else 1
    # Without batch size, device, prefix sharing and the number of processes: these change only the last bits of a score,
    # and a run that was out of memory may resume with others.
    settings: dict[str, Any] = {"MODEL": model.identity, "--dtype": model.dtype, "--max-length": model.max_length}
    if asked is not None:
        settings |= {"--principles": asked.given or "column", "--principle-template": asked.template}

    def compute(rows: ParsedRows[Row]) -> Columns:
        parts = _by_prompt(rows.values, kind, count, model.shares_prefixes)
        shares = [_Share(model.name, kind, asked, skip, part) for part in parts]
        if processes:
            found = processes.share_out(_scores_of_share, shares, rows.progress)
        else:
            found = [_scores_of_share({model.name: model}, shares[0], rows.progress)]
        scores: dict[int, _Scores] = {}
        for i, scored in sorted((x for part in found for x in part.items()), key=lambda x: x[0]):
            if isinstance(scored, RowError):
                rows.refuse(i, scored)
            else:
                scores[i] = scored
        return _columns(list(scores.values()), kind, asked)

    pipeline = RowPipeline(
        source,
        out,
        parse=lambda row: row,
        reads=_READS,
        adds=(*_SCORES[kind], *([_BY_PRINCIPLE] if asked else [])),
        settings=settings,
        input_name="DATA",
        skip=skip,
        batch_rows=_SHARD_ROWS * count,
    )
    return pipeline.run(compute)


@dataclass(frozen=True)
class _Share:
    """The work of one process: rows by index in the batch, and how to score them."""

    model: str
    kind: Kind
    asked: PrinciplePrompts | None
    skip: bool
    rows: dict[int, Row]


# The scores of a row's responses, by principle. None is for all principles together.
_Scores = dict[str | None, np.ndarray]


def _by_prompt(rows: dict[int, Row], kind: Kind, count: int, prompt_once: bool) -> list[dict[int, Row]]:
    """Split the rows into `count` parts that take about the same time. Rows with the same prompt are in the same part.

    A prompt and equal texts are then computed once. Without a prompt, rows whose responses begin alike are
    in the same part or in neighboring parts.

    Args:
        prompt_once: Whether the model computes a prompt once for all of its responses.
    """
    if count == 1:
        return [rows]
    members: dict[str, list[int]] = {}
    costs: dict[str, int] = {}
    for i, row in rows.items():
        prompt, responses = row.get("prompt"), [row.get(name) for name in kind]
        if isinstance(responses[0], list) and kind == ("responses",):
            responses = responses[0]
        key = str(prompt or responses)
        prompts = key not in costs if prompt_once else len(responses)
        costs[key] = costs.get(key, 0) + prompts * len(str(prompt)) + len(str(responses))
        members.setdefault(key, []).append(i)
    parts: list[list[int]] = [[] for _ in range(count)]
    total, done = sum(costs.values()), 0
    for key in sorted(members):
        parts[(2 * done + costs[key]) * count // (2 * total)] += members[key]  # the part that contains its middle
        done += costs[key]
    return [{i: rows[i] for i in sorted(part)} for part in parts]


def _scores_of_share(
    models: dict[str, RewardModel], share: _Share, progress: Callable[[float], object] | None = None
) -> dict[int, _Scores | RowError]:
    """Return the scores of each row, or its error. Unless bad rows are skipped, the result may be only the first error."""
    model, found = models[share.model], dict[int, Any]()
    encoded: dict[int, _Encoded] = {}
    for i, row in share.rows.items():
        try:
            encoded[i] = _encoded(row, share.kind, model, share.asked)
        except RowError as error:
            found[i] = error
            if not share.skip:
                return found
    scores = model.score([ids for row in encoded.values() for ids in row.values()], progress)
    ends = np.cumsum([len(row) for row in encoded.values()], dtype=int)[:-1]
    for (i, row), numbers in zip(encoded.items(), np.split(scores, ends), strict=False):
        for (principle, name), score in zip(row, numbers, strict=True):
            if not np.isfinite(score):
                by = "" if principle is None else f" with the principle {principle!r:.80}"
                found[i] = RowError(f"the score of {name} by {model.name}{by} must be finite, got {score}")
                break
        else:
            names = list(dict.fromkeys(principle for principle, _ in row))
            found[i] = dict(zip(names, numbers.reshape(len(names), -1), strict=True))
    return found


def _encoded(row: dict[str, Any], kind: Kind, model: RewardModel, asked: PrinciplePrompts | None) -> _Encoded:
    for name in kind:
        if name not in row:
            raise RowError(f"must have a key {name!r}, got {listed(row)}")
    if kind == ("responses",):
        if not isinstance(row["responses"], list) or not row["responses"]:
            raise RowError(f"responses must be a list of texts or lists of messages, got {row['responses']!r:.80}")
        responses = {f"responses[{i}]": response for i, response in enumerate(row["responses"])}
    else:
        responses = {name: row[name] for name in kind}
    tools, options = row.get("tools"), row.get("chat_template_kwargs")
    return {
        (principle, name): model.encode(name, value, tools, options)
        for principle, prompt in (asked.prompts(row) if asked else {None: row.get("prompt")}).items()
        for name, value in zip(responses, inputs(prompt, responses, end=model.end), strict=True)
    }


def _columns(scores: list[_Scores], kind: Kind, asked: PrinciplePrompts | None) -> Columns:
    together = [row[None] for row in scores]
    if kind == ("responses",):
        columns: dict[str, Any] = {"scores": together}
    else:
        table = np.array(together, np.float32).reshape(-1, len(kind))
        columns = dict(zip(_SCORES[kind], table.T, strict=True))
    if asked:
        columns[_BY_PRINCIPLE] = [
            [{"principle": name} | _named(kind, numbers) for name, numbers in row.items() if name is not None]
            for row in scores
        ]
    return columns


def _named(kind: Kind, numbers: np.ndarray) -> dict[str, Any]:
    return {"scores": numbers} if kind == ("responses",) else dict(zip(_SCORES[kind], numbers, strict=True))
