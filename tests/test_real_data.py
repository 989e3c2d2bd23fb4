"""The real galaxies: every file of the folder is accounted for, gates and scores do what they say."""

import numpy as np
import pytest

from astroclip.data.spectrum_grid import N_PIXELS, Spectrum, WAVELENGTH
from astroclip.evaluation.real_data import COLUMNS, ask_images, ask_spectra, list_all, real_scores
from astroclip.surveys.folders import SUFFIXES, find_folder, group_of, images_for_network, nearest_redshift, read_folder, spectra_for_network
from astroclip.metrics.bootstrap import wilson
from astroclip.panels.observed import choose, markers_of, neighbour_figure, real_redshift_figure, spectrum_neighbour_figure


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


def test_unknown_groups_are_drawn_and_chosen():
    groups = np.array(["SDSS", "LAMOST", "", "SDSS"])
    assert set(markers_of(groups)) == {"SDSS", "MaNGA", "DESI", "LAMOST", ""}
    assert choose(groups, np.array([True, True, False, True]), np.array([0.5, 0.5, 0.9, 0.8]), 3) == [0, 1, 2]
    assert choose(groups[:0], np.zeros(0, bool), np.zeros(0)) == []


def test_no_folder_and_no_galaxies_are_no_error():
    nothing = read_folder(None)
    assert len(nothing) == 0 and not nothing.left_out
    images = ask_images(None, nothing.images, np.eye(3), np.zeros(3))
    spectra, flux, ivar = ask_spectra(None, None, nothing.spectra, np.eye(3))
    assert list_all(nothing, images, spectra, [], []) == [] and flux.shape == ivar.shape == (0, N_PIXELS)
    none = np.zeros(0)
    assert len(real_redshift_figure(none, np.zeros(0, str), {"classifier": none}).axes) == 2
    assert len(real_redshift_figure(none, np.zeros(0, str), {}).axes) == 2
    assert not neighbour_figure(images.shown, [], np.zeros((0, 4, 3, 8, 8)), []).axes
    assert len(spectrum_neighbour_figure(spectra.shown, [], none, np.zeros((0, 3, N_PIXELS))).axes) == 1
