"""The first hour of somebody who has never seen this: the Colab badge, a clone beside the notebook, links, faults of the machine."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import numpy as np
import pytest

from astroclip.core.config import find_root, sample_path

ROOT = find_root(Path(__file__).parent)
PAGES = sorted(p for p in ROOT.glob("nbs/*.ipynb") if p.stem != "index")
URL = "https://github.com/astroclip/astroclip"


def code_cells(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def test_every_badge_has_the_same_first_cell():
    "It installs on Colab and does nothing elsewhere."
    badges = [p for p in PAGES if "colab-badge.svg" in p.read_text()]
    assert badges == PAGES  # every page has one
    assert len({code_cells(p)[0] for p in badges}) == 1
    for line in code_cells(badges[0])[0].splitlines():
        assert line.startswith("![ ! -e /content ] || ") and "-e " not in line.replace("-e /content", ""), (
            line
        )
    for p in badges:
        assert (
            f"colab.research.google.com/github/astroclip/astroclip/blob/main/nbs/{p.name})" in p.read_text()
        )


# What Colab had installed when this was written; the bounds of the core must not replace a library that the kernel has loaded.
COLAB = dict(
    torch="2.6.0", numpy="2.0.2", scipy="1.14.1", h5py="3.13.0", safetensors="0.5.3", astropy="7.0.1"
)
COLAB |= {
    "scikit-learn": "1.6.1",
    "numba": "0.60.0",
    "pandas": "2.2.2",
    "matplotlib": "3.10.0",
    "seaborn": "0.13.2",
}
COLAB |= {
    "ipykernel": "6.17.1",
    "huggingface-hub": "0.30.2",
    "platformdirs": "4.3.7",
    "filelock": "3.18.0",
    "tqdm": "4.67.1",
}


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
    clean |= dict(
        PATH=f"{folder}/bin:{os.environ['PATH']}", HOME=str(folder), IPYTHONDIR=str(folder / "ipython")
    )
    clean |= dict(
        PIP_NO_INDEX="1", PIP_NO_DEPS="1", PIP_NO_BUILD_ISOLATION="0", PIP_DISABLE_PIP_VERSION_CHECK="1"
    )
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
    environment |= dict(
        GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=f"url.file://{forge}.insteadOf", GIT_CONFIG_VALUE_0=URL
    )
    cells = code_cells(ROOT / "nbs" / "redshift.ipynb")[:3]
    cells[0] = cells[0].replace("/content", str(content))

    def opened():
        command = [str(python), "-c", KERNEL, json.dumps(cells)]
        done = subprocess.run(command, cwd=content, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = opened()
    assert (
        f"package {tmp_path}/venv/lib" in first
        and f"root {content}/astroclip-repository stage {content}" in first
    )
    assert sorted(p.name for p in content.iterdir()) == ["astroclip-repository"]
    shutil.copytree(forge, content / "astroclip")  # somebody has cloned it beside the notebook as well
    again = opened()
    assert f"package {tmp_path}/venv/lib" in again and f"root {content}/astroclip-repository" in again
    assert float(again.split("seconds ")[1].split()[0]) < 3 and "nstalling" not in again


def test_an_editable_install_is_not_hidden_by_a_clone(forge, tmp_path):
    "`make install` in a clone called astroclip, then Python in the folder that holds it."
    environment, python = bare_environment(tmp_path / "venv")
    shutil.copytree(forge, tmp_path / "astroclip")
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "-e", str(tmp_path / "astroclip")],
        env=environment,
        check=True,
    )
    code = "import astroclip.core.config as c; from astroclip import __version__; print(c.__file__, c.find_root())"
    done = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [
        str(tmp_path / "astroclip/astroclip/core/config.py"),
        str(tmp_path / "astroclip"),
    ], done.stderr


USE = """
import errno, numpy as np, sys
from pathlib import Path
import astroclip
assert astroclip.__file__.startswith(sys.argv[1]), astroclip.__file__
from astroclip import AstroCLIP
vectors = AstroCLIP.from_pretrained(sys.argv[2], device="cpu").embed_images(np.load(sys.argv[2] + "/images.npy"))
print(vectors.shape)
import matplotlib.pyplot, astroclip.evaluation.projections, astroclip.training.self_distillation, astroclip.mock.survey, astroclip.cli.main
from astroclip.core.artifacts import create, resolve
try:
    with create(resolve("mock_survey")): pass
except OSError as error:
    print(error)
