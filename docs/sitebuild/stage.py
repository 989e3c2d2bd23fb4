"""The sources of the site, written from the repository: driven by what is there, no list of names to keep."""

import posixpath
import shutil
from itertools import groupby
from pathlib import Path

from . import api, gallery, notebooks
from .markdown import DeadLink, Site

TOP = ("CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")


def toctree(
    paths: list[str],
    caption: str = "",
    depth: int = 1,
    hidden: bool = True,
) -> str:
    "A table of contents of Sphinx, in MyST."
    options = [":hidden:"] * hidden + [f":caption: {caption}"] * bool(caption) + [f":maxdepth: {depth}"]
    return "\n".join([":::{toctree}", *options, "", *paths, ":::"])


def name_pages(site: Site, lessons, pages, modules):
    "Tell the site which file of the repository is which page."
    for notebook in [*pages, *(n for group in lessons.values() for n in group)]:
        site.pages[notebook.path] = notebook.path
    for layer in lessons:
        site.pages[f"nbs/{layer}"] = f"nbs/{layer}/index.md"
        site.pages[f"astroclip/{layer}"] = "api/index.md"
    for module in modules:
        site.pages[f"astroclip/{module.name.replace('.', '/')}.py"] = f"api/{module.name}.md"
    site.pages |= {name: name for name in TOP if (site.root / name).exists()}
    site.pages |= {"README.md": "index.md", "nbs/index.ipynb": "index.md"}
    site.pages |= {"figures": "figures/index.md", "figures/README.md": "figures/index.md"}
    site.pages["data"] = "data/README.md"


def write_lessons(site: Site, lessons):
    "A page for every library notebook and an index for every layer."
    for layer, group in lessons.items():
        rows = ["| lesson | what it is | module |", "| --- | --- | --- |"]
        for n in group:
            where = posixpath.relpath(f"api/{n.module}.md", f"nbs/{layer}")
            below = f"Module: [`astroclip.{n.module}`]({where}), its signatures and docstrings."
            site.write(n.path, notebooks.page(site, n, below_title=below))
            row = f"[{n.title}]({Path(n.path).name})", n.sentence, f"[`{n.module}`]({where})"
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        contents = toctree([Path(n.path).stem for n in group])
        site.write(f"nbs/{layer}/index.md", f"# {layer}\n\n{contents}\n\n" + "\n".join(rows) + "\n")


def write_pages(site: Site, pages, figures, runs: Path) -> int:
    "A page for every notebook that runs or draws; returns how many have the outputs of a run."
    groups, filled = gallery.by_page(figures, [n.path for n in pages]), 0
    for n in pages:
        cells = notebooks.executed(n.cells, runs / Path(n.path).name)
        filled += cells is not None
        drawn = groups.get(n.path, [])
        if cells is None:
            shown = [gallery.entry(f, "nbs", target=False) for f in drawn]
        else:
            shown = [f"- [{f.label}](../figures/index.md#{f.anchor})" for f in drawn]
        end = "\n\n".join(["## Figures of this page", *shown]) if drawn else ""
        site.write(n.path, notebooks.page(site, n, cells, at_end=end))
    return filled


def write_gallery(site: Site, figures, pages):
    "All figures, by the page that draws them."
    names = {n.path: n for n in pages}
    parts = ["# Figures", "Every committed figure with the caption and the numbers of its sidecar."]
    for path, group in gallery.by_page(figures, list(names)).items():
        known = path in names
        link = posixpath.relpath(path, "figures") if known else ""
        parts.append(f"## {names[path].title if known else 'others'}")
        if known:
            parts.append(f"Drawn by [{posixpath.basename(path)}]({link}). {names[path].sentence}")
        parts += [gallery.entry(f, "figures") for f in group]
    for f in figures:
        copy = site.out / f"{f.path}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(site.root / f"{f.path}.png", copy)
    site.write("figures/index.md", "\n\n".join(parts) + "\n")


def write_api(site: Site, modules, lessons):
    "One page a module, and an index by layer."
    titles = {n.path: n.title for group in lessons.values() for n in group}
    place = {n.module: i for i, n in enumerate(n for group in lessons.values() for n in group)}
    modules = sorted(modules, key=lambda m: place.get(m.name, len(place)))
    parts = ["# API", toctree([m.name for m in modules])]
    for layer, group in groupby(modules, key=lambda m: m.name.split(".")[0]):
        rows = [f"| [`{m.name}`]({m.name}.md) | {api.plain(m.sentence)} |" for m in group]
        parts += [f"## {layer}", "\n".join(["| module | what it is |", "| --- | --- |", *rows])]
    site.write("api/index.md", "\n\n".join(parts) + "\n")
    for m in modules:
        full = f"astroclip.{m.name}"
        page = [f"# {m.name}", f":::{{py:module}} {full}\n:::", api.plain(m.sentence)]
        if m.notebook in titles:
            page.append(f"Explained in the lesson [{titles[m.notebook]}](../{m.notebook}).")
        page += [api.directive(e, full) for e in m.entries]
        site.write(f"api/{m.name}.md", "\n\n".join(page) + "\n")


def stage(
    root: Path,  # the repository
    out: Path,  # where the sources go; emptied first
    runs: Path | None = None,  # notebooks that a run wrote, with outputs
) -> dict:
    "Write all sources; returns how many lessons, pages, executed pages, figures and modules there are."
    root, out = Path(root), Path(out)
    shutil.rmtree(out, ignore_errors=True)
    site = Site(root, out)
    lessons, pages = notebooks.lessons(root), notebooks.runs(root)
    modules, figures = api.modules(root), gallery.figures(root)
    name_pages(site, lessons, pages, modules)
    write_lessons(site, lessons)
    filled = write_pages(site, pages, figures, runs or root / "data" / "mock" / "mini" / "executed")
    write_gallery(site, figures, pages)
    write_api(site, modules, lessons)
    texts = [name for name in TOP if name in site.pages]
    for name in texts:
        site.write(name, site.links((root / name).read_text(), name))
    contents = [
        toctree(["figures/index", "api/index", *(posixpath.splitext(t)[0] for t in texts)], "Overview"),
        toctree([posixpath.splitext(n.path)[0] for n in pages], "Pages: stages and figures"),
        toctree([f"nbs/{layer}/index" for layer in lessons], "Lessons: the library"),
    ]
    start = site.links((root / "README.md").read_text(), "README.md", "index.md")
    site.write("index.md", start + "\n\n" + "\n\n".join(contents) + "\n")
    if site.dead:
        raise DeadLink("\n".join(site.dead))
    n = sum(len(group) for group in lessons.values())
    return dict(lessons=n, pages=len(pages), executed=filled, figures=len(figures), modules=len(modules))
