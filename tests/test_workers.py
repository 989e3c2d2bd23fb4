"Many tasks at once: results, errors, output and threads of the workers."

import math
import os
import subprocess
import sys

import pytest

from astroclip.core.workers import cores, workers

SCRIPT = """
import numba
import torch
from astroclip.core.workers import workers


def threads():
    print("counted in", "a worker")
    return torch.get_num_threads(), numba.get_num_threads()


if __name__ == "__main__":
    with workers(2) as run:
        print("threads", set(run([(threads,)] * 4)))
"""


def test_workers_of_a_script_use_one_thread_and_speak_in_whole_lines(tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    said = subprocess.run(
        [sys.executable, tmp_path / "run.py"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | dict(OMP_NUM_THREADS="3", NUMBA_NUM_THREADS="3"),
    ).stdout.splitlines()
    assert said.count("counted in a worker") == 4 and "threads {(1, 1)}" in said and len(said) == 5


@pytest.mark.parametrize("n", [1, 2])
def test_all_tasks_are_done_and_an_error_is_the_callers(n):
    with workers(n) as run:
        assert sorted(run((math.sqrt, i * i) for i in range(9))) == list(range(9))
    with pytest.raises(ValueError, match="math domain"), workers(n) as run:
        list(run((math.sqrt, -i) for i in range(3)))


def test_cores_are_those_of_this_process():
    assert 1 <= cores() <= os.cpu_count()
