"""The length ratio, from lists and tensors, on both backends."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from helpers import hand_written
from hypothesis import given, settings
from hypothesis import strategies as st
from pcrm.priors import length_ratio

import pcrm

ids = st.lists(st.integers(0, 3), max_size=12)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=6), st.sampled_from([None, 0, 3]))
@settings(max_examples=200, deadline=None)
def test_go_has_the_bits_of_python(pairs, pad):
    results = []
    for name in ("go", "torch"):
        with pcrm.backends.use_backend(name):
            results.append(length_ratio(*zip(*pairs, strict=True), pad_token_id=pad))
    assert torch.equal(*results)
    assert ((results[0] >= 0) & (results[0] <= 1)).all()


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 3), max_size=9), st.lists(st.integers(1, 3), max_size=9)), min_size=1)
)
@settings(max_examples=100, deadline=None)
def test_padding_changes_nothing(pairs):
    def padded(rows, extra):
        width = max(map(len, rows)) + extra
        return torch.tensor([r + [0] * (width - len(r)) for r in rows]).reshape(len(rows), width)

    chosen, rejected = map(list, zip(*pairs, strict=True))
    want = length_ratio(chosen, rejected)
    for dtype in (torch.int64, torch.int32):
        got = length_ratio(padded(chosen, 2).to(dtype), padded(rejected, 0).to(dtype), pad_token_id=0)
        assert torch.equal(got, want)


def test_values(backend):
    chosen, rejected = [[1, 2, 3], [1, 2], [], [1, 2]], [[1, 9], [1, 2], [], [1]]
    got = length_ratio(chosen, rejected)
    assert got.dtype == torch.float32 and got.tolist() == [0.5, 1, 1, 0]
    assert length_ratio([], []).shape == (0,)
    wide = torch.tensor([[1, 2, 3, 0], [1, 2, 0, 0]])
    assert length_ratio(wide[:, :3], wide.flip(0), pad_token_id=0).tolist() == [0, 0]
    assert length_ratio(wide[:, 1:], wide[:, 1:].flip(0), pad_token_id=0).tolist() == [0, 0]  # not contiguous


def test_strided_tensors_are_the_lists_that_they_hold(backend):
    square = torch.tensor([[5, 6, 7, 1], [5, 6, 7, 2], [5, 6, 7, 3]])
    column, row, repeated = square[:, 3:], torch.arange(8)[None, ::2], torch.tensor([[4]]).expand(5, 1)
    assert length_ratio(column, torch.tensor([[1, 9], [2, 9], [3, 9]])).tolist() == [0, 0, 0]
    for ids in (column, row, repeated, column.int(), row.int(), square.T, square[::2, ::2]):
        other = [[*x, 9, 9][1:] for x in ids.tolist()]
        for prior in (length_ratio, pcrm.priors.random_uniform):
            assert torch.equal(prior(ids, other), prior(ids.tolist(), other))
            assert torch.equal(prior(other, ids), prior(other, ids.tolist()))


def test_default_device(backend):
    """Results are in CPU memory, even if torch's default device is another one."""
    ids = torch.tensor([[1, 2, 3]])
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])

    def everything():
        return [
            length_ratio([[1, 2]], [[1, 3, 4]]),
            length_ratio(ids, [[1, 3]]),
            pcrm.priors.random_uniform([[1, 2]], ids, 7),
            pcrm.priors.lexical(["The moon"], ["the moon pulls"]),
            pcrm.priors.cosine(a, b),
        ]

    want = everything()
    with torch.device("meta"):
        got = everything()
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize(
    ("error", "message", "chosen", "rejected", "pad"),
    [
        (
            ValueError,
            "chosen_ids and rejected_ids must have the same length, got 2 and 1 rows",
            [[1], [2]],
            [[1]],
            None,
        ),
        (ValueError, r"chosen_ids must have shape \(B, L\), got \(2,\)", torch.tensor([1, 2]), [[1], [2]], None),
        (TypeError, "rejected_ids must be int64 or int32, got dtype torch.float32", [[1]], torch.ones(1, 1), None),
        (TypeError, "chosen_ids must be .*, got str", "ab", [[1], [2]], None),
        (ValueError, "pad_token_id must be .*, got -1", [[1]], [[1]], -1),
        (TypeError, r"pad_token_id must be an integer, got 1\.5", [[1]], [[1]], 1.5),
        (TypeError, r"rejected_ids\[1\] must be a sequence of integers", [[1], [2]], [[1], ["x"]], None),
        (TypeError, r"chosen_ids\[0\] must be a sequence of integers", [3, 4], [[1], [2]], None),
        (TypeError, r"chosen_ids\[0\] must be a sequence of integers", [{1, 2}], [[1]], None),
        (TypeError, r"chosen_ids\[1\] must be a sequence of integers: got dict", [[1], {1: 2}], [[1], [2]], None),
        (TypeError, r"chosen_ids\[0\] must be a sequence of integers: got mappingproxy", [vars(int)], [[1]], None),
        (TypeError, r"rejected_ids\[1\] must be a sequence of integers: got bytes", [[1], [2]], [[1], b"ab"], None),
        (
            TypeError,
            r"rejected_ids\[0\] must be a sequence of integers: got bytearray",
            [[1]],
            [bytearray(b"ab")],
            None,
        ),
        (TypeError, r"rejected_ids\[0\] must be a sequence of integers: got str", [[1]], [""], None),
        (ValueError, r"chosen_ids\[0\] must hold ids in", [[2**70]], [[1]], None),
    ],
)
def test_bad_input(backend, error, message, chosen, rejected, pad):
    with pytest.raises(error, match=message):
        length_ratio(chosen, rejected, pad_token_id=pad)


