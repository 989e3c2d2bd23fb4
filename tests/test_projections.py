"""Maps of the embedding space: what they keep, the gap between modalities, and the interactive page."""

import json
import re
import sys

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from astroclip.evaluation.projections import map_quality, neighbour_mean, principal, umap_2d, upright
from astroclip.probes.modality_gap import bridge, directions, modality_gap, own_kind, recall, remove_centroids, tell_modalities
from astroclip.plotting.maps import interactive_map, write_interactive
from astroclip.metrics.bootstrap import mean_interval


@pytest.fixture(scope="module")
def pairs():
    "Two modalities of 300 galaxies that share a direction each and differ by a constant."
    rng = np.random.default_rng(0)
    common = rng.normal(size=(300, 24))
    x, y = (common + 0.3 * rng.normal(size=(300, 24)) for _ in range(2))
    x[:, 0] += 2
    y[:, 0] -= 2
    return directions(x), directions(y)


def test_principal_components_keep_distances_and_do_not_look_at_other_rows():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 6)).astype(np.float32)
    scores, share = principal(x, np.arange(60) < 50, 6)
    assert share == pytest.approx(1)
    np.testing.assert_allclose(
        np.linalg.norm(scores[3] - scores[55]), np.linalg.norm(x[3] - x[55]), rtol=1e-5
    )
    other = x.copy()
    other[55:] += 100
    np.testing.assert_allclose(principal(other, np.arange(60) < 50, 6)[0][:50], scores[:50], atol=1e-5)
    with pytest.raises(ValueError, match="not all values are finite"):
        principal(np.where(x > 2, np.nan, x), slice(None))


def test_quality_equals_scikit_learn_and_knows_the_perfect_map():
    rng = np.random.default_rng(2)
    high, low = rng.normal(size=(90, 5)), rng.normal(size=(90, 2))
    quality = map_quality(high, low, 7)
    assert quality["trustworthiness"].mean() == pytest.approx(
        trustworthiness(high, low, n_neighbors=7), abs=1e-9
    )
    assert quality["continuity"].mean() == pytest.approx(trustworthiness(low, high, n_neighbors=7), abs=1e-9)
    assert quality["kept"].shape == (90,) and quality["kept"].mean() < 0.3
    assert all(
        v.min() == 1 for v in map_quality(low, -2 * low[:, ::-1], 7).values()
    )  # turned, mirrored, stretched
    with pytest.raises(ValueError, match="k = 45"):
        map_quality(high, low, 45)


def test_kept_neighbours_by_hand():
    "Five galaxies on a line; the map exchanges the two at the right end."
    high, low = np.array([[0, 1, 2.1, 3.3, 4.6]]).T, np.array([[0, 1, 2.1, 4.6, 3.3]]).T
    quality = map_quality(high, low, 1)
    assert quality["kept"].tolist() == [1, 1, 1, 0, 0]  # 3 is now next to 4, and 4 next to 2
    # 4 was the second neighbour of 3, and 2 the second of 4: one rank too far, of weight 2 / (1 * (10 - 3 - 1))
    assert quality["trustworthiness"].tolist() == pytest.approx([1, 1, 1, 2 / 3, 2 / 3])


def test_upright_undoes_rotation_and_mirror():
    rng = np.random.default_rng(3)
    xy = rng.normal(size=(80, 2)) * (4, 1)
    guide = np.where(np.arange(80) % 9 == 0, np.nan, xy[:, 0] + 0.5 * xy[:, 1])
    turned = xy @ np.array([[0, 1], [1, 0]]) + 7
    np.testing.assert_allclose(upright(xy, guide), upright(turned, guide), atol=1e-5)
    known = np.isfinite(guide)
    assert np.corrcoef(upright(-xy, guide)[known, 0], guide[known])[0, 1] > 0.9


