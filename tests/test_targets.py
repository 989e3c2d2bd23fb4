"""Spectra of what is no nearby galaxy: what is drawn, what it is called, and the file."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

pytest.importorskip("speclite", reason="simulated spectra need the [mock] extra: pip install -e .[mock]")

from astroclip.core.profiles import MOCK_TARGETS
from astroclip.data.spectrum_grid import N_PIXELS, WAVELENGTH
from astroclip.mock.galaxy_spectra import Grids
from astroclip.mock.spectrograph import PIXEL
from astroclip.surveys.pairs import Survey, read_rows
from astroclip.targets import features, quasars, stars, targets
from astroclip.targets.distant_galaxies import continue_blueward, emission_line_galaxies

COLUMNS = {"redshift", "flux", "ivar", "truth/kind", "truth/subkind", "truth/sn", "truth/contrast", "truth/exposure"}


@pytest.fixture(scope="module")
def grids():
    return Grids()


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_a_bump_has_its_area_and_place_and_a_trough_its_equivalent_width():
    lines = np.zeros((1, N_PIXELS))
    features.add_bumps(lines, np.array([[5003.3, 7500.0]]), np.array([[2.0, 0.0]]), 3.0)
    assert lines.sum() * PIXEL == pytest.approx(2 * 3 * np.sqrt(2 * np.pi), rel=1e-3)
    assert (lines * WAVELENGTH).sum() / lines.sum() == pytest.approx(5003.3, abs=0.01)
    for width in (0.2, 4.0, 12.0):  # weak to saturated
        light = np.full((1, N_PIXELS), 7.0)
        features.absorb(light, np.array([[6000.0]]), width, 2.5)
        assert (1 - light / 7).sum() * PIXEL == pytest.approx(width, rel=0.02)


def test_bumps_at_the_edges_are_cut_not_moved():
    lines = np.zeros((1, N_PIXELS))
    features.add_bumps(lines, np.array([[WAVELENGTH[0], WAVELENGTH[-1]]]), 1.0, 2.0)
    assert lines.sum() * PIXEL == pytest.approx(2 * np.sqrt(2 * np.pi), rel=0.2) and lines[0, 100:-100].max() == 0


def test_contrast_counts_features_only_and_in_units_of_the_noise():
    ivar = np.full((1, N_PIXELS), 4.0)
    assert features.contrast(np.full((1, N_PIXELS), 9.0), ivar)[0] == pytest.approx(0, abs=1e-9)
    line = np.full((1, N_PIXELS), 9.0)
    line[0, 4000] += 5
    assert features.contrast(line, ivar)[0] == pytest.approx(5 * 2 * np.sqrt(1 - 1 / features.SMOOTH), rel=1e-6)


@pytest.mark.parametrize("measure", [features.signal_to_noise, features.contrast])
def test_scaling_gives_what_is_wanted_from_any_scale(measure):
    light = np.full((3, N_PIXELS), 1.0)
    features.add_bumps(light, np.full((3, 1), 6500.0), 2.0, 10.0)
    wanted = np.array([0.05, 2.0, 50.0])
    for scale in (1e-8, 1e5):
        bright = features.scale_to(light * scale, wanted, measure)
        np.testing.assert_allclose(measure(bright, features.typical_ivar(bright)), wanted, rtol=0.05)


def test_the_ultraviolet_goes_on_with_its_own_slope():
    z = np.array([0.5, 1.5])
    law = (WAVELENGTH / (1 + z[:, None]) / 2000) ** np.array([[-1.0], [-2.0]])
    cut = np.where(WAVELENGTH / (1 + z[:, None]) < 1850, 0, law)
    continue_blueward(cut, z)
    np.testing.assert_allclose(cut, law, rtol=0.03)


def test_the_strongest_line_of_a_distant_galaxy_is_where_its_redshift_says(rng, grids):
    flux, z = emission_line_galaxies(rng, 12, grids, z_range=(1.1, 1.55))
    peak = WAVELENGTH[flux[:, 2000:].argmax(1) + 2000] / (1 + z)
    near = np.min(np.abs(peak[:, None] - np.array([3727.1, 3729.9, 3869.9, 2799.0])), 1) < 2
    assert near.mean() > 0.7


def test_quasar_lines_have_their_equivalent_width(rng):
    quasar = {k: v[:4] for k, v in quasars.draw_quasars(rng, 4).items()}
    quasar |= dict(z=np.full(4, 1.6), luminosity=np.zeros(4), strength=np.ones(4), blueshift=np.zeros(4))
    quasar |= dict(fwhm=np.full(4, 2000.0))
    rest = WAVELENGTH / (1 + quasar["z"][:, None])
    level = quasars.power_law(rest, quasar)
    widths = []
    for seed in range(30):
        flux = level.copy()
        quasars.add_broad_lines(np.random.default_rng(seed), flux, quasar)
        near = abs(rest[0] - 2798.75) < 120
        widths.append(((flux / level - 1)[:, near].sum(1) * PIXEL / 2.6).mean())
    assert np.mean(widths) == pytest.approx(quasars.BROAD[2798.75][0], rel=0.15)


def test_forest_absorbs_blueward_of_the_quasar_only_and_as_measured(rng):
    z = np.full(30, 3.2)
    light = np.ones((30, N_PIXELS))
    quasars.absorb_forest(rng, light, z)
    assert light[:, WAVELENGTH > 1300 * 4.2].min() > 0.99
    zone = (WAVELENGTH > 1060 * 4.2) & (WAVELENGTH < 1180 * 4.2)
    expected = np.exp(-0.0018 * (WAVELENGTH[zone] / 1215.67) ** 3.92).mean()
    assert light[:, zone].mean() == pytest.approx(expected, abs=0.06)
    below = np.ones((2, N_PIXELS))
    quasars.absorb_forest(rng, below, np.array([0.3, 1.9]))
    assert (below == 1).all()


def test_saha_and_boltzmann_put_lines_where_the_spectral_types_are():
    t = np.linspace(3000, 45000, 3000)
    peak = {name: t[np.argmax(stars.population(t, *atom))] for name, atom in dict(h=stars.HYDROGEN, he=stars.HE_I).items()}
    assert 9000 < peak["h"] < 11000 and 15000 < peak["he"] < 25000
    half = stars.population(np.array([stars_half()]), 0.0, 0, (13.6,))[0]
    assert half == pytest.approx(0.5, abs=0.01)


def stars_half():
    "Temperature at which half of hydrogen is ionised, from Saha's equation by bisection."
    low, high = 5000.0, 20000.0
    for _ in range(60):
        t = (low + high) / 2
        pressure = stars.ELECTRON_PRESSURE * min(t / 1e4, 1) ** 3
        if 0.0333 * t**2.5 * 10 ** (-5040 * 13.6 / t) / pressure > 1:
            high = t
        else:
            low = t
    return t


def test_a_star_keeps_its_lines_when_it_moves(rng):
    star = {k: v for k, v in stars.draw_stars(rng, 6, (1, 0, 0, 0, 0, 0, 0, 0)).items()}
    still = stars.star_light(star | dict(z=np.zeros(6)))
    moved = stars.star_light(star | dict(z=np.full(6, 1e-3)))
    back = np.stack([np.interp(WAVELENGTH * 1.001, WAVELENGTH, row) for row in moved])
    inside = slice(200, -200)
    assert np.median(np.abs(back / back.mean() * still.mean() / still - 1)[:, inside]) < 0.01


def test_chunks_depend_on_seed_and_number_alone_and_have_every_kind(grids):
    rows, again = (targets.target_chunk(3, 1, 96, grids) for _ in range(2))
    other = targets.target_chunk(3, 2, 96, grids)
    assert set(rows) == COLUMNS and all(np.array_equal(rows[k], again[k]) for k in rows)
    assert not np.array_equal(rows["flux"], other["flux"])
    assert rows["flux"].dtype == np.float16 and rows["flux"].shape == (96, N_PIXELS)
    assert np.isfinite(rows["flux"].astype(float)).all() and (rows["ivar"] > 0).all()
    assert set(np.unique(np.concatenate([rows["truth/kind"], other["truth/kind"]]))) == set(range(4))


def test_kinds_say_what_can_be_read(grids):
    rows = targets.target_chunk(0, 0, 96, grids, dict.fromkeys(targets.GROUPS, 0.0) | dict(nothing=1.0))
    assert (rows["truth/kind"] == targets.NOTHING).all()
    sky = rows["truth/subkind"] == targets.SKY
    assert 0.3 < sky.mean() < 0.7 and (rows["redshift"][sky] == 0).all()
    assert rows["truth/sn"][~sky].max() < 0.2 and rows["truth/contrast"][~sky].max() < features.READABLE
    rows = targets.target_chunk(0, 0, 96, grids, dict.fromkeys(targets.GROUPS, 0.0) | dict(stars=1.0))
    faint = rows["truth/contrast"] < features.READABLE
    assert ((rows["truth/kind"] == targets.NOTHING) == faint).all()
    assert (rows["truth/kind"][~faint] == targets.STAR).all() and np.abs(rows["redshift"]).max() < 0.0021


def test_noise_is_what_the_inverse_variance_says(grids):
    rows = targets.target_chunk(1, 0, 64, grids, dict.fromkeys(targets.GROUPS, 0.0) | dict(nothing=1.0))
    sky = rows["truth/subkind"] == targets.SKY
    pull = rows["flux"][sky].astype(float) * np.sqrt(rows["ivar"][sky].astype(float))
    assert 0.95 < 1.4826 * np.median(np.abs(pull)) < 1.15


def test_the_file_reads_like_a_survey_and_is_made_once(tmp_path):
    path = targets.make_targets(tmp_path, 70, seed=2, processes=1, progress=False, **weights())
    survey = Survey(path)
    assert len(survey) == 70 and survey.simulated and "no pixel of DESI" in survey.data_card
    assert survey.flux([69, 0]).shape == survey.ivar([69, 0]).shape == (2, N_PIXELS)
    assert survey.truth("kind").dtype == np.int8 and set(np.unique(survey.split)) <= {0, 1, 2}
    with h5py.File(path) as f:
        assert list(f.attrs["kinds"]) == list(targets.KINDS) and list(f.attrs["subkinds"]) == list(targets.SUBKINDS)
    before = path.stat().st_mtime_ns
    assert targets.make_targets(tmp_path, 70, seed=2, progress=False, **weights()) == path
    assert path.stat().st_mtime_ns == before and {p.name for p in tmp_path.iterdir()} == {"targets.h5"}
    with pytest.raises(ValueError, match="delete it or choose another folder"):
        targets.make_targets(tmp_path, 70, seed=2, progress=False, stars=1.0)


def weights():
    return {k: v for k, v in MOCK_TARGETS["smoke"].items() if k != "n"}


def test_an_interrupted_file_resumes_to_the_same_bytes(tmp_path):
    whole = targets.make_targets(tmp_path / "whole", 130, seed=4, processes=1, progress=False, stars=1.0, nothing=1.0)
    code = f"""
