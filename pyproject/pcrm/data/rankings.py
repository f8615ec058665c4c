"""Rankings: rows with several responses to one prompt, and their comparisons.

    prompt, responses, ratings    higher is better
    prompt, responses, ranks      1 is best

Responses may have any format of pairs: texts or lists of messages, with or without a prompt column. Every two responses
with different ratings make a comparison, as in InstructGPT (arXiv 2203.02155, section 3.5). Ties make none.
"""

from __future__ import annotations

from typing import Any

from .preferences import RowError, finite, inputs, listed

# The columns of a pair for the numbers of its two responses, by the column of the ranking.
RANKED_BY = {"ratings": ("rating_chosen", "rating_rejected"), "ranks": ("rank_chosen", "rank_rejected")}
ADDED = ("chosen", "rejected", *(name for names in RANKED_BY.values() for name in names))


def comparisons(row: dict[str, Any]) -> list[tuple[int, int]]:
    """The comparisons of a ranking as (index of the better response, index of the worse one), in the order of the responses.

    Raises:
        RowError: The row has no responses; it has both ratings and ranks, or neither; it does not have one number for each
            response; a number is not finite; a response is neither a text nor a list of messages.
    """
    responses, column = _listed("responses", row), ranking_column(row)
    inputs(row.get("prompt"), {f"responses[{i}]": response for i, response in enumerate(responses)})
    values = _listed(column, row)
    if len(values) != len(responses):
        raise RowError(f"{column} must have one number for each of the {len(responses)} responses, got {len(values)}")
    numbers = [finite(f"{column}[{i}]", value) for i, value in enumerate(values)]
    if column == "ranks":
        numbers = [-number for number in numbers]
    return [
        (i, j) if numbers[i] > numbers[j] else (j, i)
        for i in range(len(numbers))
        for j in range(i + 1, len(numbers))
        if numbers[i] != numbers[j]
    ]


def pairs(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons of a ranking as rows of pairs.

    Each has `chosen` and `rejected`, their ratings as `rating_chosen` and `rating_rejected` or their ranks as `rank_chosen` and
    `rank_rejected`, and all other columns of the row.

    Raises:
        RowError: As from `comparisons`; the row already has one of the columns that its pairs get.
    """
    if there := [name for name in ADDED if name in row]:
        raise RowError(f"a ranking must not have a column {there[0]!r}, because its pairs get one")
    return paired(row, ranking_column(row), comparisons(row))


def paired(row: dict[str, Any], column: str, found: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Like `pairs`, for a ranking whose `ranking_column` and `comparisons` are known."""
    others = {name: value for name, value in row.items() if name not in ("responses", *RANKED_BY)}
    responses, values = row["responses"], row[column]
    return [
        others
        | {"chosen": responses[i], "rejected": responses[j]}
        | dict(zip(RANKED_BY[column], (values[i], values[j]), strict=True))
        for i, j in found
    ]


def ranking_column(row: dict[str, Any]) -> str:
    """The column that ranks the responses. A table in which rows use different columns has both, with nulls."""
    there = [name for name in RANKED_BY if row.get(name) is not None]
    if len(there) != 1:
        raise RowError(f"a ranking must have a key 'ratings' or 'ranks', got {'both' if there else listed(row)}")
    return there[0]


def _listed(name: str, row: dict[str, Any]) -> list[Any]:
    value: Any = row.get(name)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} must be a non-empty list, got {value!r:.80}")
    return value
