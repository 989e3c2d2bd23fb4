"""What is taken from the pages of Parquet as it lies there is bit by bit what pyarrow reads, or pyarrow is asked."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroclip.formats.hats_files import nested_lists, nested_table
from astroclip.formats.hdf5_columns import NotASurvey
from astroclip.formats.parquet_pages import expected_levels, plain_rows, read_runs, shape_in_levels
from astroclip.formats.parquet_rows import ParquetFiles, array_of, ragged

ROWS = 37
WRITTEN = [
    dict(compression=codec, data_page_version=version, use_dictionary=dictionary)
    for codec, version, dictionary in itertools.product(
        ("none", "snappy", "zstd", "gzip"), ("1.0", "2.0"), (False, True)
    )
]
WRITTEN += [
    dict(compression="lz4"),
    dict(data_page_size=200),
    dict(data_page_size=200, data_page_version="2.0"),
    dict(dictionary_pagesize_limit=64, use_dictionary=True),  # begins with a dictionary and gives up
    dict(use_byte_stream_split=True, use_dictionary=False),
    dict(version="1.0", write_page_checksum=True),
]


def opened(path, table, **options):
    pq.write_table(table, path, **dict(row_group_size=16) | options)
    return ParquetFiles([path])


def by_both(files, name, decode):
    "A column by the pages where they allow it, and by pyarrow alone; how many groups the pages gave."
    quick = [files.plain(g, name) for g in range(len(files.groups))]
    column = files.column(name, decode)
    seen = column[0 : len(files)]
    slow = np.concatenate([decode(files.read(g, name), name) for g in range(len(files.groups))])
    return seen, slow, sum(x is not None for x in quick)


def assert_same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    if a.dtype == object:
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def numbers(rng, shape, dtype, few):
    x = rng.integers(0, 5, shape) if few else rng.normal(size=shape)
    x = (x > 0) if dtype == "?" else x.astype(dtype)
    if dtype != "?":
        x.ravel()[rng.random(x.size) < 0.02] = np.nan  # a number like any other
    return x


@pytest.mark.parametrize("options", WRITTEN, ids=str)
def test_lists_of_one_shape(tmp_path, options):
    rng = np.random.default_rng(0)
    for few, dtype, shape in itertools.product((False, True), ("f4", "f8", "?"), ((), (1,), (13,), (3, 8), (2, 5, 7))):
        x = numbers(rng, (ROWS, *shape), dtype, few)
        if options.get("use_byte_stream_split") and dtype == "?":
            continue
        files = opened(tmp_path / "a.parquet", pa.table({"x": nested_lists(x)}), **options)
        seen, slow, quick = by_both(files, "x", array_of)
        assert_same(seen, slow)
        assert_same(seen, x)
        refused = options.get("compression") == "lz4" or options.get("use_byte_stream_split")
        if refused:
            assert quick == 0
        elif "data_page_size" not in options:
            assert quick == len(files.groups), (few, dtype, shape)
        if shape:
            seen, slow, _ = by_both(files, "x", ragged)
            assert_same(seen, slow)


@pytest.mark.parametrize("options", WRITTEN, ids=str)
def test_lists_of_any_length_and_gaps(tmp_path, options):
    rng = np.random.default_rng(1)
    uneven = [list(rng.normal(size=k)) for k in rng.integers(0, 9, ROWS)]
    gap = [[1.0, None, 3.0] if i == 20 else [1.0, 2.0, 3.0] for i in range(ROWS)]
    for rows in (uneven, gap):
        files = opened(tmp_path / "a.parquet", pa.table({"x": pa.array(rows, pa.list_(pa.float32()))}), **options)
        seen, slow, quick = by_both(files, "x", ragged)
        assert_same(seen, slow)
        assert [len(x) for x in seen] == [len(x) for x in rows]
    assert np.isnan(array_of(files.read(1, "x"))[4, 1]), "the gap lies in row 20"
    for rows in (uneven, [[1.0]] * 20 + [None] * 17, [[1.0]] * 20 + [[]] * 17, [[[1.0]], [[1.0], [2.0]]] * 10):
        kind = pa.list_(pa.float32()) if not isinstance(rows[0][:1] and rows[0][0], list) else None
        files = opened(tmp_path / "b.parquet", pa.table({"x": pa.array(rows, kind)}), row_group_size=64, **options)
        assert files.plain(0, "x") is None
        with pytest.raises(NotASurvey):
            files.column("x")[:]


def test_fields_of_structures_and_other_kinds_of_lists(tmp_path):
    rng = np.random.default_rng(2)
    flux, mask = rng.normal(size=(ROWS, 2, 9)).astype("f4"), rng.random((ROWS, 4)) < 0.5
    table = nested_table({"image.flux": flux, "image.mask": mask, "ra": rng.random(ROWS)})
    one = [[dict(flux=float(v), ivar=1.0) for v in row] for row in mask]
    kind = pa.list_(pa.struct(dict(flux=pa.float32(), ivar=pa.float32())))
    table = table.append_column("spectrum", pa.array(one, kind))
    whole = pa.FixedSizeListArray.from_arrays(pa.array(flux.ravel()), 18)
    table = table.append_column("whole", whole).append_column("large", nested_lists(flux).cast(pa.large_list(pa.list_(pa.float32()))))
    table = table.append_column("short", pa.array(rng.integers(0, 9, ROWS), pa.int16()))
    table = table.append_column("half", pa.array(flux[:, 0, 0].astype(np.float16)))
    files = opened(tmp_path / "a.parquet", table)
    for name in ("image.flux", "image.mask", "ra", "spectrum.flux", "whole", "large"):
        seen, slow, quick = by_both(files, name, array_of)
        assert_same(seen, slow)
        assert quick == len(files.groups), name
    for name in ("short", "half"):
        seen, slow, quick = by_both(files, name, array_of)
        assert_same(seen, slow)
        assert quick == 0
    assert files.plain(0, "image") is None  # two leaves are no column


def test_rows_longer_than_a_page(tmp_path):
    x = np.random.default_rng(3).normal(size=(5, 40, 50)).astype("f4")
    for version in ("1.0", "2.0"):
        options = dict(data_page_size=1000, data_page_version=version, use_dictionary=False, row_group_size=5)
        files = opened(tmp_path / "a.parquet", pa.table({"x": nested_lists(x)}), **options)
        assert_same(*by_both(files, "x", array_of)[:2])


def packed(values, width):
    "One run of packed values: the inverse of `read_runs`, written the slow way."
    bits = [(v >> b) & 1 for v in values for b in range(width)] + [0] * (-len(values) % 8 * width)
    return bytes([((len(values) + 7) // 8) << 1 | 1]) + np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.parametrize("width", (1, 2, 3, 7, 8, 9, 13, 18, 25, 31, 32))
def test_runs_of_every_width(width):
    values = np.random.default_rng(width).integers(0, 2**width, 29)
    size = (width + 7) // 8
    content = packed(values[:24].tolist(), width) + bytes([14]) + int(values[24]).to_bytes(size, "little")
    content += packed(values[25:].tolist(), width)
    expected = [*values[:24], *[values[24]] * 7, *values[25:]]
    assert read_runs(content, width, len(expected)).tolist() == expected
    assert read_runs(memoryview(content), width, 20).tolist() == expected[:20]


def test_runs_of_one_length_follow_each_other():
    rng = np.random.default_rng(8)
    pieces = [rng.integers(0, 32, 16).tolist() for _ in range(7)]
    content = b"".join(packed(p, 5) for p in pieces[:3]) + bytes([20, 9])
    content += b"".join(packed(p, 5) for p in pieces[3:6]) + packed(pieces[6][:11], 5)
    expected = sum(pieces[:3], []) + [9] * 10 + sum(pieces[3:6], []) + pieces[6][:11]
    for n in (16, 47, 48, 50, 58, 90, len(expected)):
        assert read_runs(content, 5, n).tolist() == expected[:n]


def test_levels_prove_a_shape_only_if_every_list_has_it():
    levels = expected_levels(4, (3, 5))
    assert levels[:15].tolist() == [0, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1, 2, 2, 2, 2]
    there = bytes([120, 5])  # 60 times level 5
    assert shape_in_levels(60, packed(levels.tolist(), 2), there, (2, 5)) == (4, 3, 5)
    for i in range(60):
        for other in {0, 1, 2} - {levels[i]}:
            changed = levels.copy()
            changed[i] = other
            assert shape_in_levels(60, packed(changed.tolist(), 2), there, (2, 5)) is None, (i, other)


def test_a_damaged_page_is_one_error_or_noticed(tmp_path):
    "Whatever bit is wrong, the checksum of a page says so; a wrong head is no crash."
    x = np.random.default_rng(4).normal(size=(20, 6, 7)).astype("f4")
    path = tmp_path / "a.parquet"
    opened(path, pa.table({"x": nested_lists(x)}), write_page_checksum=True, compression="zstd")
    whole = path.read_bytes()
    end = pq.read_metadata(path).row_group(0).column(0).total_compressed_size
    rng = np.random.default_rng(5)
    for at in rng.choice(np.arange(4, 4 + end), 200, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            seen = ParquetFiles([path]).column("x")[:16]
        except (OSError, NotASurvey):
            continue
        assert_same(seen, x[:16])


def test_the_pages_are_asked_where_they_can_answer(tmp_path):
    x = np.random.default_rng(6).normal(size=(8, 3, 4)).astype("f4")
    files = opened(tmp_path / "a.parquet", pa.table({"x": nested_lists(x)}))
    file = files.file(0)
    assert_same(plain_rows(files.files[0], file.metadata, file.schema_arrow, 0, 0), x)
    files.read = None  # pyarrow is not asked
    assert_same(files.column("x")[2:5], x[2:5])
