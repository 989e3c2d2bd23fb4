"""Matched pools: who is in them, what a win is, and that a search by brightness alone falls to chance where brightness is fixed."""

import numpy as np
import pytest

from astroclip.search.matched import (
    LEAST_TWINS,
    TOLERANCES,
    chance_of_match,
    chances_of_neighbors,
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


def test_chance_by_hand():
    ladder, nowhere = np.linspace(-0.5, 0.5, 40)[None], np.zeros((1, 40, 3))  # twins of the very photometry
    assert chance_of_match([0.49], ladder, nowhere)[0] == pytest.approx(2 / 41)  # one of forty, and itself
    assert chance_of_match([0.9], ladder, nowhere)[0] == pytest.approx(1 / 41)
    assert chance_of_match([-0.9], ladder, nowhere)[0] == 1
    assert chance_of_match([0.3], np.full((1, 40), 0.3), nowhere)[0] == 1  # all level: nothing is shown
    with pytest.raises(ValueError, match=f"at least {LEAST_TWINS}"):
        chance_of_match([0.3], ladder[:, :9], nowhere[:, :9])


def test_chance_depends_on_no_unit_and_no_order():
    rng = np.random.default_rng(3)
    s, others, offsets = rng.uniform(0, 1, 6), rng.uniform(0, 1, (6, 80)), rng.normal(size=(6, 80, 3))
    p, order = chance_of_match(s, others, offsets), rng.permutation(80)
    assert chance_of_match(s, others[:, order], offsets[:, order]) == pytest.approx(p)
    assert chance_of_match(s, others, 5 * offsets @ rng.normal(size=(3, 3))) == pytest.approx(p)
    flat = offsets * [1, 1, 0]  # no colour r - z: the trend has six numbers
    assert np.isfinite(chance_of_match(s, others, flat)).all()


@pytest.mark.parametrize("k", [0, 1, 10, 100])
def test_chance_is_calibrated_where_photometry_is_all_there_is(k):
    rng = np.random.default_rng(4)
    n, scaled = 3000, rng.normal(size=(3000, 3)) * [3, 2, 1.5]
    r, g_r, r_z = 18 + 0.05 * scaled[:, 0], 0.03 * scaled[:, 1], 0.03 * scaled[:, 2]
    magnitude = np.stack([r + g_r, r, r - r_z], 1)
    rest = np.concatenate([rng.normal(size=(n, 2)), np.full((n, 1), 4)], 1)

    def seen(noise):
        x = np.concatenate([scaled, rest], 1) + noise * rng.normal(size=(n, 6))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    image, spectrum = seen(0.4), seen(0.2)
    p = chances_of_neighbors(image, spectrum, magnitude, np.arange(n), k)
    assert 0.035 < (p < 0.05).mean() < 0.065 and (p < 0.01).mean() < 0.015 and 0.45 < np.median(p) < 0.55
    twin = chance_of_hit_itself(image, spectrum, magnitude)
    assert (twin < 0.05).mean() > 0.25  # its own spectrum is more than a galaxy as bright and as red


def chance_of_hit_itself(image, spectrum, magnitude):
    from astroclip.search.matched import photometric_twins, scaled_colors

    rows, x = np.arange(300), scaled_colors(magnitude)
    twins = photometric_twins(magnitude, magnitude[rows], 101)[:, 1:]
    s = np.einsum("nd,nmd->nm", image[rows], spectrum[twins])
    return chance_of_match((image[rows] * spectrum[rows]).sum(1), s, x[twins] - x[rows, None])
