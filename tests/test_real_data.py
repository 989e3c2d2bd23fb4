"""The real galaxies: every file of the folder is accounted for, gates and scores do what they say."""

import numpy as np
import pytest

from astroclip.data.spectrum_grid import N_PIXELS, Spectrum, WAVELENGTH
from astroclip.evaluation.real_data import COLUMNS, ask_images, ask_spectra, list_all, real_scores
from astroclip.surveys.folders import SUFFIXES, find_folder, find_folders, group_of, images_for_network, nearest_redshift
from astroclip.surveys.folders import read_folder, read_folders, same_object, spectra_for_network, survey_of
from astroclip.metrics.bootstrap import wilson
from astroclip.models.redshift import Redshifts
from astroclip.panels.observed import choose, neighbour_figure, spectrum_neighbour_figure
from astroclip.sky.classes import TRUTHS, ask_classifier, scores_of, sets_of, true_class, why_unscored


@pytest.fixture(scope="module")
def found(real):
    return read_folder(real)


def test_every_file_is_accounted_for(real, found):
    files = {str(p.relative_to(real)) for p in real.rglob("*") if p.name.lower().endswith(SUFFIXES)}
    assert files == {f for f, _ in found.images + found.spectra + found.left_out}
    assert len(found.images) == 9 and len(found.spectra) == 13 + 7 + 8 + 50
    reasons = dict(found.left_out)
    assert "rest-frame stack" in reasons["spectra_desi/stack-LRG.fits"]
    assert sum("template" in r for r in reasons.values()) == 98
    assert "point-spread" in reasons["images_legacysurvey/copsf_59.1067_-30.4848.fits"]


def test_groups(found):
    groups = [group_of(s) for _, s in found.spectra]
    def count(name):
        return sum(g == name for g, _ in groups)

    assert (count("SDSS"), count("MaNGA"), count("DESI")) == (12, 7, 30)
    assert sum(why == "quasar" for _, why in groups) == 1 and sum("star" in why for _, why in groups) == 2


def test_gates(found):
    rows, images, refused = images_for_network(found.images, 144)
    assert images.shape == (9, 3, 152, 152) and not refused
    rows, flux, ivar, refused = spectra_for_network(found.spectra)
    assert flux.shape == ivar.shape == (74, N_PIXELS) and np.isfinite(flux).all() and ((ivar > 0).mean(1) >= 0.5).all()
    assert all("dead fibre" in why for why in refused.values()) and len(refused) == 4      # three dead fibres, an empty spaxel


def test_the_pair_is_found_by_position(found):
    pair = next(c for f, c in found.images if f.endswith("temp_small.fits"))
    assert nearest_redshift(pair.ra, pair.dec, found.spectra) == pytest.approx(0.0212755, abs=1e-6)
    assert nearest_redshift(pair.ra + 0.01, pair.dec, found.spectra) is None


def test_a_bad_file_does_not_stop_the_others(real, tmp_path):
    (tmp_path / "deep").mkdir()
    good = real / "spectra_sdss/spec-0266-51602-0573.fits"
    (tmp_path / "deep/spec-good.fits").write_bytes(good.read_bytes())
    (tmp_path / "a-cut.fits").write_bytes(good.read_bytes()[:50_000])
    (tmp_path / "b-empty.fits").write_bytes(b"")
    (tmp_path / "c-text.npz").write_text("no archive")
    found = read_folder(tmp_path)
    assert [f for f, _ in found.spectra] == ["deep/spec-good.fits"] and len(found.left_out) == 3
    assert all("truncated" in why for _, why in found.left_out)


def test_find_folder(real, tmp_path, monkeypatch):
    assert find_folder(str(real)) == real
    assert find_folder(str(tmp_path)) == tmp_path               # what was given, though it is empty
    with pytest.raises(FileNotFoundError, match="leave the parameter empty"):
        find_folder(str(tmp_path / "none"))
    monkeypatch.setenv("ASTROCLIP_SHARED", str(tmp_path))
    monkeypatch.setenv("ASTROCLIP_HOME", str(tmp_path))
    assert find_folder() is None
    (tmp_path / "real").mkdir()
    assert find_folder() is None                                # an empty folder is no folder
    (tmp_path / "real/x.fits").write_bytes(b"")
    assert find_folder() == tmp_path / "real"


