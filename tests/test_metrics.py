"Scores: hand-sized values, coverage of the bootstrap, refusals."

import numpy as np
import pytest
from sklearn.metrics import r2_score

from astroclip.metrics.regression import OUTLIER, bias, dz, outlier_fraction, r2, sigma_nmad
from astroclip.metrics.bootstrap import (
    Score,
    bootstrap,
    draw_rows,
    mean_interval,
    paired_bootstrap,
    redshift_scores,
)


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
        _, low, high = bootstrap(r2, t + 0.5 * rng.normal(size=300), t, draws=200, seed=seed)
        inside += low <= truth <= high
    assert 0.87 <= inside / 120 <= 1.0


def test_paired_bootstrap_knows_a_small_difference_and_a_tie():
    rng = np.random.default_rng(2)
    t, shared = rng.uniform(0, 0.6, 800), rng.normal(0, 0.08, 800)
    good, bad = t + shared, t + shared + rng.normal(0, 0.03, 800)
    assert paired_bootstrap(r2, good, bad, t).low > 0
    assert paired_bootstrap(r2, bad, good, t).high < 0
    tie = paired_bootstrap(r2, good, good, t)
    assert tuple(tie) == (0, 0, 0) and tie.n == 800 and not tie.excludes(0)


def test_seeded_and_complete():
    rng = np.random.default_rng(3)
    t = rng.uniform(0, 0.6, 200)
    p = t + 0.03 * rng.normal(size=200)
    for kind in OUTLIER:
        row = redshift_scores(p, t, kind, draws=50, seed=4)
        assert row == redshift_scores(p, t, kind, draws=50, seed=4)
        assert row["r2"].n == 200 and row["outlier_fraction"].value == outlier_fraction(p, t, OUTLIER[kind])


@pytest.mark.parametrize("p, t", [([1, 2], [1, 2, 3]), ([], []), ([np.nan], [1]), ([[1]], [[1]])])
def test_refuses(p, t):
    with pytest.raises(ValueError):
        r2(p, t)


def test_a_score_writes_itself():
    s = Score(0.7264, 0.691, 0.756, 1200)
    assert f"{s}" == str(s) == f"{s:.3f}" == "0.726 [0.691, 0.756]" and f"{s:+.1f}" == "+0.7 [+0.7, +0.8]"
    assert str(Score(0.5)) == "0.500" and f"{Score(0.5):.1%}" == "50.0%"
    assert str(Score(float("nan"), float("nan"), float("nan"))) == str(Score(float("nan"))) == "-"
    assert str(Score(1.0, float("nan"), 2.0)) == "1.000 [-, 2.000]"


def test_a_score_is_a_number_three_numbers_and_three_columns():
    s = Score(0.2, -0.1, 0.4)
    assert (
        float(s) == 0.2 and tuple(s) == (0.2, -0.1, 0.4) and dict(zip("abc", s)) == dict(a=0.2, b=-0.1, c=0.4)
    )
    assert s.columns("r2") == dict(r2=0.2, r2_low=-0.1, r2_high=0.4)
    assert not s.excludes(0) and s.excludes(0.5) and s.excludes(-0.2) and not s.excludes(0.4)
    assert not Score(0.2).excludes(9) and not Score(*[float("nan")] * 3).excludes(0)
    with pytest.raises(AttributeError):
        s.value = 1


def test_bootstrap_gives_scores():
    rng = np.random.default_rng(5)
    t = rng.normal(size=200)
    one = bootstrap(r2, t + 0.3, t, draws=100)
    assert one.value == r2(t + 0.3, t) and one.low <= one.value <= one.high and one.n == 200
    several = bootstrap(lambda a, b: [r2(a, b), a.mean()], t + 0.3, t, draws=100)
    assert several[0] == one and len(several) == 2
    drawn = [(t + 0.3)[rows].mean() for rows in draw_rows(200, 100, 0)]
    np.testing.assert_allclose(list(several[1])[1:], np.percentile(drawn, [2.5, 97.5]))
    np.testing.assert_allclose(list(mean_interval(np.append(t + 0.3, np.nan), 100)), list(several[1]))
    assert mean_interval([]).n == 0 and np.isnan(float(mean_interval([np.nan])))
