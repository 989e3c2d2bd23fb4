"The program: help with an example, results, and one clear line on bad input, in a fresh process where it matters."

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from astroclip.core.config import sample_path, shared_root
from astroclip.cli.main import COMMANDS, main
from astroclip.search.similarity import SimilarityIndex


def run(capsys, *words):
    "(status, stdout, stderr) of the program."
    try:
        status = main([str(w) for w in words])
    except SystemExit as leave:
        status = leave.code
    return (status, *capsys.readouterr())


def fails(capsys, *words, says):
    status, out, err = run(capsys, *words)
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("astroclip ")]
    assert status == 1 and len(lines) == 1 and says in lines[0] and "Traceback" not in err, err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from astroclip import AstroCLIP, SpecFormer, VisionTransformer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cli") / "model"
    AstroCLIP(
        VisionTransformer(image_size=96, patch_size=12, embed_dim=24, depth=1, num_heads=2),
        SpecFormer(window=80, stride=40, embed_dim=24, depth=1, num_heads=2),
        embed_dim=16,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def index(model):
    path = model.parent / "index.h5"
    assert main(["embed", str(model), str(sample_path()), "-o", str(path), "--device", "cpu"]) == 0
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(capsys, name):
    status, out, _ = run(capsys, name, "--help")
    assert status == 0 and f"example:\n  astroclip {name}" in out


def test_help_is_instant_and_imports_no_torch():
    start = time.perf_counter()
    code = "import sys; sys.argv = ['astroclip', '--help']; from astroclip.cli.main import main\ntry: main()\nexcept SystemExit: pass\nassert not {'torch', 'numpy', 'h5py', 'astropy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train-spectrum" in done.stdout and time.perf_counter() - start < 2


def test_no_command_prints_help_and_version(capsys):
    assert run(capsys)[0] == 0
    assert run(capsys, "--version")[1].startswith("astroclip ")
    assert run(capsys, "fly")[0] == 2 and run(capsys, "embed")[0] == 2


def test_info_and_convert(capsys, model, tmp_path):
    status, out, _ = run(capsys, "info", model)
    assert status == 0 and "kind: AstroCLIP" in out and "sha256" in out
    fails(capsys, "info", tmp_path / "none", says="no such file")
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    fails(capsys, "info", tmp_path / "junk.ckpt", says="junk.ckpt")
    fails(capsys, "convert", tmp_path / "junk.ckpt", tmp_path / "new", says="junk.ckpt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    fails(capsys, "convert", model, tmp_path / "full", says="not empty")


@pytest.mark.skipif(not shared_root(), reason="needs the golden checkpoints")
def test_convert_an_official_checkpoint(capsys, tmp_path):
    sources = sorted(shared_root().rglob("*.ckpt"))
    if not sources:
        pytest.skip("no official checkpoint at hand")
    for source in sources[:3]:
        status, out, err = run(capsys, "convert", source, tmp_path / source.stem)
        if status == 0:
            return  # head counts may have to be given for the others
    assert "num_heads" in err or "heads" in err


def test_embed_and_search(capsys, index, tmp_path):
    i = SimilarityIndex.load(index)
    assert len(i) == 128 and set(i.modality) == {"image", "spectrum"}
    status, out, _ = run(
        capsys,
        "search",
        index,
        i.ids[7],
        "-k",
        3,
        "--where",
        "modality=spectrum",
        "--where",
        "redshift=0:0.4",
        "-o",
        tmp_path / "hits.csv",
    )
    assert status == 0 and len(out.strip().splitlines()) == 6
    rows = (tmp_path / "hits.csv").read_text().splitlines()
    assert (
        rows[0].startswith("rank,id,modality,similarity,redshift")
        and len(rows) == 4
        and str(i.ids[7]) not in rows[1]
    )


def test_a_file_has_chances_as_a_galaxy_of_the_index_has(capsys, model, index, tmp_path):
    from astropy.table import Table

    from astroclip.data.spectrum_grid import WAVELENGTH
    from astroclip.surveys.pairs import Survey

    survey, mine = Survey(sample_path()), tmp_path / "mine.csv"
    columns = dict(wavelength=WAVELENGTH, flux=survey.flux([3])[0], ivar=survey.ivar([3])[0])
    Table(columns).write(mine, format="ascii.csv")
    asked = ("search", index, mine, "--model", model, "--device", "cpu", "-k", 4, "--where", "modality=image")
    status, out, err = run(capsys, *asked, "--chance", "-o", tmp_path / "hits.ecsv")
    assert status == 0 and "chance" in out, err
    hits, i = Table.read(tmp_path / "hits.ecsv"), SimilarityIndex.load(index)
    assert ((hits["chance"] > 0) & (hits["chance"] <= 1)).all()  # no magnitude of the file is known
    own = i.search(i.vector(survey.targetid[3], "spectrum"), 4, {"modality": "image"}, chance=True)
    assert own["id"].tolist() == hits["id"].tolist()
    np.testing.assert_allclose(hits["chance"], own["chance"], atol=0.04)  # a rank or two among sixty
    assert run(capsys, *asked)[0] == 0
    poor = SimilarityIndex.build(i.vectors, i.ids, i.modality, model=i.model_sha256).save(tmp_path / "poor.h5")
    fails(capsys, "search", poor, i.ids[3], "--chance", says="chance needs the columns magnitude_g")


def cutout_file(path, image, ra, dec, **more):
    from astropy.io import fits

    header = dict(BANDS="grz", CRPIX1=76.5, CRPIX2=76.5, CRVAL1=ra, CRVAL2=dec, CTYPE1="RA---TAN", CTYPE2="DEC--TAN")
    header |= dict(CD1_1=-0.262 / 3600, CD2_2=0.262 / 3600, CD1_2=0.0, CD2_1=0.0, BUNIT="nanomaggy") | more
    hdu = fits.PrimaryHDU(image.astype(np.float32))
    hdu.header.update(header)
    hdu.writeto(path)


def test_ones_own_cutouts_have_places_magnitudes_and_chances(capsys, model, tmp_path):
    from astropy.table import Table

    from astroclip.data.photometry import APERTURE, aperture_fluxes, magnitudes
    from astroclip.surveys.pairs import Survey

    survey = Survey(sample_path())
    (tmp_path / "mine").mkdir()
    images = survey.images(slice(0, 60))
    for i, image in enumerate(images):
        fine = {}
        if i == 3:  # the same light on pixels of half the size
            image = np.repeat(np.repeat(image, 2, 1), 2, 2) / 4
            fine = dict(CRPIX1=152.5, CRPIX2=152.5, CD1_1=-0.131 / 3600, CD2_2=0.131 / 3600)
        cutout_file(tmp_path / "mine" / f"g{i:02d}.fits", image, survey.ra[i], survey.dec[i], **fine)
    assert run(capsys, "embed", model, tmp_path / "mine", "-o", tmp_path / "i.h5", "--device", "cpu")[0] == 0
    found = SimilarityIndex.load(tmp_path / "i.h5")
    np.testing.assert_allclose(found.table["ra"], survey.ra[:60], atol=1e-6)
    np.testing.assert_allclose(found.table["dec"], survey.dec[:60], atol=1e-6)
    expected = magnitudes(aperture_fluxes(images, APERTURE))
    for band, values in zip("grz", expected.T):
        np.testing.assert_allclose(found.table[f"magnitude_{band}"], values, atol=1e-3)
    asked = ("search", tmp_path / "i.h5", "g07", "-k", 5, "--chance", "-o", tmp_path / "hits.ecsv")
    assert run(capsys, *asked)[0] == 0
    hits = Table.read(tmp_path / "hits.ecsv")
    assert ((hits["chance"] > 0) & (hits["chance"] <= 1)).all() and "g07" not in hits["id"].tolist()
    few = [tmp_path / "mine" / f"g{i:02d}.fits" for i in range(5)]
    assert run(capsys, "embed", model, *few, "-o", tmp_path / "few.h5", "--device", "cpu")[0] == 0
    status, out, err = run(capsys, "search", tmp_path / "few.h5", "g01", "--chance")
    assert status == 0 and "nan" in out and "fewer than 40 others" in err
    near = (f"{float(survey.ra[9])}", f"{float(survey.dec[9])}")
    status, _, err = run(capsys, "search", tmp_path / "i.h5", "--position", *near, "-k", 2)
    assert status == 0 and "g09" in err


def test_search_by_everything(capsys, model, index, tmp_path):
    from astroclip.search.marks import Marks, index_hash, save_marks

    i = SimilarityIndex.load(index)
    ra, dec = (float(i.table[name][7]) for name in ("ra", "dec"))
    image = ("--where", "modality=image")
    _, by_id, _ = run(capsys, "search", index, i.ids[7], "-k", 2, *image)
    status, by_place, said = run(capsys, "search", index, "-k", 2, *image, "--position", ra, dec + 1 / 3600)
    assert status == 0 and by_place == by_id and '1.0" from' in said
    status, out, _ = run(capsys, "search", index, "-k", 2, i.ids[7], i.ids[8], *image)  # queries after an option
    assert status == 0 and out.startswith(f"{i.ids[7]}:") and f"{i.ids[8]}:" in out
    like = ("--like", i.ids[7], "--like", i.ids[8], "--unlike", i.ids[9])
    status, out, _ = run(capsys, "search", index, *like, "-k", 3, "--modality", "both", "--apart", 1, "--chance")
    assert status == 0 and "chance" in out and not any(str(i.ids[row]) in out for row in (7, 8, 9))
    status, out, _ = run(capsys, "search", index, i.ids[7], "--chance", "-k", 1, "--where", f"cone={ra}:{dec}:180")
    assert status == 0 and "chance" in out and len(out.strip().splitlines()) == 3
    path = save_marks(Marks(i.ids[:4], i.ids[4:9], index_hash(i)), tmp_path / "m.json")
    status, out, _ = run(capsys, "search", index, "--marks", path, "-k", 2, "-o", tmp_path / "hits.ecsv")
    assert status == 0 and "score" in out and (tmp_path / "hits.ecsv").is_file()
    fails(capsys, "search", index, "--marks", path, "--chance", says="leave one of the two out")
    assert i.simulated and "legacysurvey" not in (tmp_path / "hits.ecsv").read_text()
    fails(capsys, "search", index, says="nothing to look for")
    fails(capsys, "search", index, "--position", 0, 89, says="the nearest is")
    fails(capsys, "search", index, i.ids[7], "--marks", path, says="give no query")
    fails(capsys, "search", index, i.ids[7], "--where", "cone=1:2", says="cone=ra:dec:radius")
    fails(capsys, "search", index, "--marks", index, says="no file of marks")


def test_bad_input_is_one_line(capsys, model, index, tmp_path):
    fails(capsys, "embed", model, tmp_path / "nowhere", "-o", tmp_path / "x.h5", says="no such file")
    fails(capsys, "embed", tmp_path, sample_path(), "-o", tmp_path / "x.h5", says=str(tmp_path))
    (tmp_path / "broken.fits").write_bytes(b"SIMPLE  =                    T")
    fails(
        capsys, "embed", model, tmp_path, "-o", tmp_path / "x.h5", "--device", "cpu", says="nothing to embed"
    )
    cut = tmp_path / "cut.h5"
    cut.write_bytes(sample_path().read_bytes()[:100_000])
    fails(capsys, "embed", model, cut, "-o", tmp_path / "x.h5", "--device", "cpu", says="truncated")
    assert not (tmp_path / "x.h5").exists()
    fails(capsys, "search", index, "77", says="no galaxy 77")
    fails(capsys, "search", tmp_path / "none.h5", "77", says="no index")
    fails(capsys, "search", cut, "77", says="cannot be read")
    fails(capsys, "search", index, 2**62, "--where", "colour=1", says="no column")
    fails(capsys, "search", index, 2**62, "--where", "redshift", says="column=value")
    fails(capsys, "search", index, sample_path(), says="--model")
    fails(
        capsys,
        "train-image",
        tmp_path / "none.h5",
        tmp_path / "run",
        "--profile",
        "smoke",
        "--device",
        "cpu",
        says="none.h5",
    )
    fails(
        capsys,
        "train-spectrum",
        tmp_path / "none.h5",
        "-o",
        tmp_path / "run",
        "--profile",
        "smoke",
        "--device",
        "cpu",
        says="none.h5",
    )
    fails(
        capsys,
        "align",
        sample_path(),
        tmp_path / "run",
        "--image",
        tmp_path / "vit",
        "--spectrum",
        tmp_path / "spec",
        says="vit",
    )
    fails(capsys, "mock", tmp_path / "survey", "--pairs", "-1", says="-1")
    assert run(capsys, "telescope")[0] == 2  # no such command


@pytest.mark.skipif(not shared_root(), reason="needs real files")
def test_real_files_in_a_folder(capsys, model, tmp_path):
    "Whatever lies in a folder: readable files are embedded, the others named, each on a line."
    images = [p for p in sorted((shared_root() / "real").rglob("*.fits*")) if p.stat().st_size < 2e6][:12]
    if not images:
        pytest.skip("no small FITS files")
    status, out, err = run(capsys, "embed", model, *images, "-o", tmp_path / "i.h5", "--device", "cpu")
    assert status == 0 and "Traceback" not in err
    found = SimilarityIndex.load(tmp_path / "i.h5")
    assert np.isfinite(found.vectors).all() and "file" in found.table.colnames


def test_the_three_trainings_from_the_command_line(capsys, tmp_path):
    common = ["--profile", "smoke", "--steps", "2", "--device", "cpu"]
    assert run(capsys, "train-image", sample_path(), tmp_path / "i", *common)[0] == 0
    assert run(capsys, "train-spectrum", sample_path(), "-o", tmp_path / "s", *common)[0] == 0
    towers = ["--image", tmp_path / "i" / "vit", "--spectrum", tmp_path / "s" / "specformer"]
    for folder, flags in (("a", []), ("b", ["--train-image-tower"])):
        assert run(capsys, "align", sample_path(), tmp_path / folder, *towers, *flags, *common)[0] == 0
        assert (tmp_path / folder / "astroclip" / "model.safetensors").is_file()
    fails(capsys, "train-image", sample_path(), tmp_path / "i", *common, says="there already")


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    "An index with columns that are easily harmed: long numbers, dates, truth values, names that are ours too."
    from astropy.table import MaskedColumn, Table
    from astropy.time import Time

    n, noise = 40, np.random.default_rng(0)
    table = Table(dict(ra=150 + np.arange(n) / 100, dec=np.full(n, -0.005), query=[f"q{i}" for i in range(n)]))
    table["mjd"], table["flux"] = 58849.162456789 + np.arange(n), 123495.789 + np.arange(n)
    table["viewer"], table["score"] = [f"my note {i}" for i in range(n)], np.arange(n) * 1.0
    table["date"] = np.array("2020-01-01T00:30", "M8[m]") + np.arange(n) * np.timedelta64(1, "D")
    table["day"] = table["date"].astype("M8[D]")
    table["seen"], table["start"] = Time(table["date"].astype(str)), Time(58849.0 + np.arange(n), format="mjd")
    table["good"] = MaskedColumn(np.ones(n, bool), mask=np.arange(n) % 2 == 0)
    table["size"] = noise.normal(size=(n, 2))
    path = tmp_path_factory.mktemp("notes") / "notes.h5"
    return SimilarityIndex.build(noise.normal(size=(n, 8)), np.arange(n), table=table).save(path)


def test_a_written_table_has_every_digit(capsys, notes, tmp_path):
    from astropy.table import Table

    for suffix in (".csv", ".fits", ".ecsv"):
        status, out, err = run(capsys, "search", notes, 3, "-k", 5, "-o", tmp_path / f"x{suffix}")
        assert status == 0 and "58849.2" in out or "588" in out, err
        back, format = tmp_path / f"x{suffix}", {".csv": "ascii.csv", ".ecsv": "ascii.ecsv"}.get(suffix, "fits")
        hits = Table.read(back, format=format)
        np.testing.assert_array_equal(hits["mjd"], 58849.162456789 + np.asarray(hits["id"]))
        np.testing.assert_array_equal(hits["flux"], 123495.789 + np.asarray(hits["id"]))
        assert [str(v) for v in hits["viewer"].astype(str)] == [f"my note {i}" for i in hits["id"]]
        assert hits["good"].mask.tolist() == [i % 2 == 0 for i in hits["id"]]
        assert (".ecsv keeps good" in err) == (suffix == ".fits")
    none = ("search", notes, 3, "--where", "score=99:", "-o")
    assert run(capsys, *none, tmp_path / "none.csv")[0] == 0
    assert len((tmp_path / "none.csv").read_text().splitlines()) == 1


def test_a_search_keeps_its_inputs_and_the_users_columns(capsys, model, index, notes, tmp_path):
    from astropy.table import Table

    mine = tmp_path / "like.fits"
    cutout_file(mine, np.ones((3, 96, 96)), 10.0, 2.0)
    before = mine.read_bytes()
    for side in ("--like", "--unlike"):
        asked = ("search", index, side, mine, "-o", mine, "--overwrite", "--model", model)
        fails(capsys, *asked, says="is also an input")
    assert mine.read_bytes() == before
    status, _, err = run(capsys, "search", notes, 3, 4, "-k", 2, "-o", tmp_path / "two.ecsv")
    assert status == 0, err
    two = Table.read(tmp_path / "two.ecsv")
    assert two["query"].astype(str).tolist() == ["3", "3", "4", "4"]
    assert two["index_query"].tolist() == [f"q{i}" for i in two["id"]]


def test_marks_take_nothing_that_they_would_pass_over(capsys, notes, tmp_path):
    from astroclip.search.marks import Marks, index_hash, save_marks

    path = save_marks(Marks([1, 2], [3], index_hash(SimilarityIndex.load(notes))), tmp_path / "m.json")
    status, out, _ = run(capsys, "search", notes, "--marks", path, "-k", 2)
    assert status == 0 and "index_score" in out
    for words in (["--unlike", "nonsense"], ["--apart", 5], ["--modality", "image"], ["--row", 0], ["--like", 4]):
        fails(capsys, "search", notes, "--marks", path, *words, says=f"give no {words[0]} with it")


@pytest.mark.parametrize(
    "condition, ids",
    [
        ("day=2020-01-03:2020-01-05", [2, 3, 4]),
        ("day=2020-01-03", [2]),
        ("day=2020-01-03,2020-01-07", [2, 6]),
        ("day=:2020-01-02", [0, 1]),
        ("date=2020-01-03T00:30:2020-01-04T00:31", [2, 3]),
        ("date=2020-01-03T00:31:2020-01-04T00:30", [3]),
        ("date=2020-02-08T00:30:", [38, 39]),
        ("date=2020-02-08T00:30", [38]),
        ("seen=2020-01-03T00:30:2020-01-04T00:30", [2, 3]),
        ("seen=2020-02-08:", [38, 39]),
        ("start=58850:58851", [1, 2]),
        ("start=2020-01-03:2020-01-04", [2, 3]),
    ],
)
def test_dates_can_be_ranged(capsys, notes, condition, ids):
    status, out, err = run(capsys, "search", notes, "--position", 150.2, "-5e-3", "-k", 40, "--where", condition)
    assert status == 0 and 'is 0.0" from 150.2 -0.005' in err
    found = sorted(int(line.split()[1]) for line in out.splitlines()[2:])
    assert found == [i for i in ids if i != 20]


def test_dates_that_are_none(capsys, notes):
    fails(capsys, "search", notes, 3, "--where", "day=monday:friday", says="day holds dates")
    fails(capsys, "search", notes, 3, "--where", "seen=monday:", says="seen holds times")


@pytest.mark.parametrize("apart", ["nan", "-1", "1.3e6"])
def test_a_distance_that_is_none(capsys, notes, apart):
    fails(capsys, "search", notes, 3, f"--apart={apart}", says="expected an angle in arcsec")
