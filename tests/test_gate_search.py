"The border of the search: identifiers, columns, files and outputs of every kind are right, or refused in one sentence."

import os
import resource
import subprocess
import sys
import time

import h5py
import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from astroclip import SimilarityIndex
from astroclip.core.config import sample_path
from astroclip.files.identifiers import as_identifiers, is_among
from astroclip.cli.main import main
from astroclip.core.outputs import check_output

few = settings(derandomize=True, deadline=None, max_examples=30)
rng = np.random.default_rng(0)


def vectors(n):
    return np.random.default_rng(1).normal(size=(n, 6)).astype("f4")


def both_ways(ids, table=None, **more):
    "An index as built, and as it comes back from a file."
    built = SimilarityIndex.build(vectors(len(ids)), ids, table=table, **more)
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return built, SimilarityIndex.load(built.save(f"{folder}/i.h5"))


# Identifiers

integers = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
)
names = st.lists(
    st.text(min_size=1, max_size=6).filter(lambda s: not s.endswith("\0")), min_size=1, max_size=8
)
BOXES = [
    list,
    np.array,
    lambda x: np.array(x, object),
    Column,
    MaskedColumn,
    pd.Series,
    lambda x: pd.Series(x).astype("category"),
    tuple,
    lambda x: Table({"id": x})["id"],
    lambda x: np.array(x)[::-1][::-1],
    lambda x: np.array(x).astype(np.array(x).dtype.newbyteorder(">")),
]


@few
@given(integers, st.sampled_from(BOXES))
def test_integers_of_64_bits_are_exact_in_every_box(values, box):
    if any(v < 0 for v in values) and any(v >= 2**63 for v in values):
        values = values[:1]  # no 64-bit type holds both
    if getattr(getattr(box(values), "dtype", None), "kind", "") == "f":
        values = values[:1]  # numpy itself has rounded: its type for 0 beside 2**63 is float64
    for index in both_ways(box(values)):
        assert [int(i) for i in index.ids] == values
        wanted, q = values[0], vectors(1)[0]
        assert len(index.search(q, k=99, where={"id": [wanted]})) == values.count(wanted)
        assert len(index.search(q, k=99, exclude=wanted)) == len(values) - values.count(wanted)
        assert wanted not in index.search(wanted, k=99)["id"].tolist()


@few
@given(names, st.sampled_from(BOXES[:9]))
def test_names_are_exact_in_every_box(values, box):
    for index in both_ways(box(values)):
        assert index.ids.tolist() == values
        assert len(index.search(vectors(1)[0], k=99, where={"id": values[0]})) == values.count(values[0])


