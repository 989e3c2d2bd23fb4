"""The figures of the repository with what their sidecars say: caption, numbers, the page that draws them."""

import json
import posixpath
from dataclasses import dataclass
from pathlib import Path

from .api import plain


@dataclass(frozen=True)
class Figure:
    "One committed figure: its path below the repository without suffix, and its sidecar."

    path: str
    sidecar: dict

    @property
    def label(self) -> str:
        return self.path.removeprefix("figures/")

    @property
    def anchor(self) -> str:
        return "figure-" + self.label.replace("/", "-").replace("_", "-").lower()


def figures(
    root: Path,  # the repository
) -> list[Figure]:
    "Every picture with a sidecar below `figures`, but not those of other runs (`figures/desi-standard/`)."
    found = []
    for path in sorted((root / "figures").rglob("*.json")):
        other = "-" in path.relative_to(root / "figures").parent.as_posix()
        if path.with_suffix(".png").exists() and not other:
            sidecar = json.loads(path.read_text())
            found.append(Figure(path.relative_to(root).with_suffix("").as_posix(), sidecar))
    return found


def by_page(
    every: list[Figure],
    order: list[str],  # paths of the pages
) -> dict[str, list[Figure]]:
    "Figures by the notebook that draws them; other notebooks come last."
    groups = {path: [] for path in order}
    for figure in every:
        groups.setdefault(figure.sidecar.get("notebook", ""), []).append(figure)
    return {path: group for path, group in groups.items() if group}


def number(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def numbers(figure: Figure) -> str:
    "The numbers of a sidecar as a folded table; nothing where there are none."
    rows = figure.sidecar.get("numbers") or {}
    if not isinstance(rows, dict) or not rows:
        return ""
    lines = [f"| {plain(str(k))} | {plain(number(v))} |" for k, v in rows.items()]
    return "\n".join([":::{dropdown} numbers", "| number | value |", "| --- | --- |", *lines, ":::"])


def entry(
    figure: Figure,
    here: str,  # folder of the page that shows it
    target: bool = True,  # links may lead here
) -> str:
    "One figure with caption and numbers, as MyST."
    picture = posixpath.relpath(f"{figure.path}.png", here)
    caption = plain(figure.sidecar.get("caption", ""))
    words = f"**{plain(figure.label)}.** {caption}"
    shown = [f":::{{figure}} {picture}", f":alt: {figure.label}", "", words, ":::"]
    parts = [f"({figure.anchor})="] * target + ["\n".join(shown), numbers(figure)]
    return "\n\n".join(p for p in parts if p)
