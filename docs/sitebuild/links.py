"""Every link of a built site leads somewhere, and nothing is loaded from a network."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
INERT = {"canonical", "next", "prev", "author", "license"}


class Page(HTMLParser):
    "The anchors of a page, its links, and what a browser loads with it."

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.anchors |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        given = a.get(LOADED.get(tag, ""))
        if given and not (tag == "link" and a.get("rel") in INERT):
            self.loaded.append(given)


def dead(
    folder: Path,  # of a built site
) -> list[str]:
    "A sentence for each link without a target and for each thing that would come from a network."
    folder = Path(folder).resolve()
    pages = {p.resolve(): Page(p.read_text(errors="replace")) for p in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder)
        for link in page.loaded:
            if urlsplit(link).scheme in ("http", "https") or link.startswith("//"):
                found.append(f"{name} loads {link} from the network")
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                found.append(f"{name} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name} links to {link}, which has no such place")
    return found


def main(folder: str) -> int:
    "`python -m sitebuild.links FOLDER`: prints what is dead, 1 where anything is."
    found = dead(Path(folder))
    print(*found, f"{len(found)} dead links", sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
