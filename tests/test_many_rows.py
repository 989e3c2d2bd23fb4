"Answers to many galaxies: blocks that resume to the same bytes, memory that does not grow, tables of every kind."

import tracemalloc
from argparse import Namespace

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from astroclip.cli import checking, predicting
from astroclip.cli.main import main
from astroclip.core.outputs import limits_of_format, table_format, write_table
from astroclip.inputs import tasks
from astroclip.opinions import answer_blocks

from many_rows import save_predictor, save_second_opinion, write_many

COMMANDS = {"predict": (predicting, save_predictor), "check": (checking, save_second_opinion)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_ends_between_blocks_resumes_to_the_same_bytes(tmp_path, monkeypatch, capsys, command):
    module, save = COMMANDS[command]
    model, source = save(tmp_path / "model"), write_many(tmp_path / "survey.h5", 80)
    written, write = [], module.write_block

    def stops(columns, path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(columns, path)

    def words(name):
        out = ["-o", str(tmp_path / name), "--batch-size", "32", "--device", "cpu"]
        return [command, str(source), "--model", str(model), *out]

    assert main(words("whole.csv")) == 0, capsys.readouterr().err
    monkeypatch.setattr(module, "write_block", stops)
    assert main(words("parts.csv")) == 130
    assert written == ["000000.npz", "000001.npz"] and not (tmp_path / "parts.csv").exists()
    written.clear()
    assert main(words("parts.csv")) == 0 and written == ["000002.npz"]
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_files_go_on_after_the_last_one_that_is_known(tmp_path):
    paths = [tmp_path / f"{i}.fits" for i in range(5)]
    for path in paths:
        path.write_bytes(b"SIMPLE")
    rest = list(predicting.of_files(paths, (str(paths[1]), 0)))
    assert [g.id for g in rest] == ["2.fits", "3.fits", "4.fits"]


def test_blocks_of_files_end_with_a_task(monkeypatch):
    "Three galaxies in each task, two at least in each block: what is read again is none."
    monkeypatch.setattr(checking, "read_task", lambda task, column: [task] * 3)
    found = list(checking.galaxies_in_blocks(iter("abcd"), None, 4))
    assert [(last, len(galaxies)) for last, galaxies in found] == [(1, 6), (3, 6)]
    found = list(checking.galaxies_in_blocks(iter("abcd"), None, 4, first=3))
    assert [(last, len(galaxies)) for last, galaxies in found] == [(3, 3)]


def peak(call):
    "MB that Python and numpy hold at most while something runs."
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return most


def some_blocks(folder, n, size=100):
    paths = []
    for start in range(0, n, size):
        note = np.array(["a sentence about a file that cannot be read, " * 10, *[""] * (size - 1)])
        columns = {f"x{i}": np.full(size, 0.5) for i in range(10)}
        columns |= dict(note=note, file=np.full(size, "/a/folder/with/a/long/name/survey.h5"))
        paths.append(folder / f"{start // size:06d}.npz")
        answer_blocks.write_block(columns, paths[-1])
    return paths


def test_joining_takes_the_room_of_its_answers(tmp_path):
    "Four times the rows, beyond the thousand that are text at once: a row costs its 96 bytes, not its widest note."

    def join(paths):
        write_table(Table(answer_blocks.read_blocks(paths), copy=False), tmp_path / "out.ecsv")

    join(some_blocks(tmp_path, 200))  # imports
    few, many = (peak(lambda paths=some_blocks(tmp_path, n): join(paths)) for n in (1200, 4800))
    assert many - few < 3600 * 300e-6, (few, many)


def test_tasks_and_their_fingerprint_are_made_one_by_one(tmp_path):
    table = Table(dict(spectrum=[f"{i}.fits" for i in range(4000)]))
    args = Namespace(redshift=None, batch_size=8, pictures=None)

    def ask(n):
        checking.question_key(args, tasks.list_tasks(table[:n], tmp_path, None, None), {})

    ask(10)
    few, many = peak(lambda: ask(200)), peak(lambda: ask(4000))
    assert many - few < 1, (few, many)


@pytest.mark.parametrize("suffix", [".ecsv", ".fits", ".parquet", ".vot", ".csv"])
def test_round_trip(tmp_path, suffix):
    "Masked numbers, units, texts beyond ASCII, identifiers of 64 bits."
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    table = Table(dict(id=np.array([2**60 + 1, 39627000000000001]), name=np.array(["gälaxy", "b"], object)))
    table["z"] = MaskedColumn([0.1, 0.2], mask=[False, True])
    table["age"] = [1.0, 2.0]
    table["age"].unit = "Gyr"
    kept, said = limits_of_format(table, f"t{suffix}")
    path = write_table(kept, tmp_path / f"t{suffix}")
    again = Table.read(path, format=table_format(path))
    assert [int(x) for x in again["id"]] == [2**60 + 1, 39627000000000001]
    name = "g\\xe4laxy" if suffix == ".fits" else "gälaxy"
    assert [str(x) for x in again["name"].astype(str)] == [name, "b"]
    assert again["z"][0] == 0.1 and (np.ma.is_masked(again["z"][1]) or np.isnan(again["z"][1]))
    assert str(again["age"].unit) == ("None" if suffix == ".csv" else "Gyr")
    assert len(said) == (suffix in (".fits", ".csv")) and all(".ecsv keeps" in sentence for sentence in said)


def test_what_a_format_cannot_hold_is_said(tmp_path):
    with pytest.raises(ValueError, match="cannot be written as votable .*; .ecsv keeps all of them"):
        write_table(Table(dict(id=np.array([2**64 - 1], "u8"), x=np.array([[1j]]))), tmp_path / "t.vot")


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_gaps_among_integers_hide_no_value_in_fits(tmp_path, dtype):
    "A gap is written as an integer: it may be none that is there, the largest of the kind and 999999 included."
    span = np.iinfo(dtype)
    values = [span.min, 1, span.max, min(span.max, 2**63 - 1), min(span.max, 999999), min(span.max, 2**63 - 1) - 1]
    table = Table(dict(x=MaskedColumn(np.array(values, dtype), mask=np.arange(6) == 1)))
    again = Table.read(write_table(table, tmp_path / "t.fits"))
    assert again["x"].tolist() == [values[0], None, *values[2:]]
    assert table["x"].dtype == dtype and table["x"].tolist() == again["x"].tolist()
    plain = Table(dict(x=np.array(values, dtype)))
    assert Table.read(write_table(plain, tmp_path / "p.fits"))["x"].tolist() == values


@pytest.mark.parametrize("suffix", [".fits", ".vot", ".ecsv", ".csv"])
def test_a_missing_truth_value_stays_missing(tmp_path, suffix):
    table = Table(dict(good=MaskedColumn([True, False, True, False], mask=[False, False, True, True])))
    kept, said = limits_of_format(table, f"t{suffix}")
    for given in (table, kept):
        again = Table.read(write_table(given, tmp_path / f"t{suffix}"), format=table_format(f"t{suffix}"))["good"]
        assert again.mask.tolist() == [False, False, True, True]
        assert [str(x) for x in again[:2]] == (["1", "0"] if suffix == ".fits" else ["True", "False"])
    assert [".ecsv keeps good" in sentence for sentence in said] == [True] * (suffix == ".fits")
    assert table["good"].tolist() == [True, False, None, None]
    whole = Table(dict(good=MaskedColumn([True, False])))
    assert limits_of_format(whole, f"t{suffix}")[1] == []


def test_several_truth_values_a_row(tmp_path):
    gaps = [[True, False], [False, False]]
    table = Table(dict(good=MaskedColumn([[True, False], [True, True]], mask=gaps)))
    again = Table.read(write_table(table, tmp_path / "t.fits"))["good"]
    assert again.mask.tolist() == gaps and again.tolist() == [[None, 0], [1, 1]]
    with pytest.raises(ValueError, match="column good has missing truth values.*.ecsv keeps"):
        write_table(table, tmp_path / "t.vot")


@pytest.mark.parametrize("suffix", [".csv", ".fits", ".vot"])  # ECSV so is written, and astropy does not read it
def test_no_rows_can_be_written(tmp_path, suffix):
    table = Table(dict(id=np.arange(2), mag=np.zeros((2, 3)), name=["a", "b"]))
    assert len(Table.read(write_table(table[:0], tmp_path / f"t{suffix}"), format=table_format(f"t{suffix}"))) == 0
    head = (tmp_path / f"t{suffix}").read_text().splitlines() if suffix == ".csv" else ["id,mag_0,mag_1,mag_2,name"]
    assert head == ["id,mag_0,mag_1,mag_2,name"]