def test_rows_of_arrays(backend):
    rows = [np.array([1, 2, 3]), torch.tensor([1, 2]), [np.int64(1), 2]]
    assert torch.equal(
        length_ratio(rows, rows[::-1]), length_ratio([[1, 2, 3], [1, 2], [1, 2]], [[1, 2], [1, 2], [1, 2, 3]])
    )


@given(st.lists(st.tuples(ids, ids), max_size=6), st.sampled_from([None, 0]), st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_arrow_columns_are_the_lists_that_they_hold(pairs, pad, cut):
    chosen, rejected = ([list(p[k]) for p in pairs] for k in (0, 1))
    for name in ("go", "torch"):
        with pcrm.backends.use_backend(name):
            want = length_ratio(chosen, rejected, pad_token_id=pad)
            for kind in (
                pa.list_(pa.int64()),
                pa.list_(pa.int32()),
                pa.large_list(pa.int64()),
                pa.large_list(pa.uint16()),
            ):
                a, b = pa.array(chosen, kind), pa.array(rejected, kind)
                assert torch.equal(length_ratio(a, b, pad_token_id=pad), want)
                assert torch.equal(length_ratio(a, rejected, pad_token_id=pad), want)
                parts = pa.chunked_array([a[:cut], a[cut:]])
                assert torch.equal(length_ratio(parts, pa.chunked_array([b]), pad_token_id=pad), want)
                assert torch.equal(length_ratio(a[cut:], b[cut:], pad_token_id=pad), want[cut:])


def test_arrow_columns(backend):
    square = pa.array([[1, 2, 3], [1, 2, 4]], pa.list_(pa.int32(), 3))
    assert length_ratio(square, [[1, 2], [1, 9, 9]]).tolist() == [0, 1]
    table = Dataset.from_dict({"chosen": [[1, 2], [3]], "rejected": [[1], [4, 5]]}).data
    assert length_ratio(table["chosen"], table["rejected"]).tolist() == [0, 0.5]
    assert torch.equal(
        pcrm.priors.random_uniform(square, square, 7),
        pcrm.priors.random_uniform(square.to_pylist(), square.to_pylist(), 7),
    )
    annotated = pcrm.priors.annotate(
        pa.table({"chosen_ids": square, "rejected_ids": square[::-1]}), prior="length_ratio"
    )
    assert annotated["prior"].to_pylist() == [1, 1] and annotated["prior"].type == pa.float32()
    unsigned = pa.list_(pa.uint64())
    largest = pa.array([[2**63 - 1, 0]], unsigned)
    assert length_ratio(largest, [[2**63 - 1]]).tolist() == [0]
    wrapped = pa.array([[], [1], [], [4, 2**63], [2**64 - 1]], unsigned)
    for column in (wrapped, pa.chunked_array([wrapped[:1], wrapped[1:]])):
        with pytest.raises(ValueError, match=r"chosen_ids\[3\] must hold ids in \[-2\*\*63, 2\*\*63\)"):
            length_ratio(column, [[1]] * 5)
    with pytest.raises(ValueError, match=r"rejected_ids\[1\] must hold ids in"):
        length_ratio([[1]] * 3, wrapped[2:])
    for message, column in {
        r"rejected_ids must be a list of integers, got the Arrow type string": pa.array(["a", "b"]),
        r"rejected_ids must be .*, got the Arrow type list<item: double>": pa.array([[1.5], [2.0]]),
        r"rejected_ids\[1\] must be a list of ids, got null": pa.array([[1], None]),
        r"rejected_ids\[1\] must be a sequence of integers: got a null": pa.array([[1], [2, None]]),
    }.items():
        with pytest.raises(TypeError, match=message):
            length_ratio([[1], [2]], column)
    with pytest.raises(ValueError, match="chosen_ids and rejected_ids must have the same length, got 2 and 1 rows"):
        length_ratio([[1], [2]], pa.array([[1]]))


@pytest.mark.slow
@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=6), st.integers(0, 2**64 - 1), st.sampled_from([None, 0]))
@settings(max_examples=200, deadline=None)
def test_random_uniform_has_the_bits_of_python(pairs, seed, pad):
    results = []
    for name in ("go", "torch"):
        with pcrm.backends.use_backend(name):
            results.append(pcrm.priors.random_uniform(*zip(*pairs, strict=True), seed, pad_token_id=pad))
    assert torch.equal(*results)
    assert ((results[0] >= 0) & (results[0] < 1)).all()


