"Marks: the probe is the one that is written down, a file repeats its ranking, and what is no file of marks is refused."

import json

import numpy as np
import pytest

from astroclip import SimilarityIndex
from astroclip.search.marks import MARKS_AT_ONCE, Marks, MarkSettings, fit_marks, gain_of_marks, galaxy_features
from astroclip.search.marks import mean_gain, read_marks, save_marks, search_marks, taught_ndcg, white_features
from astroclip.search.parts import index_hash

rng = np.random.default_rng(0)
MEMBER = rng.random(400) < 0.15
NOISE = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 24))
IMAGE = NOISE + MEMBER[:, None] * rng.normal(size=24) + 0.2 * rng.normal(size=(400, 24))
SPECTRUM = rng.normal(size=(400, 24))
IDS = 2**62 + np.arange(400)
TABLE = dict(redshift=np.tile(np.linspace(0, 1, 400), 2))


@pytest.fixture(scope="module")
def index():
    modality = np.repeat(["image", "spectrum"], 400)
    return SimilarityIndex.build(np.concatenate([IMAGE, SPECTRUM]), np.tile(IDS, 2), modality, TABLE)


@pytest.fixture(scope="module")
def marks(index):
    seen = rng.permutation(400)[:40]
    return Marks(IDS[seen][MEMBER[seen]], IDS[seen][~MEMBER[seen]], index_hash(index))


def test_two_marks_by_hand():
    "One yes at +1, one no at -1: w = S 2 p(-w) and no constant."
    w = fit_marks(np.array([[1.0], [-1.0]]), [True, False], 0.5)
    np.testing.assert_allclose(w[0], 1 / (1 + np.exp(w[0])), atol=1e-9)
    np.testing.assert_allclose(w[1], 0, atol=1e-9)


def test_the_probe_is_at_the_bottom():
    y, yes = rng.normal(size=(30, 5)), rng.random(30) < 0.5

    def loss(w):
        t = np.where(yes, 1, -1) * (y @ w[:-1] + w[-1])
        return 0.5 * (w[:-1] ** 2).sum() + 0.3 * np.log1p(np.exp(-t)).sum()

    w = fit_marks(y, yes, 0.3)
    assert all(loss(w + step) > loss(w) for step in 0.01 * np.concatenate([np.eye(6), -np.eye(6)]))


def test_white_features_turn_with_the_vectors():
    x = rng.normal(size=(200, 12)) * np.arange(1, 13)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    plain = MarkSettings(floor=0)
    a, b = white_features(x, plain), white_features(3 * x @ turn + 5, plain)
    np.testing.assert_allclose(np.abs(a), np.abs(b), atol=1e-8)
    np.testing.assert_allclose(a.T @ a / 200 * a.shape[1], np.eye(a.shape[1]), atol=1e-8)


def test_a_floor_by_hand():
    "Two axes of variance 4 and 1, a floor of a quarter of 4: over sqrt(5) and sqrt(2), and over sqrt(4/5 + 1/2)."
    x = np.array([[2.0, 1], [2, -1], [-2, 1], [-2, -1]])
    y = white_features(x, MarkSettings(floor=0.25))
    np.testing.assert_allclose(np.abs(y), np.abs(x) / np.sqrt(np.array([5, 2]) * 1.3), atol=1e-12)
    np.testing.assert_allclose((y**2).sum(1).mean(), 1, atol=1e-12)


def test_galaxies_without_a_mark_are_weak_noes():
    "Others of weight m, each, are m further marks no; without weight they are not there."
    y, other, yes = rng.normal(size=(12, 3)), rng.normal(size=(4, 3)), rng.random(12) < 0.5
    a = fit_marks(y, yes, 0.7, other, 4.0)
    b = fit_marks(np.concatenate([y, other]), np.append(yes, [False] * 4), 0.7)
    np.testing.assert_allclose(a, b, atol=1e-9)
    np.testing.assert_array_equal(fit_marks(y, yes, 0.7, other, 0.0), fit_marks(y, yes, 0.7))
    assert np.isfinite(fit_marks(y, np.ones(12, bool), 0.7, other, 1.0)).all()
    with pytest.raises(ValueError, match="0 yes and 12 no"):
        fit_marks(y, np.zeros(12, bool), 0.7, other, 1.0)