def test_scores():
    z = np.array([0.1, 0.2, 0.3, 0.4])
    scores = real_scores(z + np.array([0, 0.002, 0.008, 0.3]), z)
    strict, within, scatter = scores["redshift within 0.003"], scores["redshift within 0.01"], scores["sigma_nmad"]
    assert (strict.value, within.value, strict.n) == (0.5, 0.75, 4) and strict.low < 0.5 < strict.high
    assert scatter.low <= scatter.value <= scatter.high
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


def test_unscored():
    s = Spectrum("a", WAVELENGTH, np.ones(N_PIXELS), np.ones(N_PIXELS), np.zeros(N_PIXELS, bool), 0.1, source="SDSS x")
    assert group_of(s) == ("SDSS", "")
    for change, why in (({"redshift": None}, "no redshift"), ({"redshift": 1.2}, "beyond"), ({"redshift": 0.0001}, "star"), ({"spectype": "QSO"}, "quasar")):
        assert why in group_of(Spectrum(**(vars(s) | change)))[1]


class Network:
    "A model and a classifier in one; every vector is the same."

    class image_encoder:
        class backbone:
            image_size = 96

    def embed_images(self, images, **kind):
        return np.ones((1, 3), np.float32)

    def embed_spectra(self, flux, ivar=None, unit=None):
        return np.ones((len(flux), 3), np.float32)

    def predict(self, flux, ivar=None):
        return np.full(len(flux), 0.2, np.float32), np.full(len(flux), 0.9, np.float32)


@pytest.mark.parametrize("half", ["images", "spectra", "neither"])
def test_each_half_of_a_folder_stands_alone(real, found, half):
    from astroclip.surveys.folders import Observed

    bank, z_bank = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), np.full(20, 0.1)
    some = Observed(found.images if half == "images" else [], found.spectra if half == "spectra" else [], found.left_out)
    images = ask_images(Network(), some.images, bank, z_bank, k=2)
    spectra, flux, ivar = ask_spectra(Network(), Network(), some.spectra, bank)
    assert len(images.rows) == len(some.images) and len(spectra.rows) + len(spectra.refused) == len(some.spectra)
    assert images.near.shape == (len(images.rows), 2) and spectra.near.shape == (len(spectra.rows), 3)
    listed = list_all(some, images, spectra, [None] * len(images.rows), [""] * len(spectra.rows))
    assert len(listed) == len(some.images) + len(some.spectra) + len(some.left_out)
    assert all(tuple(row) == COLUMNS for row in listed)
    if half == "spectra":
        assert all(row["z_pred"] == pytest.approx(0.2) for row in listed if row["kind"] == "spectrum")


def test_one_file_is_a_folder(real):
    one = read_folder(find_folder(str(real / "spectra_desi" / "coadd-4-80613-thru20210324.fits")))
    assert [f for f, _ in one.spectra] == ["coadd-4-80613-thru20210324.fits"] and not one.left_out


def test_figures_of_a_folder_have_a_place_of_their_own(tmp_path):
    from types import SimpleNamespace

    from astroclip.core.config import figures_dir, own_label
    from astroclip.core.plots import save_table

    def place(label="", profile="mini", folder=""):
        return figures_dir(SimpleNamespace(survey="mock", profile=profile, label=label, folder=folder)).name

    assert own_label("") == "" and own_label(str(tmp_path / "my night (3)")) == "my_night_3" and own_label("/", "") == "mine"
    assert place("my_night_3") == "mock-mini-my_night_3" and place("x", "smoke") == "mock-smoke-x" and place() == "figures"
    assert place(folder="~/mine") == "mock-mini-mine"
    with pytest.raises(ValueError, match="has no rows"):
        save_table([], "t/t", None)