import os
from astroclip.mock import survey
from astroclip.targets import targets
write = survey.write_rows
def once(path, start, rows):
    write(path, start, rows)
    if start: os._exit(9)
survey.write_rows = once
targets.make_targets(r'{tmp_path / "broken"}', 130, seed=4, processes=1, progress=False, stars=1.0, nothing=1.0)
"""
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 9
    again = targets.make_targets(tmp_path / "broken", 130, seed=4, processes=1, progress=False, stars=1.0, nothing=1.0)
    for name in ("flux", "ivar", "redshift", "truth/kind", "truth/contrast"):
        parts = []
        for path in (whole, again):
            with h5py.File(path) as f:
                parts.append(f[name][:])
        assert np.array_equal(*parts), name
    assert read_rows(again, "truth/kind").shape == (130,)


@pytest.mark.parametrize("wrong", [dict(n=0), dict(n=5, comets=1.0), dict(n=5, stars=-1.0), dict(n=5, stars=0.0)])
def test_wrong_numbers_are_refused_in_one_sentence(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected n >= 1, seed >= 0 and weights"):
        targets.make_targets(tmp_path, progress=False, **wrong)
    with pytest.raises(ValueError, match="group='comets' is unknown"):
        targets.make_group(np.random.default_rng(0), "comets", 3, None)
