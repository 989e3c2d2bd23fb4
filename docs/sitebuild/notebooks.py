"""Notebooks as readers see them: hidden cells gone, directives stripped, links turned to the site's pages."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

from .markdown import Site

DIRECTIVE = re.compile(r"^#\|\s*(\w+)[^\n]*\n?", re.M)
FRONT = re.compile(r"^- \w+: \w+\n+", re.M)  # nbdev's settings below a title
UNSEEN = {"hide", "hide_input", "default_exp"}
EXPORTS = {"export", "exports", "exporti"}


@dataclass(frozen=True)
class Notebook:
    "One notebook: where it lies below the repository, its title, its one sentence, the module it exports."

    path: str
    title: str
    sentence: str
    module: str | None
    cells: list

    @property
    def folder(self) -> str | None:
        "The layer of a library notebook; None for a page."
        parts = Path(self.path).parts
        return parts[1] if len(parts) == 3 else None


def source(cell) -> str:
    return "".join(cell["source"])


def read(
    root: Path,  # the repository
    path: Path,  # of the notebook
) -> Notebook:
    "A notebook with the title and the one sentence of its first cell."
    cells = json.loads(path.read_text())["cells"]
    first = re.match(r"# ([^\n]+)(?:\n+> ([^\n]+))?", FRONT.sub("", source(cells[0])))
    if not first:
        raise ValueError(f"{path} does not begin with a title")
    code = "\n".join(source(c) for c in cells if c["cell_type"] == "code")
    module = re.search(r"^#\|\s*default_exp\s+(\S+)", code, re.M)
    name, sentence = path.relative_to(root).as_posix(), (first[2] or "").strip()
    return Notebook(name, first[1].strip(), sentence, module and module[1], cells)


def layers(
    root: Path,  # the repository
) -> list[str]:
    "The folders of library notebooks from the bottom of the imports to the top."
    names = sorted(p.name for p in (root / "nbs").iterdir() if p.is_dir() and any(p.glob("*.ipynb")))
    below = {name: set() for name in names}
    for name in names:
        for file in (root / "astroclip" / name).glob("*.py"):
            found = re.findall(r"^ *from (?:\.\.|astroclip\.)(\w+)", file.read_text(), re.M)
            below[name] |= set(found) & set(names) - {name}
    order = []
    while below:
        missing = {name: len(found - set(order)) for name, found in below.items()}
        ready = [name for name in below if missing[name] == min(missing.values())]
        order += ready
        below = {name: found for name, found in below.items() if name not in ready}
    return order


def lessons(
    root: Path,  # the repository
) -> dict[str, list[Notebook]]:
    "Library notebooks by layer, in reading order."
    paths = {name: sorted((root / "nbs" / name).glob("[!.]*.ipynb")) for name in layers(root)}
    return {name: [read(root, p) for p in group] for name, group in paths.items()}


def runs(
    root: Path,  # the repository
) -> list[Notebook]:
    "Notebooks that run a stage or draw figures: those of README in its order, then the others by name."
    text = (root / "README.md").read_text() if (root / "README.md").exists() else ""

    def place(path):
        where = text.find(f"(nbs/{path.name})")
        return (where < 0, where, path.name)

    paths = [p for p in (root / "nbs").glob("[!.]*.ipynb") if p.stem != "index"]
    return [read(root, p) for p in sorted(paths, key=place)]


def meaning(code: str) -> str:
    "What a cell does, whatever its line breaks, comments and quotes."
    try:
        return ast.dump(ast.parse(code))
    except SyntaxError:  # a cell with a magic
        return code.strip()


def executed(
    cells: list,  # of the committed notebook
    path: Path,  # of the notebook that papermill wrote
) -> list | None:
    "The cells with the outputs of their last run; None where there was none, or where it ran other code."
    if not path.exists():
        return None
    ran = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    outputs = {meaning(source(c)): c["outputs"] for c in ran}
    filled = []
    for cell in cells:
        if cell["cell_type"] == "code" and source(cell).strip():
            if meaning(source(cell)) not in outputs:
                return None
            cell = cell | {"outputs": outputs[meaning(source(cell))]}
        filled.append(cell)
    return filled


def shown(cell) -> dict | None:
    "One cell as it is shown: None where it is hidden; directives stripped, exported code marked by a tag."
    text = source(cell)
    if cell["cell_type"] != "code":
        return {"cell_type": cell["cell_type"], "metadata": {}, "source": text, "id": cell["id"]}
    names = set(DIRECTIVE.findall(text))
    text = DIRECTIVE.sub("", text).strip("\n")
    lines = text.splitlines()
    if names & UNSEEN or all(line.startswith("!") for line in lines):  # empty, or a shell's work on Colab
        return None
    kept = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
    outputs = [{**o, "execution_count": None} if o["output_type"] == "execute_result" else o for o in kept]
    return {
        "cell_type": "code",
        "metadata": {"tags": ["exported"]} if names & EXPORTS else {},
        "source": text,
        "id": cell["id"],
        "execution_count": None,
        "outputs": outputs,
    }


def page(
    site: Site,
    notebook: Notebook,
    cells: list | None = None,  # instead of the notebook's own, e.g. with outputs of a run
    below_title: str = "",  # Markdown that follows title and sentence
    at_end: str = "",  # Markdown of a last cell
) -> str:
    "The notebook of the site's sources, as JSON text."
    seen = [c for c in map(shown, cells or notebook.cells) if c]
    seen[0]["source"] = FRONT.sub("", seen[0]["source"])
    for cell in seen:
        if cell["cell_type"] == "markdown":
            cell["source"] = site.links(cell["source"], notebook.path)
    if below_title:
        seen[0]["source"] += f"\n\n{below_title}"
    if at_end:
        seen.append({"cell_type": "markdown", "metadata": {}, "source": at_end, "id": "at-end"})
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return json.dumps({"cells": seen, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})