def test_gap_by_hand():
    x, y = np.tile([1.0, 0.0], (6, 1)), np.tile([0.0, 1.0], (6, 1))
    found = modality_gap(x, y, draws=20)
    assert found["gap"] == found["paired"] == found["random"] == pytest.approx(np.sqrt(2))
    assert found["gap_over_paired"] == pytest.approx(1) and found["gap_low"] == found[
        "gap_high"
    ] == pytest.approx(np.sqrt(2))
    assert modality_gap(x, x, draws=20)["gap"] == 0


def test_bridge_and_removed_centroids_close_the_gap(pairs):
    x, y = pairs
    means = x.mean(0), y.mean(0)
    before = modality_gap(x, y, 100)
    assert before["gap_low"] > before["no_gap"]
    for moved in (bridge(x, y, *means), remove_centroids(x, y, *means)):
        after = modality_gap(*moved, 100)
        assert after["gap"] < 0.2 * before["gap"]
        np.testing.assert_allclose(np.linalg.norm(moved[0], axis=1), 1)
    swapped = bridge(x, y, *means, 2)  # the modalities change sides

    def gap(a, b):
        return (a.mean(0) - b.mean(0))[0]

    assert gap(*swapped) == pytest.approx(-gap(x, y), rel=0.3)


def test_telling_modalities_apart(pairs):
    x, y = pairs
    assert tell_modalities(x[:150], y[:150], x[150:], y[150:]).mean() > 0.9
    rng = np.random.default_rng(4)
    a, b = directions(rng.normal(size=(400, 8))), directions(rng.normal(size=(400, 8)))
    assert abs(tell_modalities(a[:200], b[:200], a[200:], b[200:]).mean() - 0.5) < 0.1
    assert own_kind(x, y).mean() > 0.75 and abs(own_kind(a, b).mean() - 0.5) < 0.05


def test_recall_does_not_depend_on_the_frame(pairs):
    x, y = pairs
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(24, 24)))[0]
    np.testing.assert_array_equal(recall(x, y), recall(x @ turn, y @ turn))
    value, low, high = mean_interval(recall(x, y), 100)
    assert low <= value <= high


def test_neighbour_mean_leaves_the_galaxy_itself_out():
    assert neighbour_mean(np.array([[0.0], [1], [10]]), [5, 7, 100], 1).tolist() == [7, 5, 7]


def test_interactive_page_is_small_exact_and_the_same_every_time(tmp_path):
    ids = 2**62 + np.arange(4)
    z = np.array([0.1, np.nan, 0.3, 0.4])

    def make():
        return interactive_map(
            np.eye(4)[:, :2], [True, True, False, False], ids, {"redshift": z}, {"redshift": ("z", 0, 0.5)}
        )

    first, second = (write_interactive(make(), tmp_path / name, "map").read_text() for name in "ab")
    assert first == second and 'id="map"' in first and len(first) < 30_000
    record = json.loads(make().to_json())
    assert record["data"][0]["customdata"][1] == [str(ids[1]), "unknown"]  # 64 bits survive as text
    menu = record["layout"]["updatemenus"][0]["buttons"]
    assert [b["label"] for b in menu] == ["modality", "redshift"]
    assert menu[1]["args"][0]["marker.color"] == [[0.1, None], [0.3, 0.4]]
    assert re.search(r'src="https://[^"]*plotly', first)
    whole = write_interactive(make(), tmp_path / "c", "map", offline=True).read_text()
    assert len(whole) > 3e6 and not re.search(r'<script[^>]*src="http', whole)


def test_missing_libraries_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ModuleNotFoundError, match=r"astroclip\[evaluation\]"):
        umap_2d(np.zeros((20, 3)))


@pytest.mark.slow
def test_umap_is_the_same_twice():
    pytest.importorskip("umap")
    x = np.random.default_rng(6).normal(size=(60, 5))
    np.testing.assert_array_equal(umap_2d(x, 1), umap_2d(x, 1))
    assert np.abs(umap_2d(x, 1) - umap_2d(x, 2)).max() > 0
