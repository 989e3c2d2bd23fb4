"The race of searches: a bank that is denser and not equal, the right neighbours, everyone in the field answers."

import numpy as np
import pytest

from astroclip.studies.search_speed import SEARCH_FIELD, few_cores, one_query_speed, race_searches
from astroclip.studies.search_speed import tiled_vectors, true_neighbours

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
    assert {"astroclip, bytes", "torch, product and topk", "scikit-learn, cosine"} <= set(names) <= set(SEARCH_FIELD)
    for row in rows:
        assert row["recall"] > (0.9 if "sketches" in row["name"] or "HNSW" in row["name"] else 0.999), row
        assert row["queries_per_second"] > 0 and row["bytes_per_vector"] > 0 and row["n"] == 3000
    speed = one_query_speed(bank, rounds=1)
    assert speed["ratio"] > 0 and speed["float_ms"] > 0


def test_threads_are_given_back():
    import torch

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop"):
        with few_cores(1):
            raise RuntimeError("stop")
    assert torch.get_num_threads() == before
