"""Every notebook of `make reproduce`, executed by papermill at the smoke profile, from one shared set of artifacts, outside the repository's folder."""

import json
import os
import re
import subprocess
import sys

import pytest
from smoke_runs import ORDER, PAGES, ROOT, executed, papermill

from astroclip.core.artifacts import resolve

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("name", ORDER + PAGES)
def test_notebook_runs(name, home):
    papermill(name, home)
    cells = json.loads(executed(name, home).read_text())["cells"]
    assert not any(o.get("output_type") == "error" for c in cells for o in c.get("outputs", []))
    if name in ORDER:
        assert list(home.glob(f"mock/smoke/{name}-????????/artifact.json")), "the stage wrote no artifact"
        partial = f".partial-{resolve(name, profile='smoke').path.name}"
        assert not (home / "mock" / "smoke" / partial).exists(), "a finished run left a partial folder"


def test_pages_wrote_figures_with_sidecars(home):
    figures = home / "figures" / "mock-smoke"
    for page in ("redshift", "retrieval"):
        assert list(figures.glob(f"{page}/*.png")), page
        assert "astroclip_finetuned" not in (figures / "tables" / f"{page}_numbers.csv").read_text()
    for path in figures.glob("*/*.png"):
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["shows"] in ("nothing", "real") or "SIMULAT" in record["caption"]
        assert record["parameters"]["profile"] == "smoke"


def test_further_pairs_are_kept_without_pixels_and_are_not_of_the_survey(home):
    import h5py

    (survey,) = home.glob("mock/smoke/mock_survey-????????/survey.h5")
    found = list(home.glob("mock/smoke/unseen_pairs-????????"))
    assert found
    for kept in found:  # one for each set of models
        assert sorted(f.name for f in kept.iterdir()) == ["artifact.json", "embeddings.h5"]
        with h5py.File(kept / "embeddings.h5") as far, h5py.File(survey) as known:
            assert len(far["targetid"]) == 192 and not set(far["targetid"][:]) & set(known["targetid"][:])


def test_a_misspelt_parameter_stops_the_run(home):
    done = papermill("redshift", home, "-p", "sed", "3", check=False)
    assert done.returncode != 0 and "unknown parameter sed" in done.stderr


def test_nothing_was_written_into_the_repository(home):
    status = subprocess.run(["git", "status", "--porcelain", "figures", "data"], cwd=ROOT, capture_output=True, text=True)
    assert "mock-smoke" not in status.stdout


def test_the_three_lines_of_the_readme_can_be_pasted(tmp_path):
    "As they stand: what a reader pastes runs before any training, and its intervals hold."
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert 'Predictor.from_pretrained("simulated")' in block
    code = block + "low, high = table['redshift_low95'], table['redshift_high95']\n"
    code += "print(len(table), ((low <= galaxies.redshift) & (galaxies.redshift <= high)).mean() > 0.8)"
    environment = dict(os.environ, ASTROCLIP_HOME=str(tmp_path), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("64 True\n"), done.stdout
    assert not list(tmp_path.iterdir())  # nothing was made for it
