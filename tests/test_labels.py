"""What others say of a galaxy: one tree of questions, votes of surveys and catalogues, properties and their bounds."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from astroclip.evaluation.published import PAPER
from astroclip.mock import votes as mock_votes
from astroclip.mock.population import cosmic_age
from astroclip.surveys import labels
from astroclip.surveys.labels import ANSWERS, FOUR, PROPERTIES, QUESTIONS, mirrored, property_labels
from astroclip.surveys.pairs import Survey


def test_there_is_one_tree_of_questions():
    assert mock_votes.QUESTIONS is QUESTIONS and mock_votes.ASKED_OF is labels.ASKED_OF
    assert {score.removesuffix(" accuracy") for score, *_, sample in PAPER if sample == "gz"} >= set(
        QUESTIONS
    )


def test_questions_and_answers_are_those_of_the_release():
    assert len(QUESTIONS) == 10 and len(ANSWERS) == 34
    assert ANSWERS[:3] == (
        "smooth-or-featured_smooth",
        "smooth-or-featured_featured-or-disk",
        "smooth-or-featured_artifact",
    )
    assert QUESTIONS["spiral-arm-count"] == ("1", "2", "3", "4", "more-than-4", "cant-tell")
    assert QUESTIONS["merging"] == ("none", "minor-disturbance", "major-disturbance", "merger")
    assert QUESTIONS["edge-on-bulge"] == ("boxy", "none", "rounded")
    assert (
        labels.ASKED_OF["bar"] == ("disk-edge-on", ("no",)) and labels.ASKED_OF["smooth-or-featured"] is None
    )


def test_a_survey_has_all_ten_questions(sample):
    votes = labels.survey_votes(Survey(sample))
    assert {q: v.shape[1] for q, v in votes.items()} == {q: len(a) for q, a in QUESTIONS.items()}
    assert set(labels.tree_gaps(votes).values()) == {(0, 0)}
    votes["bar"][:3, 0] += 1
    assert labels.tree_gaps(votes)["bar"] == (3, 0)
    with pytest.raises(ValueError, match="read_catalogue"):
        labels.survey_votes(SimpleNamespace(path="x", votes={}.__getitem__))


def test_a_catalogue_is_read_and_matched_within_half_an_arcsecond(tmp_path):
    rows = [dict(ra=10 + i, dec=0, wrong_size_warning=i == 2) | {c: i + 1 for c in ANSWERS} for i in range(4)]
    rows[1] |= {c: "" for c in ANSWERS if c.startswith("merging")}  # nobody was asked
    with open(tmp_path / "gz.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["ra", "dec", "wrong_size_warning", *ANSWERS])
        writer.writeheader()
        writer.writerows(rows)
    ra = [10.0, 11 + 0.4 / 3600, 12, 13 + 0.6 / 3600]
    found = labels.match_votes(ra, np.zeros(4), labels.read_catalogue(tmp_path / "gz.csv"))
    assert found["bar"][:, 0].tolist() == [1, 2, 0, 0] and found["merging"][1].sum() == 0


def test_a_table_that_is_no_catalogue_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("ra,dec\n1,2\n")
    with pytest.raises(ValueError, match="no column smooth-or-featured_smooth, .* \\.\\.\\."):
        labels.read_catalogue(tmp_path / "other.csv")


def test_both_definitions_of_ssfr(sample):
    survey = Survey(sample)
    y = dict(zip(PROPERTIES, property_labels(survey).T))
    sfr, mass, metals = (survey.label(name) for name in ("log_sfr", "log_mstar", "log_z_mw"))
    np.testing.assert_allclose(y["log_ssfr"], sfr - mass, atol=2e-2)
    np.testing.assert_allclose(y["ln_sfr_over_z"], np.log(10.0**sfr / 10.0**metals), atol=2e-2)
    assert set(FOUR["corrected"]) ^ set(FOUR["released"]) == {"log_ssfr", "ln_sfr_over_z"}


def test_a_survey_without_properties_says_so():
    with pytest.raises(ValueError, match="no catalogue of properties"):
        property_labels(SimpleNamespace(path="x", label={}.__getitem__))


def test_mirrored_ages_lie_below_the_age_of_the_universe(sample):
    survey = Survey(sample)
    age, limit = survey.label("t_age_mw").astype(float), cosmic_age(survey.redshift)
    assert (age > limit).any()
    found = mirrored(age, limit)
    assert (found < limit).all() and np.array_equal(found[age < 0.999 * limit], age[age < 0.999 * limit])
    np.testing.assert_allclose(mirrored([[4.0, 9.0]], [np.inf, 6.0]), [[4, 4]])
    assert mirrored(5.0, 5.0) == pytest.approx(4.995) and mirrored(0.1, 5.0) == 0.1
    with pytest.raises(ValueError, match="must be positive"):
        mirrored([0.0], 5.0)
