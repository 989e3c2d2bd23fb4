"""Redshifts of spectra, judged as the field does: values computed by hand, invariances, bad input."""

import numpy as np
import pytest

from astroclip.metrics.bootstrap import wilson
from astroclip.metrics.spectroscopic import LIGHT, SUCCESS, confident_errors, confusion_table, fraction, purity_completeness
from astroclip.metrics.spectroscopic import right_or_abstained, success, velocity, velocity_scores


def test_a_velocity_is_that_of_the_galaxys_own_frame():
    assert velocity([0.1011], [0.1])[0] == pytest.approx(299792.458 * 0.0011 / 1.1)
    z, dv = np.array([0.02, 0.7, 1.6, 3.9]), np.array([55.0, -55.0, 200.0, 0.0])
    assert np.allclose(velocity(z + dv / LIGHT * (1 + z), z), dv, atol=1e-6)      # at every redshift alike
    assert SUCCESS * LIGHT == pytest.approx(989.3, abs=0.1)


def test_success_counts_silence_as_failure_and_its_edge_is_outside():
    z = np.ones(5)
    assert success([1.0065, 1.0067, 0.9935, 0.9933, np.nan], z).tolist() == [True, False, True, False, False]
    score = fraction(success([1.0, 2.0], [1.0, 1.0]))
    assert (score.value, score.n) == (0.5, 2) and (score.low, score.high) == wilson(1, 2)


def test_velocities_are_of_right_redshifts_only():
    z = np.full(4, 1.0)
    scores = velocity_scores(z + np.array([-30, 0, 60, 5e5]) * 2 / LIGHT, z, draws=200)
    assert scores["median |dv|"].value == pytest.approx(30, abs=1e-6) and scores["median |dv|"].n == 3
    assert scores["nmad"].value == pytest.approx(1.4826 * 30, abs=1e-5)
    assert scores["nmad"].low <= scores["nmad"].value <= scores["nmad"].high
    assert np.isnan(velocity_scores([2.0], [1.0])["nmad"].value)


def test_purity_and_completeness_by_hand():
    cut, purity, completeness = purity_completeness([0.8, 0.4, 0.4, 0.1], [True, True, False, False])
    assert cut.tolist() == [0.1, 0.4, 0.8]
    assert purity.tolist() == [0.5, 2 / 3, 1.0] and completeness.tolist() == [0.5, 0.5, 0.25]
    rng = np.random.default_rng(1)
    p, right = rng.uniform(size=300), rng.uniform(size=300) < 0.6
    cut, purity, completeness = purity_completeness(p, right)
    assert (np.diff(completeness) <= 0).all()                                     # completeness only falls
    order = rng.permutation(300)
    assert all(np.array_equal(a, b) for a, b in zip((cut, purity, completeness), purity_completeness(p[order], right[order])))
    assert purity[0] == completeness[0] == right.mean()                           # nothing is cut


def test_confidence_and_silence():
    p, right = np.array([0.95, 0.91, 0.9, 0.3]), np.array([True, False, False, False])
    assert confident_errors(p, right).value == pytest.approx(1 / 3)               # 0.9 is not above 0.9
    assert right_or_abstained(p, right).value == 0.5
    assert right_or_abstained(p, right, silent=p > 0.9).value == 0.75
    with pytest.raises(ValueError, match="expected 0 to 1"):
        confident_errors([95.0], [True])
    with pytest.raises(ValueError, match=r"expected two of \(n,\)"):
        right_or_abstained(p, right[:2])


def test_a_table_of_kinds_loses_nobody():
    true, said = ["a", "b", "b", "c"], ["x", "x", "y", "y"]
    table = confusion_table(true, said, ("a", "b", "c"), ("x", "y"))
    assert table.tolist() == [[1, 0], [1, 1], [0, 1]] and table.sum() == len(true)
    with pytest.raises(ValueError, match="add the name"):
        confusion_table(["d"], ["x"], ("a",), ("x",))
