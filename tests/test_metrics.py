"Scores: hand-sized values, coverage of the bootstrap, refusals."

import numpy as np
import pytest
from sklearn.metrics import r2_score

from astroclip.metrics.regression import OUTLIER, bias, bootstrap, dz, outlier_fraction, paired_bootstrap, r2, redshift_scores, sigma_nmad


def test_hand_computed_values():
    z_true, z_pred = np.ones(4), 1 + 2 * np.array([0, 0.02, 0.04, 0.5])
    np.testing.assert_allclose(dz(z_pred, z_true), [0, 0.02, 0.04, 0.5])
    assert bias(z_pred, z_true) == pytest.approx(0.03)
    assert sigma_nmad(z_pred, z_true) == pytest.approx(1.4826 * 0.02)
    assert outlier_fraction(z_pred, z_true, 0.05) == 0.25
    assert outlier_fraction(z_pred, z_true, 0.01) == 0.75
    assert r2([1, 2, 4], [1, 2, 3]) == pytest.approx(0.5)


def test_r2_is_scikit_learns():
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(2, 100))
    assert r2(p, t) == pytest.approx(r2_score(t, p))
    assert np.isnan(r2([1.0, 2.0], [1.0, 1.0]))


def test_sigma_nmad_of_a_gaussian_is_its_sigma():
    rng = np.random.default_rng(1)
    z = rng.uniform(0, 0.6, 40_000)
    assert sigma_nmad(z + 0.02 * (1 + z) * rng.normal(size=z.size), z) == pytest.approx(0.02, rel=0.03)


def test_bootstrap_covers_as_often_as_it_says():
    "The true R2 (known from an endless sample) lies inside the 95 % interval in about 95 % of test sets."
    inside, truth = 0, 1 - 0.5**2 / (1 + 0.0)
    for seed in range(120):
        rng = np.random.default_rng(seed)
        t = rng.normal(size=300)
        low, high = bootstrap(r2, t + 0.5 * rng.normal(size=300), t, draws=200, seed=seed)
        inside += low <= truth <= high
    assert 0.87 <= inside / 120 <= 1.0


def test_paired_bootstrap_knows_a_small_difference_and_a_tie():
    rng = np.random.default_rng(2)
    t, shared = rng.uniform(0, 0.6, 800), rng.normal(0, 0.08, 800)
    good, bad = t + shared, t + shared + rng.normal(0, 0.03, 800)
    assert paired_bootstrap(r2, good, bad, t)["above"]
    assert not paired_bootstrap(r2, bad, good, t)["above"]
    tie = paired_bootstrap(r2, good, good, t)
    assert (tie["difference"], tie["low"], tie["high"]) == (0, 0, 0)


def test_seeded_and_complete():
    rng = np.random.default_rng(3)
    t = rng.uniform(0, 0.6, 200)
    p = t + 0.03 * rng.normal(size=200)
    for kind in OUTLIER:
        row = redshift_scores(p, t, kind, draws=50, seed=4)
        assert row == redshift_scores(p, t, kind, draws=50, seed=4)
        assert row["n_test"] == 200 and row["outlier_fraction"] == outlier_fraction(p, t, OUTLIER[kind])


@pytest.mark.parametrize("p, t", [([1, 2], [1, 2, 3]), ([], []), ([np.nan], [1]), ([[1]], [[1]])])
def test_refuses(p, t):
    with pytest.raises(ValueError):
        r2(p, t)
