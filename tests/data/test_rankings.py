"""Rankings as comparisons, against all pairs of responses counted by hand and by scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcrm.data.preferences import RowError
from pcrm.data.rankings import comparisons, pairs
from scipy.stats import kendalltau

ABC = {"prompt": "p", "responses": ["a", "b", "c"]}


def test_ratings_compare_the_higher_with_the_lower():
    assert comparisons(ABC | {"ratings": [2, 5.5, 3]}) == [(1, 0), (2, 0), (1, 2)]


def test_ranks_compare_the_lower_with_the_higher():
    assert comparisons(ABC | {"ranks": [2, 1, 3]}) == [(1, 0), (0, 2), (1, 2)]


def test_ties_are_left_out():
    assert comparisons(ABC | {"ratings": [1, 1, 0]}) == [(0, 2), (1, 2)]
    assert comparisons(ABC | {"ratings": [1, 1, 1]}) == []
    assert comparisons({"responses": ["alone"], "ratings": [1]}) == []


def test_pairs_keep_what_else_is_in_the_row():
    assert pairs(ABC | {"ratings": [1, 2, 2], "id": 7}) == [
        {"prompt": "p", "id": 7, "chosen": "b", "rejected": "a", "rating_chosen": 2, "rating_rejected": 1},
        {"prompt": "p", "id": 7, "chosen": "c", "rejected": "a", "rating_chosen": 2, "rating_rejected": 1},
    ]
    assert pairs({"responses": ["a", "b"], "ranks": [1, 2]}) == [
        {"chosen": "a", "rejected": "b", "rank_chosen": 1, "rank_rejected": 2}
    ]


def test_tables_have_both_columns_with_nothing_in_one():
    assert comparisons(ABC | {"ratings": None, "ranks": np.array([1, 2, 3])}) == [(0, 1), (0, 2), (1, 2)]
    assert list(pairs({"responses": ["a", "b"], "ratings": None, "ranks": [1, 2]})[0]) == [
        "chosen",
        "rejected",
        "rank_chosen",
        "rank_rejected",
    ]


@given(st.lists(st.integers(-3, 3) | st.floats(-3, 3), min_size=2, max_size=9))
def test_every_untied_pair_is_compared_once(ratings):
    found = comparisons({"responses": [str(i) for i in range(len(ratings))], "ratings": ratings})
    assert len({frozenset(pair) for pair in found}) == len(found)
    assert all(ratings[i] > ratings[j] for i, j in found)
    untied = sum(ratings[i] != ratings[j] for i in range(len(ratings)) for j in range(i))
    assert len(found) == untied
    # A ranking by how often each response wins agrees with the ratings in every comparison.
    wins = [sum(i == k for i, _ in found) for k in range(len(ratings))]
    tau = kendalltau(ratings, wins).statistic
    assert math.isnan(tau) or tau == pytest.approx(1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ratings": [1, 2]}, "responses must be a non-empty list, got None"),
        ({"responses": [], "ratings": []}, "responses must be a non-empty list, got []"),
        ({"responses": "ab", "ratings": [1, 2]}, "responses must be a non-empty list, got 'ab'"),
        (ABC, "a ranking must have a key 'ratings' or 'ranks', got prompt, responses"),
        (ABC | {"ratings": [1, 2, 3], "ranks": [1, 2, 3]}, "a ranking must have a key 'ratings' or 'ranks', got both"),
        (ABC | {"ratings": [1, 2]}, "ratings must have one number for each of the 3 responses, got 2"),
        (ABC | {"ratings": 5}, "ratings must be a non-empty list, got 5"),
        (ABC | {"ratings": [1, math.nan, 2]}, "ratings[1] must be finite, got nan"),
        (ABC | {"ranks": [1, "2", 3]}, "ranks[1] must be a number, got '2'"),
        ({"responses": ["a", 3], "ratings": [1, 2]}, "responses[1] must be a text or a list of messages, got 3"),
        (
            {"responses": ["a", [{"role": "assistant", "content": "b"}]], "ratings": [1, 2]},
            "responses[1] must be a text as responses[0] is, got a list of messages",
        ),
        (
            ABC | {"ratings": [1, 2, 3], "chosen": "d"},
            "a ranking must not have a column 'chosen', because its pairs get one",
        ),
    ],
)
def test_a_row_that_is_no_ranking_is_refused(row, message):
    with pytest.raises(RowError) as error:
        pairs(row)
    assert error.value.message == message
