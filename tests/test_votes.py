"""Simulated Galaxy Zoo votes: the tree of questions is obeyed, and answers are sensible."""

import numpy as np
import pytest

from astroclip.mock import votes
from astroclip.mock.structure import draw_structure
from astroclip.surveys.labels import ASKED_OF, QUESTIONS


def galaxies(n, seed=0, **changes):
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, n, p=[0.22, 0.23, 0.5, 0.05]).astype(np.int8)
    b_t = np.select(
        [kind == 0, kind == 1, kind == 2], [1.0, rng.uniform(0.3, 0.7, n), rng.uniform(0, 0.4, n)], 0.0
    )
    pop = dict(
        z=rng.uniform(0.03, 0.3, n),
        log_mstar=rng.uniform(9, 11.3, n),
        morph_type=kind,
        bulge_to_total=b_t,
        cos_i=rng.random(n),
    )
    g = (
        pop
        | draw_structure(rng, pop)
        | dict(magnitude=rng.uniform(16, 19.5, (n, 3)), psf_fwhm=rng.uniform(1.1, 1.6, (n, 3)))
    )
    return g | {k: np.full(n, v) for k, v in changes.items()}


def test_counts_go_down_the_tree():
    drawn = votes.draw_votes(np.random.default_rng(0), galaxies(400))
    assert list(drawn) == list(QUESTIONS)
    for question, parent in ASKED_OF.items():
        counts = drawn[question]
        assert (
            counts.dtype == np.int16
            and counts.shape == (400, len(QUESTIONS[question]))
            and (counts >= 0).all()
        )
        if parent is not None:
            columns = [QUESTIONS[parent[0]].index(a) for a in parent[1]]
            np.testing.assert_array_equal(counts.sum(1), drawn[parent[0]][:, columns].sum(1))


def test_totals_are_bimodal():
    totals = votes.draw_votes(np.random.default_rng(0), galaxies(4000))["smooth-or-featured"].sum(1)
    assert ((totals >= 3) & (totals <= 9) | (totals >= 30) & (totals <= 44)).all()
    assert (totals < 10).mean() == pytest.approx(0.76, abs=0.03)


def test_given_volunteers_are_used():
    drawn = votes.draw_votes(np.random.default_rng(0), galaxies(50), volunteers=np.full(50, 20))
    assert (drawn["smooth-or-featured"].sum(1) == 20).all()


def test_probabilities_are_probabilities():
    for question, p in votes.probabilities(galaxies(300)).items():
        assert p.shape == (300, len(QUESTIONS[question])) and (p >= 0).all()
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)


def test_same_seed_same_votes():
    g = galaxies(100)
    one, two = (votes.draw_votes(np.random.default_rng(5), g) for _ in range(2))
    assert all(np.array_equal(one[q], two[q]) for q in QUESTIONS)


def test_votes_scatter_more_than_multinomial():
    "Volunteers share a view of a galaxy: the variance of the fractions exceeds p (1 - p) / N."
    g = {k: np.repeat(v[:1], 4000, 0) for k, v in galaxies(5, seed=3).items()}
    p = votes.probabilities(g)["smooth-or-featured"][0, 0]
    counts = votes.draw_votes(np.random.default_rng(0), g, volunteers=np.full(4000, 40))["smooth-or-featured"]
    fraction = counts[:, 0] / 40
    assert fraction.mean() == pytest.approx(p, abs=0.01)
    expected = p * (1 - p) * (1 / 40 + (1 - 1 / 40) / (votes.CONCENTRATION + 1))
    assert fraction.var() == pytest.approx(expected, rel=0.15)


def test_features_vanish_in_the_seeing():
    seen = [votes.probabilities(galaxies(1, morph_type=2, arm_amplitude=1.0, cos_i=0.9, merger=0, edge_on=0, r_e_arcsec=s, tail_fraction=0.0))
            ["smooth-or-featured"][0, 1] for s in (0.5, 1.0, 2.0, 5.0)]  # fmt: skip
    assert seen == sorted(seen) and seen[0] < 0.4 < 0.8 < seen[-1]


@pytest.mark.parametrize("changes, question, answer", [
    (dict(edge_on=1, cos_i=0.02, morph_type=2), "disk-edge-on", "yes"),
    (dict(cos_i=0.9, morph_type=2), "disk-edge-on", "no"),
    (dict(arm_pitch=8.0), "spiral-winding", "tight"),
    (dict(arm_pitch=34.0), "spiral-winding", "loose"),
    (dict(bulge_to_total=0.0, bar_fraction=0.0), "edge-on-bulge", "none"),
    (dict(bulge_to_total=0.5, bar_fraction=0.0), "edge-on-bulge", "rounded"),
    (dict(bar_fraction=0.0), "bar", "no"),
    (dict(bar_fraction=0.4, cos_i=0.9, r_e_arcsec=5.0), "bar", "strong"),
    (dict(merger=0, tail_fraction=0.0, companion_ratio=0.0, morph_type=0), "merging", "none"),
    (dict(merger=1, tail_fraction=0.1, companion_ratio=0.7, r_e_arcsec=4.0), "merging", "merger"),
    (dict(axis_ratio=0.95, morph_type=0), "how-rounded", "round"),
    (dict(axis_ratio=0.2, r_e_arcsec=6.0), "how-rounded", "cigar-shaped"),
])  # fmt: skip
def test_the_likeliest_answer_is_the_true_one(changes, question, answer):
    p = votes.probabilities(galaxies(20, **changes))[question]
    assert QUESTIONS[question][p.mean(0).argmax()] == answer


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="votes need magnitude, psf_fwhm"):
        votes.draw_votes(np.random.default_rng(0), dict(cos_i=np.ones(3)))
