"The plan of a large search: its laws by hand, its formula against faiss, what it refuses."

from pathlib import Path

import numpy as np
import pytest

from astroclip.studies.search_plan import SKETCH_COSTS, line_law, measured_costs, power_law, search_plan
from astroclip.studies.search_plan import sketch_bytes

# width, vectors, lists, build, bytes, fastest, median, recall, low, high: 1 ms + 1 ms a million, 8 s at N = 4e5
MADE_UP = tuple(
    (128, n, 1, (n / 1e5) ** 1.5, 0, 1 + n / 1e6, 0, 1, 1, 1) for n in (100_000, 200_000, 400_000)
)


def test_laws_by_hand():
    np.testing.assert_allclose(line_law([1, 3], [5, 11]), (2, 3))
    np.testing.assert_allclose(power_law([1, 4, 16], [3, 6, 12]), (3, 0.5))


def test_a_plan_by_hand():
    plan = search_plan(40_000_000, 128, MADE_UP)  # a hundred times the largest
    np.testing.assert_allclose(plan.query_ms, 41)
    np.testing.assert_allclose(plan.build_hours, [8 * 1000 / 3600] * 2)
    np.testing.assert_allclose(plan.exponent, 1.5)
    lists = 2 ** round(np.log2(4 * np.sqrt(4e7)))
    np.testing.assert_allclose(plan.memory_gb, (4e7 * 32 + lists * 512) / 1e9)
    np.testing.assert_allclose(plan.disk_gb, plan.memory_gb + 4e7 * 256 / 1e9)


def test_bytes_are_those_of_faiss():
    pytest.importorskip("faiss")
    from astroclip.search.engines import build_sketches
    from astroclip.search.parts import parts_of

    for n, width in ((1500, 64), (2000, 256)):
        made = build_sketches(parts_of(np.random.default_rng(0).normal(size=(n, width)), np.arange(n)))
        np.testing.assert_allclose(sketch_bytes(n, width), made.bytes_per_vector)
        np.testing.assert_allclose(sketch_bytes(n, width, made.lists.nlist), made.bytes_per_vector)


def test_goals_at_a_million():
    for width in (128, 1024):
        row = next(row for row in SKETCH_COSTS if row[:2] == (width, 1_000_000))
        assert row[7] >= 0.99 and row[4] < 160


def test_refusals():
    with pytest.raises(ValueError, match="measured were"):
        search_plan(1000, 64)
    for n, y in (([1], [1]), ([2, 2], [1, 3]), ([1, 2], [0, 1]), ([], [])):
        for law in (line_law, power_law):
            with pytest.raises(ValueError, match="a slope needs two sizes"):
                law(n, y)
    with pytest.raises(ValueError, match="at least 1"):
        sketch_bytes(0, 128)


def test_a_table_gives_a_plan(tmp_path):
    path = tmp_path / "table.csv"
    lines = ["name,width,n,threads,recall,single_ms,build_seconds,bytes_per_vector"]
    for width, n, _, build, _, query, *_ in reversed(MADE_UP):
        lines += [f'"astroclip, sketches",{width},{n},1,0.99,{query},{build},{sketch_bytes(n, width, 512)}']
        lines += [f'"astroclip, sketches",{width},{n},2,0.99,7,7,7', f'"faiss, flat",{width},{n},1,1,7,7,7']
    path.write_text("\n".join(lines))
    costs = measured_costs(path)
    assert [row[1:4] for row in costs] == [(n, 512, build) for _, n, _, build, *_ in MADE_UP]
    assert search_plan(40_000_000, 128, costs) == search_plan(40_000_000, 128, MADE_UP)
    assert len(measured_costs(path, threads=2)) == 3 and measured_costs(path, threads=3) == ()
    with pytest.raises(ValueError, match="make bench"):
        measured_costs(tmp_path / "none.csv")


def test_the_committed_table_agrees_with_the_kept_one():
    "Within what two days on one machine differ by."
    table = Path(__file__).parents[1] / "figures" / "tables" / "benchmarks_search.csv"
    ours, kept = (search_plan(76_000_000, 128, costs) for costs in (measured_costs(table), SKETCH_COSTS))
    assert ours.memory_gb == kept.memory_gb and 0.4 < ours.query_ms / kept.query_ms < 2.5
