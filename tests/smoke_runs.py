"""How the tests run notebooks: by papermill, at the smoke profile, in a data folder outside the repository."""

import os
import subprocess
import sys
from pathlib import Path

from astroclip.core.config import find_root

ROOT = find_root(Path(__file__).parent)
ORDER = ["mock_survey", "mock_targets", "pretrain_spectrum", "train_redshift", "train_baselines", "pretrain_image", "align", "embed"]
PAGES = ["redshift", "properties", "predict", "posterior", "morphology", "retrieval", "beyond_color", "reconstruction", "embedding_map", "domain", "real_galaxies", "real_images", "spectrum_gap", "check", "in_the_box", "surveys", "scoreboard"]
OTHERS = sorted(p.stem for p in ROOT.glob("nbs/*.ipynb") if p.stem not in {*ORDER, *PAGES, "index"})


def executed(name, home):
    "Where the executed copy goes: several workers share one home."
    return home / os.environ.get("PYTEST_XDIST_WORKER", "executed") / f"{name}.ipynb"


def papermill(name, home, *arguments, check=True):
    "Run `nbs/<name>.ipynb` in `home`, as a user does, with the smoke profile."
    environment = dict(os.environ, ASTROCLIP_HOME=str(home), OMP_NUM_THREADS="1", MPLBACKEND="agg", CUDA_VISIBLE_DEVICES="")
    executed(name, home).parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "papermill", str(ROOT / "nbs" / f"{name}.ipynb"), str(executed(name, home))]
    command += ["-k", "python3", "--no-progress-bar", "-p", "profile", "smoke", *arguments]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=900)
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return done
