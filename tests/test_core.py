"""Paths, parameters, keys, artifacts: what must hold from any folder and after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from astroclip.core import artifacts
from astroclip.core.artifacts import create, ensure, resolve
from astroclip.core.config import Params, data_root, find_root
from astroclip.core.faults import write_atomic
from astroclip.core.profiles import PROFILES, STAGE_SETTINGS, settings


def test_root_is_found_from_any_folder_of_the_repository(root):
    assert find_root(root / "nbs") == root
    assert find_root(root / "astroclip" / "core") == root


def test_import_is_light(root):
    code = "import sys, astroclip, astroclip.core.config; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    begin = time.time()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.time() - begin < 10  # not a speed test: a heavy import takes far longer on a cold disk


def test_home_moves_data_and_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROCLIP_HOME", str(tmp_path))
    assert data_root() == tmp_path
    assert resolve("embed", profile="smoke").path.is_relative_to(tmp_path)


@pytest.mark.parametrize(
    "cell, message",
    [
        ({"setps": 9}, "unknown parameter setps"),
        ({"seed": "zero"}, "expected int"),
        ({"seed": 1.0}, "expected int"),
        ({"profile": "huge"}, "expected one of smoke"),
        ({"survey": "sdss"}, "expected one of mock"),
    ],
)
def test_bad_parameters_stop_the_run(cell, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Params.from_cell(cell)


def test_a_key_depends_on_everything_upstream():
    base = resolve("embed", profile="smoke")
    assert base.key == resolve("embed", profile="smoke").key
    assert (
        len({base.key, resolve("embed", profile="smoke", seed=1).key, resolve("embed", profile="mini").key})
        == 3
    )


def test_every_stage_has_the_same_settings_in_every_profile():
    for stage, by_profile in STAGE_SETTINGS.items():
        assert len({tuple(sorted(v)) for v in by_profile.values()}) == 1, stage
    assert set(STAGE_SETTINGS) == set(artifacts.STAGES)
    with pytest.raises(ValueError, match="no setting of"):
        settings("mini", "mock_survey", n_pears=1)
    assert PROFILES["mini"]["mock_survey"]["n_pairs"] == 8000


def test_a_killed_process_leaves_no_artifact_and_its_work_is_kept(tmp_path):
    code = """
import sys, time
from astroclip.core.artifacts import create, resolve
with create(resolve("mock_survey", profile="smoke")) as folder:
    (folder / "chunk").write_text("finished")
    print("go", flush=True); time.sleep(60)
"""
    environment = dict(os.environ, ASTROCLIP_HOME=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    check = """
from astroclip.core.artifacts import create, resolve
a = resolve("mock_survey", profile="smoke")
assert not a.ready
with create(a) as folder:
    assert (folder / "chunk").read_text() == "finished"
assert a.ready and (a.path / "chunk").exists()
"""
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)


def test_the_sidecar_records_settings_inputs_and_files(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROCLIP_HOME", str(tmp_path))
    artifact = resolve("pretrain_image", profile="smoke")
    with create(artifact) as folder:
        (folder / "weights").write_text("w")
    record = json.loads((artifact.path / "artifact.json").read_text())
    assert record["settings"] == artifact.settings and record["inputs"] == {
        "mock_survey": artifact.inputs["mock_survey"].key
    }
    assert set(record["files"]) == {"weights"} and len(record["files"]["weights"]) == 64


def test_a_full_disk_says_what_to_do(tmp_path):
    with pytest.raises(OSError, match="the disk is full while writing .*run the same command again"):
        with write_atomic(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_ensure_without_a_notebook_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROCLIP_HOME", str(tmp_path))
    monkeypatch.setattr(artifacts, "find_root", lambda: None)
    with pytest.raises(FileNotFoundError, match="work in a clone"):
        ensure("mock_survey", profile="smoke")


def test_a_run_that_waited_does_not_make_it_again(tmp_path):
    "Two runs of one stage at a time: the second waits, finds the result and makes nothing."
    code = """
import time
from astroclip.core.artifacts import claim, create, resolve
a = resolve("mock_survey", profile="smoke")
if claim(a):
    print("claimed", flush=True)
    with create(a) as folder:
        time.sleep(2)
        (folder / "made").write_text("once")
else:
    print("found", (a.path / "made").read_text(), flush=True)
"""
    environment = dict(os.environ, ASTROCLIP_HOME=str(tmp_path))
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(run.communicate()[0] for run in runs) == ["claimed\n", "found once\n"]
    assert not list(tmp_path.rglob(".partial-*"))