def test_any_error_of_a_file_is_a_reason(tmp_path, monkeypatch):
    from astroclip.surveys import folders as observed

    def breaks(path):
        raise RuntimeError("NULL pointer")

    monkeypatch.setattr(observed, "read_spectrum", breaks)
    (tmp_path / "A.FIT.BZ2").write_bytes(b"x")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (tmp_path / "notes.pdf").write_bytes(b"x")
    found = read_folder(tmp_path)
    assert [f for f, _ in found.left_out] == ["A.FIT.BZ2", "b.jpg"] and found.left_out[0][1] == "NULL pointer"


def test_unknown_groups_are_chosen():
    groups = np.array(["SDSS", "LAMOST", "", "SDSS"])
    assert choose(groups, np.array([True, True, False, True]), np.array([0.5, 0.5, 0.9, 0.8]), 3) == [0, 1, 2]
    assert choose(groups[:0], np.zeros(0, bool), np.zeros(0)) == []


def test_no_folder_and_no_galaxies_are_no_error():
    nothing = read_folder(None)
    assert len(nothing) == 0 and not nothing.left_out
    images = ask_images(None, nothing.images, np.eye(3), np.zeros(3))
    spectra, flux, ivar = ask_spectra(None, None, nothing.spectra, np.eye(3))
    assert list_all(nothing, images, spectra, [], []) == [] and flux.shape == ivar.shape == (0, N_PIXELS)
    none = np.zeros(0)
    assert not neighbour_figure(images.shown, [], np.zeros((0, 4, 3, 8, 8)), []).axes
    assert len(spectrum_neighbour_figure(spectra.shown, [], none, np.zeros((0, 3, N_PIXELS))).axes) == 1


# Two folders, and the tables of spectra in the second one


@pytest.fixture(scope="module")
def every(shared):
    "All that the page reads by default; skipped where the second folder is absent."
    places = [shared / name for name in ("real", "real_2")]
    if not all(place.is_dir() for place in places):
        pytest.skip("no second folder of real spectra: put it beside ../shared/real as real_2")
    return read_folders(places)


def test_both_folders_are_found_and_read(shared, every, monkeypatch):
    monkeypatch.setenv("ASTROCLIP_SHARED", str(shared))
    assert find_folders() == [shared / "real", shared / "real_2"]
    assert find_folders(str(shared / "real")) == [shared / "real"]
    files = {f for f, _ in every.images + every.spectra + every.left_out}
    there = {str(p.relative_to(shared)) for name in ("real", "real_2") for p in (shared / name).rglob("*") if p.name.lower().endswith(SUFFIXES)}
    assert files == there                                       # nothing is lost silently


def test_every_row_of_every_table_is_read(shared, every):
    for path in sorted((shared / "real_2" / "spectra").glob("*.npz")):
        with np.load(path) as table:
            rows = [s for f, s in every.spectra if f.endswith(path.name)]
            n = len(table["flux"]) if "flux" in table else len(table["b_flux"])
            assert len(rows) == n, path.name
            if "loglam" not in table:
                assert all(np.allclose(s.wavelength, WAVELENGTH, atol=0.01) for s in rows)
                continue
            for i, s in enumerate(rows):
                valid = int(table["npix"][i])
                assert len(s.wavelength) == valid and s.id == table["name"][i]         # the padding is gone
                assert np.allclose(s.wavelength, 10 ** table["loglam"][i, :valid].astype(float))
                assert np.allclose(s.flux, table["flux"][i, :valid])                   # 1e-17 erg/s/cm2/A, as it stands
                bad = (table["and_mask"][i, :valid].astype(np.int64) >> 16) > 0        # bits of the pixel, not of the fibre
                assert (s.ivar[bad] == 0).all()
                assert np.array_equal(s.ivar > 0, ~bad & (table["ivar"][i, :valid] > 0))
                assert (s.redshift, s.redshift_warning, s.spectype) == (table["z"][i], table["zwarning"][i], table["cls"][i])


