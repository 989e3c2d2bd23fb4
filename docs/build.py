"""`python docs/build.py`: the documentation site from notebooks, figures and signatures, into `_docs/html`.

Nothing is downloaded, a warning of Sphinx is an error, and every link of the result is followed.
"""

import os
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

from sitebuild import links, stage  # noqa: E402
from sitebuild.markdown import DeadLink  # noqa: E402


def main() -> int:
    "Write the sources, build, follow the links; 0 where all is well."
    from sphinx.cmd.build import build_main

    sources, html = ROOT / "_docs" / "sources", ROOT / "_docs" / "html"
    runs = Path(os.environ.get("ASTROCLIP_HOME") or ROOT / "data") / "mock" / "mini" / "executed"
    try:
        counts = stage.stage(ROOT, sources, runs)
    except DeadLink as error:
        print(error)
        return 1
    print("sources: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    shutil.rmtree(html, ignore_errors=True)
    jobs = str(os.cpu_count() or 1)
    strict = ["-q", "-W", "--keep-going", "-j", jobs]
    folders = ["-c", str(DOCS), "-d", str(ROOT / "_docs" / "trees"), str(sources), str(html)]
    if build_main([*strict, "-b", "html", *folders]):
        return 1
    found = links.dead(html)
    print(*found, f"{len(found)} dead links; the site: {html / 'index.html'}", sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
