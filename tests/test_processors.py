"The same right answer on every processor: networks under older instruction sets, each in a process of its own."

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("processors.py")
OLDER = {
    "avx2": dict(
        ONEDNN_MAX_CPU_ISA="AVX2",
        ATEN_CPU_CAPABILITY="avx2",
        MKL_ENABLE_INSTRUCTIONS="AVX2",
        OPENBLAS_CORETYPE="Haswell",
        NUMBA_CPU_NAME="generic",
    ),
    "sse41": dict(
        ONEDNN_MAX_CPU_ISA="SSE41",
        ATEN_CPU_CAPABILITY="default",
        MKL_ENABLE_INSTRUCTIONS="SSE4_2",
        OPENBLAS_CORETYPE="Nehalem",
        NUMBA_CPU_NAME="generic",
    ),
}
pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of Intel and AMD processors"
)


def run(arguments, isa=None, **more):
    "The script's last line; a crash is a failure that names its signal and the network under way."
    given = (
        os.environ
        | OLDER.get(isa, {})
        | more
        | dict(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    )
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=given,
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = (done.stdout.splitlines() or ["the imports"])[-1]
    if done.returncode < 0:
        pytest.fail(f"{signal.Signals(-done.returncode).name} under {isa or 'this processor'} during: {last}")
    assert done.returncode == 0, f"during {last}: {done.stderr[-2000:]}"
    return last


def checked_memory():
    "Environment in which glibc looks at the borders of every buffer that is freed; empty where there is no such library."
    if platform.libc_ver()[0] != "glibc" or not any(
        Path(folder, "libc_malloc_debug.so.0").exists()
        for folder in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64")
    ):
        return {}
    return dict(LD_PRELOAD="libc_malloc_debug.so.0", GLIBC_TUNABLES="glibc.malloc.check=3")


def test_small_networks_train_without_breaking_memory():
    "oneDNN writes beyond a buffer in the gradient of a narrow 1 x 1 convolution with a stride (AVX2, channels last): ours never asks for one."
    assert run(["train"], "avx2", **checked_memory()) == "all networks"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    file = tmp_path_factory.mktemp("here") / "answers.npz"
    run(["answers", file])
    return dict(np.load(file))


# Float32 sums in another order, fused or not: a few parts in a million of the largest value. Crops: the compiled kernel's noise
# has a polynomial for the logarithm, and a pixel near the clip of the stretch may fall on either side.
@pytest.mark.parametrize("isa", list(OLDER))
def test_every_processor_gives_the_same_answers(isa, here, tmp_path):
    said = run(["answers", tmp_path / "answers.npz"], isa)
    found = dict(np.load(tmp_path / "answers.npz"))
    assert said == {"avx2": "AVX2 False", "sse41": "DEFAULT False"}[isa], (
        "the older instruction set was not used, or bfloat16 was"
    )
    assert set(found) == set(here)
    for name, values in here.items():
        if values.dtype.kind in "iu":
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        else:
            assert np.abs(found[name] - values).max() <= 2e-5 * max(1.0, np.abs(values).max()), name
