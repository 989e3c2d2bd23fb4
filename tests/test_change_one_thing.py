"""One setting is changed by one parameter: checked by name and type, part of the keys downstream, in captions and folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from smoke_runs import papermill

from astroclip.core.artifacts import STAGES, resolve
from astroclip.core.config import Params, changed_settings, executed_dir, figures_dir, figures_root, find_root
from astroclip.core.profiles import (
    OWN_PARAMETERS,
    PROFILES,
    list_changes,
    parse_settings,
    settings,
    short_name,
)
from astroclip.evaluation.comparison import comparison_label, parse_runs, run_differences

ROOT = find_root(Path(__file__).parent)


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "align.embed_dims=64",
            "embed_dims is no setting of align, the nearest is embed_dim; it has embed_dim, num_heads",
        ),
        ("aling.embed_dim=64", "aling is no stage, the nearest is align; there are mock_survey"),
        (
            "embed_dim=64",
            "'embed_dim=64' is not of the form stage.name=value, as pretrain_spectrum.embed_dim=64",
        ),
        ("align", "not of the form stage.name=value"),
        ("align.embed_dim = 64", "not of the form stage.name=value"),
        ("align.embed_dim=", "not of the form stage.name=value"),
        (
            "align.embed_dim=64.5",
            "align.embed_dim=64.5 is no value for it: expected a whole number that is not negative",
        ),
        ("align.embed_dim=true", "expected a whole number"),
        ("align.embed_dim=-64", "not negative"),
        ("align.embed_dim=none", "expected a whole number"),
        ("align.embed_dim=[64]", "expected a whole number"),
        ("align.embed_dim=1e999", "expected a whole number"),
        ("align.frozen_lr=fast", "expected a number"),
        ("pretrain_image.photometry=1", "expected true or false"),
        ("pretrain_image.balance=1", "expected a word"),
        ("pretrain_image.momentum=0.9", "a list of 2 such as [0.98,1.0]"),
        ("pretrain_image.momentum=[0.9]", "a list of 2 such as"),
        ("train_baselines.budgets=[]", "a list such as [10,100,1000]"),
        ("train_baselines.budgets=[10,100", "a list such as [10,100,1000]"),
        ("train_baselines.budgets=[10,0.5]", "expected a whole number"),
        ("align.shift=2 align.shift=2", "align.shift is given twice"),
        ("align.finetuned=true", "-p finetuned True"),
        ("train_baselines.protocol=released", "-p protocol released"),
        ("align.shift=__import__('os').getcwd()", "expected a whole number"),
    ],
)
def test_a_slip_is_answered_with_one_sentence(text, said):
    with pytest.raises(ValueError) as error:
        Params(set=text)
    assert said in str(error.value) and "\n" not in str(error.value) and str(error.value).endswith(".")


def test_values_take_the_type_of_the_profile():
    asked = parse_settings(
        "align.frozen_lr=1 pretrain_image.steps=2e3,align.dropout=0 pretrain_image.photometry=False"
    )
    assert asked == {
        "align": {"frozen_lr": 1.0, "dropout": 0.0},
        "pretrain_image": {"steps": 2000, "photometry": False},
    }
    assert [type(v) for v in asked["align"].values()] == [float, float] and type(
        asked["pretrain_image"]["steps"]
    ) is int
    assert parse_settings("train_baselines.budgets=[10, 100]") == {"train_baselines": {"budgets": [10, 100]}}
    assert parse_settings("pretrain_image.blur=[1,0,1] pretrain_image.balance=centering")[
        "pretrain_image"
    ] == {"blur": [1.0, 0.0, 1.0], "balance": "centering"}
    assert parse_settings("  ") == {}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_setting_can_be_reached(profile):
    "What stands in the tables can be typed as it stands, and is then no change."
    for stage, values in PROFILES[profile].items():
        for name, value in values.items():
            if name in OWN_PARAMETERS:
                continue
            text = f"{stage}.{name}={value}"
            assert parse_settings(text) == {stage: {name: value}}
            assert (
                list_changes(profile, text) == []
                and resolve(stage, profile=profile, set=text).key == resolve(stage, profile=profile).key
            )


def upstream(stage):
    "A stage and all that it is made from."
    return {stage}.union(*map(upstream, STAGES[stage]))


@pytest.mark.parametrize(
    "text",
    [
        "mock_survey.n_pairs=4000",
        "pretrain_image.steps=2000",
        "align.embed_dim=64",
        "embed.batch_size=16",
        "train_baselines.width=8",
    ],
)
def test_keys_change_downstream_and_nowhere_else(text):
    changed = {
        stage for stage in STAGES if resolve(stage, Params(set=text)).key != resolve(stage, Params()).key
    }
    assert changed == {stage for stage in STAGES if text.split(".")[0] in upstream(stage)}
    made = resolve("embed", Params(set=text))
    for stage, artifact in made.inputs.items():
        assert artifact.key == resolve(stage, Params(set=text)).key


def test_a_parameter_of_the_notebook_wins():
    text = "pretrain_image.steps=2000 align.shift=2"
    assert resolve("pretrain_image", Params(set=text), steps=9).settings["steps"] == 9
    assert resolve("pretrain_image", Params(set=text), steps=None).settings["steps"] == 2000
    assert settings("mini", "align", parse_settings(text))["shift"] == 2
    tuned = resolve("embed", Params(set=text), finetuned=True)
    assert tuned.inputs["align"].settings["finetuned"] and tuned.inputs["align"].settings["shift"] == 2


def test_real_pairs_have_no_simulated_survey_to_change():
    with pytest.raises(ValueError, match="survey=desi has the pairs of its files"):
        Params(survey="desi", set="mock_survey.n_pairs=10")
    assert resolve("align", Params(survey="desi", set="align.shift=2")).settings["shift"] == 2


def test_captions_and_sidecars_say_it(tmp_path, monkeypatch):
    from astroclip.core.plots import save_table

    monkeypatch.setenv("ASTROCLIP_HOME", str(tmp_path))
    p = Params(profile="smoke", set="align.embed_dim=64, align.shift=4")
    assert changed_settings(p) == "align.embed_dim = 64 (default 32)" and changed_settings(Params()) == ""
    path = save_table([dict(a=1)], "toy/toy", p, caption="A row.")
    record = json.loads(path.with_suffix(".json").read_text())
    assert "align.embed_dim = 64 (default 32)" in record["caption"] and record["parameters"]["set"] == p.set
    assert figures_dir(p) in path.parents
    told = json.loads((figures_dir(p) / "settings.json").read_text())
    assert told["changes"] == [dict(stage="align", name="embed_dim", value=64, default=32)]
    assert told["settings"]["align"]["embed_dim"] == 64 and told["settings"]["mock_survey"]["n_pairs"] == 192


def test_every_other_run_has_folders_of_its_own():
    runs = [
        Params(),
        Params(profile="smoke"),
        Params(seed=1),
        Params(set="align.embed_dim=64"),
        Params(seed=1, set="align.embed_dim=64"),
    ]
    names = [figures_dir(p).name for p in runs]
    assert names == [
        "figures",
        "mock-smoke",
        "mock-mini-seed1",
        "mock-mini-align.embed_dim-64",
        "mock-mini-seed1-align.embed_dim-64",
    ]
    assert len({executed_dir(p) for p in runs}) == 5 and executed_dir(Params()).name == "executed"
    assert (
        figures_dir(SimpleNamespace(**vars(runs[2]), protocol="released"))
        == figures_root() / "mock-mini-seed1" / "released"
    )
    a, b = (
        Params(set=text)
        for text in ("align.shift=2 align.embed_dim=64", "align.embed_dim=64,align.shift=2.0")
    )
    assert (
        figures_dir(a) == figures_dir(b) and figures_dir(Params(set="align.embed_dim=128")) == figures_root()
    )
    for p in runs[1:]:
        ignored = subprocess.run(
            ["git", "check-ignore", "-q", f"figures/{figures_dir(p).name}/redshift.png"], cwd=ROOT
        )
        assert ignored.returncode == 0, figures_dir(p).name


VALUES = {
    "align.embed_dim": st.integers(1, 999),
    "align.dropout": st.floats(0, 0.99),
    "pretrain_image.balance": st.text("abc./ ,'", min_size=1, max_size=9),
}


@examples(derandomize=True, deadline=None, max_examples=80)
@given(st.fixed_dictionaries({}, optional=VALUES), st.fixed_dictionaries({}, optional=VALUES))
def test_names_of_folders_are_safe_and_differ(first, second):
    def name(values):
        return short_name(list_changes("mini", " ".join(f"{k}={v!r}" for k, v in values.items())))

    for values in (first, second):
        assert "/" not in name(values) and ".." not in name(values) and len(name(values)) <= 60
    a, b = (
        list_changes("mini", " ".join(f"{k}={v!r}" for k, v in values.items())) for values in (first, second)
    )
    assert (name(first) == name(second)) == (a == b)


def test_runs_are_read_from_one_line():
    runs = parse_runs("; align.embed_dim=64; seed=3 profile=smoke align.shift=2", Params(set="align.shift=1"))
    assert [(p.profile, p.seed, p.set) for p in runs.values()] == [
        ("mini", 0, "align.shift=1"),
        ("mini", 0, "align.shift=1 align.embed_dim=64"),
        ("smoke", 3, "align.shift=2"),
    ]
    assert {row["setting"] for row in run_differences(parse_runs("; align.embed_dim=64", Params()))} == {
        "align.embed_dim"
    }
    long = (
        "; pretrain_image.balance=centering train_baselines.budgets=[10,100,1000] pretrain_image.blur=[1,0,1]"
    )
    assert len(comparison_label(parse_runs(long, Params()))) < 40
    for text, said in (
        ("", "is one run"),
        ("; ", "is there twice"),
        ("; aling.shift=1", "nearest is align"),
        ("; profile=huge", "expected one of"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_runs(text, Params())


def test_pages_do_not_call_what_the_parameter_hides():
    "`set` is text on a page: the built-in of that name is out of reach there."
    import ast

    for path in ROOT.glob("nbs/*.ipynb"):
        code = [
            "".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"
        ]
        lines = [line for line in "\n".join(code).splitlines() if not line.startswith(("!", "%"))]
        names = [
            n for n in ast.walk(ast.parse("\n".join(lines))) if isinstance(n, ast.Name) and n.id == "set"
        ]
        assert all(isinstance(n.ctx, ast.Store) for n in names), path.name


@pytest.mark.parametrize(
    "path", sorted(p for p in ROOT.glob("nbs/*.ipynb") if p.stem != "index"), ids=lambda p: p.stem
)
def test_papermill_knows_the_parameter(path):
    "A second equals sign in its line, be it in the comment, and papermill warns of an unknown parameter."
    import papermill

    assert {"set", "seed"} <= set(papermill.inspect_notebook(str(path)))


def make(*words, **environment):
    "What make would do, with programs that only say how they were called."
    clean = {k: v for k, v in os.environ.items() if k not in ("SET", "RUNS")}
    return subprocess.run(["make", *words], cwd=ROOT, env=clean | environment, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("way", ["word", "environment"])
def test_make_hands_several_settings_over_as_one_word(tmp_path, way):
    (tmp_path / "bin").mkdir()
    (tmp_path / "done").touch()
    says = f"#!{sys.executable}\nimport json, sys\nif 'folder' in sys.argv: print({str(tmp_path / 'out')!r})\nelse: print(json.dumps(sys.argv[1:]))\n"
    for name in ("python", "papermill"):
        (tmp_path / "bin" / name).write_text(says)
        (tmp_path / "bin" / name).chmod(0o755)
    text = "align.embed_dim=64 train_baselines.budgets=[10, 50] pretrain_image.balance='centering'"
    given = ([f"SET={text}"], {}) if way == "word" else ([], dict(SET=text))
    common = [f"VENV={tmp_path}", "-o", "install", *given[0]]
    called = [
        json.loads(line)
        for line in make("reproduce", *common, **given[1]).stdout.splitlines()
        if line.startswith("[")
    ]
    assert called == [
        [
            "-m",
            "astroclip.core.pipeline",
            "reproduce",
            "--survey",
            "mock",
            "--profile",
            "mini",
            "--seed",
            "0",
            "--device",
            "auto",
            "--set",
            text,
        ]
    ]
    (page,) = (
        json.loads(line)
        for line in make("figure-redshift", *common, **given[1]).stdout.splitlines()
        if line.startswith("[")
    )
    assert page[1:4] == ["astroclip.core.pipeline", "one", "redshift"] and page[-2:] == ["--set", text]
    (page,) = (
        json.loads(line)
        for line in make("compare", *common, "RUNS=; align.shift=2", **given[1]).stdout.splitlines()
        if line.startswith("[")
    )
    assert page[2:4] == ["one", "compare"] and page[-4:] == ["--set", text, "--runs", "; align.shift=2"]


@pytest.mark.smoke
def test_a_wrong_setting_ends_a_page_with_one_sentence(home):
    done = papermill("redshift", home, "-p", "set", "align.embed_dims=64", check=False)
    said = "ValueError: set: embed_dims is no setting of align, the nearest is embed_dim; it has"
    assert done.returncode != 0 and said in done.stderr.strip().splitlines()[-1]


@pytest.mark.smoke
def test_a_change_reaches_what_it_concerns_and_is_compared(home):
    "Two runs that share survey and towers; then a page with the same change finds everything made."
    done = papermill("compare", home, "-p", "runs", "; align.embed_dim=16", "-p", "draws", "50")
    assert done.returncode == 0
    made = {stage: len(list(home.glob(f"mock/smoke/{stage}-????????/artifact.json"))) for stage in STAGES}
    changed = resolve("embed", Params(profile="smoke", set="align.embed_dim=16"))
    assert made["mock_survey"] >= 1 and made["align"] >= 2 and made["embed"] >= 2
    assert (home / "mock" / "smoke" / f"embed-{changed.key}" / "artifact.json").is_file()
    folder = home / "figures" / "mock-smoke-compare_align_embed_dim_16"
    names = {path.stem for path in folder.rglob("*.csv")}
    assert names == {"compare", "compare_settings"} and (folder / "settings.json").is_file()
    table = next(folder.rglob("compare.csv")).read_text()
    assert (
        "align.embed_dim=16" in table and "True" in table and "False" not in table
    )  # every difference is paired
    papermill(
        "retrieval", home, "-p", "set", "align.embed_dim=16", "-p", "draws", "50", "-p", "shuffles", "50"
    )
    records = list((home / "figures" / "mock-smoke-align.embed_dim-16").rglob("galleries.json"))
    assert records and all("align.embed_dim = 16 (default 32)" in path.read_text() for path in records)