@pytest.mark.parametrize(
    "ids, says",
    [
        ([1.5, 2.0], "no exact integer"),
        ([2.0**53, 1.0], "digits are lost"),
        (np.array([1e20]), "digits are lost"),
        ([True, False], "bool"),
        ([1, "a"], "mix numbers and text"),
        ([None, 1], "missing"),
        (np.ma.array([1, 2], mask=[0, 1]), "missing"),
        ([float("nan"), 1.0], "missing"),
        (pd.Series([1, None], dtype="Int64"), "missing"),
        (pd.Series(["a", None]), "missing"),
        (["a", ""], "empty"),
        ([2**64], "no 64-bit"),
        ([-1, 2**63], "no 64-bit"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
        (np.array([1 + 2j]), "complex"),
        ([b"\xff"], "UTF-8"),
        (["a\0"], "NUL"),
        (np.eye(2), "expected"),
        ([1, 2] * u.m, "unit"),
        (np.array([2**24 + 2], "f4"), "digits are lost"),
        ([{}, {}], "dict"),
        (Time(["2020-01-01"]), "expected"),
    ],
)
def test_what_is_no_identifier_is_refused(ids, says):
    with pytest.raises(ValueError, match=says):
        as_identifiers(ids)


def test_identifiers_of_another_kind_are_a_slip():
    index = SimilarityIndex.build(vectors(3), [1, 2, 3])
    for call in (
        lambda: index.search("2"),
        lambda: index.search(vectors(1)[0], where={"id": "2"}),
        lambda: index.search(vectors(1)[0], exclude=["2"]),
        lambda: index.search(1.5),
    ):
        with pytest.raises((ValueError, KeyError)):
            call()
    assert (
        is_among(np.array([5], "i8"), np.array([2**64 - 1], "u8")).sum() == 0
        and is_among(np.array([2**64 - 1], "u8"), [-1]).sum() == 0
    )


# Columns

dtypes = st.sampled_from(["?", "i1", ">i2", "u2", "<i4", ">u4", "i8", "u8", "f2", ">f4", "f8", "c8"])


@few
@given(st.data(), dtypes, st.booleans())
def test_plain_columns_come_back_with_their_gaps(data, dtype, masked):
    x = data.draw(hnp.arrays(dtype, 5))
    mask = data.draw(hnp.arrays(bool, 5)) if masked else np.zeros(5, bool)
    column = np.ma.array(x, mask=mask) if masked else x
    for index in both_ways(np.arange(5), {"x": column}):
        back = index.table["x"]
        assert back.dtype == x.dtype.newbyteorder("=") and (np.ma.getmaskarray(back) == mask).all()
        np.testing.assert_array_equal(np.asarray(back)[~mask], x[~mask])
        hits = index.search(vectors(1)[0], k=5)
        assert (np.ma.getmaskarray(hits["x"]) == mask[hits["id"]]).all()


@few
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=6, max_size=6),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
)
def test_ranges_of_integers_are_exact(values, low, high):
    for index in both_ways(
        np.arange(6), {"n": MaskedColumn(np.array(values, "i8"), mask=[0, 0, 0, 0, 0, 1])}
    ):
        found = sorted(index.search(vectors(1)[0], k=6, where={"n": (low, high)})["id"].tolist())
        assert found == [i for i, v in enumerate(values[:5]) if low <= v <= high]
        assert values[0] in index.search(vectors(1)[0], k=6, where={"n": values[0]})["n"].tolist()


def test_rich_tables_of_every_library():
    n = 3
    frame = pd.DataFrame(
        {
            "i": pd.array([1, None, 2**62 + 1], dtype="Int64"),
            "s": ["a", None, "ü"],
            "b": pd.array([True, None, False], dtype="boolean"),
            "c": pd.Series(["x", "y", "x"], dtype="category"),
            "f": pd.array([1.5, None, 2], dtype="Float64"),
            "t": pd.to_datetime(["2020-01-01", None, "2021-01-01"]),
        }
    )
    rich = QTable(
        {
            "q": [1, 2, 3] * u.Mpc,
            "c": SkyCoord([1, 2, 3], [4, 5, 6], unit="deg"),
            "t": Time([50000, 50001, 50002], format="mjd"),
            "v": np.arange(6).reshape(3, 2),
            "m": MaskedColumn(["a", "b", "c"], mask=[0, 1, 0]),
            "by": [b"x", b"y", b"z"],
        }
    )
    for index in both_ways(np.arange(n), frame):
        assert (
            index.table["i"].tolist() == [1, None, 2**62 + 1]
            and index.table["s"].tolist() == ["a", None, "ü"]
            and index.table["b"].tolist() == [True, None, False]
        )
        assert (
            len(index.search(vectors(1)[0], where={"i": (0, 2**62)})) == 1
            and len(index.search(vectors(1)[0], where={"b": True})) == 1
        )
        assert (
            np.isnat(np.asarray(index.table["t"])[1])
            and len(index.search(vectors(1)[0], where={"t": (np.datetime64("2020-06-01"), None)})) == 1
        )
    for index in both_ways(np.arange(n), rich):
        assert (
            index.table["q"].unit == u.Mpc
            and index.table["c"].dec.deg.tolist() == [4, 5, 6]
            and index.table["by"].tolist() == ["x", "y", "z"]
        )
        assert (
            len(index.search(vectors(1)[0], where={"q": (1.5 * u.Mpc, 3000 * u.kpc)})) == 2
            and len(index.search(vectors(1)[0], where={"m": ["a", "b"]})) == 1
        )
        assert len(index.search(vectors(1)[0], where={"t": (50000.5, None)})) == 2 and index.search(
            vectors(1)[0], k=2
        )["v"].shape == (2, 2)
        with pytest.raises(ValueError, match="2,"):
            index.search(vectors(1)[0], where={"v": 1})