def test_random_uniform(backend):
    u = pcrm.priors.random_uniform
    assert u([[1, 2, 3]], [[1, 9]], 42).item() == 0.6613175272941589
    # A pair's number does not depend on the batch around it, nor on padding.
    rows = torch.randint(1, 100, (500, 6))
    both = u(rows, rows.flip(1), 7)
    assert torch.equal(u(rows[3:5], rows.flip(1)[3:5], 7), both[3:5])
    padded = torch.nn.functional.pad(rows, (0, 3))
    assert torch.equal(u(padded, rows.flip(1), 7, pad_token_id=0), both)
    assert not torch.equal(u(rows, rows.flip(1), 8), both)
    # Uniform: the Kolmogorov-Smirnov distance of 500 numbers is under 0.087 in 999 of 1000 cases.
    assert (both.sort().values - torch.arange(500) / 500).abs().max() < 0.087
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*64\), got -1"):
        u(rows, rows, -1)


def test_cosine_golden(backend, golden):
    for c in golden["cosine"]:
        for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
            a, b = (torch.tensor([c[k]], dtype=dtype) for k in ("a", "b"))
            # acos has an infinite slope at 1: a rounding of 1e-16 moves it by 1.5e-8, one of
            # float32 does not count, as sums are in float64.
            assert pcrm.priors.cosine(a, b).item() == pytest.approx(c["angular"], abs=tolerance)
            raw = pcrm.priors.cosine(a, b, angular=False)
            assert raw.item() == pytest.approx(
                min(max(c["cosine"], 0), 1), abs=1e-15 if dtype == torch.float64 else 1e-7
            )
            assert raw.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cosine_of_rows(backend, dtype):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(300, 33, generator=g).to(dtype) for _ in range(2))
    want = torch.nn.functional.cosine_similarity(a.double(), b.double()).clamp(0, 1)
    got = pcrm.priors.cosine(a, b, angular=False)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-7)
    # torch adds up a row in another order if its memory layout differs.
    torch.testing.assert_close(
        pcrm.priors.cosine(a.T.contiguous().T, b, angular=False), got, rtol=0, atol=1e-15 if backend == "torch" else 0
    )
    assert (pcrm.priors.cosine(a, a) == 1).all() or backend == "torch"
    assert pcrm.priors.cosine(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("error", "message", "a", "b"),
    [
        (TypeError, r"a must be a floating-point tensor, got torch\.int64", torch.ones(1, 2).long(), torch.ones(1, 2)),
        (TypeError, "b must be a floating-point tensor, got list", torch.ones(1, 2), [[1.0, 2.0]]),
        (ValueError, r"a must have shape \(B, D\), got \(2,\)", torch.ones(2), torch.ones(2)),
        (
            ValueError,
            r"b must have the shape and device of a, \(1, 2\) on cpu, got \(2, 2\) on cpu",
            torch.ones(1, 2),
            torch.ones(2, 2),
        ),
        (
            TypeError,
            r"b must have the dtype of a, torch\.float32, got torch\.float64",
            torch.ones(1, 2),
            torch.ones(1, 2).double(),
        ),
        (ValueError, r"b\[1\]", torch.ones(3, 2), torch.tensor([[1.0, 2], [0, 0], [0, 0]])),
        (ValueError, r"a\[2\]", torch.tensor([[1.0, 2], [1, 0], [0, float("nan")]]), torch.ones(3, 2)),
    ],
)
def test_bad_cosine(backend, error, message, a, b):
    with pytest.raises(error, match=message):
        pcrm.priors.cosine(a, b)


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=5), st.booleans())
@settings(max_examples=200, deadline=None)
def test_lexical_has_the_bits_of_python(pairs, words):
    """Python's lower case agrees with Go's if both have the same version of Unicode."""
    chosen, rejected = zip(*pairs, strict=True)
    results = []
    for name in ("go", "torch"):
        with pcrm.backends.use_backend(name):
            results.append(pcrm.priors.lexical(chosen, rejected, words=words))
    assert torch.equal(*results)
    assert ((results[0] >= 0) & (results[0] <= 1)).all()


