"The race of searches: a bank that is denser and not equal, the right neighbours, everyone in the field answers."

import numpy as np
import pytest

from astroclip.studies import search_speed
from astroclip.studies.search_speed import SEARCH_FIELD, by_sklearn, few_cores, free_memory, one_query_speed
from astroclip.studies.search_speed import race_banks, race_searches, tiled_vectors, true_neighbours, widened

rng = np.random.default_rng(0)
REAL = rng.normal(size=(600, 8)) @ rng.normal(size=(8, 32)) + 0.1 * rng.normal(size=(600, 32))


def test_a_tiled_bank_keeps_the_real_ones_and_repeats_with_noise():
    bank, fraction = tiled_vectors(REAL, 2000, seed=3)
    assert fraction == 0.3 and bank.dtype == np.float32
    np.testing.assert_allclose(bank[:600], REAL / np.linalg.norm(REAL, axis=1, keepdims=True), atol=1e-6)
    assert len(np.unique(bank, axis=0)) == 2000
    np.testing.assert_array_equal(bank, tiled_vectors(REAL, 2000, seed=3)[0])
    some, fraction = tiled_vectors(REAL, 100)
    assert fraction == 1 and np.isin(some, bank).all()


@pytest.mark.parametrize("chunk", [7, 100, 10_000])
def test_the_truth_is_numpys(chunk):
    bank, _ = tiled_vectors(REAL, 900)
    true = np.argsort(-(bank[:20].astype(float) @ bank.T.astype(float)), 1, kind="stable")[:, :6]
    np.testing.assert_array_equal(true_neighbours(bank[:20], bank, 6, chunk), true)


def test_everyone_who_is_installed_answers():
    bank, _ = tiled_vectors(REAL, 3000)
    rows = race_searches(bank, bank[:40], rounds=1)
    names = [row["name"] for row in rows]
    assert (
        {"astroclip, bytes", "torch, product and topk", "scikit-learn, cosine"}
        <= set(names)
        <= set(SEARCH_FIELD)
    )
    for row in rows:
        assert row["recall"] > (0.9 if "sketches" in row["name"] or "HNSW" in row["name"] else 0.999), row
        assert row["queries_per_second"] > 0 and row["bytes_per_vector"] > 0 and row["n"] == 3000
    speed = one_query_speed(bank, rounds=1)
    assert speed["ratio"] > 0 and speed["float_ms"] > 0
    assert 0 < speed["least"] <= speed["fraction"] <= speed["most"]


def test_threads_are_given_back():
    import torch

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop"):
        with few_cores(1):
            raise RuntimeError("stop")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_blocks_of_sklearn_are_one_bank(monkeypatch, metric):
    bank, _ = tiled_vectors(REAL, 1000)
    true = true_neighbours(bank[:9], bank, 6)
    for rows in (2000, 300, 4):  # one block, four, blocks with fewer rows than neighbours
        monkeypatch.setattr(search_speed, "MANY_NUMBERS", rows * 32)
        np.testing.assert_array_equal(by_sklearn(bank, metric).search(bank[:9], 6), true)


def test_a_bank_without_room_is_left_out_and_a_large_one_has_one_number_of_threads(monkeypatch, capsys):
    monkeypatch.setattr(search_speed, "MANY_NUMBERS", 700 * 32)
    monkeypatch.setattr(search_speed, "free_memory", lambda: 16 * 900 * 32)
    rows = race_banks(REAL, REAL[:5], [(600, 0), (800, 0), (901, 0)], threads=(1, 2), rounds=1)
    told = {(row["n"], row["threads"]) for row in rows}
    assert told == {(600, 1), (600, 2), (800, 1)}
    assert "901 x 32: left out" in capsys.readouterr().out
    names = {n: {row["name"] for row in rows if row["n"] == n} for n in (600, 800)}
    assert names[600] - names[800] == {"scikit-learn, unit vectors"}
    for row in rows:
        assert 0 < row["of_bandwidth_min"] <= row["of_bandwidth"] <= row["of_bandwidth_max"]


def test_widened_vectors_keep_their_angles():
    wide = widened(REAL, 4096)
    assert wide.shape == (600, 4096) and widened(REAL, 0) is REAL
    np.testing.assert_array_equal(wide, widened(REAL, 4096))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (REAL, wide))
    np.testing.assert_allclose(b[:50] @ b.T, a[:50] @ a.T, atol=0.1)


def test_free_memory_is_plausible():
    assert 1e8 < free_memory() < 1e13
