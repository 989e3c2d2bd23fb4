"""Every relative link of the texts and notebooks leads to a file of the repository."""

import json
import posixpath
import sys
from pathlib import Path

import pytest

from astroclip.core.config import find_root

ROOT = find_root(Path(__file__).parent)
sys.path.insert(0, str(ROOT / "docs"))

from sitebuild.markdown import ELSEWHERE, targets  # noqa: E402

PLACES = ("*.md", "data/*.md", "figures/*.md", "docs/*.md", "tests/**/*.md")
TEXTS = sorted(path for place in PLACES for path in ROOT.glob(place))
NOTEBOOKS = sorted(p for p in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def dead_links(path, text):
    "Targets of the text that are not there."
    found = []
    for target in targets(text):
        file = path.parent / target.partition("#")[0]
        if not ELSEWHERE.match(target) and not file.exists():
            found.append(target)
    return found


def names(paths):
    return [p.relative_to(ROOT).as_posix() for p in paths]


@pytest.mark.parametrize("path", TEXTS, ids=names(TEXTS))
def test_texts(path):
    assert not dead_links(path, path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_notebooks(path):
    cells = json.loads(path.read_text())["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert not dead_links(path, text)


def test_colab_links_name_their_notebook():
    "A badge opens the notebook on which it stands, or one that exists."
    for path in [*NOTEBOOKS, *TEXTS]:
        for target in targets(path.read_text()):
            if "colab.research.google.com/github/" in target:
                name = posixpath.join(*target.split("/blob/main/")[1:]).rstrip('\\"')
                assert (ROOT / name).exists(), f"{path.name}: {target}"


def test_a_dead_link_is_found(tmp_path):
    text = '[a](there.md) ![b](gone.png) [`c`](gone.ipynb#d) `[e](code.md)` <img src="also.png"> [f](https://g.org)'
    (tmp_path / "there.md").write_text("x")
    assert dead_links(tmp_path / "page.md", text) == ["gone.png", "gone.ipynb#d", "also.png"]