def test_lexical(backend):
    got = pcrm.priors.lexical(
        ["The tides  follow the Moon.", "a", "", "", "x", "Über Öl"],
        ["the tides follow the moon.", "b", "", "a", "x\n", "über öl"],
    )
    assert got.tolist() == [1, 0, 1, 0, 1, 1]
    near, far = pcrm.priors.lexical(
        ["The moon pulls the sea."] * 2, ["The moon pulls at the sea.", "Bread needs yeast."]
    )
    assert 0.5 < near < 1 and far < 0.2
    assert pcrm.priors.lexical(["a b c"], ["c a b"], words=True).item() == pytest.approx(4 / 5)
    with pytest.raises(TypeError, match=r"rejected\[1\] must be a text, got int"):
        pcrm.priors.lexical(["a", "b"], ["a", 3])
    with pytest.raises(ValueError, match="chosen and rejected must have the same length, got 2 and 1 texts"):
        pcrm.priors.lexical(["a", "b"], ["a"])
    for single in ("a", None):
        with pytest.raises(TypeError, match=f"rejected must be a sequence of texts, got {type(single).__name__}"):
            pcrm.priors.lexical(["a"], single)
    with pytest.raises(ValueError, match=r"chosen\[0\] must be valid Unicode"):
        pcrm.priors.lexical(["\ud800"], ["a"])


def test_length_ratio_is_the_numpy_loop(backend):
    rng = np.random.default_rng(0)
    rows = [[rng.integers(0, 3, rng.integers(0, 12)) for _ in range(500)] for _ in range(2)]
    columns = [x for side in rows for x in (np.concatenate(side), np.cumsum([0, *map(len, side)]))]
    want = hand_written.numpy_length_ratios(*columns)
    assert np.array_equal(length_ratio(*rows).numpy(), want)
    assert 0 < want.mean() < 1


def test_cosine_is_three_einsums(backend):
    a, b = np.random.default_rng(0).normal(size=(2, 50, 384)).astype(np.float32)
    got = pcrm.priors.cosine(torch.tensor(a), torch.tensor(b), angular=False).numpy()
    # NumPy adds 384 products in float32: the error is 384 * 2^-24 of the absolute sum.
    np.testing.assert_allclose(got, hand_written.einsum_cosine(a, b), rtol=0, atol=2 * 384 * 2**-24)
    np.testing.assert_allclose(got, hand_written.einsum_cosine(a.astype(float), b.astype(float)), rtol=0, atol=2**-24)


def test_lexical_is_the_vectorizers_cosine(backend, rows):
    """Against scikit-learn's exact counts for every pair, and its hashed counts where no n-grams collide."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    more = ["The  TIDES\tfollow the\nmoon; über Öl \u3000 猫が好き", "a", "", " the moon pulls  the sea"]
    chosen = [r["chosen"] for r in rows] + more
    rejected = [r["rejected"] for r in rows] + more[::-1]
    got = pcrm.priors.lexical(chosen, rejected).double().numpy()
    hashing = hand_written.hashing_vectorizer()
    exact = text.TfidfVectorizer(
        analyzer="char", ngram_range=(3, 5), preprocessor=hashing.preprocessor, use_idf=False, norm="l2"
    ).fit(chosen + rejected)
    # Only rounding to float32.
    np.testing.assert_allclose(got, hand_written.vectorizer_cosine(exact, chosen, rejected), rtol=0, atol=2**-24)
    distinct = [(v.transform(chosen) + v.transform(rejected)).getnnz(axis=1) for v in (exact, hashing)]
    whole = distinct[0] == distinct[1]
    assert whole.mean() > 0.3
    hashed = hand_written.vectorizer_cosine(hashing, chosen, rejected)
    np.testing.assert_allclose(got[whole], hashed[whole], rtol=0, atol=2**-24)


def test_default_dtype(backend):
    """The embeddings and their cosines stay float32."""

    class Encoder:
        model = "a model"

        def embed_all(self, texts):
            return torch.tensor([[1.0, 2.0]] * len(texts), dtype=torch.float32), {}

    torch.set_default_dtype(torch.float64)
    try:
        found = pcrm.priors.of_texts(["a"], ["b"], prior="cosine", model=Encoder())
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.tolist() == [1] and found.dtype == torch.float32


def test_a_masked_prior_is_refused():
    for column in (np.ma.array([0.1, 0.2], mask=[False, True]), [0.1, np.ma.masked]):
        with pytest.raises(TypeError, match=r"prior\[1\] must be a number, got masked"):
            pcrm.priors.prior_tensor(column)
    assert pcrm.priors.prior_tensor(np.ma.array([0.5, 0.25])).tolist() == [0.5, 0.25]


def test_fewer_prompts_than_responses():
    with pytest.raises(ValueError, match="chosen and prompt must have the same length, got 1 and 0 rows"):
        pcrm.priors.annotate({"prompt": [], "chosen": ["a"], "rejected": ["b"]})
