"""The first hour of somebody who has never seen this: the Colab badge, a clone beside the notebook, links, faults of the machine."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from astroclip.core.config import find_root

ROOT = find_root(Path(__file__).parent)
PAGES = sorted(p for p in ROOT.glob("nbs/*.ipynb") if p.stem != "index")
URL = "https://github.com/astroclip/astroclip"


def code_cells(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def test_every_badge_has_the_same_first_cell():
    "It installs on Colab and does nothing elsewhere."
    badges = [p for p in PAGES if "colab-badge.svg" in p.read_text()]
    assert len(badges) == 22
    assert len({code_cells(p)[0] for p in badges}) == 1
    for line in code_cells(badges[0])[0].splitlines():
        assert line.startswith("![ ! -e /content ] || ") and "-e " not in line.replace("-e /content", ""), line
    for p in badges:
        assert f"colab.research.google.com/github/astroclip/astroclip/blob/main/nbs/{p.name})" in p.read_text()


# What Colab had installed when this was written; the bounds of the core must not replace a library that the kernel has loaded.
COLAB = dict(torch="2.6.0", numpy="2.0.2", scipy="1.14.1", h5py="3.13.0", safetensors="0.5.3", astropy="7.0.1")
COLAB |= {"scikit-learn": "1.6.1", "numba": "0.60.0", "pandas": "2.2.2", "matplotlib": "3.10.0", "seaborn": "0.13.2"}
COLAB |= {"ipykernel": "6.17.1", "huggingface-hub": "0.30.2", "platformdirs": "4.3.7", "filelock": "3.18.0", "tqdm": "4.67.1"}


def test_bounds_admit_what_colab_has():
    from packaging.requirements import Requirement

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, wanted):
        version = COLAB.get(requirement.name.replace("_", "-"))
        assert version is None or requirement.specifier.contains(version), requirement
    names = {Requirement(r).name for r in wanted}
    assert not names & {"jupyterlab", "notebook", "jupyter-client"}, "would replace Colab's own"


def bare_environment(folder):
    "A virtual environment that sees our libraries, but not our package; its pip neither asks an index nor builds apart."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (folder / "bin" / "pip").write_text(f'#!/bin/sh\nexec {folder}/bin/python -m pip "$@"\n')
    (folder / "bin" / "pip").chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ASTROCLIP", "PYTHON", "PIP_", "GIT_"))}
    clean |= dict(PATH=f"{folder}/bin:{os.environ['PATH']}", HOME=str(folder), IPYTHONDIR=str(folder / "ipython"))
    clean |= dict(PIP_NO_INDEX="1", PIP_NO_DEPS="1", PIP_NO_BUILD_ISOLATION="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    return clean | dict(OMP_NUM_THREADS="1", PIP_ROOT_USER_ACTION="ignore"), folder / "bin" / "python"


@pytest.fixture(scope="module")
def forge(tmp_path_factory):
    "A git repository with the files of this tree, in place of the forge."
    if not shutil.which("git"):
        pytest.skip("needs git")
    folder = tmp_path_factory.mktemp("forge") / "astroclip"
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("astroclip", "nbs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    return folder


KERNEL = """
import json, sys, time
from IPython.core.interactiveshell import InteractiveShell
import torch
shell, before = InteractiveShell.instance(), torch.__file__
for cell in json.loads(sys.argv[1]):
    begin = time.time()
    shell.run_cell(cell).raise_error()
    print("seconds", time.time() - begin)
shell.run_cell("from astroclip import AstroCLIP").raise_error()
import astroclip, astroclip.core.artifacts as artifacts
assert torch.__file__ == before == __import__("importlib").util.find_spec("torch").origin
print("package", astroclip.__file__, "root", artifacts.find_root(), "stage", artifacts.notebook_of("align"))
"""


def test_colab(forge, tmp_path):
    "An empty folder, an environment without the package, the notebook's own first cells, in one process; then again."
    environment, python = bare_environment(tmp_path / "venv")
    content = tmp_path / "content"
    content.mkdir()
    environment |= dict(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=f"url.file://{forge}.insteadOf", GIT_CONFIG_VALUE_0=URL)
    cells = code_cells(ROOT / "nbs" / "redshift.ipynb")[:3]
    cells[0] = cells[0].replace("/content", str(content))

    def opened():
        command = [str(python), "-c", KERNEL, json.dumps(cells)]
        done = subprocess.run(command, cwd=content, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = opened()
    assert f"package {tmp_path}/venv/lib" in first and f"root {content}/astroclip-repository stage {content}" in first
    assert sorted(p.name for p in content.iterdir()) == ["astroclip-repository"]
    shutil.copytree(forge, content / "astroclip")  # somebody has cloned it beside the notebook as well
    again = opened()
    assert f"package {tmp_path}/venv/lib" in again and f"root {content}/astroclip-repository" in again
    assert float(again.split("seconds ")[1].split()[0]) < 3 and "nstalling" not in again


def test_an_editable_install_is_not_hidden_by_a_clone(forge, tmp_path):
    "`make install` in a clone called astroclip, then Python in the folder that holds it."
    environment, python = bare_environment(tmp_path / "venv")
    shutil.copytree(forge, tmp_path / "astroclip")
    subprocess.run([str(python), "-m", "pip", "install", "-q", "-e", str(tmp_path / "astroclip")], env=environment, check=True)
    code = "import astroclip.core.config as c; from astroclip import __version__; print(c.__file__, c.find_root())"
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "astroclip/astroclip/core/config.py"), str(tmp_path / "astroclip")], done.stderr