"""


def read_only(folder):
    "A prefix to a command that mounts a folder read-only for it alone; [] where that is not allowed."
    mount = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
    prefix = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    allowed = (
        shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    )
    return prefix if allowed else []


@pytest.mark.slow
def test_a_read_only_installation_without_a_home(forge, tmp_path):
    "The wheel, installed where nobody can write, used by somebody without a home folder: it embeds images."
    import torch

    from astroclip import AstroCLIP, SpecFormer, VisionTransformer
    from astroclip.surveys.pairs import Survey

    towers = (
        VisionTransformer(image_size=96, embed_dim=24, depth=1, num_heads=2),
        SpecFormer(window=80, stride=40, embed_dim=24, depth=1),
    )
    torch.manual_seed(0)
    AstroCLIP(*towers, embed_dim=16).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "model" / "images.npy", Survey(sample_path()).images(slice(0, 2)))
    environment, python = bare_environment(tmp_path / "venv")
    site = tmp_path / "site"
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--target", str(site), str(forge)],
        env=environment,
        check=True,
    )
    for cache in site.rglob("__pycache__"):
        shutil.rmtree(cache)
    (
        site / "astroclip" / "data" / "__pycache__"
    ).touch()  # a file in its place: no cache there, for root neither
    bare = dict(
        PATH=os.environ["PATH"],
        HOME="/proc/none",
        PYTHONPATH=str(site),
        PYTHONDONTWRITEBYTECODE="1",
        OMP_NUM_THREADS="1",
    )
    command = [*read_only(site), str(python), "-c", USE, str(site), str(tmp_path / "model")]
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shape, sentence = done.stdout.splitlines()
    assert (
        shape == "(2, 16)"
        and "cannot write /proc/none" in sentence
        and "set ASTROCLIP_HOME to a folder that you may write" in sentence
    )


def test_a_user_without_home_and_name_is_told(monkeypatch, tmp_path):
    import platformdirs

    from astroclip.core import config

    monkeypatch.delenv("ASTROCLIP_HOME", raising=False)
    monkeypatch.setattr(config, "find_root", lambda: None)
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda *a, **k: "~/.local/share/astroclip")
    with pytest.raises(RuntimeError, match="set ASTROCLIP_HOME"):
        config.data_root()


@pytest.mark.parametrize("write", ["torch", "h5py", "numpy"])
def test_a_full_disk_says_what_to_do_whoever_writes(write, tmp_path):
    "300 kB of disk, 1.6 MB to write."
    mount = f"mount -t tmpfs -o size=300k none {tmp_path}"
    if not read_only(tmp_path):
        pytest.skip("needs the right to mount")
    lines = dict(
        torch="import torch; torch.save(torch.zeros(400_000), folder / 'x')",
        h5py="import h5py, numpy as np; h5py.File(folder / 'x', 'w')['x'] = np.ones(200_000)",
        numpy="import numpy as np; np.save(folder / 'x', np.ones(200_000))",
    )
    code = "from astroclip.core.artifacts import create, resolve\nwith create(resolve('mock_survey', profile='smoke')) as folder: "
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'{mount} && exec "$@"',
        "sh",
        sys.executable,
        "-c",
        code + lines[write],
    ]
    environment = os.environ | dict(ASTROCLIP_HOME=str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    last = [line for line in done.stderr.splitlines() if line.startswith("OSError")]
    assert (
        last and "the disk is full while writing" in last[-1] and "run the same command again" in last[-1]
    ), done.stderr


LINK = re.compile(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"')
WRITTEN = [ROOT / name for name in ("README.md", "data/README.md", "figures/README.md")]
WRITTEN += sorted(p for p in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("path", WRITTEN, ids=[str(p.relative_to(ROOT)) for p in WRITTEN])
def test_relative_links_lead_somewhere(path):
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        text = "\n".join("".join(c["source"]) for c in cells)
    text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.S)  # code and equations
    for link in (a or b for a, b in LINK.findall(text)):
        if not re.match(r"[a-z]+:|#", link):
            assert (path.parent / link.split("#")[0]).exists(), f"{path.name} links to {link}"


def test_the_readme_can_be_pasted():
    "No placeholder in its Python; what it promises of models and commands exists."
    text = (ROOT / "README.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        assert "<" not in block
        ast.parse(block)
        for line in block.splitlines():
            if line.startswith("from "):
                exec(line, {})
    from astroclip.cli.main import COMMANDS

    for command in re.findall(r"^astroclip ([a-z-]+) ", text, re.M):
        assert command in COMMANDS
    for word in ("pip install", "polymathic-ai/astroclip/astroclip.ckpt", "6.4 GB", "ASTROCLIP_HOME"):
        assert word in text


def test_kernels_start_without_a_warning(forge, tmp_path):
    "What `make install` lays into the environment keeps ipykernel's word on eavesdropping from every page."
    assert 'cp .ci/ipython_kernel_config.py "$venv/etc/ipython/"' in (ROOT / ".ci" / "install").read_text()
    environment, python = bare_environment(tmp_path / "venv")
    folder = tmp_path / "venv" / "etc" / "ipython"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "ipython_kernel_config.py", folder)
    nb = dict(
        cells=[],
        metadata=dict(kernelspec=dict(name="python3", display_name="python3")),
        nbformat=4,
        nbformat_minor=5,
    )
    (tmp_path / "a.ipynb").write_text(json.dumps(nb))
    command = [str(python), "-m", "papermill", "a.ipynb", "b.ipynb", "-k", "python3", "--no-progress-bar"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "eavesdropping" not in done.stderr, done.stderr