def test_a_file_from_before_keeps_its_ranking(index, marks, tmp_path):
    "Marks that were saved without floor and unmarked mean what they meant."
    old = MarkSettings(components=20, strength=0.1, floor=0.0, unmarked=0.0)
    path = save_marks(Marks(marks.yes, marks.no, marks.index_sha256, old), tmp_path / "old.json")
    told = json.loads(path.read_text())
    del told["settings"]["floor"], told["settings"]["unmarked"]
    path.write_text(json.dumps(told))
    again = read_marks(path, index)
    assert again.settings == old
    rows, x = galaxy_features(index)
    y, place = white_features(x, old), {id: i for i, id in enumerate(index.ids[rows[:, 0]].tolist())}
    w = fit_marks(y[[place[i] for i in marks.yes + marks.no]], [True] * len(marks.yes) + [False] * len(marks.no), 0.1)
    order = np.argsort(-(y @ w[:-1]), kind="stable")[:9]
    assert search_marks(index, again, 9, marked=True)["id"].tolist() == index.ids[rows[order, 0]].tolist()


def test_a_file_repeats_the_ranking(index, marks, tmp_path):
    path = save_marks(marks, tmp_path / "m.json")
    assert path.stat().st_size < 2000 and set(json.loads(path.read_text())["yes"]) == set(marks.yes)
    again = SimilarityIndex.load(index.save(tmp_path / "i.h5"))
    one, two = search_marks(index, marks, 20), search_marks(again, read_marks(path, again), 20)
    assert one["id"].tolist() == two["id"].tolist() and (one["score"] == two["score"]).all()
    assert MEMBER[one["id"] - IDS[0]].mean() > 0.4 > 2 * MEMBER.mean()
    assert not np.isin(one["id"], marks.yes + marks.no).any()
    assert np.isin(marks.yes, search_marks(index, marks, 400, marked=True)["id"]).all()


def test_conditions_and_exclusions(index, marks):
    hits = search_marks(index, marks, 10, {"redshift": (0.5, None)}, exclude=IDS[300:])
    assert len(hits) == 10 and ((hits["redshift"] >= 0.5) & (hits["id"] < IDS[300])).all()


def test_galaxies_with_one_kind_only_are_left_out(index):
    rows, x = galaxy_features(index.delete(IDS[:10], "spectrum"))
    assert len(rows) == 390 and x.shape == (390, 48) and index.ids[rows[0, 0]] != IDS[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": "astroclip-marks-1"}',
        '{"schema": "astroclip-marks-2", "yes": [1], "no": [2], "index_sha256": "", "settings": {}}',
        '{"schema": "astroclip-marks-1", "yes": [1.5], "no": [2], "index_sha256": "", "settings": {}}',
        '{"schema": "astroclip-marks-1", "yes": [true], "no": [2], "index_sha256": "", "settings": {}}',
        '{"schema": "astroclip-marks-1", "yes": [1], "no": [1], "index_sha256": "", "settings": {}}',
        '{"schema": "astroclip-marks-1", "yes": [1], "no": [2], "index_sha256": 3, "settings": {}}',
        '{"schema": "astroclip-marks-1", "yes": [1], "no": [2], "index_sha256": "", "settings": {"x": 1}}',
        '{"schema": "astroclip-marks-1", "yes": [1], "no": [2], "index_sha256": "", "settings": {"strength": "2"}}',
        '{"schema": "astroclip-marks-1", "yes": [1], "no": [2], "index_sha256": "", "settings": {"strength": -2}}',
        '{"schema": "astroclip-marks-1", "yes": [1], "no": [2], "index_sha256": "", "settings": {"strength": 0}}',
        '{"schema": "astroclip-marks-1", "yes": "abc", "no": [2], "index_sha256": "", "settings": {}}',
        '{"schema": "astroclip-marks-1", "yes": {"1": 2}, "no": [2], "index_sha256": "", "settings": {}}',
        '{"schema": "astroclip-marks-1", "yes": 1, "no": [2], "index_sha256": "", "settings": {}}',
        *(
            f'{{"schema": "astroclip-marks-1", "yes": [1], "no": [2], "index_sha256": "", "settings": {{{setting}}}}}'
            for setting in (
                '"components": 12.5',
                '"components": true',
                '"sample": 0.5',
                '"sample": 0',
                '"strength": Infinity',
                '"floor": NaN',
                '"unmarked": -1',
            )
        ),
        "[" * 100_000,
    ],
)
def test_rubbish_is_refused(tmp_path, text):
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no file of marks"):
        read_marks(path)


