"""The real galaxies: every file of the folder is accounted for, gates and scores do what they say."""

import numpy as np
import pytest

from astroclip.data.spectra import N_PIXELS, WAVELENGTH, Spectrum
from astroclip.evaluation.observed import (
    find_folder, group_of, images_for_network, nearest_redshift, read_folder, real_scores, spectra_for_network, wilson)


@pytest.fixture(scope="module")
def found(real):
    return read_folder(real)


def test_every_file_is_accounted_for(real, found):
    files = {str(p.relative_to(real)) for p in real.rglob("*") if p.name.endswith((".fits", ".fits.gz", ".npz"))}
    assert files == {f for f, _ in found.images + found.spectra + found.left_out}
    assert len(found.images) == 9 and len(found.spectra) == 13 + 7 + 8 + 50
    reasons = dict(found.left_out)
    assert "rest-frame stack" in reasons["spectra_desi/stack-LRG.fits"]
    assert sum("template" in r for r in reasons.values()) == 98
    assert "point-spread" in reasons["images_legacysurvey/copsf_59.1067_-30.4848.fits"]


def test_groups(found):
    groups = [group_of(s) for _, s in found.spectra]
    count = lambda name: sum(g == name for g, _ in groups)
    assert (count("SDSS"), count("MaNGA"), count("DESI")) == (12, 7, 30)
    assert sum(why == "quasar" for _, why in groups) == 1 and sum("star" in why for _, why in groups) == 2


def test_gates(found):
    rows, images, refused = images_for_network(found.images, 144)
    assert images.shape == (9, 3, 152, 152) and not refused
    rows, flux, ivar, refused = spectra_for_network(found.spectra)
    assert flux.shape == ivar.shape == (74, N_PIXELS) and np.isfinite(flux).all() and ((ivar > 0).mean(1) >= 0.5).all()
    assert all("too few usable pixels" in why for why in refused.values()) and len(refused) == 4      # three dead fibres, an empty spaxel


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
    row = real_scores(z + np.array([0, 0.002, 0.008, 0.3]), z, "SDSS", "x", seed=0)
    assert row["within_0.003"] == 0.5 and row["within_0.01"] == 0.75 and row["outlier_fraction"] == 0.25 and row["n"] == 4
    assert row["within_0.003_low"] < 0.5 < row["within_0.003_high"] and row["sigma_nmad_low"] <= row["sigma_nmad"]
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


def test_unscored():
    s = Spectrum("a", WAVELENGTH, np.ones(N_PIXELS), np.ones(N_PIXELS), np.zeros(N_PIXELS, bool), 0.1, source="SDSS x")
    assert group_of(s) == ("SDSS", "")
    for change, why in (({"redshift": None}, "no redshift"), ({"redshift": 1.2}, "beyond"), ({"redshift": 0.0001}, "star"), ({"spectype": "QSO"}, "quasar")):
        assert why in group_of(Spectrum(**(vars(s) | change)))[1]
