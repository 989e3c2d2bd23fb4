"""How Sphinx builds the site. Formulas become MathML, which browsers draw by themselves: no script needed."""

import re
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.logging import getLogger

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

project = "astroclip"
author = "the astroclip developers"
project_copyright = f"2026 onwards, {author}"
package = (DOCS.parent / "astroclip" / "__init__.py").read_text()
version = release = re.search(r'__version__ = "([^"]+)"', package)[1]

extensions = ["myst_nb", "sphinx_design"]
html_theme = "furo"
html_title = f"astroclip {version}"
html_static_path = [str(DOCS / "static"), str(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # browsers fetch no pages from a disk
html_math_renderer = "mathml"
templates_path = []
add_module_names = False
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

nb_execution_mode = "off"  # what is committed is shown
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "html_image"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

SPELLED = {r"\AA": r"\text{Å}", r"\arg": r"\operatorname{arg}"}  # commands that the converter does not know
log = getLogger(__name__)


def mathml(
    formula: str,  # LaTeX
    display: str = "inline",  # or "block"
) -> str:
    "A formula as MathML; `ValueError` where a command is left over."
    for command, words in SPELLED.items():
        formula = re.sub(re.escape(command) + r"(?![A-Za-z])", words.replace("\\", r"\\"), formula)
    made = convert(formula.strip(), display=display)
    if "\\" in made.replace("&#x0005C;", "\\"):
        raise ValueError(f"not understood: {formula}")
    return made


def visit_math(self, node, display="inline"):
    "Write a formula into the page."
    try:
        self.body.append(mathml(node.astext(), display))
    except Exception as error:
        log.warning("formula %r: %s", node.astext(), error, location=node)
    raise nodes.SkipNode


def visit_math_block(self, node):
    self.body.append('<div class="math">')
    try:
        visit_math(self, node, "block")
    finally:
        self.body.append("</div>")


@cache
def short_names(names: tuple) -> dict[str, str]:
    "{last parts: full name} of names that belong to one object and cannot be taken for a word."
    found = {}
    for full in names:
        parts = full.split(".")
        for part in {".".join(parts[-n:]) for n in range(1, len(parts))}:
            found.setdefault(part, []).append(full)
    distinct = re.compile(r"[a-z]\w*[_.]|[A-Z]\w*[a-z]\w*[A-Z.]")
    return {part: full[0] for part, full in found.items() if len(full) == 1 and distinct.match(part)}


class LinkNames(SphinxPostTransform):
    "Names of the package in backticks lead to their signatures: full names, or those that exist once."

    default_priority = 900

    def run(self, **kwargs):
        objects = self.env.domains.python_domain.objects
        short = short_names(tuple(objects))
        for node in list(self.document.findall(nodes.literal)):
            inside = node.parent
            while inside is not None and not isinstance(inside, (nodes.reference, nodes.title)):
                inside = inside.parent
            name = node.astext().removesuffix("()").removeprefix("astroclip.")
            if inside is not None or not re.fullmatch(r"[A-Za-z_][\w.]*", name):
                continue
            full = f"astroclip.{name}" if f"astroclip.{name}" in objects else short.get(name)
            entry = objects.get(full)
            if entry and entry.docname != self.env.docname:
                uri = self.app.builder.get_relative_uri(self.env.docname, entry.docname)
                link = nodes.reference("", "", internal=True, refuri=f"{uri}#{entry.node_id}")
                node.replace_self(link)
                link += node


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.add_post_transform(LinkNames)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