@pytest.mark.parametrize(
    "column, says",
    [
        (np.array([{}, 1, 2], object), "column x holds"),
        (np.zeros(3, "f4,i4"), "column x is"),
        ([1, 2], "2 values"),
        ("abc", "one a row"),
        ([2**64, 1, 2], "64-bit"),
        (np.array([1, "a", 2], object), "column x holds"),
    ],
)
def test_a_column_that_cannot_be_kept_is_named_at_build(column, says):
    with pytest.raises(ValueError, match=says):
        SimilarityIndex.build(vectors(3), np.arange(3), table={"x": column})


def test_a_condition_of_another_kind_is_said():
    index = SimilarityIndex.build(
        vectors(3), np.arange(3), table={"z": np.float32([0.1, 0.2, 0.3]), "name": ["a", "b", "c"]}
    )
    q = vectors(1)[0]
    assert len(index.search(q, where={"z": 0.1})) == 1 and len(index.search(q, where={"z": (0.1, 0.2)})) == 2
    for where in (
        {"z": "a"},
        {"name": 3},
        {"z": (0, 1, 2)},
        {"z": 1 * u.m},
        {"colour": 1},
        [0, 1, 2],
        {"z": ("a", "b")},
        {"name": (1, 2)},
    ):
        with pytest.raises(ValueError):
            index.search(q, where=where)
    assert len(index.search(q, where=np.ma.array([True, True, False], mask=[1, 0, 0]))) == 1
    assert len(index.search(q, where=pd.array([True, None, False], dtype="boolean"))) == 1


def test_any_container_of_vectors_and_no_false_ones():
    import torch

    x = vectors(4)
    want = SimilarityIndex.build(x, range(4)).search(x[0], k=4)["similarity"]
    for box in (
        x.tolist(),
        x.astype(">f8"),
        torch.tensor(x),
        torch.tensor(x).double(),
        pd.DataFrame(x),
        np.ma.array(x),
        x * np.float32(1e30),
    ):
        np.testing.assert_allclose(
            SimilarityIndex.build(box, range(4)).search(x[0], k=4)["similarity"], want, atol=1e-6
        )
    for bad, says in (
        (np.ma.array(x, mask=x == x[1, 1]), "finite"),
        (x * np.inf, "finite"),
        (x * 0, "all zero"),
        (x * np.float32(1e-9), "shorter"),
        (x[0], "expected"),
        (x[:0], "at least one"),
    ):
        with pytest.raises(ValueError, match=says):
            SimilarityIndex.build(bad, range(len(bad)))


