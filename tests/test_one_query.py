"One query: parts, threads, named rows, twins and lists that are too long give numpy's answer; nothing is written beside it."

import numba
import numpy as np
import pytest

from astroclip.data.image_kernels import aligned_empty
from astroclip.search.exact import FEW_NUMBERS, NO_ROWS, encode, one_list, scan_codes, scan_vectors
from astroclip.search.exact import search_exact
from astroclip.search.neighbours import empty_lists, in_order, insert_row, order_row

rng = np.random.default_rng(0)


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


LARGE = unit(rng.normal(size=(FEW_NUMBERS // 64 + 777, 64)))  # by all threads
SMALL = LARGE[:1000]  # by one


def plain(query, bank, rows=None):
    "Rows by falling float64 product, equal ones by row."
    order = np.argsort(-(bank.astype(float) @ query.astype(float)), kind="stable")
    return order if rows is None else order[np.isin(order, rows)]


def test_a_list_by_hand():
    best, found = empty_lists(1, 3)
    for score, row in ((1.0, 7), (3.0, 8), (1.0, 9), (2.0, 10), (2.0, 11)):
        if score > best[0, -1]:
            insert_row(best[0], found[0], score, row)
    assert (best[0].tolist(), found[0].tolist()) == ([3, 2, 2], [8, 10, 11])


def test_scores_by_hand():
    bank, query = np.float32([[1, 2, 3], [0, 1, 0], [-1, 0, 2]]), np.float32([2, -1, 1])
    best, found = empty_lists(1, 3)
    scan_vectors(bank, NO_ROWS, query, 0, 3, best[0], found[0])
    assert (best[0].tolist(), found[0].tolist()) == ([3, 0, -1], [0, 2, 1])
    best, found = empty_lists(1, 3)
    codes = (bank.astype(np.int8), np.float32([1, 10, 0.5]), np.float32([0, 0, 3]), np.float32(1))
    scan_codes(codes, np.array([1, 2]), query.astype(np.int16), 0, 2, best[0], found[0])
    assert (best[0, :2].tolist(), found[0].tolist()) == ([2, 0], [2, 1, -1])  # (0 + 3 + 1) / 2, 10 (-1 + 1)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("bank", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_answer_is_numpys(bank, coded, threads):
    codes, before = encode(bank) if coded else None, numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        for named in (None, np.sort(rng.permutation(len(bank))[: len(bank) // 3]), np.array([5])):
            query = unit(bank[5:6] + 0.1 * rng.normal(size=(1, 64)))
            k = 1 if named is not None and len(named) == 1 else 30
            rows, value = search_exact(query, bank, k, named, codes)
            np.testing.assert_array_equal(rows[0], plain(query[0], bank, named)[:k])
            np.testing.assert_allclose(
                value[0], bank[rows[0]].astype(float) @ query[0].astype(float), rtol=1e-12
            )
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("coded", [False, True])
def test_more_twins_than_candidates_come_by_row(coded):
    "Sixty equal rows, more than the list keeps: the first of them, whatever part they lie in."
    bank = LARGE.copy()
    where = np.sort(rng.permutation(len(bank))[:60])
    bank[where] = bank[where[0]]
    rows, value = search_exact(bank[where[:1]], bank, 10, codes=encode(bank) if coded else None)
    np.testing.assert_array_equal(rows[0], where[:10])
    assert len(set(value[0])) == 1


@pytest.mark.parametrize("offset", [0, 4, 16])
def test_where_a_bank_begins_does_not_matter(offset):
    memory = np.empty(SMALL.nbytes + 64, np.uint8)
    bank = np.ndarray(SMALL.shape, np.float32, memory, -memory.ctypes.data % 64 + offset)
    bank[:] = SMALL
    assert bank.ctypes.data % 64 == offset
    for width in (64, 63, 7, 1):
        rows, _ = search_exact(SMALL[9:10, :width], np.ascontiguousarray(bank[:, :width]), 20)
        np.testing.assert_array_equal(rows[0], plain(SMALL[9, :width], SMALL[:, :width])[:20])


def test_a_bank_on_the_disk(tmp_path):
    np.save(tmp_path / "x.npy", SMALL)
    bank = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(search_exact(SMALL[:1], bank, 8)[0], search_exact(SMALL[:1], SMALL, 8)[0])


def test_lists_longer_than_the_bank():
    for bank, query in (
        (SMALL, SMALL[0]),
        ((*(getattr(encode(SMALL), x) for x in ("codes", "scale", "correction")), np.float32(0)), np.ones(64, np.int16)),
    ):
        best, found = one_list(query, bank, 1000, 1200)
        assert sorted(found[0, :1000]) == list(range(1000)) and (found[0, 1000:] == -1).all()
        assert (np.diff(best[0, :1000]) <= 0).all()
        assert (one_list(query, bank, 0, 4)[1] == -1).all()  # a condition that nothing meets


def test_orders_agree():
    found = rng.integers(-1, 1000, (3, 200))
    for dtype in ("float32", "float16"):
        bank = SMALL.astype(dtype)
        many = in_order(SMALL[:3], bank, found)
        for i in range(3):
            one = in_order(SMALL[i : i + 1], bank, found[i : i + 1])
            np.testing.assert_array_equal(one[0][0], many[0][i])
            value = np.where(many[0][i] < 0, -np.inf, bank[many[0][i]].astype(float) @ SMALL[i].astype(float))
            np.testing.assert_allclose(many[1][i], value, rtol=1e-12)
            order = np.lexsort((many[0][i], -many[1][i]))
            np.testing.assert_array_equal(order, np.arange(200))
    rows, value = np.empty(3, np.int64), np.empty(3)
    order_row(np.float32([1, 1]), np.float32([[2, 2], [4, 0], [1, 0]]), np.array([2, 1, 0]), rows, value)
    assert (rows.tolist(), value.tolist()) == ([0, 1, 2], [4, 4, 1])


def test_arrays_begin_on_a_line():
    for shape, dtype in (((3,), np.int8), ((1000, 7), np.float32), ((0, 5), np.float64)):
        made = aligned_empty(shape, dtype)
        assert made.ctypes.data % 64 == 0 and made.shape == shape and made.dtype == dtype
        assert made.flags.writeable and made.flags.c_contiguous
    assert encode(SMALL).codes.ctypes.data % 64 == 0
