"""Results remember the code that made them: an edit of that code is said in one line and answered by work, any other edit by nothing."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astroclip.core import provenance
from astroclip.core.artifacts import create, ensure, resolve
from astroclip.core.provenance import file_hash

PARAMETERS = 'survey = "mock"\nprofile = "smoke"\nseed = 0\ndevice = "auto"'
CONFIG = "from astroclip.core.config import Params\np = Params.from_cell(globals())"
SURVEY = """
from astroclip.core.artifacts import claim, create, resolve
artifact = resolve("mock_survey", p)
if claim(artifact):
    with create(artifact) as folder:
        (folder / "galaxies").write_text("64")
"""
TOWER = """
from astroclip.core.artifacts import claim, create, ensure, resolve
def never(): from astroclip.losses.contrastive import clip_loss
ensure("mock_survey", p)
artifact = resolve("pretrain_spectrum", p)
if claim(artifact):
    with create(artifact) as folder:
        (folder / "weights").write_text("w")
"""


def notebook(path, *cells):
    "A stage's notebook: parameters, configuration, work."
    cells = [
        dict(cell_type="code", id=f"cell{i}", metadata={}, source=[c], outputs=[], execution_count=None)
        for i, c in enumerate(cells)
    ]
    cells[0]["metadata"] = dict(tags=["parameters"])
    kernel = dict(name="python3", display_name="python3", language="python")
    path.write_text(
        json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5))
    )


class Clone:
    "A copy of the package with two short stages, used by processes of its own."

    def __init__(self, folder, root):
        self.folder = folder
        shutil.copytree(
            root / "astroclip", folder / "astroclip", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(root / "settings.ini", folder)
        (folder / "nbs").mkdir()
        notebook(folder / "nbs" / "mock_survey.ipynb", PARAMETERS, CONFIG, SURVEY, "print('drawn')")
        notebook(folder / "nbs" / "pretrain_spectrum.ipynb", PARAMETERS, CONFIG, TOWER)

    def run(self, code, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ASTROCLIP")}
        clean |= dict(PYTHONPATH=str(self.folder), ASTROCLIP_HOME=str(self.folder / "home")) | environment
        code = f"from astroclip.core.artifacts import ensure, resolve\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.folder, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def ensure(self, stage, more="", **environment):
        return self.run(f"ensure({stage!r}, profile='smoke'{more})", **environment)

    def state(self, stage, **environment):
        return (
            self.run(f"print(resolve({stage!r}, profile='smoke'))", **environment)
            .split(", ")[-1]
            .strip(")\n")
        )

    def append(self, module, text):
        with open(self.folder / "astroclip" / f"{module.replace('.', '/')}.py", "a") as file:
            file.write(text)


@pytest.fixture(scope="module")
def clone(tmp_path_factory, root):
    clone = Clone(tmp_path_factory.mktemp("clone"), root)
    said = clone.ensure("pretrain_spectrum")
    assert (
        "pretrain_spectrum (mock, smoke) is missing" in said
        and "mock_survey (mock, smoke) is missing" in said
    )
    return clone


def test_what_is_ready_is_not_made_again(clone):
    assert clone.ensure("pretrain_spectrum") == ""
    names = {p.name for p in (clone.folder / "home" / "mock" / "smoke").iterdir()}
    assert not any(name.endswith(".lock") or name.startswith((".partial", ".old")) for name in names), names
    assert list((clone.folder / "home" / "mock" / "smoke" / ".locks").glob("*.lock"))


def test_other_code_comments_and_drawing_change_nothing(clone):
    clone.append("losses.contrastive", '\n\n# said in passing\n"""and at length"""\n')
    clone.append("evaluation.inpainting", "\nANOTHER = 1\n")
    clone.append("core.plots", "\nANOTHER = 1\n")
    path = clone.folder / "nbs" / "mock_survey.ipynb"
    path.write_text(path.read_text().replace("print('drawn')", "print('drawn better')"))
    assert clone.state("pretrain_spectrum") == "ready"


def test_an_edit_is_said_and_answered(clone):
    clone.append("losses.contrastive", "\nANOTHER = 1\n")
    assert clone.state("pretrain_spectrum") == "made before a change of losses.contrastive"
    assert clone.state("mock_survey") == "ready"
    kept = clone.ensure("pretrain_spectrum", ", reuse=True")
    assert (
        kept
        == "pretrain_spectrum (mock, smoke) was made before a change of losses.contrastive: reused all the same.\n"
    )
    assert "reused all the same" in clone.ensure("pretrain_spectrum", ASTROCLIP_REUSE="1")
    said = clone.ensure("pretrain_spectrum")
    assert said.startswith(
        "pretrain_spectrum (mock, smoke) was made before a change of losses.contrastive: running nbs/pretrain_spectrum.ipynb"
    )
    assert "mock_survey" not in said and said.count("losses.contrastive") == 1
    assert clone.state("pretrain_spectrum") == "ready"


def test_what_was_made_from_another_input_is_made_again(clone):
    path = clone.folder / "nbs" / "mock_survey.ipynb"
    path.write_text(path.read_text().replace('write_text(\\"64\\")', 'write_text(\\"65\\")'))
    assert clone.state("mock_survey") == "made before a change of nbs/mock_survey.ipynb"
    assert clone.state("pretrain_spectrum") == "made from another mock_survey"
    assert clone.state("pretrain_spectrum", ASTROCLIP_REUSE="1") == "ready"
    figure = (
        "from astroclip.core.plots import _reused, _sidecar\nfrom astroclip.core.config import Params\n"
        "r = _sidecar('toy', Params(profile='smoke'), {}, '', [resolve('pretrain_spectrum', profile='smoke')], '', 'simulated')\nprint(r['reused'])"
    )
    assert "made from another mock_survey" in clone.run(figure, ASTROCLIP_REUSE="1")


def test_a_sidecar_without_code_counts_as_unknown(clone):
    (path,) = clone.folder.glob("home/mock/smoke/mock_survey-*/artifact.json")
    whole = path.read_text()
    path.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if "code" not in k}))
    assert clone.state("mock_survey") == "made by unknown code"
    path.write_text(whole)


def test_work_begun_by_other_code_is_not_continued(clone):
    begin = """