@pytest.mark.parametrize(
    "name, line, near",
    [
        ("spec-0391-51782-0594", 5008.24, 2),                   # [O III] of a galaxy, SDSS
        ("spectrum_desi_221925.57+272806.4", 5008.24, 2),       # of a nucleus, DESI
        ("gama_G09_Y1_GS1_080", 6564.6, 3),                     # H alpha, GAMA: the file does not say whether in air
        ("spec-2758-54523-0387", 1549.5, 10),                   # C IV of a quasar: broad
    ],
)
def test_lines_lie_where_the_redshift_puts_them(every, name, line, near):
    s = next(s for _, s in every.spectra if s.id == name)
    center, broad = line * (1 + s.redshift), near > 5
    here = np.abs(s.wavelength - center) < (120 if broad else 40)
    smooth = 15 if broad else 3
    y = np.convolve(np.where(s.ivar > 0, s.flux, 0)[here], np.ones(smooth) / smooth, "same")[smooth:-smooth]
    assert abs(s.wavelength[here][smooth:-smooth][y.argmax()] - center) < near


def test_truth_classes_and_surveys(every):
    from collections import Counter

    spectra = [s for _, s in every.spectra]
    truth = Counter(true_class(s) for s in spectra)
    assert truth == {"galaxy": 42, "AGN": 41, "quasar": 57, "star": 3, "unlabelled": 49, "": 50}
    assert Counter(map(survey_of, spectra)) == {"SDSS": 107, "DESI": 106, "DEEP2": 20, "MaNGA": 8, "GAMA": 1}
    why = Counter(why_unscored(spectra).tolist())
    assert why["two catalogues disagree"] == 4 and why["no redshift known"] == 50
    assert sum(why.values()) == len(spectra) == 242


def test_partners_are_found_by_position(shared, every):
    spectra = [s for _, s in every.spectra]
    pairs = {frozenset((spectra[i].id, spectra[j].id)) for i, j in same_object(spectra)}
    named = set()
    for path in (shared / "real_2" / "spectra").glob("desi_clagn_*.npz"):
        with np.load(path) as table:
            named |= {frozenset(pair) for pair in zip(table["name"].tolist(), table["sdss_partner"].tolist())}
    assert len(pairs) == 24 and pairs == named                  # as the table names them, and no others


def test_a_classifier_is_judged_by_class(every):
    class Knows:
        "Every redshift of the catalogue, half of them 0.01 too large; stars are nothing."

        def classify(self, flux, ivar=None, on_bad="raise"):
            n = len(flux)
            kinds = np.where(truth == "star", "nothing", "galaxy")
            z = np.nan_to_num(z_true, nan=0.5)
            z = np.where(np.arange(n) % 2, z, z + 0.01 * (1 + z))
            return Redshifts(z, np.where(np.arange(n) % 2, 0.99, 0.3), kinds, np.full((n, 4), 0.25))

    found = every.spectra[::3]
    truth = np.array([true_class(s) for _, s in found])
    z_true = np.array([np.nan if s.redshift is None else s.redshift for _, s in found], float)
    flux = np.ones((len(found), N_PIXELS), np.float32)
    sky = ask_classifier(Knows(), found, flux, flux)
    assert not sky.right[truth == "star"].any() and not sky.right[truth == ""].any()
    expected = (np.arange(len(found)) % 2 == 1) & (truth != "star") & (truth != "")
    assert np.array_equal(sky.right, expected)
    scores = scores_of(sky, sky.scored, draws=20)
    assert scores["wrong and sure"].value == 0 and scores["right or abstains"].value == 1
    assert scores["right"].value == pytest.approx(expected[sky.scored].mean())
    sets = sets_of(sky)
    assert sets["all"].sum() == sky.scored.sum() == sum(sets[name].sum() for name in TRUTHS if name in sets)
