"""A few damaged files of every kind through every reader; `python tests/fuzz_files.py --n 10000` is the long run."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("fuzz_files", Path(__file__).with_name("fuzz_files.py"))
fuzz_files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz_files)


@pytest.mark.parametrize(
    "kinds, n", [(("fits", "text", "npz"), 70), (("hdf5", "checkpoint", "safetensors", "jpeg"), 80)]
)
def test_damaged_files_are_refused_in_one_sentence(kinds, n):
    import sys

    sys.modules["fuzz_files"] = fuzz_files  # the workers import it by name
    said = []
    rows, failures = fuzz_files.fuzz(n, seed=3, kinds=kinds, echo=said.append)
    assert not failures, "\n".join(said)
    assert sum(map(len, rows.values())) >= n - len(kinds)


def test_a_fault_is_found(tmp_path):
    "The watchman sees a crash, a hang, an error of another type and a program that is started."
    import subprocess
    import sys
    import textwrap

    script = tmp_path / "watch.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, sys, subprocess
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import fuzz_files as f

        def reader(path):
            n = int(path.parent.name)
            if n == 0: os.kill(os.getpid(), 11)
            if n == 1:
                while True: pass
            if n == 2: raise RuntimeError("of another type")
            if n == 3: os.system("true")
            if n == 4: raise ValueError(f"{{path}}: our own sentence")
            return "read"

        f.SECONDS = 1
        f.READERS = dict(f.READERS, text=reader)
        if __name__ == "__main__":
            rows, failures = f.fuzz(6, kinds=("text",), echo=lambda line: None)
            print(sorted(result for _, _, result, _ in failures), len(rows["text"]))
    """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[0] == "['CRASH', 'EXECUTED', 'HANG', 'UNEXPECTED RuntimeError'] 6", (
        done.stderr[-2000:]
    )
