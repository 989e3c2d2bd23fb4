"""Markdown of the repository as Markdown of the site: links lead to pages, pictures lie beside them."""

import posixpath
import re
import shutil
from pathlib import Path

CODE = re.compile(r"(```.*?```|~~~.*?~~~|`[^`\n]+`)", re.S)
TARGET = re.compile(r"\]\(([^)\s]+)\)")
ATTRIBUTE = re.compile(r"""\b(src|href)="([^"]+)\"""")
BADGE = re.compile(r"!\[([^\]]*)\]\(https?://[^)\s]+\)")
FRONT = re.compile(r"\A---\n.*?\n---\n", re.S)  # settings before a text
ELSEWHERE = re.compile(r"^([a-z]+:|#)", re.I)


class DeadLink(ValueError):
    "A link to something that the repository does not have."


def prose(
    text: str,  # Markdown
    change,  # function of a piece of prose, text -> text
) -> str:
    "The text with `change` applied to what is neither a code block nor a code span."
    pieces = CODE.split(text)
    return "".join(piece if i % 2 else change(piece) for i, piece in enumerate(pieces))


def targets(
    text: str,  # Markdown
) -> list[str]:
    "The targets of all links and pictures outside of code."
    found = []

    def note(piece):
        found.extend(TARGET.findall(piece))
        found.extend(m[1] for m in ATTRIBUTE.findall(piece))
        return piece

    prose(text, note)
    return found


class Site:
    "Which file of the repository is which page of the site; other files are copied when they are linked."

    def __init__(
        self,
        root: Path,  # the repository
        out: Path,  # the folder of Sphinx's sources
    ):
        self.root = Path(root)
        self.out = Path(out)
        self.pages = {}  # path in the repository: path in the site's sources
        self.dead = []  # sentences on links that lead nowhere

    def write(self, path: str, text: str):
        "Write one page of the site's sources."
        file = self.out / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def find(
        self,
        target: str,  # as it stands in the link
        at: str,  # the page, or the file of the repository, that holds the link
    ) -> tuple[str, bool]:
        "(path in the site's sources, whether it is a page) of a relative target; a plain file is copied."
        path = posixpath.normpath(posixpath.join(posixpath.dirname(at), target))
        if path in self.pages:
            return self.pages[path], True
        file = self.root / path
        if path.startswith("..") or not file.exists():
            raise DeadLink(f"{at} links to {target}, which is not there")
        if file.is_dir():
            raise DeadLink(f"{at} links to the folder {target}, which has no page")
        if file.suffix == ".md":  # a text that no contents list
            self.pages[path] = path
            text = FRONT.sub("", file.read_text())  # of a model card: it has no place inside another page
            self.write(path, "---\norphan: true\n---\n\n" + self.links(text, path))
            return path, True
        copy = self.out / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        return path, False

    def links(
        self,
        text: str,  # Markdown
        at: str,  # the file of the repository it comes from
        to: str | None = None,  # the page it goes to, where that is another path
    ) -> str:
        "The text with relative links as seen from the page; pictures from the network become their words."
        here = posixpath.dirname(to or self.pages.get(at, at))

        def new(target, html=False):
            if ELSEWHERE.match(target):
                return target
            path, _, anchor = target.partition("#")
            try:
                found, page = self.find(path, at)
            except DeadLink as error:
                self.dead.append(str(error))
                return target
            if html and page:
                found = posixpath.splitext(found)[0] + ".html"
            return posixpath.relpath(found, here or ".") + (f"#{anchor}" if anchor else "")

        def change(piece):
            piece = TARGET.sub(lambda m: f"]({new(m[1])})", BADGE.sub(r"\1", piece))
            return ATTRIBUTE.sub(lambda m: f'{m[1]}="{new(m[2], html=True)}"', piece)

        return prose(text, change)
