"""Every runnable notebook, executed by papermill at the smoke profile, from one shared set of artifacts, outside the repository's folder."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from astroclip.core.config import find_root

ROOT = find_root(Path(__file__).parent)
ORDER = ["mock_survey", "pretrain_spectrum", "train_redshift", "train_baselines", "pretrain_image", "align", "embed"]
PAGES = ["redshift", "properties", "posterior", "morphology", "retrieval", "reconstruction", "embedding_map", "domain", "real_galaxies", "scoreboard"]
OTHERS = sorted(p.stem for p in ROOT.glob("nbs/*.ipynb") if p.stem not in {*ORDER, *PAGES, "index"})

# Pages that train in a loop over settings: few steps are enough to see that they run.
SHORT = {
    "ablations": ["-p", "steps", "4", "-p", "n_seeds", "2", "-p", "n_seeds_trained", "1", "-y", "{only: [batch of 64 in 4 groups, 50 pairs, as released, image tower trained]}"],
    "ablation_pretraining": ["-p", "pretrain_steps", "4", "-p", "align_steps", "6"],
    "spectrum_remedies": ["-p", "steps", "4", "-p", "place_steps", "4", "-p", "align_steps", "6", "-p", "n_train", "100"],
}

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "One data folder for all smoke runs; needs the stellar grids of the [mock] extra."
    pytest.importorskip("speclite", reason="the simulated survey needs the [mock] extra: pip install -e .[mock]")
    folder = tmp_path_factory.mktemp("home")
    cache = ROOT / "data" / "cache"  # grids made by an earlier run save time, not needed
    if cache.is_dir():
        (folder / "cache").symlink_to(cache)
    return folder


def papermill(name, home, *arguments, check=True):
    "Run `nbs/<name>.ipynb` in `home`, as a user does, with the smoke profile."
    environment = dict(os.environ, ASTROCLIP_HOME=str(home), OMP_NUM_THREADS="1", MPLBACKEND="agg", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, "-m", "papermill", str(ROOT / "nbs" / f"{name}.ipynb"), str(home / f"{name}.ipynb")]
    command += ["-k", "python3", "--no-progress-bar", "-p", "profile", "smoke", *arguments]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=900)
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.mark.parametrize("name", ORDER + PAGES)
def test_notebook_runs(name, home):
    papermill(name, home)
    cells = json.loads((home / f"{name}.ipynb").read_text())["cells"]
    assert not any(o.get("output_type") == "error" for c in cells for o in c.get("outputs", []))
    if name in ORDER:
        assert list(home.glob(f"mock/smoke/{name}-????????/artifact.json")), "the stage wrote no artifact"
    assert not list(home.glob("mock/smoke/.partial-*")), "a finished run left a partial folder"


@pytest.mark.parametrize("name", OTHERS)
def test_other_notebook_runs(name, home):
    papermill(name, home, *SHORT.get(name, []))


@pytest.mark.parametrize("name", ["redshift", "properties", "retrieval"])
def test_a_page_with_supervised_networks_and_fine_tuned_towers_runs(name, home):
    "What `make studies` adds to the default run; its files do not replace those of the default run."
    papermill(name, home, "-p", "compare", "True")
    numbers = (home / "figures" / "mock-smoke" / "tables" / f"{name}_numbers_compared.csv").read_text()
    assert "astroclip_finetuned" in numbers and (name == "retrieval" or "conv_attention" in numbers)
    assert "astroclip_finetuned" not in (home / "figures" / "mock-smoke" / "tables" / f"{name}_numbers.csv").read_text()


@pytest.mark.parametrize("kind", ["cutouts", "coadd", "nothing"])
def test_real_galaxies_takes_what_there_is(kind, home, real, tmp_path):
    "Cutouts alone; one coadd of new observations, without redshifts; nothing readable. The figures have a folder of their own."
    (tmp_path / kind).mkdir()
    files = dict(cutouts="images_legacysurvey/example_b.fits", coadd="spectra_desi/coadd-4-80613-thru20210324.fits")
    (tmp_path / kind / "a.fits").write_bytes((real / files[kind]).read_bytes() if kind in files else b"nothing")
    papermill("real_galaxies", home, "-p", "folder", str(tmp_path / kind))
    figures = home / "figures" / f"mock-smoke-{kind}"
    drawn = dict(cutouts=["real_galaxies_images"], coadd=["real_galaxies_spectra"], nothing=[])
    assert sorted(p.stem for p in figures.glob("*.png")) == drawn[kind]
    with open(figures / "tables" / "real_galaxies.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["kind"] == dict(cutouts="image", coadd="spectrum", nothing="left out")[kind]
    assert kind == "nothing" or 0 < float(row["z_pred"]) < 1
    assert kind != "coadd" or (0 <= float(row["probability"]) <= 1 and row["z_true"] == "" and "no redshift known" in row["flag"])


def test_pages_wrote_figures_with_sidecars(home):
    figures = home / "figures" / "mock-smoke"
    for page in ("redshift", "retrieval"):
        assert (figures / "tables" / f"{page}.csv").is_file()
        assert list(figures.glob(f"{page}*.png")), page
    for path in figures.glob("*.png"):
        record = json.loads(path.with_suffix(".json").read_text())
        assert "SIMULATED" in record["caption"] and record["parameters"]["profile"] == "smoke"


def test_a_misspelt_parameter_stops_the_run(home):
    done = papermill("redshift", home, "-p", "sed", "3", check=False)
    assert done.returncode != 0 and "unknown parameter sed" in done.stderr


def test_nothing_was_written_into_the_repository(home):
    status = subprocess.run(["git", "status", "--porcelain", "figures", "data"], cwd=ROOT, capture_output=True, text=True)
    assert "mock-smoke" not in status.stdout