from astroclip.core.artifacts import create
a = resolve("train_redshift", profile="smoke")
try:
    with create(a) as folder:
        (folder / "step").write_text("3")
        raise KeyboardInterrupt
except KeyboardInterrupt as end:
    assert "the same command resumes" in str(end)
"""
    look = 'from astroclip.core.artifacts import create\nwith create(resolve("train_redshift", profile="smoke")) as f: print((f / "step").exists())'
    notebook(clone.folder / "nbs" / "train_redshift.ipynb", PARAMETERS, CONFIG, "x = 1")
    assert "was interrupted: what is finished is kept" in clone.run(begin)
    notebook(clone.folder / "nbs" / "train_redshift.ipynb", PARAMETERS, CONFIG, "x = 2")
    assert clone.run(look).splitlines()[-1] == "False"
    clone.run(begin.replace("train_redshift", "embed"))
    assert clone.run(look.replace("train_redshift", "embed")).splitlines()[-1] == "True"


def test_every_stage_knows_its_code_quickly(root):
    import time

    from astroclip.core.artifacts import KEPT_BY_PAGES, STAGES, notebook_of
    from astroclip.core.provenance import code_of, notebook_tree, tree_hash

    for stage in [*STAGES, *KEPT_BY_PAGES]:
        code_of(notebook_of(stage))
        begin = time.perf_counter()
        code = code_of(notebook_of(stage))
        assert time.perf_counter() - begin < 0.2
        assert len(code) > 5 and not any(name.startswith("core.") for name in code)
    for page in KEPT_BY_PAGES.values():  # what is drawn of it is no part of what made it
        text = (root / "nbs" / f"{page}.ipynb").read_text()
        drawn = json.loads(text)
        drawn["cells"][-1:-1] = [dict(cell_type="code", metadata={}, source=["print('drawn otherwise')"])]
        assert tree_hash(notebook_tree(text)) == tree_hash(notebook_tree(json.dumps(drawn))), page


WORDS = st.text(alphabet="abc xyz\"'#", max_size=12)
NUMBERS = st.one_of(st.integers(-99, 99), st.floats(allow_nan=False, allow_infinity=False), st.booleans())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(comment=WORDS, docstring=WORDS, number=NUMBERS, other=NUMBERS, blank=st.integers(0, 3))
def test_only_what_is_computed_is_hashed(comment, docstring, number, other, blank):
    from astroclip.core.provenance import tree_hash

    plain = f"def f(x, *, y=1):\n    return x * {number!r} + y\n"
    dressed = (
        f"{docstring!r}\n"
        + "\n" * blank
        + f"def f(x, *,\n      y=1):  # {comment}\n    {docstring!r}\n    return (x * {number!r}\n  + y)\n"
    )
    assert tree_hash(ast.parse(plain)) == tree_hash(ast.parse(dressed))
    changed = plain.replace(repr(number), repr(other))
    assert (tree_hash(ast.parse(plain)) == tree_hash(ast.parse(changed))) == (repr(number) == repr(other))


# Real pairs: no code made them, so their files are what is remembered


def pairs(home, galaxies, name="survey.h5", at=None):
    "A file of real pairs in data/desi; its length does not depend on the galaxies."
    folder = home / "desi"
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / name, "w") as file:
        file.attrs.update(schema="astroclip-survey-1", simulated=False)
        file["targetid"] = np.array(galaxies, np.int64)
    if at is not None:
        os.utime(folder / name, (at, at))
    return folder / name


@pytest.fixture
def real(tmp_path, monkeypatch):
    "A data folder with real pairs and a tower that was trained on them."
    monkeypatch.setenv("ASTROCLIP_HOME", str(tmp_path))
    monkeypatch.delenv("ASTROCLIP_REUSE", raising=False)
    pairs(tmp_path, [1, 2], at=1)
    ensure("mock_survey", survey="desi", profile="smoke")
    tower = resolve("pretrain_spectrum", survey="desi", profile="smoke")
    with create(tower) as folder:
        (folder / "weights").write_text("of 1 and 2")
    return tmp_path, tower


def test_another_file_of_pairs_is_said_and_answered(tmp_path, root):
    clone, home = Clone(tmp_path, root), tmp_path / "home"
    pairs(home, [1, 2], at=1)
    ask, who = ", survey='desi'", "pretrain_spectrum (desi, smoke)"
    assert f"{who} is missing" in clone.ensure("pretrain_spectrum", ask)
    assert clone.ensure("pretrain_spectrum", ask) == ""
    pairs(home, [3, 4], at=2)
    kept = clone.ensure("pretrain_spectrum", ask + ", reuse=True")
    assert kept == f"{who} was made from another data/desi/survey.h5: reused all the same.\n"
    said = clone.ensure("pretrain_spectrum", ask)
    assert f"{who} was made from another data/desi/survey.h5: running nbs/pretrain_spectrum.ipynb" in said
    assert "mock_survey (desi, smoke) was made from another data/desi/survey.h5: the file of today is taken." in said
    assert clone.ensure("pretrain_spectrum", ask) == ""


def test_what_is_recorded_of_a_file(real):
    home, tower = real
    file = home / "desi" / "survey.h5"
    facts = dict(size=file.stat().st_size, mtime_ns=10**9, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert tower.ready and tower.sidecar["brought"] == {"survey.h5": facts}
    assert tower.inputs["mock_survey"].sidecar["files"] == {"survey.h5": facts["sha256"]}
    targets = resolve("mock_targets", survey="desi", profile="smoke").code  # simulated whatever the survey
    assert not any(name.startswith("data/desi/") for name in targets)


def test_a_file_is_read_again_only_when_size_or_time_have_changed(real, monkeypatch):
    (home, tower), read = real, []
    monkeypatch.setattr(provenance, "file_hash", lambda path: read.append(path) or file_hash(path))
    assert tower.ready and not read
    monkeypatch.setattr(provenance, "_FILES", {})  # as a new process
    assert tower.ready and not read
    os.utime(home / "desi" / "survey.h5", (5, 5))
    assert tower.ready and len(read) == 1  # touched: the same bytes
    pairs(home, [3, 4], at=6)
    assert tower.stale == "from another data/desi/survey.h5" and len(read) == 2
    pairs(home, [1, 2], at=7)
    assert tower.ready and len(read) == 3  # put back


def test_further_spectra_that_come_and_go_are_another_input(real):
    home, tower = real
    spectra = pairs(home, [9], "spectra.h5", at=1)
    assert tower.stale == "from another data/desi/spectra.h5"
    survey = ensure("mock_survey", survey="desi", profile="smoke")
    assert sorted(survey.sidecar["files"]) == ["spectra.h5", "survey.h5"]
    spectra.unlink()
    assert tower.ready and survey.stale == "from another data/desi/spectra.h5"
    assert not (ensure("mock_survey", survey="desi", profile="smoke").path / "spectra.h5").is_symlink()


def test_a_record_that_knows_no_file_is_not_trusted(real):
    _, tower = real
    record = tower.sidecar
    record["code"] = {name: digest for name, digest in record["code"].items() if not name.startswith("data/desi/")}
    (tower.path / "artifact.json").write_text(json.dumps(record))
    assert not tower.ready and tower.stale == "from an unknown data/desi/survey.h5"


def test_training_begun_on_other_pairs_is_not_continued(real, capsys):
    home, _ = real
    tower = resolve("pretrain_spectrum", survey="desi", profile="smoke", seed=1)
    with pytest.raises(KeyboardInterrupt), create(tower) as folder:
        (folder / "half").write_text("of 1 and 2")
        raise KeyboardInterrupt
    pairs(home, [3, 4], at=2)
    with create(tower) as folder:
        assert not (folder / "half").exists()
    assert "was begun before a change of data/desi/survey.h5: begun again." in capsys.readouterr().out


def test_pairs_swapped_during_a_training_leave_it_stale(real):
    home, _ = real
    tower = resolve("pretrain_spectrum", survey="desi", profile="smoke", seed=1)
    with create(tower):
        pairs(home, [3, 4], at=2)
    assert tower.stale == "from another data/desi/survey.h5" and "brought" not in tower.sidecar


def test_pairs_that_are_gone_leave_what_was_made_of_them(real):
    home, tower = real
    (home / "desi" / "survey.h5").unlink()
    assert tower.ready
    with pytest.raises(FileNotFoundError, match="there are no real pairs"):
        ensure("mock_survey", survey="desi", profile="smoke")
