"""Matched pools: who is in them, what a win is, and that a search by brightness alone falls to chance where brightness is fixed."""

import numpy as np
import pytest

from astroclip.search.matched import (
    TOLERANCES,
    matched_pools,
    mismatch,
    pool_score,
    pool_wins,
    random_pools,
    recall_in_galleries,
)


def test_pools_are_the_nearest_others_in_units_of_the_tolerances():
    z, r = np.array([0.10, 0.11, 0.10, 0.30]), np.array([18.0, 18.0, 18.2, 18.0])
    # from galaxy 0: one tolerance in z, four in r, twenty in z
    assert matched_pools(dict(redshift=z, r=r), 2)[0].tolist() == [1, 2]
    assert TOLERANCES["redshift"] == 0.01 and TOLERANCES["r"] == 0.05


def test_wins_by_hand_and_rows_of_the_pairs():
    query = np.array([[1.0, 0.0], [0.0, 1.0]])
    gallery = np.array([[0.0, 1.0], [1.0, 0.2], [1.0, 0.1], [1.0, 0.3], [-1.0, 0.0]])
    wins = pool_wins(query, gallery, np.array([[2, 3, 4], [1, 3, 4]]), own=[1, 0])
    assert wins.tolist() == pytest.approx([2 / 3, 1.0])  # only row 2 points closer to the first query
    assert (
        pool_wins(query, 7 * gallery, np.array([[2, 3, 4], [1, 3, 4]]), own=[1, 0]).tolist() == wins.tolist()
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_chance_is_one_half_for_any_pool(metric):
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(2, 800, 6))
    for m in (3, 50):
        score = pool_score(pool_wins(query, gallery, random_pools(800, m), metric=metric))
        assert score.low < 0.5 < score.high


def test_brightness_alone_falls_to_chance_where_brightness_is_fixed():
    rng = np.random.default_rng(1)
    bright, other = rng.normal(size=(2, 3000))
    image, spectrum = (
        np.stack([bright, 0 * bright], 1) + 0.05 * rng.normal(size=(3000, 2)) for _ in range(2)
    )
    pools = matched_pools(dict(r=0.5 * bright), 10)
    fixed, free = (
        pool_wins(image, spectrum, rows, metric="euclidean").mean()
        for rows in (pools, random_pools(3000, 10))
    )
    assert free > 0.9 and abs(fixed - 0.5) < 0.03
    knows = pool_wins(
        image + [0, 1] * other[:, None], spectrum + [0, 1] * other[:, None], pools, metric="euclidean"
    )
    assert knows.mean() > 0.9
    near = mismatch(dict(r=bright, other=other), pools)
    assert near["r"][0] < 0.05 * near["r"][1] and near["other"][0] > 0.9 * near["other"][1]


def test_recall_falls_with_the_size_of_the_gallery():
    rng = np.random.default_rng(2)
    query = rng.normal(size=(600, 3))
    gallery = query + 0.5 * rng.normal(size=(600, 3))
    found = [
        recall_in_galleries(query, gallery, size, draws=4, metric="euclidean").mean()
        for size in (50, 200, 600)
    ]
    assert found[0] > found[1] > found[2]
    with pytest.raises(ValueError, match="k < size"):
        recall_in_galleries(query, gallery, 700)
