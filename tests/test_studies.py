"""What `make studies` and a user's own folder run, executed by papermill at the smoke profile, with the artifacts of test_pages."""

import csv

import pytest
from smoke_runs import OTHERS, papermill

# Pages that train in a loop over settings: few steps are enough to see that they run.
SHORT = {
    "ablations": ["-p", "steps", "4", "-p", "n_seeds", "2", "-p", "n_seeds_trained", "1", "-y", "{only: [batch of 64 in 4 groups, 50 pairs, as released, image tower trained]}"],
    "ablation_pretraining": ["-p", "pretrain_steps", "4", "-p", "align_steps", "6"],
    "ablation_spectrum": ["-p", "steps", "4", "-p", "place_steps", "4", "-p", "align_steps", "6", "-p", "n_train", "100"],
    "remedies": ["-p", "steps", "2", "-p", "place_steps", "2", "-p", "align_steps", "2", "-p", "n_seeds", "1"],
}

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("name", OTHERS)
def test_other_notebook_runs(name, home):
    papermill(name, home, *SHORT.get(name, []))


@pytest.mark.parametrize("name", ["redshift", "properties", "retrieval"])
def test_a_page_with_supervised_networks_and_fine_tuned_towers_runs(name, home):
    "What `make studies` adds to the default run; its files do not replace those of the default run."
    papermill(name, home, "-p", "compare", "True")
    numbers = (home / "figures" / "mock-smoke" / "compared" / "tables" / f"{name}_numbers.csv").read_text()
    assert "astroclip_finetuned" in numbers and (name == "retrieval" or "conv_attention" in numbers)


@pytest.mark.parametrize("kind", ["cutouts", "coadd", "nothing"])
def test_real_galaxies_takes_what_there_is(kind, home, real, tmp_path):
    "Cutouts alone; one coadd of new observations, without redshifts; nothing readable. The figures have a folder of their own."
    (tmp_path / kind).mkdir()
    files = dict(cutouts="images_legacysurvey/example_b.fits", coadd="spectra_desi/coadd-4-80613-thru20210324.fits")
    (tmp_path / kind / "a.fits").write_bytes((real / files[kind]).read_bytes() if kind in files else b"nothing")
    papermill("real_galaxies", home, "-p", "folder", str(tmp_path / kind))
    figures = home / "figures" / f"mock-smoke-{kind}"
    drawn = dict(cutouts=["images"], coadd=["spectra"], nothing=[])
    assert sorted(p.stem for p in figures.glob("real_galaxies/*.png")) == drawn[kind]
    with open(figures / "tables" / "real_galaxies_objects.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["kind"] == dict(cutouts="image", coadd="spectrum", nothing="left out")[kind]
    assert kind == "nothing" or 0 < float(row["z_pred"]) < 1
    assert kind != "coadd" or (0 <= float(row["probability"]) <= 1 and row["z_true"] == "" and "no redshift known" in row["flag"])