def test_marks_of_another_index_are_refused(index, marks, tmp_path):
    path = save_marks(marks, tmp_path / "m.json")
    with pytest.raises(ValueError, match="another index"):
        read_marks(path, index.delete(IDS[0]))
    with pytest.raises(KeyError, match="no galaxy"):
        search_marks(index, Marks([1], [2]))


def test_the_gain_is_that_of_the_other_half():
    rows = gain_of_marks(IMAGE, SPECTRUM, dict(member=MEMBER, chance=rng.random(400) < 0.15), queries=20, draws=100)
    assert [r["marks"] for r in rows] == [0, 10, 20, 40] * 2
    member, chance = rows[:4], rows[4:]
    assert member[0]["gain"] == 0 and member[3]["gain_low"] > 0.15
    assert abs(chance[3]["gain"]) < 0.15
    x = IMAGE / np.linalg.norm(IMAGE, axis=1, keepdims=True)
    seed = np.random.default_rng([0, 1])
    once = taught_ndcg(x, white_features(x), MEMBER, (10, 20), seed, MarkSettings())
    assert len(once) == 3 and all(0 <= v <= 1 for v in once)
    again = taught_ndcg(x, white_features(x), MEMBER, (10, 20), np.random.default_rng([0, 1]), MarkSettings())
    assert once == again


def test_every_two_marks_are_followed_by_a_new_ranking(monkeypatch):
    "What is marked is the best of the ranking so far: by the example, then by the probe; never twice, never of the other half."
    calls = []

    def remembered(white, taught, yes, settings):
        calls.append(list(taught))
        return -np.arange(len(white)) * 1.0  # the probe puts low numbers first

    monkeypatch.setattr("astroclip.search.marks.marked_scores", remembered)
    x = SPECTRUM / np.linalg.norm(SPECTRUM, axis=1, keepdims=True)
    taught_ndcg(x, SPECTRUM, MEMBER, (4, 6), np.random.default_rng(5), MarkSettings())
    assert [len(taught) for taught in calls] == [3, 5, 7] and MARKS_AT_ONCE == 2
    half = np.random.default_rng(5).permutation(400)[:200]
    query, *marked = calls[-1]
    near = half[np.argsort(-(x @ x[query])[half], kind="stable")]
    assert near[0] == query and marked[:2] == near[1:3].tolist()
    rest = np.sort(half[~np.isin(half, calls[0])])
    assert marked[2:] == rest[:4].tolist()
    with pytest.raises(ValueError, match="multiples of 2"):
        gain_of_marks(IMAGE, SPECTRUM, dict(member=MEMBER), steps=(4, 5))


def test_the_mean_of_classes_by_hand():
    "Two classes of gain 0.1 and 0.3 whose lower ends are 0.06 and 0.03 below: together sqrt(0.06^2 + 0.03^2) / 2."
    ends = (0.1, 0.04, 0.12), (0.3, 0.27, 0.38)
    rows = [dict(marks=20, n_query=7, gain=g, gain_low=a, gain_high=b) for g, a, b in ends]
    mean = mean_gain([*rows, dict(rows[0], marks=40)], 20)
    np.testing.assert_allclose(list(mean), [0.2, 0.2 - np.hypot(0.06, 0.03) / 2, 0.2 + np.hypot(0.02, 0.08) / 2])
    assert mean.n == 14
    with pytest.raises(ValueError, match="not measured, only"):
        mean_gain(rows, 10)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda i, m: search_marks(i, m, k=-1), "k = -1: at least 1"),
        (lambda i, m: search_marks(i, m, k=2.5), "k = 2.5: expected a whole number"),
        (lambda i, m: Marks("abc", []), "yes is 'abc', expected a list"),
        (lambda i, m: Marks([1], 2), "no is 2, expected a list"),
        (lambda i, m: MarkSettings(components=12.5), "components is 12.5, expected a whole number"),
        (lambda i, m: MarkSettings(strength=0), "strength is 0, expected a number"),
    ],
)
def test_what_no_marks_say(index, marks, call, message):
    with pytest.raises(ValueError, match=message):
        call(index, marks)


def test_a_column_score_is_kept_beside_the_score(index, marks):
    table = index.table.copy()
    table["score"] = np.arange(800) * 1.0
    same = SimilarityIndex.build(index.vectors, index.ids, index.modality, table)
    hits, plain = search_marks(same, marks, 5), search_marks(index, marks, 5)
    assert hits["score"].tolist() == plain["score"].tolist()
    assert hits.colnames == [*plain.colnames, "index_score"]
    assert hits["index_score"].tolist() == [float(np.flatnonzero(IDS == id)[0]) for id in hits["id"]]
