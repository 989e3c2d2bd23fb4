"""The tutorial: an hour for a student, run from top to bottom with every solution in its place, and what its text promises."""

import json
import os
import re
import subprocess
import sys

import pytest
from smoke_runs import ROOT

from astroclip.core.config import shared_root
from astroclip.shipped import first_hour

PAGE = ROOT / "nbs" / "tutorial.ipynb"
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n(.*?)\n\n</details>", re.S)
CODE = re.compile(r"```python\n(.*?)\n```", re.S)
FIGURES = {"galaxies", "similarity", "found", "redshifts", "intervals", "attention", "second_opinion"}
# What a solution has to have found out, after it ran: an expression in the notebook's own names.
FOUND = {
    1: "abs(by_hand - z[i]) < 0.002",
    2: "np.median(cosine['turned']) > np.median(cosine['half as bright']) and cosine['turned'].min() > 0.8",
    3: "len(cousins) == 3 and (cousins['redshift'] > 0.15).all() and (cousins['modality'] == 'image').all()",
    4: "right['all'].sum() == right['blue'].sum() == 14 and right['red'].sum() < 10",
    5: "low > 0.65 and high < 0.71",
    6: "moved['most'] < moved['least']",
    7: "found['verdict'] == 'contradict' and 'H-alpha may have been taken for H-beta' in found['reason']",
    8: "same.sum() >= 13",
    9: "galaxies.simulated and 'SIMULATED' in galaxies.data_card",
}


def cells(kind):
    return [
        (i, "".join(c["source"]))
        for i, c in enumerate(json.loads(PAGE.read_text())["cells"])
        if c["cell_type"] == kind
    ]


def sections():
    "(number, text) of the cells that end a section: those with an exercise."
    return [(int(re.search(r"\*\*Exercise (\d+)\.\*\*", text)[1]), text) for _, text in cells("markdown") if "**Exercise" in text]


def test_every_section_has_a_question_a_figure_and_an_exercise_with_one_solution():
    questions = [re.match(r"## (\d+)\. (.+)\?", text) for _, text in cells("markdown") if text.startswith("## ")]
    table = next(text for _, text in cells("markdown") if text.startswith("# "))
    assert [int(q[1]) for q in questions] == [n for n, _ in sections()] == list(FOUND)
    for question in questions:
        assert f"| {question[1]} | {question[2]}? |" in table
    for number, text in sections():
        assert len(SOLUTION.findall(text)) == text.count("<details>") == 1, f"exercise {number}"
        assert len(CODE.findall(text)) == 1, f"exercise {number}: one block of code"
    drawn = [re.search(r'"tutorial/(\w+)"', text) for _, text in cells("code")]
    assert {d[1] for d in drawn if d} == FIGURES | {"real"}


def test_cells_are_short_enough_to_be_read():
    for _, text in cells("code"):
        assert len([line for line in text.splitlines() if line.strip()]) <= 20, text[:60]


def typed(name, source):
    return dict(cell_type="code", source=source, metadata={}, outputs=[], execution_count=None, id=name)


def with_solutions(path, real=None):
    "A copy of the page in which a student has typed every solution, and at the end asks for a real galaxy."
    notebook = json.loads(PAGE.read_text())
    out = []
    for cell in notebook["cells"]:
        out.append(cell)
        text = "".join(cell["source"])
        exercise = re.search(r"\*\*Exercise (\d+)\.\*\*", text)
        if cell["cell_type"] == "markdown" and exercise:
            number = int(exercise[1])
            source = f"{CODE.search(text)[1]}\nassert {FOUND[number]}, 'exercise {number}'"
            out.append(typed(f"solution{number}", source))
    if real:
        (again,) = [text for _, text in cells("code") if "galaxy_at_hand" in text]
        found = "assert abs(t['redshift'][1] - 0.02128) < 0.0005 and row['verdict'] == 'agree'"
        out.append(typed("real", f"p.folder = {str(real)!r}\n{again}\n{found}"))
    path.write_text(json.dumps(notebook | dict(cells=out)))


@pytest.mark.smoke
def test_the_page_runs_with_every_solution_and_without_a_real_galaxy(tmp_path):
    "A student who has nothing but the code: no shared folder, no artifacts; then one brings a galaxy."
    shared = shared_root()
    pair = shared / first_hour.NEAR if shared and (shared / first_hour.NEAR).is_dir() else None
    with_solutions(tmp_path / "typed.ipynb", pair)
    (tmp_path / "shared").mkdir()
    environment = os.environ | dict(ASTROCLIP_HOME=str(tmp_path / "home"), ASTROCLIP_SHARED=str(tmp_path / "shared"))
    environment |= dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "papermill", "typed.ipynb", "done.ipynb", "-k", "python3", "--no-progress-bar"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    ran = [c for c in json.loads((tmp_path / "done.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    said = {c["id"]: "".join("".join(o.get("text", "")) for o in c["outputs"]) for c in ran}
    assert all(said[f"solution{number}"].strip() for number in FOUND), "a solution prints what it found"
    assert any("No real galaxy with image and spectrum is here" in text for text in said.values())
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["figures"], "the page makes no stage"
    drawn = {p.stem: p for p in (tmp_path / "home" / "figures").glob("**/tutorial/*.json")}
    assert set(drawn) == FIGURES | ({"real"} if pair else set())
    for name, path in drawn.items():
        assert json.loads(path.read_text())["shows"] == ("models" if name == "real" else "simulated")
        assert path.with_suffix(".png").stat().st_size <= 300_000
        assert (path.parent.parent.name == "figures") == (name != "real"), "a reader's own galaxy has its own folder"


def test_what_the_text_says_of_images_is_what_the_cells_count():
    "Which images like another spectrum best, and which truths lie outside their 95 % interval."
    import numpy as np

    from astroclip import Predictor
    from astroclip.core.config import sample_path
    from astroclip.surveys.pairs import TRAIN, Survey

    galaxies = Survey(sample_path())
    asked = np.flatnonzero(galaxies.split != TRAIN)
    asked = asked[np.argsort(galaxies.redshift[asked])]
    images, z = galaxies.images(asked), galaxies.redshift[asked]
    predictor = Predictor.from_pretrained("simulated", device="cpu")
    vectors = predictor.model.embed_images(images), predictor.model.embed_spectra(galaxies.flux(asked), ivar=galaxies.ivar(asked))
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in vectors)
    alike = u @ v.T
    text = " ".join(text for _, text in cells("markdown"))
    elsewhere = [f"{x:.3f}" for x in z[alike.argmax(1) != np.arange(len(z))]]
    assert f"{len(elsewhere)} of the 14 images, at $z$ = {', '.join(elsewhere[:-1])} and {elsewhere[-1]}," in text
    t = predictor.predict(images=images)
    outside = np.flatnonzero((z < t["redshift_low95"]) | (z > t["redshift_high95"]))
    assert f"{len(outside)} of the 14 truths lie outside the 95 % interval" in text
    near, far = outside  # in the order of their redshifts
    ends = f"({t['redshift_low95'][near]:.3f} to {t['redshift_high95'][near]:.3f})"
    assert f"at $z = {z[near]:.3f}$ narrowly {ends}, and badly at $z = {z[far]:.2f}$" in text
