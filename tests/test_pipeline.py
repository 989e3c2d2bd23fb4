"""The run of all notebooks: order, threads, failure and interruption, with small programs in place of notebooks."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from astroclip.core import pipeline
from astroclip.core.artifacts import STAGES
from astroclip.core.config import find_root
from astroclip.core.pipeline import (
    Task,
    TaskFailed,
    check_tasks,
    page_tasks,
    run_tasks,
    stage_tasks,
    study_tasks,
)

ROOT = find_root(Path(__file__).parent)


def program(text):
    "A function that gives every task this Python program; `NAME` in it is the task's name."
    return lambda task: [sys.executable, "-c", text.replace("NAME", task.name)]


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("profile", ["smoke", "mini", "standard", "paper"])
def test_every_list_of_tasks_can_run_on_any_number_of_cores(profile, cores):
    tasks = [*stage_tasks(profile, cores), *page_tasks()]
    order = check_tasks(tasks, cores)
    assert order[0] == "mock_survey" and order[-1] == "scoreboard"
    check_tasks(study_tasks(profile, cores), cores)
    check_tasks(page_tasks(after=()), cores)


def test_two_trainings_run_side_by_side_on_two_cores():
    by_name = {t.name: t for t in stage_tasks("mini", 2)}
    assert by_name["pretrain_spectrum"].threads + by_name["pretrain_image"].threads == 2


def test_makefile_and_pipeline_know_the_same_notebooks():
    make = (ROOT / "Makefile").read_text()
    assert set(re.search(r"^PAGES := (.+)$", make, re.M)[1].split()) == set(pipeline.PAGES)
    assert set(re.search(r"^STUDIES := (.+)$", make, re.M)[1].split()) == set(pipeline.STUDIES)
    named = {t.notebook for t in [*study_tasks("mini", 2), *page_tasks()]}
    assert set(STAGES) <= named
    for notebook in named:
        assert (ROOT / "nbs" / f"{notebook}.ipynb").is_file()


def test_the_makefile_fits_on_a_screen_and_help_lists_every_target():
    make = (ROOT / "Makefile").read_text()
    assert len(make.splitlines()) <= 60
    targets = set(re.findall(r"^([a-z%-]+):(?!=)", make, re.M))
    assert targets == set(re.findall(r"^([a-z%-]+):.*## \S", make, re.M))


def test_one_notebook_is_asked_for_by_its_name(capsys):
    what, alone, params = pipeline.read_words(
        ["one", "redshift", "--profile", "smoke", "--set", "align.shift=2"]
    )
    assert (what, alone.notebook, params.profile, params.set) == ("one", "redshift", "smoke", "align.shift=2")
    for words, said in (
        (["one"], "takes the name"),
        (["pages", "redshift"], "the others none"),
        (["one", "no_such"], "there is no nbs/no_such.ipynb"),
    ):
        with pytest.raises(SystemExit):
            pipeline.read_words(words)
        assert said in capsys.readouterr().err


def test_threads_of_running_tasks_never_exceed_the_cores(tmp_path):
    text = f"""
import os, time
name = r'{tmp_path}/NAME'
open(name, 'w').write(os.environ['OMP_NUM_THREADS']); time.sleep(0.2)
running = [p for p in os.listdir(r'{tmp_path}') if not p.startswith('peak')]
open(r'{tmp_path}/peak-NAME', 'w').write(str(sum(int(open(os.path.join(r'{tmp_path}', p)).read() or 0) for p in running)))
os.remove(name)
"""
    tasks = [Task(f"t{i}", "", threads=1 + i % 2) for i in range(6)]
    assert list(run_tasks(tasks, program(text), n=2)) != []
    assert max(int(p.read_text()) for p in tmp_path.glob("peak-*")) <= 2


def test_a_failure_has_a_name_and_ends_the_others(tmp_path):
    def command(task):
        if task.name == "bad":
            return [
                sys.executable,
                "-c",
                "import time; time.sleep(0.3); raise SystemExit('no such spectrum')",
            ]
        return [sys.executable, "-c", f"import time; time.sleep(30); open(r'{tmp_path}/done', 'w')"]

    begin = time.perf_counter()
    with pytest.raises(TaskFailed, match="(?s)bad failed.*no such spectrum"):
        run_tasks([Task("long", ""), Task("bad", ""), Task("after", "", ("long",))], command, n=2)
    assert time.perf_counter() - begin < 20 and not (tmp_path / "done").exists()


def test_an_interrupted_run_ends_its_notebooks_and_says_that_it_resumes(tmp_path):
    script = f"""
import sys
from astroclip.core import pipeline
pipeline.papermill_command = lambda *a: [sys.executable, "-c", "import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"]
sys.exit(pipeline.main(["reproduce", "--profile", "smoke"]))
"""
    environment = os.environ | dict(ASTROCLIP_HOME=str(tmp_path))
    run = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    for _ in range(300):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    try:
        assert run.wait(30) == 130 and "the same command resumes" in run.stderr.read()
    finally:
        run.kill()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int((tmp_path / "pid").read_text()), 0)
            time.sleep(0.1)
