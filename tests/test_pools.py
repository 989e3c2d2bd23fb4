"""Pools of one size: hand-made ranks, what a draw is, intervals over galaxies; and further pairs that are no galaxy of the survey."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from astroclip.core.artifacts import create, resolve
from astroclip.core.config import Params, sample_path
from astroclip.core.profiles import settings
from astroclip.core.provenance import file_hash
from astroclip.data.photometry import aperture_magnitudes
from astroclip.evaluation.embeddings import Embeddings, embed_survey, towers
from astroclip.evaluation.runs import Run, open_unseen
from astroclip.evaluation.scores import ScoreTable, add_pools, pool_sentence, pools_verdict
from astroclip.metrics.bootstrap import draw_counts
from astroclip.mock.survey import FIRST_EXTRA_ID, FIRST_ID
from astroclip.models.astroclip import AstroCLIP
from astroclip.models.specformer import SpecFormer
from astroclip.models.vit import VisionTransformer
from astroclip.search.pools import (
    compare_over_pools,
    compare_pools,
    draw_pools,
    median_over_pools,
    ranks_in_pools,
    recall_over_pools,
    scores_over_pools,
    search_pools,
)
from astroclip.search.ranks import pair_ranks
from astroclip.search.spaces import ACROSS, Space, fibre_bands, photometry_spaces
from astroclip.studies.unseen import FIRST_UNSEEN_ID, check_unseen, load_aligned, make_unseen, unseen_recipe
from astroclip.surveys.leakage import fingerprint
from astroclip.surveys.pairs import Survey


def noisy_pair(n, seed=0, noise=0.7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, x + noise * rng.normal(size=x.shape)


def test_recall_by_hand():
    "Four galaxies on a line, two pools of three: the images at 0, 10, 20, 30, their spectra displaced."
    image, spectrum = np.array([[0.0], [10.0], [20.0], [30.0]]), np.array([[12.0], [9.0], [23.0], [19.0]])
    members = np.array([[True, True, True, False], [True, False, True, True]])
    ranks = ranks_in_pools(image, spectrum, members, "euclidean")
    # of 0: 9 is nearer than its own 12; of 20: 19 is nearer than 23, but stands in the second pool only; of 30: 23
    assert np.nan_to_num(ranks).tolist() == [[2, 1, 1, 0], [1, 0, 2, 2]]
    ones = np.ones((1, 4))
    assert recall_over_pools(ranks, ones, 1)[0] == pytest.approx(3 / 6)
    assert recall_over_pools(ranks, ones, 2)[0] == 1
    assert median_over_pools(ranks, ones)[0] == pytest.approx((1 + 2) / 2)


def test_ties_count_half():
    same = np.ones((5, 2))
    assert ranks_in_pools(same, same, np.ones((1, 5), bool)).tolist() == [[3] * 5]
    assert ranks_in_pools(same, same, [[True, True, True, False, False]])[0, :3].tolist() == [2] * 3


def test_draws_are_reproducible_and_of_their_size():
    members = draw_pools(300, 90, 20, seed=5)
    assert members.shape == (20, 300) and (members.sum(1) == 90).all()
    assert (members == draw_pools(300, 90, 20, seed=5)).all() and (
        members != draw_pools(300, 90, 20, seed=6)
    ).any()
    assert (draw_pools(300, 90, 5, seed=5) == members[:5]).all()  # more draws do not change the first ones
    assert len({row.tobytes() for row in members}) == 20
    assert abs(members.mean(0).mean() - 0.3) < 1e-12 and members.any(0).mean() > 0.98
    spaces = [Space("a", dict(zip(("image", "spectrum"), noisy_pair(60))))]
    one, two = (search_pools(spaces, (20, 40), pools=4, draws=30, seed=1) for _ in range(2))
    assert all(
        np.array_equal(one[key].ranks, two[key].ranks, equal_nan=True) and one[key].scores == two[key].scores
        for key in one
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_pool_of_all_is_the_gallery_and_order_does_not_matter(metric):
    image, spectrum = noisy_pair(200)
    full = ranks_in_pools(image, spectrum, draw_pools(200, 200, 2), metric, block=33)
    assert (full == pair_ranks(image, spectrum, metric)).all()
    members, order = draw_pools(200, 70, 6), np.random.default_rng(1).permutation(200)
    plain = ranks_in_pools(image, spectrum, members, metric)
    mixed = ranks_in_pools(image[order], spectrum[order], members[:, order], metric)
    np.testing.assert_array_equal(mixed, plain[:, order])
    for row, member in zip(plain, members):  # as if the others were not there
        np.testing.assert_array_equal(row[member], pair_ranks(image[member], spectrum[member], metric))


def test_many_draws_come_to_the_expectation_and_chance_to_chance():
    image, spectrum = noisy_pair(400)
    expected = hypergeom.cdf(9, 399, pair_ranks(image, spectrum) - 1, 119)
    ranks = ranks_in_pools(image, spectrum, draw_pools(400, 120, 400))
    assert recall_over_pools(ranks, np.ones((1, 400)))[0] == pytest.approx(expected.mean(), abs=0.01)
    rng = np.random.default_rng(2)
    blind = ranks_in_pools(*rng.normal(size=(2, 400, 4)), draw_pools(400, 100))
    assert scores_over_pools(blind, draw_counts(400, 200))["recall_at_10"].value == pytest.approx(
        0.1, abs=0.04
    )


def test_a_galaxy_drawn_twice_is_two_galaxies():
    "The weights of the bootstrap against galaxies written down as often as they were drawn."
    ranks = ranks_in_pools(*noisy_pair(40), draw_pools(40, 15, 6))
    counts = draw_counts(40, 3, seed=4)
    for b in range(4):
        rows = np.repeat(np.arange(40), counts[b].astype(int))
        drawn = [row[np.isfinite(row)] for row in ranks[:, rows]]
        assert recall_over_pools(ranks, counts, 3)[b] == pytest.approx((np.concatenate(drawn) <= 3).mean())
        assert median_over_pools(ranks, counts)[b] == pytest.approx(
            np.mean([np.median(row) for row in drawn])
        )


def test_who_wins_is_said_once_and_plainly():
    image, spectrum = noisy_pair(150, noise=1.2)
    spaces = [
        Space("astroclip", dict(image=image, spectrum=spectrum)),
        Space("photometry", dict(image=image, spectrum=image)),
    ]
    found = search_pools(spaces, (50,), pools=5, draws=200)
    rows = compare_pools(found, "astroclip", 200)
    assert [(row["input"], row["pool"], row["verdict"]) for row in rows] == [
        (way, 50, "below") for way in ACROSS
    ]
    assert "g, r, z, no network wins: +" in pool_sentence(rows[0], found) and "Chance 0.200" in pool_sentence(
        rows[0], found
    )
    turned = pool_sentence(compare_pools(found, "photometry", 200)[0], found)
    assert "g, r, z, no network wins: +" in turned  # whoever is asked first
    assert (
        pools_verdict(rows) == "In pools of 50, whichever searches for the other: g, r, z, no network wins."
    )
    assert pools_verdict([rows[0], rows[1] | dict(verdict="above")]).endswith("neither wins throughout.")
    assert pools_verdict([row | dict(verdict="level", pool=1200) for row in rows]).endswith(
        "1,200, whichever searches for the other: neither wins throughout."
    )
    twice = search_pools([spaces[0], Space("vit", spaces[0].vectors)], (50,), pools=5, draws=50)
    assert "neither wins: +0.000" in pool_sentence(compare_pools(twice, "vit", 50)[0], twice)
    table = ScoreTable("retrieval")
    add_pools(table, found)
    assert (
        len(table) == 2 * 2 * 4 and table["median_rank of 50", ACROSS[0], "photometry", "cosine"].value == 1
    )
    d = compare_over_pools(
        found[ACROSS[0], 50, "photometry"].ranks,
        found[ACROSS[0], 50, "astroclip"].ranks,
        draw_counts(150, 200),
    )
    assert d.value == pytest.approx(-rows[0]["difference"]) and d.low == pytest.approx(-rows[0]["high"])


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: draw_pools(100, 101), "20 pools of 101 of 100 galaxies"),
        (lambda: draw_pools(100, 1), "expected a pool or more, 2 to 100"),
        (lambda: draw_pools(100, 50, 0), "0 pools of 50"),
        (lambda: ranks_in_pools(np.ones((9, 2)), np.ones((9, 2)), np.ones((3, 8), bool)), "a column a query"),
        (
            lambda: ranks_in_pools(np.ones((9, 2)), np.ones((8, 2)), np.ones((3, 9), bool)),
            "9 queries and 8 gallery rows",
        ),
        (
            lambda: compare_over_pools(np.full((1, 2), np.nan), np.ones((1, 2)), np.ones((1, 2))),
            "draw the pools once",
        ),
        (lambda: unseen_recipe(settings("mini", "mock_survey"), 0), "0 unseen pairs: expected 2 or more"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_further_pairs_follow_the_survey_and_repeat_nothing_of_it(tmp_path):
    sky = settings("mini", "mock_survey", calibration=1.0, line_fraction=0.45)
    recipe = unseen_recipe(sky, 2_400, seed=3)
    assert recipe["n"] == 2_400 and (recipe["calibration"], recipe["line_fraction"]) == (1.0, 0.45)
    assert (
        unseen_recipe(settings("smoke", "mock_survey"), 2_400)["n"] == 192
    )  # never more than the survey has
    assert FIRST_UNSEEN_ID > FIRST_EXTRA_ID + 10**9 > FIRST_ID + 10**9
    few = recipe | dict(n=3)
    one, two = (Survey(make_unseen(tmp_path / name, **few, processes=1)) for name in ("a.h5", "b.h5"))
    assert (one.images() == two.images()).all() and (one.flux() == two.flux()).all()
    assert (one.truth("flux_error") != 0).any() and h5py.File(one.path).attrs["calibration"] == 1
    other = Survey(make_unseen(tmp_path / "c.h5", **few | dict(seed=few["seed"] + 1), processes=1))
    assert not np.isin(other.redshift, one.redshift).any()


def test_a_pool_holds_no_galaxy_of_the_survey():
    sample = Survey(sample_path())
    prints = fingerprint(dict(image=sample.images()))["fingerprint"]

    def embedded(targetid, prints):
        return SimpleNamespace(targetid=np.asarray(targetid), get=lambda model, name: prints)

    known = embedded(sample.targetid, prints)
    ids = FIRST_UNSEEN_ID + np.arange(4)
    assert check_unseen(embedded(ids, prints[:4] + 1), known) == {"same object": 0, "same image": 0}
    for split in range(3):  # one of the training, of the validation, of the test
        row = np.flatnonzero(sample.split == split)[:1]
        with pytest.raises(ValueError, match="1 by image"):
            check_unseen(embedded(ids, np.concatenate([prints[:3] + 1, prints[row]])), known)
        with pytest.raises(ValueError, match="1 by object"):
            check_unseen(embedded([*ids[:3], *sample.targetid[row]], prints[:4] + 1), known)


def test_the_control_is_the_same_from_a_file_of_embeddings(tmp_path):
    sample = Survey(sample_path())
    measured = dict(photometry=aperture_magnitudes, fibre=fibre_bands)
    stored = Embeddings(embed_survey(sample.path, tmp_path / "e.h5", measured, report=None))
    circles, learn = list(aperture_magnitudes(dict(image=sample.images())).values()), np.arange(40)
    here = photometry_spaces(sample, circles, learn, np.arange(len(sample)))
    there = photometry_spaces(sample, circles, learn, others=stored)
    for a, b in zip(here, there):
        assert a.model == b.model and a.metric == b.metric == "euclidean"
        for kind in ("image", "spectrum"):
            np.testing.assert_allclose(a.vectors[kind], b.vectors[kind], rtol=1e-4, atol=1e-3)


def test_further_pairs_go_through_the_models_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROCLIP_HOME", str(tmp_path))
    monkeypatch.delenv("ASTROCLIP_REUSE", raising=False)
    torch.manual_seed(0)
    vit = VisionTransformer(image_size=48, patch_size=12, embed_dim=32, depth=1, num_heads=1)
    model = AstroCLIP(vit, SpecFormer(window=80, stride=40, embed_dim=32, depth=1, num_heads=1), 16, 2).eval()
    p, sample = Params(profile="smoke", device="cpu"), Survey(sample_path())
    with create(resolve("align", p)) as folder:
        model.save_pretrained(folder / "astroclip")
    weights = resolve("align", p).path / "astroclip" / "model.safetensors"
    about = dict(astroclip=dict(checkpoint=file_hash(weights)))
    models = dict(astroclip=towers(model), checks=fingerprint)
    embeddings = Embeddings(embed_survey(sample.path, tmp_path / "e.h5", models, about, report=None))
    run = Run("retrieval", p, sample, embeddings, [resolve("embed", p), resolve("mock_survey", p)])
    unseen, (artifact, *_) = open_unseen(run, 3)
    assert len(unseen) == 3 and (unseen.targetid == FIRST_UNSEEN_ID + np.arange(3)).all()
    assert sorted(f.name for f in artifact.path.iterdir()) == [
        "artifact.json",
        "embeddings.h5",
    ]  # no pixels are kept
    recipe = unseen_recipe(settings("smoke", "mock_survey"), 3)
    again = Survey(make_unseen(tmp_path / "again.h5", **recipe, processes=1))
    np.testing.assert_allclose(
        unseen.get("astroclip", "image"), model.embed_images(again.images()), atol=1e-5
    )
    assert unseen.get("fibre", "bands").shape == (3, 3) and unseen.get("photometry", "aperture_3").shape == (
        3,
        3,
    )
    before = (artifact.path / "embeddings.h5").stat().st_mtime_ns
    assert (
        open_unseen(run, 3)[1][0].path.stat().st_ino
        and (artifact.path / "embeddings.h5").stat().st_mtime_ns == before
    )
    with pytest.raises(ValueError, match="other weights than those"):
        load_aligned(weights.parent.parent, dict(astroclip=dict(checkpoint="0" * 64)))
