"""Degraded texts, and a head that learns the order of the degrees."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import scipy.special
import torch
from helpers.project import ROOT
from pcrm.demo.world import generate
from pcrm.methods.degrees import DegreeHead, degrade, degree_loss, document_frequencies

DEGREES = (0.25, 0.5, 0.75)
TEXTS = [" The cat sat on the mat,\n\nand slept.", "The dog sat.", "the end (the end!)"]


def test_document_frequencies():
    got = document_frequencies(TEXTS)
    assert got["the"] == 3 and got["sat"] == 2 and got["mat"] == got["end"] == got["slept"] == 1 and "mat," not in got


def test_what_is_removed():
    """The rarest words go first, degrees are nested, and the rest of the text is unchanged."""
    counts = document_frequencies(TEXTS)
    whole = TEXTS[0].split()
    assert degrade(TEXTS[0], [1.0], frequencies=counts) == [""]
    some = degrade(TEXTS[0] + "\n", DEGREES, frequencies=counts)
    for d, text in zip(DEGREES, some, strict=True):
        left = text.split()
        assert len(whole) - len(left) == math.ceil(d * len(whole)) and text.endswith("\n")
        rest = iter(TEXTS[0].split())
        assert all(word in rest for word in left), "in their order"
        removed = list(whole)
        for word in left:
            removed.remove(word)
        frequency = {w: counts[re.sub(r"\W", "", w.lower())] for w in whole}
        assert max(frequency[w] for w in removed) <= min(frequency[w] for w in left)
    assert some[-1] == " The the\n"
    texts = [r["chosen"] for r in generate(50, seed=3)]
    for text in texts:
        previous = text.split()
        for less in degrade(text, DEGREES, seed=1):
            rest = iter(previous)
            assert all(word in rest for word in less.split()), "nested"
            previous = less.split()
    assert (
        degrade(texts[0], DEGREES, seed=1) == degrade(texts[0], DEGREES, seed=1) != degrade(texts[0], DEGREES, seed=2)
    )
    assert degrade("", DEGREES) == ["", "", ""] and degrade(" \n", [0.5]) == [" \n"] and degrade("one", [0.1]) == [""]


@pytest.mark.parametrize("n", [25, 50, 100, 1000])
@pytest.mark.parametrize("kind", [float, np.float32])
def test_the_share_is_of_the_decimal_number(n, kind):
    """In hundredths, with exact integer products. In floating point, .07, .14, .28, .55 and .56 of 100 come out larger."""
    text = " ".join(f"w{i}" for i in range(n))
    left = degrade(text, [kind(percent / 100) for percent in range(1, 101)])
    assert [n - len(t.split()) for t in left] == [-(-percent * n // 100) for percent in range(1, 101)]


def test_shares_of_other_kinds():
    for degree, removed in ((Fraction(1, 3), 2), (1, 6), (1e-300, 1), (np.float64(0.5), 3)):
        (left,) = degrade("a b c d e f", [degree])
        assert len(left.split()) == 6 - removed


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: degrade("a", [0.5, "1"]), TypeError, "degrees[1] must be a number, got '1'"),
        (lambda: degrade("a", [True]), TypeError, "degrees[0] must be a number, got True"),
        (lambda: degrade("a", [math.nan]), ValueError, "degrees[0] must be in (0, 1], got nan"),
        (lambda: degrade(None, [0.5]), TypeError, "text must be a str, got None"),
        (lambda: degrade("a", []), ValueError, "degrees must have at least one element, got none"),
        (lambda: degrade("a", [0.5, 1.5]), ValueError, "degrees[1] must be in (0, 1], got 1.5"),
        (lambda: degrade("a", [0]), ValueError, "degrees[0] must be in (0, 1], got 0"),
        (
            lambda: degrade("a", [0.5, 0.5]),
            ValueError,
            "degrees[1] must be greater than degrees[0], which is 0.5, got 0.5",
        ),
        (
            lambda: degree_loss(torch.ones(3)),
            ValueError,
            "scores must have shape (B, D) with B at least 1 and D at least 2, got (3,)",
        ),
        (
            lambda: degree_loss(torch.ones(3, 1)),
            ValueError,
            "scores must have shape (B, D) with B at least 1 and D at least 2, got (3, 1)",
        ),
        (
            lambda: degree_loss(torch.ones(0, 2)),
            ValueError,
            "scores must have shape (B, D) with B at least 1 and D at least 2, got (0, 2)",
        ),
        (
            lambda: DegreeHead(4)(torch.ones(2, 3, 4), torch.ones(3, 2)),
            ValueError,
            "hidden_states and attention_mask must have shapes (N, L, H) and (N, L), got (2, 3, 4) and (3, 2)",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_degree_loss(backend):
    scores = np.random.default_rng(0).normal(0, 2, (5, 4))
    want = -scipy.special.log_expit(scores[:, :-1] - scores[:, 1:]).mean()
    given = torch.tensor(scores, requires_grad=True)
    loss = degree_loss(given)
    assert loss.item() == pytest.approx(want, rel=1e-14)
    loss.backward()
    slopes = (
        scipy.special.expit(scores[:, 1:] - scores[:, :-1]) / 15
    )  # the negative gradient with respect to the better score of each pair of neighbors
    want = np.pad(slopes, ((0, 0), (1, 0))) - np.pad(slopes, ((0, 0), (0, 1)))
    np.testing.assert_allclose(given.grad, want, atol=1e-15)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_head_reads_the_last_token(side):
    torch.manual_seed(0)
    head, states = DegreeHead(4), torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    mask = mask.flip(1) if side == "left" else mask
    last = [4, 4, 4] if side == "left" else [4, 2, 0]
    want = torch.stack([head.linear(states[i, j])[0] for i, j in enumerate(last)])
    # The same products, computed by another routine.
    torch.testing.assert_close(head(states, mask), want, rtol=1e-6, atol=1e-6)
    assert head(states.bfloat16(), mask).dtype == torch.float32


def ordered(model, head, tokenizer, rows, frequencies):
    """The fraction of neighboring degrees whose scores are in the right order."""
    texts = [
        r["prompt"] + t for r in rows for t in [r["chosen"], *degrade(r["chosen"], DEGREES, frequencies=frequencies)]
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states[-1]
        scores = head(states, batch["attention_mask"]).view(len(rows), -1)
    return (scores[:, :-1] > scores[:, 1:]).double().mean().item()


@pytest.mark.slow
def test_the_loop_of_the_documentation(tmp_path, monkeypatch, tiny_policy):
    """It trains as printed, and the head generalizes to degrees that it has not seen."""
    (block,) = re.findall("```python\n(.*?)```", (ROOT / "docs" / "degrees.md").read_text(), flags=re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").symlink_to(tiny_policy)
    torch.manual_seed(0)
    names = {"rows": [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in generate(400, seed=1)]}
    assert block.count("lr=1e-5") == 1
    before, block = block.replace("lr=1e-5", "lr=1e-2").split(
        "for start in"
    )  # a tiny model needs a larger learning rate
    exec(before, names)
    test = generate(60, seed=2)
    arguments = [names[n] for n in ("policy", "head", "tokenizer")]
    untrained = ordered(*arguments, test, names["frequencies"])
    exec("for start in" + block, names)
    # Chance orders half of the 180 neighbors, with a standard deviation of 0.04.
    assert untrained < 0.7 and ordered(*arguments, test, names["frequencies"]) > 0.8
