"""The repository's own rules: layers, notebooks, packaging. Read from the files, so a broken rule fails here first."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from astroclip.core.artifacts import STAGES
from astroclip.core.config import find_root

ROOT = find_root(Path(__file__).parent)
LIBRARY = sorted(ROOT.glob("nbs/*/*.ipynb"))
RUNNABLE = sorted(p for p in ROOT.glob("nbs/*.ipynb") if p.stem != "index")
# From the bottom to the top. metrics and losses know arrays only; data knows one galaxy, files how others wrote it down,
# web asks those who have it, formats know how many were written down, surveys know many, inputs are what a user gives; models know no survey; plotting draws what many figures need, panels what one page needs; probes know
# embeddings only; training makes one model, studies many; evaluation knows everything; nobody knows cli and app.
LAYERS = "core metrics losses data files web formats surveys inputs mock targets models search plotting probes training studies panels evaluation sky answers opinions shipped bulk cli app"
LAYERS = LAYERS.split()
LAYERS = [layer for layer in LAYERS if (ROOT / "nbs" / layer).is_dir()]
BELOW = {layer: set(LAYERS[:i]) for i, layer in enumerate(LAYERS)}
KNOWS = {  # what a layer may import, where that is less than everything below it
    "metrics": set(),
    "losses": set(),
    "models": BELOW["models"] - {"web", "formats", "surveys", "inputs", "mock"},
    "probes": BELOW["probes"] - {"data", "files", "web", "formats", "inputs", "mock"},
}
ALLOWED = {layer: KNOWS.get(layer, BELOW[layer]) for layer in LAYERS}
LIGHT = {"training", "models", "losses"}  # run on a bare CUDA machine
HEAVY = {"astropy", "datasets", "pandas", "matplotlib", "seaborn", "sklearn"}


def ids(paths):
    return [str(p.relative_to(ROOT / "nbs")) for p in paths]


def load(path):
    return json.loads(path.read_text())


def source(cell):
    return "".join(cell["source"])


def modules(layer):
    return [p for p in (ROOT / "astroclip" / layer).glob("*.py") if p.name != "__init__.py"]


def imports(tree, everywhere=True):
    "(level, module) of every import; with everywhere=False only those executed at import time."
    found, queue = [], [tree]
    while queue:
        node = queue.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found += [(0, alias.name) for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                found.append((child.level, child.module or ""))
            elif everywhere or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                queue.append(child)
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down_the_layers(layer):
    for path in modules(layer):
        for level, name in imports(ast.parse(path.read_text())):
            target = name.split(".")[0] if level == 2 else name.split(".")[1] if name.startswith("astroclip.") else None
            if target in LAYERS and target != layer:
                assert target in ALLOWED[layer], f"{path.name} of {layer} imports {target}"


@pytest.mark.parametrize("layer", sorted(LIGHT))
def test_models_and_training_import_nothing_heavy(layer):
    for path in modules(layer):
        names = {name.split(".")[0] for level, name in imports(ast.parse(path.read_text()), False) if level == 0}
        assert not names & HEAVY, f"{path.name} imports {names & HEAVY} at import time"


def test_light_layers_load_without_the_heavy_libraries():
    "What the syntax cannot see: an import through another module."
    names = [f"astroclip.{layer}.{p.stem}" for layer in sorted(LIGHT) for p in modules(layer)]
    code = f"import sys\nfor n in {names!r}: __import__(n)\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_notebook_one_module():
    exports = {}
    for path in LIBRARY:
        found = re.findall(r"#\| default_exp (\S+)", "\n".join(source(c) for c in load(path)["cells"]))
        assert len(found) == 1, f"{path.name} exports {found}"
        assert found[0].split(".")[0] == path.parent.name
        assert found[0] not in exports, f"{path.name} and {exports.get(found[0])} export {found[0]}"
        exports[found[0]] = path.name
    written = {f"{layer}.{p.stem}" for layer in LAYERS for p in modules(layer)}
    assert written == set(exports)
    runnable = {p.stem for p in RUNNABLE} - {"redshift"}  # the classifier and the page: both names are fixed by the design
    assert not runnable & {name.split(".")[-1] for name in exports}, "a module and a page share a name"


@pytest.mark.parametrize("path", LIBRARY, ids=ids(LIBRARY))
def test_library_notebooks_teach(path):
    cells = load(path)["cells"]
    assert cells[0]["cell_type"] == "markdown" and re.match(r"# .+\n+> .", source(cells[0])), "title and one sentence"
    code = [source(c) for c in cells if c["cell_type"] == "code"]
    hidden = [c for c in code if c.startswith("#| hide")]
    assert len(hidden) <= max(2, len(code) // 10), "setup and export may be hidden, and little else"
    for cell in code:
        exported = cell.startswith("#| export")
        for node in ast.walk(ast.parse("\n".join(l for l in cell.splitlines() if not l.startswith(("!", "%"))))):
            if exported and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 70, f"{node.name} is {node.end_lineno - node.lineno} lines long"


# Classes that stand alone in their cell and are longer: what they share is their state, and no step of them is one alone.
WHOLE_CLASSES = {"Machine", "MmuPairs", "ParquetFiles", "TorchArchive", "VisionTransformer", "SpecFormer", "FromArrays", "Survey", "ScoreTable", "SimilarityIndex"}
# Notebooks whose long cells are not divided yet; empty it.
UNDIVIDED = set()


@pytest.mark.parametrize("path", LIBRARY, ids=ids(LIBRARY))
def test_a_cell_teaches_one_step(path):
    for cell in load(path)["cells"]:
        lines = source(cell).splitlines()
        if cell["cell_type"] != "code" or len(lines) <= 60 or ids([path])[0] in UNDIVIDED:
            continue
        body = ast.parse(source(cell)).body
        whole = len(body) == 1 and isinstance(body[0], ast.ClassDef) and body[0].name in WHOLE_CLASSES
        assert whole, f"cell {cell['id']} ({lines[1]}) has {len(lines)} lines, expected 60: divide it"


@pytest.mark.parametrize("layer", LAYERS)
def test_modules_are_short(layer):
    for path in modules(layer):
        assert len(path.read_text().splitlines()) <= 400, f"{path.name} holds more than one idea"


@pytest.mark.parametrize("path", LIBRARY + RUNNABLE, ids=ids(LIBRARY + RUNNABLE))
def test_notebooks_name_the_kernel_and_no_place(path):
    notebook = load(path)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    text = path.read_text()
    for word in ("/home/", "/root/", "/work/", "/tmp/"):
        assert word not in text, f"{path.name} holds the path {word}"


@pytest.mark.parametrize("path", RUNNABLE, ids=ids(RUNNABLE))
def test_runnable_notebooks_take_checked_parameters(path):
    cells = load(path)["cells"]
    tagged = [i for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one cell is tagged parameters"
    tree = ast.parse(source(cells[tagged[0]]))
    assert all(isinstance(n, ast.Assign) for n in tree.body), "literals only"
    for node in tree.body:
        ast.literal_eval(node.value)
    names = {n.targets[0].id for n in tree.body}
    config = ast.parse(source(cells[tagged[0] + 1]))
    classes = [n for n in config.body if isinstance(n, ast.ClassDef)]
    assert len(classes) == 1, "the next cell declares the dataclass"
    fields = {n.target.id for n in classes[0].body if isinstance(n, ast.AnnAssign)}
    assert names == fields | {"survey", "profile", "seed", "device", "set"}
    for yaml in sorted((ROOT / "nbs" / "params").glob("*.yaml")):
        keys = set(re.findall(r"^(\w+):", yaml.read_text(), re.M))
        assert keys <= names, f"{yaml.name} has keys that {path.name} does not take"


@pytest.mark.parametrize("path", RUNNABLE, ids=ids(RUNNABLE))
def test_runnable_notebooks_are_committed_bare(path):
    cells = load(path)["cells"]
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells if c["cell_type"] == "code")
    assert not any("default_exp" in source(c) or source(c).startswith("#| export") for c in cells)
    assert any("skip_exec: true" in source(c) for c in cells[:2]), "nbdev_test would train models"
    for cell in cells:
        if cell["cell_type"] == "code":
            for node in ast.walk(ast.parse("\n".join(l for l in source(cell).splitlines() if not l.startswith(("!", "%"))))):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno <= 5, f"{node.name}: export it from a library notebook"


@pytest.mark.parametrize("path", RUNNABLE, ids=ids(RUNNABLE))
def test_pages_are_short(path):
    "About a hundred lines of code, and never over 150; the rest is a story, or a lesson."
    code = [line for c in load(path)["cells"] if c["cell_type"] == "code" for line in source(c).splitlines()]
    code = [line for line in code if line.strip()]
    assert len(code) <= 150, f"{len(code)} lines of code"
    assert max(map(len, code)) <= 110
    prose = [source(c) for c in load(path)["cells"] if c["cell_type"] == "markdown"]
    assert len(prose) >= 3 and sum(map(len, prose)) > 1000, "a page tells what it asks, and what came out"


def test_the_style_is_checked():
    "One statement a line, 110 columns, no clever closures: in notebooks, package and tests."
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_no_folder_is_crowded():
    for layer in LAYERS:
        assert len(modules(layer)) <= 12, f"{layer} has {len(modules(layer))} modules"


def test_no_two_modules_import_each_other():
    "Inside a layer too: the order in which modules import each other has no circle."
    graph = {}
    for layer in LAYERS:
        for path in modules(layer):
            found = set()
            for level, name in imports(ast.parse(path.read_text())):
                if level == 1 and name:
                    found.add(f"{layer}.{name}")
                elif level == 2 and "." in name:
                    found.add(name)
            graph[f"{layer}.{path.stem}"] = found
    left = dict(graph)
    while left:
        free = [name for name, needs in left.items() if not needs & set(left)]
        assert free, f"these import each other: {sorted(left)}"
        for name in free:
            del left[name]


def test_every_stage_has_its_notebook_and_make_knows_the_order():
    make = (ROOT / "Makefile").read_text()
    order = re.search(r"^STAGES := (.+)$", make, re.M)[1].split()
    assert set(order) == set(STAGES)
    for stage in order:
        assert (ROOT / "nbs" / f"{stage}.ipynb").is_file()
        assert all(order.index(i) < order.index(stage) for i in STAGES[stage])
    for page in re.search(r"^PAGES := (.+)$", make, re.M)[1].split():
        assert (ROOT / "nbs" / f"{page}.ipynb").is_file()


def test_figures_have_sidecars_and_are_small():
    figures = ROOT / "figures"
    tables = [*figures.glob("tables/*.csv"), *figures.glob("*/tables/*.csv")]
    for path in [p for p in figures.rglob("*.png") if not re.search("-", p.relative_to(figures).parts[0])] + tables:
        record = json.loads(path.with_suffix(".json").read_text())
        page, name = record["label"].split("/")
        assert path.stem in (name, f"{page}_{name}", page) and path.parent.name in (page, "tables"), path
        assert record["notebook"] == f"nbs/{page}.ipynb" and (ROOT / record["notebook"]).is_file()
        assert record["shows"] != "simulated" or "SIMULATED" in record["caption"]
        assert path.suffix != ".png" or path.stat().st_size <= 300_000, f"{path.name} is above 300 kB"
    tracked = subprocess.run(["git", "ls-files", "figures"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not [name for name in tracked if name.endswith(".pdf")], "PDFs are written, not committed"


def requirement(text):
    "Name of a requirement, normalised."
    return re.split(r"[<>=!~\[ ;]", text.strip())[0].lower().replace("_", "-")


def test_environment_agrees_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    import yaml

    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "astroclip"
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    pins = {requirement(p): p for p in pip if not p.startswith("-")}
    dev = {requirement(p): p for p in project["optional-dependencies"]["dev"]}
    for name in ("nbdev", "execnb", "fastcore", "ghapi", "fastgit"):
        assert pins[name] == dev[name]
    lock = {requirement(line): line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip()}
    wanted = project["dependencies"] + project["optional-dependencies"]["mock"] + project["optional-dependencies"]["dev"]
    missing = [r for r in map(requirement, wanted) if r not in lock]
    assert not missing, f"requirements.lock lacks {missing}: run `make lock`"
    assert lock["torch"] == "torch==2.13.0" and pins["torch"] == "torch==2.13.0"
    assert {"ipykernel", "jupyterlab"} <= set(lock)
    from packaging.requirements import Requirement

    for r in wanted:
        r = Requirement(r)
        version = lock[requirement(r.name)].split("==")[1]
        assert r.specifier.contains(version), f"{r} does not admit the locked {version}"


def test_settings_and_pyproject_agree():
    import configparser

    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini")
    settings = settings["DEFAULT"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["lib_name"] == project["project"]["name"]
    assert settings["description"] == project["project"]["description"]
    assert settings["allowed_cell_metadata_keys"] == project["tool"]["nbdev"]["allowed_cell_metadata_keys"] == "tags"
    assert project["project"]["requires-python"] == f">={settings['min_python']}"
    version = re.search(r'__version__ = "(.+)"', (ROOT / "astroclip" / "__init__.py").read_text())[1]
    assert version == settings["version"] == re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_is_whole(tmp_path):
    "Built from the repository, unpacked outside it: every sub-package is inside, imports, and the command runs."
    source_tree = tmp_path / "source"
    shutil.copytree(ROOT / "astroclip", source_tree / "astroclip", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source_tree)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source_tree)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    expected = {p.relative_to(ROOT) for p in (ROOT / "astroclip").rglob("*.py")}
    assert expected == {p.relative_to(site) for p in (site / "astroclip").rglob("*.py")}
    weights = {p.relative_to(ROOT) for p in (ROOT / "astroclip" / "weights").rglob("*") if p.is_file()}
    assert weights == {p.relative_to(site) for p in (site / "astroclip" / "weights").rglob("*") if p.is_file()}
    names = [".".join(p.with_suffix("").parts) for p in sorted(expected) if p.stem != "__init__"]
    environment = {k: v for k, v in os.environ.items() if k != "ASTROCLIP_HOME"} | {"PYTHONPATH": str(site)}
    code = f"import importlib, astroclip\nassert astroclip.__file__.startswith({str(site)!r})\n"
    code += f"for n in {names!r}: importlib.import_module(n)\n"
    code += "from astroclip.core.config import find_root, data_root\nassert find_root() is None, find_root()\nprint(data_root())\n"
    code += "astroclip.Predictor.from_pretrained('simulated')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    help_text = subprocess.run(
        [sys.executable, "-c", "from astroclip.cli.main import main; main(['--help'])"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert help_text.returncode == 0 and "embed" in help_text.stdout


@pytest.mark.parametrize("path", RUNNABLE, ids=ids(RUNNABLE))
def test_the_front_matter_is_read(path):
    "A list below the title would be taken for front matter, and `skip_exec` lost with it."
    first = next(source(c) for c in load(path)["cells"] if "skip_exec: true" in source(c))
    assert [line for line in first.splitlines() if line.startswith("- ")] == ["- skip_exec: true"]
