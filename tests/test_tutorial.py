"""The tutorial: an hour for a student, run from top to bottom with every solution in its place, and what its text promises."""

import json
import os
import re
import subprocess
import sys

import pytest
from smoke_runs import ROOT

PAGE = ROOT / "nbs" / "tutorial.ipynb"
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n(.*?)\n\n</details>", re.S)
CODE = re.compile(r"```python\n(.*?)\n```", re.S)
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
    assert len({d[1] for d in drawn if d}) == 8


def test_cells_are_short_enough_to_be_read():
    for _, text in cells("code"):
        assert len([line for line in text.splitlines() if line.strip()]) <= 20, text[:60]


def with_solutions(path):
    "A copy of the page in which a student has typed every solution below its exercise, and it is looked at."
    notebook = json.loads(PAGE.read_text())
    out = []
    for cell in notebook["cells"]:
        out.append(cell)
        text = "".join(cell["source"])
        exercise = re.search(r"\*\*Exercise (\d+)\.\*\*", text)
        if cell["cell_type"] != "markdown" or not exercise:
            continue
        number = int(exercise[1])
        source = f"{CODE.search(text)[1]}\nassert {FOUND[number]}, 'exercise {number}'"
        about = dict(metadata={}, outputs=[], execution_count=None, id=f"solution{number}")
        out.append(dict(cell_type="code", source=source, **about))
    path.write_text(json.dumps(notebook | dict(cells=out)))


@pytest.mark.smoke
def test_the_page_runs_with_every_solution_and_without_a_real_galaxy(tmp_path):
    "A student who has nothing but the code: no shared folder, no artifacts, nothing in data."
    with_solutions(tmp_path / "typed.ipynb")
    (tmp_path / "shared").mkdir()
    environment = os.environ | dict(ASTROCLIP_HOME=str(tmp_path / "home"), ASTROCLIP_SHARED=str(tmp_path / "shared"))
    environment |= dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "papermill", "typed.ipynb", "done.ipynb", "-k", "python3", "--no-progress-bar"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    ran = json.loads((tmp_path / "done.ipynb").read_text())["cells"]
    said = {c["id"]: "".join("".join(o.get("text", "")) for o in c["outputs"]) for c in ran if c["cell_type"] == "code"}
    assert all(said[f"solution{number}"].strip() for number in FOUND), "a solution prints what it found"
    assert any("No real galaxy with image and spectrum is here" in text for text in said.values())
    figures = tmp_path / "home" / "figures" / "tutorial"
    assert sorted(p.stem for p in figures.glob("*.png")) == [
        "attention",
        "found",
        "galaxies",
        "intervals",
        "redshifts",
        "second_opinion",
        "similarity",
    ]
    for path in figures.glob("*.json"):
        assert json.loads(path.read_text())["shows"] == "simulated"
    assert not [p for p in (tmp_path / "home").iterdir() if p.name != "figures"], "the page makes no stage"


@pytest.mark.smoke
def test_a_real_galaxy_is_read_and_says_that_it_is_real(real, tmp_path):
    "The last section alone, with what it needs of the others, on the pair of the test data."
    needed = ("import numpy", "predictor = ", "from collections", "from astroclip.surveys.folders", "survey = ", "from dataclasses")
    notebook = json.loads(PAGE.read_text())
    kept = [c for c in notebook["cells"] if c["cell_type"] == "code" and "".join(c["source"]).startswith(needed)]
    assert len(kept) == len(needed)
    size = dict(cell_type="code", source="size = 64\nasserted = 1", metadata={}, outputs=[], execution_count=None, id="size")
    check = "assert abs(t['redshift'][1] - 0.02128) < 0.001 and row['verdict'] == 'agree'"
    check = dict(cell_type="code", source=check, metadata={}, outputs=[], execution_count=None, id="check")
    (tmp_path / "real.ipynb").write_text(json.dumps(notebook | dict(cells=[*kept[:3], size, *kept[3:], check])))
    environment = os.environ | dict(ASTROCLIP_HOME=str(tmp_path / "home"), OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "papermill", "real.ipynb", "done.ipynb", "-k", "python3", "--no-progress-bar"]
    command += ["-p", "folder", str(real / "pair_J094651.40-010228.5")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    figures = tmp_path / "home" / "figures" / "tutorial"
    record = json.loads((figures / "real.json").read_text())
    assert record["shows"] == "models" and "TRAINED ON SIMULATIONS" in record["caption"]
