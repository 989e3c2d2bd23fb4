"""Signatures as they are written: one parameter a line, its type and shape in the comment that follows it.

Read from the files, so that a site is built without importing torch.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

MARKS = re.compile(r"([\\*_<>\[\]$~^{}|#])")


@dataclass(frozen=True)
class Parameter:
    "One parameter of a function, or one field of a dataclass, as text."

    name: str
    type: str = ""
    default: str = ""
    comment: str = ""


@dataclass(frozen=True)
class Entry:
    "One public function, class, method, property or constant."

    kind: str
    name: str
    signature: str
    doc: str
    parameters: list = field(default_factory=list)
    members: list = field(default_factory=list)


@dataclass(frozen=True)
class Module:
    "One module: its name below the package, its sentence, the notebook it comes from, what is public in it."

    name: str
    sentence: str
    notebook: str | None
    entries: list


def comments(code: str) -> dict[int, str]:
    "{line number: the comment on it}"
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {t.start[0]: t.string.lstrip("#").strip() for t in tokens if t.type == tokenize.COMMENT}


def last_line(*nodes) -> int:
    return max(node.end_lineno for node in nodes if node is not None)


@dataclass(frozen=True)
class Source:
    "The text of a file and its comments by line."

    code: str

    @cached_property
    def lines(self) -> list[str]:
        return self.code.splitlines()

    @cached_property
    def notes(self) -> dict[int, str]:
        return comments(self.code)

    def text(self, node) -> str:
        "A value as it is written, on one line."
        if node is None:
            return ""
        rows = [line.encode() for line in self.lines[node.lineno - 1 : node.end_lineno]]
        rows[-1] = rows[-1][: node.end_col_offset]
        rows[0] = rows[0][node.col_offset :]
        return " ".join(b" ".join(rows).decode().split())


def parameters(
    node: ast.FunctionDef,
    source: Source,
    skip: int = 0,  # leading parameters left out, e.g. `self`
) -> list[Parameter]:
    "Parameters with type, default and comment; the comment of a line belongs to the last parameter on it."
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    rows = list(zip([p.arg for p in plain], plain, defaults))
    if a.vararg:
        rows.append((f"*{a.vararg.arg}", a.vararg, None))
    rows += zip([p.arg for p in a.kwonlyargs], a.kwonlyargs, a.kw_defaults)
    if a.kwarg:
        rows.append((f"**{a.kwarg.arg}", a.kwarg, None))
    ends = [last_line(p, default) for _, p, default in rows]
    found = []
    for i, (name, p, default) in enumerate(rows):
        alone = ends[i] not in ends[i + 1 :] and ends[i] < node.body[0].lineno
        found.append(
            Parameter(
                name,
                source.text(p.annotation),
                source.text(default),
                source.notes.get(ends[i], "") if alone else "",
            )
        )
    return found[skip:]


def returned(node: ast.FunctionDef, source: Source) -> Parameter | None:
    "What is returned, where the signature says it."
    if node.returns is None:
        return None
    line = node.returns.end_lineno
    last = max([p.end_lineno for p in ast.walk(node.args) if hasattr(p, "end_lineno")], default=0)
    comment = source.notes.get(line, "") if last < line < node.body[0].lineno else ""
    return Parameter("returns", source.text(node.returns), "", comment)


def signature(
    node: ast.FunctionDef,
    skip: int = 0,  # leading parameters left out
) -> str:
    "(a: int, b=2) -> str"
    copy = ast.parse(ast.unparse(node)).body[0].args
    rest = [*copy.posonlyargs, *copy.args][skip:]
    copy.posonlyargs = []
    copy.args = rest
    copy.defaults = copy.defaults[-len(rest) :] if rest else []
    return f"({ast.unparse(copy)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


def decorators(node) -> set[str]:
    names = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return {ast.unparse(n).split(".")[-1] for n in names}


def function(node, source: Source, kind="function", skip=0) -> Entry:
    rows = parameters(node, source, skip)
    back = returned(node, source)
    commented = any(p.comment for p in rows) or (back and back.comment)
    table = rows + [back] * bool(back) if commented else []
    doc = ast.get_docstring(node) or ""
    return Entry(kind, node.name, signature(node, skip), doc, table)


def fields(node: ast.ClassDef, source: Source) -> list[Parameter]:
    "The fields of a dataclass or a named tuple."
    rows = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    found = []
    for n in rows:
        comment = source.notes.get(n.end_lineno, "")
        found.append(Parameter(n.target.id, source.text(n.annotation), source.text(n.value), comment))
    return found


def members(node: ast.ClassDef, source: Source) -> list[Entry]:
    "Public methods and properties."
    found = []
    for n in node.body:
        if not isinstance(n, ast.FunctionDef) or n.name.startswith("_"):
            continue
        marks = decorators(n)
        if "setter" in marks:
            continue
        if marks & {"property", "cached_property"}:
            kind, skip = "property", 1
        elif "classmethod" in marks:
            kind, skip = "classmethod", 1
        elif "staticmethod" in marks:
            kind, skip = "staticmethod", 0
        else:
            kind, skip = "method", 1
        found.append(function(n, source, kind, skip))
    return found


def klass(node: ast.ClassDef, source: Source) -> Entry:
    start = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    bases = {ast.unparse(b) for b in node.bases}
    doc = ast.get_docstring(node) or ""
    if start:
        made = function(start, source, skip=1)
        return Entry("class", node.name, made.signature, doc, made.parameters, members(node, source))
    rows = fields(node, source) if "dataclass" in decorators(node) or "NamedTuple" in bases else []
    if any(p.comment for p in rows):  # the table says it all
        return Entry("class", node.name, "", doc, rows, members(node, source))
    written = ", ".join(f"{p.name}: {p.type}" + (f" = {p.default}" if p.default else "") for p in rows)
    return Entry("class", node.name, f"({written})" if rows else "", doc, [], members(node, source))


def constant(node, name, source: Source) -> Entry:
    value = source.text(node.value)
    return Entry("data", name, value if len(value) <= 72 else "", source.notes.get(node.end_lineno, ""))


def module(
    path: Path,  # of a module that nbdev wrote
    package: Path,  # the folder of the package
) -> Module:
    "What is public in a module, in its own order."
    code = path.read_text()
    tree, source = ast.parse(code), Source(code)
    public, found = [], {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found[node.name] = function(node, source)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = klass(node, source)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id == "__all__":
                    public = ast.literal_eval(node.value)
                elif isinstance(target, ast.Name) and node.value is not None:
                    found.setdefault(target.id, constant(node, target.id, source))
    made = re.search(r"File to edit: (\S+\.ipynb)", code)
    notebook = None
    if made:
        file = (path.parent / made[1]).resolve()
        notebook = file.relative_to(package.parent.resolve()).as_posix()
    name = ".".join(path.relative_to(package).with_suffix("").parts)
    doc = (ast.get_docstring(tree) or "").split("\n\n")[0]
    return Module(name, doc, notebook, [found[n] for n in public if n in found])


def modules(
    root: Path,  # the repository
) -> list[Module]:
    "Every module of the package that a notebook exports."
    package = root / "astroclip"
    paths = sorted(p for p in package.glob("*/*.py") if p.name != "__init__.py")
    return [module(p, package) for p in paths]


def plain(text: str) -> str:
    "Text of a docstring or comment as Markdown: only what stands in backticks is marked up."
    pieces = re.split(r"(`[^`\n]+`)", text)
    return "".join(p if i % 2 else MARKS.sub(r"\\\1", p) for i, p in enumerate(pieces))


def code_span(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(rows: list[Parameter]) -> str:
    "Parameters as a Markdown table: name, type, default, meaning."
    lines = ["| parameter | type | default | meaning |", "| --- | --- | --- | --- |"]
    for p in rows:
        name = "*returns*" if p.name == "returns" else code_span(p.name)
        lines.append(f"| {name} | {code_span(p.type)} | {code_span(p.default)} | {plain(p.comment)} |")
    return "\n".join(lines)


def directive(
    entry: Entry,
    module: str,  # full name
    inside: str = "",  # the class it belongs to
) -> str:
    "The entry as a directive of Sphinx's Python domain, in MyST."
    name = f"{inside}.{entry.name}" if inside else entry.name
    options = [f":module: {module}"]
    kind, written = entry.kind, entry.signature
    if kind in ("classmethod", "staticmethod"):
        options.append(f":{kind}:")
        kind = "method"
    if kind == "property":
        back = written.partition("->")[2].strip()
        options += [f":type: {back}"] * bool(back)
        written = ""
    if kind == "data":
        options += [f":value: {written}"] * bool(written)
        written = ""
    parts = [plain(entry.doc)] * bool(entry.doc)
    parts += [table(entry.parameters)] * bool(entry.parameters)
    parts += [directive(m, module, name) for m in entry.members]
    fence = ":" * (3 if inside or not entry.members else 4)
    body = "\n\n".join(["\n".join(options), *parts])
    return f"{fence}{{py:{kind}}} {name}{written}\n{body}\n{fence}"
