"""Embedding a whole survey: parts that are whole or not there, killed and taken up to the same bits, shared by processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from astroclip.inputs.one_by_one import embed_each, read_each
from astroclip.bulk.part_files import PartPlan, is_finished_part, missing_parts, open_parts, part_path, read_finished_parts
from astroclip.bulk.part_files import read_plan, vector_column, vectors_of, write_part
from astroclip.bulk.whole_surveys import Speed, embed_whole, open_bulk, write_sky_catalog
from astroclip.cli.main import main
from astroclip.core.config import sample_path
from astroclip.formats.shard_files import write_shards
from astroclip.models.astroclip import AstroCLIP
from astroclip.models.specformer import SpecFormer
from astroclip.models.vit import VisionTransformer
from astroclip.surveys.pairs import Survey
from astroclip.surveys.shards import Shards

SMALL = dict(part_rows=32, batch_size=16, report=None)


def tiny(seed=0):
    torch.manual_seed(seed)
    return AstroCLIP(VisionTransformer(24, 12, 8, 1, 2), SpecFormer(80, 40, 8, 1, 2), embed_dim=8).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A model, 150 images in three files, and the run that nobody interrupted."
    place = tmp_path_factory.mktemp("bulk")
    tiny().save_pretrained(place / "model")
    write_shards(place / "images", 150, per_file=60, size=24)
    embed_whole(tiny(), place / "images", place / "whole", **SMALL)
    write_sky_catalog(place / "whole")
    return place


def content(folder, below="parts"):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / below).rglob("*.parquet"))}


def whole_table(folder):
    return pa.concat_tables(read_finished_parts(folder))


def test_rows_names_places_and_vectors(place):
    table, shards = whole_table(place / "whole"), Shards(place / "images")
    assert table["row"].to_pylist() == list(range(150)) and table["id"].type == pa.int64()
    assert np.array_equal(table["id"].to_numpy(), shards.read("targetid"))
    assert np.array_equal(table["ra"].to_numpy(), shards.read("ra"))
    x, there = vectors_of(table["image"])
    assert there.all() and table["image"].type == pa.list_(pa.float16(), 8)
    assert np.allclose(x, tiny().embed_images(shards.read("image")), rtol=2e-3, atol=2e-3)
    z = shards.read("redshift")
    assert np.array_equal(table["redshift"].to_numpy(), z, equal_nan=True)
    flagged = shards.read("maskbits") != 0
    assert [f == "maskbits 2" for f in table["flag"].to_pylist()] == flagged.tolist()


def test_float32_is_exact(place, tmp_path):
    embed_whole(tiny(), place / "images", tmp_path / "run", dtype="float32", **SMALL)
    x, _ = vectors_of(whole_table(tmp_path / "run")["image"])
    images = Shards(place / "images").read("image")
    assert np.array_equal(x[:16], tiny().embed_images(images[:16]))


def test_pairs_have_two_vectors_a_row(tmp_path):
    plan = embed_whole(tiny(), sample_path(), tmp_path / "run", dtype="float32", **SMALL)
    assert plan.modalities == ("image", "spectrum") and plan.rows == 64
    table, survey = whole_table(tmp_path / "run"), Survey(sample_path())
    expected = tiny().embed_spectra(survey.flux(slice(0, 16)), ivar=survey.ivar(slice(0, 16)))
    assert np.array_equal(vectors_of(table["spectrum"])[0][:16], expected)
    assert np.array_equal(table["id"].to_numpy(), survey.targetid)


def test_a_bad_row_keeps_its_name_and_gets_a_reason(place, tmp_path):
    files = write_shards(tmp_path / "images", 150, per_file=60, size=24)
    with h5py.File(files[1], "a") as f:
        f["images"][5], f["images"][6, 0, 12, 12] = 0, np.nan
    embed_whole(tiny(), tmp_path / "images", tmp_path / "run", dtype="float32", **SMALL)
    table, clean = whole_table(tmp_path / "run"), whole_table(place / "whole")
    x, there = vectors_of(table["image"])
    reasons = table["reason"].to_pylist()
    assert not there[65] and reasons[65].startswith("image: ")
    assert [bool(why) for why in reasons] == (~there).tolist() and (~there).sum() <= 2
    assert table["id"].equals(clean["id"])
    good = np.flatnonzero(there)
    assert np.allclose(x[good], vectors_of(clean["image"])[0][good], rtol=2e-3, atol=2e-3)


def test_a_file_that_breaks_on_the_way_costs_the_rows_that_it_lost(tmp_path):
    files = write_shards(tmp_path / "images", 100, per_file=50, size=24)
    with h5py.File(files[1], "a") as f:
        x = f["images"][:]
        del f["images"]
        images = f.create_dataset("images", data=x, chunks=(1, *x.shape[1:]), compression="gzip")
        where = images.id.get_chunk_info_by_coord((3, 0, 0, 0)).byte_offset
    with open(files[1], "r+b") as f:
        f.seek(where)
        f.write(b"\xff" * 64)
    said = []
    embed_whole(tiny(), tmp_path / "images", tmp_path / "run", part_rows=64, report=said.append)
    table = whole_table(tmp_path / "run")
    assert np.flatnonzero(~vectors_of(table["image"])[1]).tolist() == [53]
    assert "cannot be read" in table["reason"].to_pylist()[53]
    assert said[-1].startswith("100 of 100 rows") and "1 without embedding" in said[-1]


def test_a_missing_file_is_refused_or_left_out(tmp_path):
    files = write_shards(tmp_path / "images", 90, per_file=30, size=24)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match="rows 30 to 60 are in no file"):
        embed_whole(tiny(), tmp_path / "images", tmp_path / "run", **SMALL)
    with pytest.warns(UserWarning, match="in no file"):
        plan = embed_whole(tiny(), tmp_path / "images", tmp_path / "run", on_bad="skip", **SMALL)
    assert plan.rows == 60


def test_any_number_of_processes_makes_the_same_parts(place, tmp_path):
    for rank in (2, 0, 1):
        embed_whole(tiny(), place / "images", tmp_path / "run", rank=rank, world=3, **SMALL)
        if rank == 2:
            assert sorted(content(tmp_path / "run")) == ["parts/part-000002.parquet"]
    write_sky_catalog(tmp_path / "run")
    assert content(tmp_path / "run") == content(place / "whole")
    assert content(tmp_path / "run", "catalog/dataset") == content(place / "whole", "catalog/dataset")


def command(place, out, *more):
    words = ["embed", place / "model", place / "images", "-o", f"{out}/", "--device", "cpu", *more]
    return [str(w) for w in [*words, "--part-rows", 32, "--batch-size", 16]]


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_a_killed_run_is_taken_up_to_the_same_bits(place, tmp_path):
    out = tmp_path / "run"
    slow = "import time, astroclip.bulk.whole_surveys as w; write = w.write_part\n"
    slow += "def late(*a):\n    write(*a); time.sleep(0.5)\n"
    slow += "w.write_part = late\nimport sys; from astroclip.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", slow, *command(place, out)]
    with subprocess.Popen(words, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE) as child:
        until = time.monotonic() + 60
        while len(list(out.glob("parts/part-*.parquet"))) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    finished = content(out)
    assert 2 <= len(finished) < 5, "killed in the middle"
    (out / "parts" / ".part-000004.parquet.1.tmp").write_bytes(b"half")
    second = sorted(finished)[1]
    (out / second).write_bytes(finished[second][:-100])  # and the disk lost the end of one
    assert main(command(place, out)) == 0
    assert content(out) == content(place / "whole")
    assert content(out, "catalog/dataset") == content(place / "whole", "catalog/dataset")


@pytest.mark.parametrize("module, skipped", [("astroclip.cli.main", 0), ("astroclip.evaluation.embeddings", 1)])
def test_two_processes_by_torchrun(place, tmp_path, module, skipped):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    words += ["--master-port", "0", "-m", module, *command(place, tmp_path / "run")[skipped:]]
    done = subprocess.run(words, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "process 0: " in done.stderr and "process 1: " in done.stderr and " left" in done.stderr
    assert "a HATS catalogue of 150 rows" in done.stdout
    assert content(tmp_path / "run") == content(place / "whole")


def test_lsdb_opens_the_catalogue(place):
    lsdb = pytest.importorskip("lsdb", reason="lsdb reads HATS catalogues; not installed")
    found = lsdb.open_catalog(str(place / "whole" / "catalog")).compute()
    found = found.sort_values("row")
    table = whole_table(place / "whole")
    assert found["id"].to_list() == table["id"].to_pylist()
    x = np.stack([np.asarray(v, np.float32) for v in found["image"]])
    assert np.array_equal(x, vectors_of(table["image"])[0])


def test_the_command_says_what_is_there_and_does_nothing_twice(place, tmp_path, capsys):
    assert main(command(place, tmp_path / "run")) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main(command(place, tmp_path / "run")) == 0
    said = capsys.readouterr()
    assert "5 of 5 parts are finished already" in said.err and "150 rows in 5 parts" in said.out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def turn_bits(path, first=40):
    content = bytearray(path.read_bytes())
    content[first] ^= 255
    path.write_bytes(content)


def test_a_damaged_part_is_made_again(place, tmp_path, capsys):
    assert main(command(place, tmp_path / "run")) == 0
    turn_bits(part_path(tmp_path / "run", 3))
    shutil.rmtree(tmp_path / "run" / "catalog")
    with pytest.raises(OSError, match="part-000003.parquet cannot be read, it is damaged: the command that began"):
        whole_table(tmp_path / "run")
    capsys.readouterr()
    assert main(command(place, tmp_path / "run")) == 0
    said = capsys.readouterr()
    assert "1 of 5 parts are damaged (3): they are made again" in said.err
    assert "4 of 5 parts are finished already" in said.err and "a HATS catalogue of 150 rows" in said.out
    assert content(tmp_path / "run") == content(place / "whole")
    assert content(tmp_path / "run", "catalog/dataset") == content(place / "whole", "catalog/dataset")


def lose_rows(catalog):
    next(catalog.rglob("Npix=*.parquet")).unlink()


def turn_bits_of_rows(catalog):
    turn_bits(next(catalog.rglob("Npix=*.parquet")))


def lose_description(catalog):
    (catalog / "partition_info.csv").unlink()


@pytest.mark.parametrize("spoil", [lose_rows, turn_bits_of_rows, lose_description])
def test_a_catalogue_that_lost_something_is_made_again(place, tmp_path, capsys, spoil):
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run)
    spoil(run / "catalog")
    said = []
    assert write_sky_catalog(run, report=said.append) == (run / "catalog", 150, 0)
    assert len(said) == 1 and "has lost files or is damaged: it is made again" in said[0]
    assert content(run, "catalog/dataset") == content(place / "whole", "catalog/dataset")
    assert write_sky_catalog(run, report=said.append)[1] == 150 and len(said) == 1


def test_a_name_without_a_suffix_is_a_folder(place, tmp_path, capsys):
    words = [str(w) for w in command(place, tmp_path / "run")]
    words[words.index("-o") + 1] = str(tmp_path / "run")
    assert main(words) == 0 and main(words) == 0  # new, and then there
    assert "150 rows in 5 parts" in capsys.readouterr().out
    words[2] = str(some_rows(tmp_path / "survey.h5"))
    words[words.index("-o") + 1] = str(tmp_path / "other")
    assert main(words) == 0 and (tmp_path / "other" / "catalog").is_dir()


def test_identifiers_may_be_text(tmp_path):
    path = some_rows(tmp_path / "survey.h5", names=("ra", "dec", "image"))
    names = [f"J{i:03d}" for i in range(12)]
    for k, values in enumerate((np.array(names, "S8"), names)):  # of fixed length, and of any
        with h5py.File(path, "a") as g:
            if "targetid" in g:
                del g["targetid"]
            g["targetid"] = values
        run = tmp_path / f"run {k}"
        embed_whole(tiny(), path, run, part_rows=5, report=None)
        embed_whole(tiny(), path, run, part_rows=5, report=None)  # the fingerprint holds
        assert whole_table(run)["id"].to_pylist() == names
        catalog, kept, _ = write_sky_catalog(run)
        found = pa.concat_tables([pq.read_table(p, columns=["id"]) for p in catalog.rglob("Npix=*.parquet")])
        assert kept == 12 and sorted(found["id"].to_pylist()) == names


def test_text_where_integers_are_needed_is_one_sentence():
    from astroclip.formats.sources import hub_targets

    assert hub_targets(np.array(["12", b"13"])).tolist() == [12, 13]
    with pytest.raises(ValueError, match="targetid: 'J0' is no TARGETID"):
        hub_targets(np.array([b"J0", b"J1"]))


@pytest.mark.parametrize(
    "change, why",
    [
        (["-o", "index.h5"], "with a slash"),
        (["--modality", "spectrum"], "the source holds image"),
        (["--part-rows", "0"], "expected at least 1"),
        (["--batch-size", "0"], "expected at least 1"),
    ],
)
def test_the_command_refuses_in_one_line(place, tmp_path, capsys, monkeypatch, change, why):
    monkeypatch.chdir(tmp_path)
    words = command(place, tmp_path / "run")
    assert main([*words, *change]) == 1
    assert why in capsys.readouterr().err and not list(tmp_path.rglob("*.parquet"))


def test_parts_of_two_runs_never_mix(place, tmp_path):
    embed_whole(tiny(), place / "images", tmp_path / "run", **SMALL)
    for other in (dict(dtype="float32"), dict(batch_size=8), dict(part_rows=16)):
        with pytest.raises(ValueError, match=next(iter(other))):
            embed_whole(tiny(), place / "images", tmp_path / "run", **SMALL | other)
    with pytest.raises(ValueError, match="parts of another run .model"):
        embed_whole(tiny(1), place / "images", tmp_path / "run", **SMALL)
    assert content(tmp_path / "run") == content(place / "whole")
    write_sky_catalog(tmp_path / "run")
    embed_whole(tiny(1), place / "images", tmp_path / "run", overwrite=True, **SMALL)
    assert not (tmp_path / "run" / "catalog").exists()
    assert content(tmp_path / "run") != content(place / "whole")


def test_other_rows_are_another_run(tmp_path):
    write_shards(tmp_path / "images", 60, per_file=30, size=24)
    embed_whole(tiny(), tmp_path / "images", tmp_path / "run", **SMALL)
    write_shards(tmp_path / "images", 90, per_file=30, size=24)
    with pytest.raises(ValueError, match="source"):
        embed_whole(tiny(), tmp_path / "images", tmp_path / "run", **SMALL)


def some_rows(path, n=12, names=("targetid", "ra", "dec", "redshift", "image")):
    with h5py.File(sample_path()) as f, h5py.File(path, "w") as g:
        for name in names:
            g[name] = f[name][:n]
    return path


def changed_redshift(file):
    file["redshift"][11] = 9


def changed_pixels(file):
    file["image"][:] = file["image"][:][::-1]


@pytest.mark.parametrize("change", [changed_redshift, changed_pixels])
@pytest.mark.parametrize("time_too", [True, False])
def test_rows_that_changed_under_their_names_are_another_run(tmp_path, change, time_too):
    how = dict(part_rows=6, report=None)
    path = some_rows(tmp_path / "survey.h5")
    embed_whole(tiny(), path, tmp_path / "run", **how)
    part_path(tmp_path / "run", 1).unlink()
    about = os.stat(path)
    with h5py.File(path, "a") as g:
        change(g)
    if not time_too:
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(ValueError, match="parts of another run .source 'content .*, files .* -> 'content "):
        embed_whole(tiny(), path, tmp_path / "run", **how)
    assert missing_parts(tmp_path / "run", read_plan(tmp_path / "run")) == [1]


def test_a_file_of_another_time_is_refused_even_where_the_sample_is_the_same(tmp_path):
    path = some_rows(tmp_path / "survey.h5", 60)
    embed_whole(tiny(), path, tmp_path / "run", **SMALL)
    with h5py.File(path, "a") as g:
        g["redshift"][1] = 9  # none of the rows whose values are noted
    with pytest.raises(ValueError, match="parts of another run .source"):
        embed_whole(tiny(), path, tmp_path / "run", **SMALL)


def test_parts_of_an_older_version_are_not_taken_up(tmp_path):
    path = some_rows(tmp_path / "survey.h5")
    embed_whole(tiny(), path, tmp_path / "run", **SMALL)
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"source": "survey.h5:12:[1, 2, 3]"}))
    with pytest.raises(ValueError, match="an older version did not note what its rows held"):
        embed_whole(tiny(), path, tmp_path / "run", **SMALL)


@pytest.fixture
def plan():
    return PartPlan(model="m", source="s", rows=10, dims=2, part_rows=4, batch_size=4)


def test_a_part_is_whole_of_this_plan_or_not_there(plan, tmp_path):
    open_parts(tmp_path, plan)
    assert [plan.stretch(i) for i in range(3)] == [(0, 4), (4, 8), (8, 10)]
    write_part(tmp_path, plan, 0, {"row": np.arange(4)})
    write_part(tmp_path, plan, 2, {"row": np.arange(2)})
    assert missing_parts(tmp_path, plan) == [1] and missing_parts(tmp_path, plan, 1, 2) == [1]
    assert not is_finished_part(tmp_path, replace(plan, model="n"), 0)
    pq.write_table(pa.table({"row": np.arange(3)}), part_path(tmp_path, 1))
    assert not is_finished_part(tmp_path, plan, 1)
    with pytest.raises(ValueError, match="part 1 has 3 rows, expected 4"):
        write_part(tmp_path, plan, 1, {"row": np.arange(3)})
    with pytest.raises(ValueError, match="1 of 3 parts"):
        next(read_finished_parts(tmp_path))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="nobody knows whose"):
        open_parts(tmp_path, plan)
    with pytest.raises(FileNotFoundError, match="begins a run"):
        read_plan(tmp_path)


def test_the_manifest_is_the_plan(plan, tmp_path):
    open_parts(tmp_path, plan)
    assert json.loads((tmp_path / "manifest.json").read_text())["part_rows"] == 4
    assert read_plan(tmp_path) == plan and read_plan(tmp_path).key == plan.key


def test_vectors_come_back_from_slices_and_chunks():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    there = np.array([True, False, True, True, False, True])
    column = vector_column(x, there, "float32")
    for low, high in ((0, 6), (1, 4), (4, 5), (3, 3)):
        found, kept = vectors_of(column.slice(low, high - low))
        assert np.array_equal(kept, there[low:high])
        assert np.array_equal(found, np.where(there[low:high, None], x[low:high], 0))
    chunked = pa.chunked_array([column.slice(0, 2), column.slice(3, 3)])
    assert np.array_equal(vectors_of(chunked)[0][2], x[3])


def test_halving_finds_every_bad_one():
    def call(rows):
        if {3, 4, 11} & set(rows.tolist()):
            raise ValueError("bad")
        return np.ones((len(rows), 2))

    assert [i for i, (v, _) in enumerate(embed_each(call, 13)) if v is None] == [3, 4, 11]
    assert embed_each(call, 0) == []

    def read(a, b):
        if a <= 3 < b or a <= 9 < b:
            raise OSError("hole")
        return np.arange(a, b)

    x, why = read_each(read, 2, 11)
    assert x.tolist() == [2, 0, 4, 5, 6, 7, 8, 0, 10] and [bool(w) for w in why] == [r in (3, 9) for r in range(2, 11)]


def test_rows_without_a_place_are_no_catalogue(tmp_path):
    with h5py.File(sample_path()) as f, h5py.File(tmp_path / "survey.h5", "w") as g:
        for name in ("targetid", "image", "ra", "dec"):
            g[name] = f[name][:20]
        g["ra"][3] = np.nan
        g["image"][:] = g["image"][:]
    embed_whole(tiny(), tmp_path / "survey.h5", tmp_path / "run", **SMALL)
    assert write_sky_catalog(tmp_path / "run")[1:] == (19, 1)
    with h5py.File(tmp_path / "survey.h5", "a") as g:
        del g["ra"]
    embed_whole(tiny(), tmp_path / "survey.h5", tmp_path / "other", **SMALL)
    assert write_sky_catalog(tmp_path / "other") == (None, 0, 20)


def test_a_survey_without_pixels_or_names(tmp_path):
    with h5py.File(tmp_path / "survey.h5", "w") as g:
        g["targetid"] = np.arange(5)
    with pytest.raises(ValueError, match="neither images nor spectra"):
        embed_whole(tiny(), tmp_path / "survey.h5", tmp_path / "run", **SMALL)
    files = write_shards(tmp_path / "images", 20, per_file=20, size=24)
    with h5py.File(files[0], "a") as g:
        del g["objid"]
    with pytest.raises(ValueError, match="no release, brickid and objid"):
        embed_whole(tiny(), tmp_path / "images", tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_speed_says_what_is_left():
    said = []
    told = Speed(100, said.append, every=0.0)
    told.begin -= 10
    told(20, 1)
    assert said[0].startswith("20 of 100 rows, 2/s, 0:00:4") and said[0].endswith("left, 1 without embedding")


def test_a_source_is_read_by_the_stretch(place):
    with open_bulk(place / "images") as rows:
        assert rows.n == 150 and rows.modalities == ("image",) and rows.simulated
        assert rows.read("image", 58, 63).shape == (5, 3, 24, 24)
    with open_bulk(sample_path()) as rows:
        assert rows.modalities == ("image", "spectrum")


def test_every_copy_of_the_pairs_goes_the_same_way(tmp_path):
    from astroclip.bulk.conversion import convert_pairs

    convert_pairs(sample_path(), tmp_path / "hub", split="none")
    embed_whole(tiny(), sample_path(), tmp_path / "ours", dtype="float32", **SMALL)
    embed_whole(tiny(), tmp_path / "hub", tmp_path / "theirs", dtype="float32", **SMALL)
    ours, theirs = whole_table(tmp_path / "ours"), whole_table(tmp_path / "theirs")
    assert ours["id"].equals(theirs["id"]) and ours["image"].equals(theirs["image"])
    assert ours["spectrum"].equals(theirs["spectrum"])
