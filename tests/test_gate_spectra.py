"""The gate where spectra come in: any container, any unit, any way to say "missing", and never a silent wrong answer."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astroclip.data.arrays import as_floats, as_mask

u = pytest.importorskip("astropy.units")
few = settings(derandomize=True, deadline=None, max_examples=25)
REAL = ["f2", "f4", "f8", "g", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
numbers = st.lists(st.integers(0, 100), min_size=2, max_size=9)


# ---- containers


def boxes(values, bad):
    "The same numbers, with `bad` of them missing, in every box that can hold them."
    import pandas as pd
    import pyarrow as pa
    from astropy.table import MaskedColumn
    from astropy.utils.masked import Masked

    floats = np.where(bad, np.nan, values)
    some = [None if b else float(v) for v, b in zip(values, bad)]
    whole = [None if b else int(v) for v, b in zip(values, bad)]
    return {
        "list": some,
        "tuple of scalars": tuple(np.ma.masked if b else np.float32(v) for v, b in zip(values, bad)),
        "float32": floats.astype("f4"),
        "masked": np.ma.array(values.astype(">i4"), mask=bad),
        "Masked": Masked(values.astype(float), mask=bad),
        "MaskedColumn": MaskedColumn(values, mask=bad),
        "Series": pd.Series(floats),
        "Int64": pd.Series(whole, dtype="Int64"),
        "Float32": pd.array(some, dtype="Float32"),
        "arrow Series": pd.Series(whole, dtype="int32[pyarrow]"),
        "arrow": pa.array(whole),
        "chunked": pa.chunked_array([whole[:1], whole[1:]], type=pa.int16()),
        "sparse Series": pd.Series(pd.arrays.SparseArray(floats)),
        "half": torch.tensor(floats).half(),
        "bfloat16": torch.tensor(floats).bfloat16(),
        "gradient": torch.tensor(floats, requires_grad=True),
        "tensors": [torch.tensor(v) for v in floats],
    }


@few
@given(numbers, st.data())
def test_every_container_gives_the_same_numbers(values, data):
    values = np.array(values)
    bad = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    for name, box in boxes(values, bad).items():
        got = as_floats(box)
        assert got.dtype.isnative and got.flags.c_contiguous and got.dtype in (np.float32, np.float64), name
        np.testing.assert_array_equal(got, np.where(bad, np.nan, values), err_msg=name)
        np.testing.assert_array_equal(as_mask(box), bad | (values != 0), err_msg=name)
    rows = [list(boxes(values, bad).values())[i] for i in (0, 3, 5, 10, 13)]
    np.testing.assert_array_equal(as_floats(rows), np.tile(np.where(bad, np.nan, values), (5, 1)))


@few
@given(st.sampled_from(REAL), st.sampled_from("<>"), st.sampled_from([1, -1, 3]), st.booleans())
def test_every_dtype_order_and_stride(dtype, order, step, fortran):
    table = np.arange(84, dtype=float).reshape(7, 12)
    array = table.astype(np.dtype(dtype).newbyteorder(order), order="F" if fortran else "C")[::step, ::step]
    got = as_floats(array)
    assert got.dtype == (np.float32 if dtype == "f4" else np.float64) and got.dtype.isnative and got.flags.c_contiguous
    np.testing.assert_array_equal(got, table[::step, ::step])


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_memory_maps_frames_and_lists_in_columns(tmp_path):
    import pandas as pd
    import pyarrow as pa

    x = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    frame = pd.DataFrame(x, columns=list("abc")).astype({"b": "Int32", "c": "float32"})
    for box in (np.load(tmp_path / "x.npy", mmap_mode="r"), frame, pa.array(x.tolist()), pd.Series(list(x)), pa.table({c: x[:, i] for i, c in enumerate("abc")}),
                np.matrix(x), pa.array(x.tolist(), type=pa.list_(pa.float32(), 3)), torch.tensor(x).to_sparse(), [np.ma.array(r) for r in x]):
        np.testing.assert_array_equal(as_floats(box), x)
    assert type(as_floats(np.matrix(x))) is np.ndarray and as_floats(3.5).shape == () and as_floats([]).shape == (0,)


def refused():
    import pandas as pd
    import pyarrow as pa
    from astropy.table import Table
    from astropy.time import Time

    return {"booleans": [True, False], "complex": np.ones(2, complex), "text": ["1", "2"], "bytes": np.array([b"1"]), "dates": np.array(["2026-01-01"], "M8[D]"),
            "records": np.zeros(2, [("a", "f4")]), "Python objects": np.array([1.0, None], object), "dict": {"a": 1}, "dtype str": pd.Series(["a"]),
            "category": pd.Series([1, 2], dtype="category"), "datetime64": pd.Series(pd.to_datetime(["2026-01-01"]).tz_localize("UTC")), "type string": pa.array(["a"]),
            "column 'b' of flux": pd.DataFrame({"a": [1.0], "b": ["x"]}), "whole table": Table({"a": [1.0]}), "Time": Time.now(), "different shapes": [[1.0], [1.0, 2.0]],
            "complex numbers": torch.ones(2, dtype=torch.complex64), "unit Jy": [1.0] * u.Jy, "without data": torch.ones(2, device="meta")}


@pytest.mark.parametrize("message", refused())
def test_what_is_no_number_is_refused_by_name(message):
    with pytest.raises(ValueError, match="flux") as error:
        as_floats(refused()[message], "flux")
    assert message in str(error.value)


def test_opening_a_list_loads_no_library():
    code = "import sys; from astroclip.data.arrays import as_floats; as_floats([1, None]); print({'astropy', 'pandas', 'torch', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