def test_files_of_the_first_schema_are_read(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as f:
        f.attrs["schema"], text = "astroclip-index-1", h5py.string_dtype()
        f["vectors"], f["id"], f["table/z"] = vectors(2), np.array([2**62 + 1, 5]), [0.1, 0.2]
        f.create_dataset("modality", data=np.array(["image", "image"], object), dtype=text)
        f.create_dataset("table/name", data=np.array(["a", "b"], object), dtype=text)
    index = SimilarityIndex.load(tmp_path / "old.h5")
    assert (
        index.ids.tolist() == [2**62 + 1, 5]
        and index.table["name"].tolist() == ["a", "b"]
        and index.model == ""
        and index.check_model("x") is False
    )


def test_damaged_indices_are_one_error(tmp_path):
    path = SimilarityIndex.build(
        vectors(30), np.arange(30), table={"t": Time(np.arange(30) + 5e4, format="mjd"), "s": ["a"] * 30}
    ).save(tmp_path / "i.h5")
    content, random = path.read_bytes(), np.random.default_rng(3)
    for _ in range(60):
        spoiled = bytearray(content)
        for at in random.integers(0, len(content), 8):
            spoiled[at] = random.integers(256)
        path.write_bytes(spoiled[: random.integers(len(content) // 2, len(content) + 1)])
        try:
            SimilarityIndex.load(path)
        except ValueError as error:
            assert str(path) in str(error)


# The program


def run(capsys, *words):
    status = main([str(w) for w in words])
    return (status, *capsys.readouterr())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with two models of one size and a survey of 12 galaxies."
    import torch
    from astroclip import AstroCLIP, SpecFormer, VisionTransformer

    folder = tmp_path_factory.mktemp("gate")
    for seed in (0, 1):
        torch.manual_seed(seed)
        AstroCLIP(
            VisionTransformer(96, 12, 24, 1, 2), SpecFormer(80, 40, 24, 1, 2), embed_dim=16
        ).save_pretrained(folder / f"m{seed}")
    with h5py.File(sample_path()) as f, h5py.File(folder / "survey.h5", "w") as g:
        for name in ("targetid", "redshift", "magnitude", "ra", "dec", "image", "flux", "ivar"):
            g[name] = f[name][:12]
    assert (
        main(
            [
                "embed",
                str(folder / "m0"),
                str(folder / "survey.h5"),
                "-o",
                str(folder / "i.h5"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    return folder


def cutout(path, noise=0.01, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    h = fits.Header()
    h.update(
        BANDS="grz",
        CTYPE1="RA---TAN",
        CTYPE2="DEC--TAN",
        CRVAL1=150.0,
        CRVAL2=2.0,
        CRPIX1=85.5,
        CRPIX2=85.5,
        CD1_1=-0.262 / 3600,
        CD2_2=0.262 / 3600,
        **more,
    )
    fits.PrimaryHDU(
        np.random.default_rng(len(str(path))).normal(0, noise, (3, 170, 170)).astype("f4"), h
    ).writeto(path)


def test_outputs_that_are_inputs_or_taken_are_refused_before_the_work(capsys, place, tmp_path):
    before = (place / "survey.h5").read_bytes()
    os.symlink(place / "survey.h5", tmp_path / "soft.h5")
    os.link(place / "survey.h5", place / "hard.h5")
    weights = place / "m0" / "model.safetensors"
    for output in (
        place / "survey.h5",
        tmp_path / "soft.h5",
        place / "hard.h5",
        place / "m0" / ".." / "survey.h5",
        weights,
    ):
        for more in ([], ["--overwrite"]):
            status, _, err = run(
                capsys, "embed", place / "m0", place / "survey.h5", "-o", output, "--device", "cpu", *more
            )
            assert status == 1 and "also an input" in err.splitlines()[-1]
    (place / "hard.h5").unlink()
    kept = (place / "i.h5").read_bytes()
    assert "there already" in run(capsys, "embed", place / "m0", place / "survey.h5", "-o", place / "i.h5")[2]
    for output, says in (
        (tmp_path, "is a folder"),
        ("/dev/null", "no plain file"),
        (place / "survey.h5" / "x.h5", "is a file"),
        ("/proc/x/y.h5", "cannot write"),
    ):
        assert says in run(capsys, "embed", place / "m0", place / "survey.h5", "-o", output, "--overwrite")[2]
    id = SimilarityIndex.load(place / "i.h5").ids[0]
    for output, says in (
        (place / "i.h5", "written as"),
        (tmp_path / "t.xlsx", "written as"),
        (tmp_path / "none.csv" / "..", "folder"),
    ):
        status, _, err = run(capsys, "search", place / "i.h5", id, "-o", output, "--overwrite")
        assert status == 1 and says in err or "written as" in err
    assert (
        (place / "survey.h5").read_bytes() == before
        and (place / "i.h5").read_bytes() == kept
        and weights.exists()
    )
    (tmp_path / "t.csv").write_text("mine")
    assert (
        run(capsys, "search", place / "i.h5", id, "-o", tmp_path / "t.csv")[0] == 1
        and (tmp_path / "t.csv").read_text() == "mine"
    )
    assert run(capsys, "search", place / "i.h5", id, "-o", tmp_path / "t.csv", "--overwrite")[0] == 0
    assert (
        run(capsys, "convert", place / "m0", place / "m0", "--overwrite")[0] == 1
        and run(capsys, "convert", place / "m0", tmp_path / "t.csv")[0] == 1
    )
    assert (
        run(capsys, "train-image", place / "survey.h5", place / "survey.h5")[0] == 1
        and run(capsys, "mock", tmp_path / "t.csv")[0] == 1
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_said(tmp_path):
    os.chmod(tmp_path, 0o555)
    with pytest.raises(OSError, match="not yours"):
        check_output(tmp_path / "x.h5")


def test_one_bad_file_costs_one_file_and_the_account_has_all(capsys, place, tmp_path):
    for name in ("J1/cutout.fits", "J2/cutout.fits", "b.FITS"):
        cutout(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.fits").write_bytes(b"SIMPLE  =                    T")
    (tmp_path / "in" / "empty.fits").touch()
    (tmp_path / "in" / "notes.md").touch()
    status, out, err = run(
        capsys,
        "embed",
        place / "m0",
        tmp_path / "in",
        tmp_path / "in" / "b.FITS",
        "-o",
        tmp_path / "i.h5",
        "--device",
        "cpu",
    )
    index, told = SimilarityIndex.load(tmp_path / "i.h5"), Table.read(tmp_path / "i.report.csv")
    assert (
        status == 0
        and sorted(index.ids) == ["J1/cutout", "J2/cutout", "b"]
        and "passed over 1" in err
        and "notes.md" in err
    )
    assert (
        len(told) == 6
        and sorted(told["status"]) == ["embedded"] * 3 + ["left out"] * 2 + ["passed over"]
        or "flagged" in told["status"]
    )
    assert "broken.fits" in err and len(index.search("J1/cutout", k=9)) == 2
    with h5py.File(place / "survey.h5") as f, h5py.File(tmp_path / "bad.h5", "w") as g:
        for name in f:
            g[name] = f[name][:]
        g["ivar"][2], g["image"][4] = 0, np.nan
    assert (
        run(capsys, "embed", place / "m0", tmp_path / "bad.h5", "-o", tmp_path / "b.h5", "--device", "cpu")[0]
        == 0
    )
    told = Table.read(tmp_path / "b.report.csv")
    assert (
        len(told) == 24
        and (told["status"] != "left out").sum() == len(SimilarityIndex.load(tmp_path / "b.h5")) == 22
    )


def test_an_index_refuses_queries_of_another_model(capsys, place, tmp_path):
    index = SimilarityIndex.load(place / "i.h5")
    cutout(tmp_path / "q.fits")
    query = ["search", place / "i.h5", tmp_path / "q.fits", "-k", 2, "--device", "cpu", "--model"]
    status, _, err = run(capsys, *query, place / "m1")
    assert status == 1 and index.model in err and "made by model" in err
    assert run(capsys, *query, place / "m0")[0] == 0
    from astroclip import AstroCLIP
    from astroclip.files.weight_files import describe_safetensors

    assert describe_safetensors(place / "m0")["model"] == index.model
    assert (
        SimilarityIndex.build(
            vectors(1), [1], model=AstroCLIP.from_pretrained(place / "m0", device="cpu")
        ).model_sha256
        == index.model_sha256
    )


def test_conditions_of_the_command_line_keep_64_bits(capsys, tmp_path):
    ids = np.array([2**64 - 1, 2**64 - 2, 2**63 + 1], "u8")
    path = SimilarityIndex.build(vectors(3), ids, table={"name": ["007", "8", "c"], "host": ids}).save(
        tmp_path / "u.h5"
    )
    assert (
        run(
            capsys,
            "search",
            path,
            2**64 - 1,
            "-o",
            tmp_path / "t.csv",
            "--where",
            f"id={2**64 - 2},{2**63 + 1}",
            "--where",
            f"host={2**64 - 2}",
        )[0]
        == 0
    )
    assert Table.read(tmp_path / "t.csv", converters={"*": str})["id"].tolist() == [str(2**64 - 2)]
    status, out, _ = run(capsys, "search", path, 2**64 - 1, "--where", "name=8")
    assert status == 0 and str(2**64 - 2) in out
    for words, says in (
        (["77"], "no galaxy"),
        (["abc"], "integers such as"),
        (["4.6e18"], "integers such as"),
        ([2**64 - 1, "--where", "nam=8"], "no column"),
        ([2**64 - 1, "--where", "host=x"], "numbers"),
        ([2**64 - 1, "-k", "0"], "at least 1"),
    ):
        status, _, err = run(capsys, "search", path, *words)
        assert status == 1 and says in err and len(err.splitlines()) == 1, err


def fresh(*words, **more):
    "(status, stdout, stderr, seconds) of the program in a process of its own."
    start = time.perf_counter()
    code = "import sys; from astroclip.cli.main import main; s = main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr); sys.exit(s)"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, **more
    )
    return done.returncode, done.stdout, done.stderr, time.perf_counter() - start


def test_info_and_search_by_id_need_no_torch_and_slips_neither(place):
    id = SimilarityIndex.load(place / "i.h5").ids[0]
    for status, words in (
        (0, ["info", place / "m0"]),
        (0, ["search", place / "i.h5", id]),
        (1, ["embed", place / "modle", place / "survey.h5", "-o", place / "new.h5"]),
        (1, ["train-image", "nowhere/survey.h5", place / "run"]),
    ):
        code, _, err, _ = fresh(*words, env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"})
        assert code == status and err.splitlines()[-1] == "False", (words, err)


def test_a_word_comes_before_torch_and_a_missing_hub_is_said_at_once(place):
    (place / "broken.fits").write_bytes(b"SIMPLE")
    code, _, err, _ = fresh(
        "embed", place / "m0", place / "broken.fits", "-o", place / "first.h5", "--device", "cpu"
    )
    assert code == 1 and err.startswith("loading torch ...") and "nothing to embed" in err
    code, _, err, seconds = fresh(
        "info", "nobody/nothing", env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert code == 1 and "cannot be reached" in err and "Traceback" not in err


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_is_one_sentence(place, tmp_path):
    "A limit on the size of files stands for a disk that fills up while HDF5 writes."
    path = SimilarityIndex.build(np.random.default_rng(0).normal(size=(500, 64)), np.arange(500)).save(
        tmp_path / "big.h5"
    )
    code = f"from astroclip import SimilarityIndex; i = SimilarityIndex.load({str(path)!r}); i.save({str(tmp_path / 'new.h5')!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=small_files
    )
    assert (
        "the disk is full while writing" in done.stderr.splitlines()[-1]
        and not list(tmp_path.glob("new*"))
        and not list(tmp_path.glob(".new*"))
    )


def test_ctrl_c_says_what_the_same_command_does(capsys, monkeypatch):
    from astroclip.cli import embedding, training

    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "align", stop)
    monkeypatch.setattr(embedding, "embed", stop)
    for words, says in (
        (["align", "s", "f", "--image", "i", "--spectrum", "s"], "the same command resumes"),
        (["embed", "m", "s", "-o", "o"], "starts again"),
    ):
        status, _, err = run(capsys, *words)
        assert status == 130 and says in err and len(err.strip().splitlines()) == 1


def test_a_survey_of_one_kind_is_embedded_as_far_as_it_goes(capsys, place, tmp_path):
    with h5py.File(place / "survey.h5") as f, h5py.File(tmp_path / "spectra.h5", "w") as g:
        for name in ("targetid", "redshift", "flux", "ivar"):
            g[name] = f[name][:4]
    status, _, err = run(
        capsys, "embed", place / "m0", tmp_path / "spectra.h5", "-o", tmp_path / "s.h5", "--device", "cpu"
    )
    index = SimilarityIndex.load(tmp_path / "s.h5")
    assert (
        status == 0
        and "one kind only" in err
        and len(index) == 4
        and set(index.modality) == {"spectrum"}
        and "magnitude_r" not in index.table.colnames
    )
    assert (
        run(
            capsys,
            "embed",
            place / "m0",
            tmp_path / "spectra.h5",
            "-o",
            tmp_path / "t.h5",
            "--device",
            "cpu",
            "--modality",
            "image",
        )[0]
        == 1
    )
