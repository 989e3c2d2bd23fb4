"""Folders for the hub: `datasets` loads them, a killed conversion goes on, and a stand-in for the hub takes them."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")

from astroclip.bulk import hub_folder  # noqa: E402
from astroclip.bulk.conversion import convert_pairs, pixel_hash  # noqa: E402
from astroclip.bulk.hub_builder import AstroClipDataset  # noqa: E402
from astroclip.bulk.hub_card import check_hub_folder  # noqa: E402
from astroclip.cli.main import main  # noqa: E402
from astroclip.core.config import sample_path  # noqa: E402
from astroclip.formats.original_file import write_original  # noqa: E402
from astroclip.surveys.leakage import freeze_split  # noqa: E402
from astroclip.surveys.pairs import Survey, open_pairs  # noqa: E402

N = 150


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "astroclip_desi.1.1.5.h5"
    rng = np.random.default_rng(3)
    image = rng.normal(size=(N, 3, 152, 152)).astype("f4")
    write_original(
        path, image, rng.normal(size=(N, 7781)), rng.random(N), 39627652591521181 + rng.permutation(N)
    )
    return path


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    return convert_pairs(original, tmp_path_factory.mktemp("hub") / "pairs", file_bytes=2**24)


def cached(tmp_path):
    return dict(cache_dir=str(tmp_path / "cache"))


def test_load_dataset_takes_the_folder(folder, original, tmp_path):
    pairs = datasets.load_dataset(str(folder), **cached(tmp_path))
    survey = open_pairs(original, split="paper")
    assert (
        pairs["train"].num_rows == (survey.split == 0).sum()
        and pairs["test"].num_rows == (survey.split == 2).sum()
    )
    assert pairs["train"].features["image"] == datasets.Array3D((152, 152, 3), "float32")
    assert pairs["train"].features["spectrum"] == datasets.Array2D((7781, 1), "float32")
    row = np.flatnonzero(survey.split == 0)[5]
    one = pairs["train"].with_format("numpy")[5]
    assert one["targetid"] == survey.targetid[row]
    np.testing.assert_array_equal(one["image"], survey.images([row])[0].T)
    np.testing.assert_array_equal(one["spectrum"][:, 0], survey.flux([row])[0])


def test_streaming_and_columns(folder, original, tmp_path):
    survey = open_pairs(original)
    stream = datasets.load_dataset(str(folder), split="test", streaming=True)
    one = next(iter(stream))
    row = np.flatnonzero(survey.targetid == one["targetid"])
    np.testing.assert_array_equal(np.asarray(one["image"], "f4").transpose(2, 1, 0), survey.images(row)[0])
    files = str(folder / "data" / "train-*.parquet")
    some = datasets.load_dataset(
        "parquet", data_files=files, columns=["targetid", "redshift"], **cached(tmp_path)
    )
    assert some["train"].column_names == ["redshift", "targetid"] or some["train"].column_names == [
        "targetid",
        "redshift",
    ]
    assert set(some["train"]["targetid"]) <= set(survey.targetid.tolist())


def test_the_cache_of_datasets_is_a_source(folder, original, tmp_path):
    datasets.load_dataset(str(folder), **cached(tmp_path))
    (cache,) = {p.parent for p in (tmp_path / "cache").rglob("*.arrow")}
    assert pixel_hash(cache) == pixel_hash(original)
    split = open_pairs(cache, split="own").split
    assert np.bincount(split).tolist() == np.bincount(open_pairs(original, split="paper").split).tolist()


def test_the_builder_gives_what_the_script_gave(original, tmp_path):
    builder = AstroClipDataset(config_name="joint", source=original, **cached(tmp_path))
    builder.download_and_prepare()
    pairs, survey = builder.as_dataset(), open_pairs(original, split="paper")
    assert list(pairs) == ["train", "test"]
    for name, k in (("train", 0), ("test", 2)):
        rows = np.flatnonzero(survey.split == k)
        assert pairs[name]["targetid"][:] == survey.targetid[rows].tolist()
        one = pairs[name].with_format("numpy")[7]
        np.testing.assert_array_equal(one["image"], survey.images(rows[7:8])[0].T)
        np.testing.assert_array_equal(one["spectrum"][:, 0], survey.flux(rows[7:8])[0])


def test_the_cache_of_the_builder_is_of_the_files_not_of_their_name(tmp_path, monkeypatch):
    "One relative name in two folders, and one file written twice: each time the galaxies that are there."

    def write(path, ids):
        image, flux = np.zeros((len(ids), 3, 152, 152), "f4"), np.zeros((len(ids), 7781), "f4")
        path.parent.mkdir(exist_ok=True)
        write_original(path, image, flux, np.ones(len(ids)), np.array(ids))

    def loaded():
        builder = AstroClipDataset(source="survey.h5", split_rule="none", **cached(tmp_path))
        builder.download_and_prepare()
        return sorted(builder.as_dataset()["train"]["targetid"])

    write(tmp_path / "a" / "survey.h5", range(10))
    write(tmp_path / "b" / "survey.h5", range(20, 30))
    for name, first in dict(a=0, b=20).items():
        monkeypatch.chdir(tmp_path / name)
        assert loaded() == list(range(first, first + 10))
    write(tmp_path / "b" / "survey.h5", range(50, 60))
    assert loaded() == list(range(50, 60))


@pytest.mark.parametrize("name", ["again", "data/again.h5", "new/survey.h5"])
def test_nothing_is_written_into_the_folder_that_is_read(folder, name):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="lies in the folder .* give another place with -o"):
        convert_pairs(folder, folder / name)
    with pytest.raises(ValueError, match="lies in the folder"):
        freeze_split(folder, folder / "split.parquet", images=False)
    with pytest.raises(ValueError, match="give another place with --report"):
        freeze_split(folder, folder.parent / "split.csv", report=folder / "leaks.csv", images=False)
    with pytest.raises(ValueError, match="lies in the folder"):
        convert_pairs(f"hats://{folder}+{folder.parent}", folder / name)
    assert sorted(folder.rglob("*")) == before and not (folder.parent / "split.csv").exists()


def test_card_and_hashes(folder):
    import yaml

    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "mit" and head["size_categories"] == ["n<1K"]
    assert [f["split"] for f in head["configs"][0]["data_files"]] == ["train", "test"]
    assert sum(s["num_examples"] for s in head["dataset_info"]["splits"]) == N
    assert '"release": "1.1.5"' in text and ".partial" not in text
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == check_hub_folder(folder) == len(list(folder.glob("data/*.parquet"))) > 2
    digest, name = lines[0].split()
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_a_simulated_survey_stays_marked(tmp_path):
    made = convert_pairs(sample_path(), tmp_path / "mock")
    assert open_pairs(made).simulated and "SIMULATED" in (made / "README.md").read_text()
    back = convert_pairs(made, tmp_path / "back.h5")
    survey, first = Survey(back), Survey(sample_path())
    assert survey.simulated and survey.data_card == first.data_card
    order, place = np.argsort(survey.targetid), np.argsort(first.targetid)
    np.testing.assert_array_equal(survey.label("log_mstar")[order], first.label("log_mstar")[place])
    assert pixel_hash(back) == pixel_hash(sample_path())


def test_a_killed_conversion_goes_on_after_the_last_whole_file(folder, original, tmp_path, monkeypatch):
    output, add = tmp_path / "pairs", hub_folder.SplitFiles.add
    done = []

    def dies(self, table):
        add(self, table)
        done.append(table.num_rows)
        if sum(done) > 100:
            raise KeyboardInterrupt

    monkeypatch.setattr(hub_folder.SplitFiles, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        convert_pairs(original, output, file_bytes=2**24)
    whole = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob(".pairs.partial/data/*.parquet")}
    assert whole and not output.exists()
    monkeypatch.setattr(hub_folder.SplitFiles, "add", add)
    convert_pairs(original, output, file_bytes=2**24)
    files = {p.name: p for p in output.glob("data/*.parquet")}
    assert all(files[name].stat().st_mtime_ns == time for name, time in whole.items())
    for path in folder.glob("data/*.parquet"):
        assert files[path.name].read_bytes() == path.read_bytes(), (
            "another file than without the interruption"
        )
    assert not list(tmp_path.glob(".pairs*"))


def test_what_was_begun_for_another_source_is_thrown_away(original, tmp_path):
    place = tmp_path / ".pairs.partial" / "data"
    place.mkdir(parents=True)
    (place / "train-00000-of-00009.parquet").write_bytes(b"of another source")
    (place.parent / "state.json").write_text(json.dumps(dict(source="another")))
    made = convert_pairs(original, tmp_path / "pairs")
    assert pixel_hash(made) == pixel_hash(original)


def test_the_command_converts(original, tmp_path, capsys):
    assert main(["data", "convert", str(original), "-o", str(tmp_path / "survey.h5")]) == 0
    assert "150 galaxies" in capsys.readouterr().out
    assert pixel_hash(tmp_path / "survey.h5") == pixel_hash(original)
    assert main(["data", "convert", str(original), "-o", str(tmp_path / "survey.h5")]) == 1
    assert "there already" in capsys.readouterr().err
    assert main(["data", "convert", str(tmp_path / "none"), "-o", str(tmp_path / "x.h5")]) == 1


# ---- a stand-in for the hub


class Hub(BaseHTTPRequestHandler):
    "Answers as the hub does to what `huggingface_hub` asks: create, tree, upload of large and small files, download."

    protocol_version = "HTTP/1.1"
    files, asked, busy, token = {}, [], [], "secret"

    def log_message(self, *_):
        pass

    def send(self, status, body=b"", kind="application/json", **headers):
        body = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Type", kind)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def item(self, path):
        content = self.files[path]
        out = dict(type="file", path=path, size=len(content), oid=hashlib.sha1(content).hexdigest())
        if path.endswith(".parquet"):
            out["lfs"] = dict(oid=hashlib.sha256(content).hexdigest(), size=len(content), pointerSize=100)
        return out

    def tree(self, inside, recursive):
        inside = inside.strip("/")
        below = [p for p in sorted(self.files) if not inside or p.startswith(inside + "/")]
        if recursive:
            return [self.item(p) for p in below]
        names = sorted({p[len(inside) :].strip("/").split("/")[0] for p in below})
        found = []
        for name in names:
            path = f"{inside}/{name}".strip("/")
            found.append(
                self.item(path) if path in self.files else dict(type="directory", path=path, oid="0" * 40)
            )
        return found

    def answer(self):
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        content = self.body()
        self.asked.append(f"{self.command} {path}")
        if self.busy and self.busy[0] in path:
            self.busy.pop(0)
            return self.send(429, dict(error="too many requests"), Retry_After=0)
        if self.command in ("POST", "PUT") and "paths-info" not in path:
            if self.headers.get("Authorization") != f"Bearer {self.token}" and "/upload/" not in path:
                return self.send(401, dict(error="Invalid username or password."))
        base = "/api/datasets/me/pairs"
        if path == "/api/validate-yaml":
            return self.send(200, dict(errors=[], warnings=[]))
        if path == "/api/repos/create":
            return self.send(200, dict(url=f"{self.host}/datasets/me/pairs", name="me/pairs", id="me/pairs"))
        if path == f"{base}/preupload/main":
            asked = json.loads(content)["files"]
            mode = {True: "lfs", False: "regular"}
            files = [
                dict(path=f["path"], uploadMode=mode[f["path"].endswith(".parquet")], shouldIgnore=False)
                for f in asked
            ]
            return self.send(200, dict(files=files))
        if path.endswith("/info/lfs/objects/batch"):
            objects = []
            for o in json.loads(content)["objects"]:
                action = dict(href=f"{self.host}/upload/{o['oid']}", header={})
                objects.append(dict(oid=o["oid"], size=o["size"], actions=dict(upload=action)))
            return self.send(200, dict(transfer="basic", objects=objects), "application/vnd.git-lfs+json")
        if path.startswith("/upload/"):
            assert hashlib.sha256(content).hexdigest() == path.split("/")[-1]
            self.files[path] = content
            return self.send(200)
        if path == f"{base}/commit/main":
            return self.commit(content)
        return self.download(path, query, base, content)

    def commit(self, content):
        import base64

        for line in content.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            if item["key"] == "lfsFile":
                self.files[item["value"]["path"]] = self.files.pop(f"/upload/{item['value']['oid']}")
        commit = dict(
            success=True, commitOid="c" * 40, commitUrl=f"{self.host}/datasets/me/pairs/commit/{'c' * 40}"
        )
        return self.send(200, commit)

    def download(self, path, query, base, content):
        tree = re.match(rf"{base}/tree/[^/]+(.*)", path)
        if tree:
            return self.send(200, self.tree(tree[1], query.get("recursive", ["false"])[0].lower() == "true"))
        if re.match(rf"{base}/paths-info/", path):
            asked = parse_qs(content.decode()).get("paths") or json.loads(content)["paths"]
            found = [self.item(p) for p in asked if p in self.files]
            folders = [p for p in asked if p not in self.files and self.tree(p, True)]
            return self.send(200, found + [dict(type="directory", path=p, oid="0" * 40) for p in folders])
        if path == base or path.startswith(f"{base}/revision/"):
            files = [dict(rfilename=p) for p in self.files]
            return self.send(
                200, dict(id="me/pairs", sha="c" * 40, private=True, siblings=files, tags=[], downloads=0)
            )
        found = re.match(r"/datasets/me/pairs/resolve/[^/]+/(.*)", path)
        if found and found[1] in self.files:
            content = self.files[found[1]]
            about = dict(
                ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit="c" * 40, Accept_Ranges="bytes"
            )
            span = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span and self.command == "GET":
                low, high = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
                about["Content_Range"] = f"bytes {low}-{high}/{len(content)}"
                return self.send(206, content[low : high + 1], "application/octet-stream", **about)
            if self.command == "HEAD":
                about["Content_Length"] = len(content)
            return self.send(200, content, "application/octet-stream", **about)
        return self.send(404, dict(error="not found"), X_Error_Code="EntryNotFound")

    do_GET = do_POST = do_PUT = do_HEAD = answer


@pytest.fixture
def hub(tmp_path):
    Hub.files, Hub.asked, Hub.busy = {}, [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.host = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= dict(HF_ENDPOINT=Hub.host, HF_HOME=str(tmp_path / "hf"), HF_HUB_DISABLE_XET="1")
    environment |= dict(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1", no_proxy="127.0.0.1")
    yield environment
    server.shutdown()
    thread.join()


def command(environment, *words):
    code = "import sys; from astroclip.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_a_folder_goes_to_the_hub_and_is_read_from_there(hub, folder, original, tmp_path):
    inside = hub | dict(HF_TOKEN="secret")
    Hub.busy = ["/commit/", "/preupload/"]
    status, out, err = command(inside, "data", "push", str(folder), "me/pairs")
    assert status == 0, err
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    assert sorted(Hub.files) == sorted(names) and f"{len(names)} files sent" in out
    for name in names:
        assert Hub.files[name] == (folder / name).read_bytes()
    status, out, err = command(inside, "data", "push", str(folder), "me/pairs")
    assert "2 files sent" in out and "there already: data/" in err  # the small ones
    Hub.asked.clear()
    code = "from astroclip.bulk.conversion import pixel_hash; print(pixel_hash('hf://datasets/me/pairs'))"
    done = subprocess.run([sys.executable, "-c", code], env=inside, capture_output=True, text=True)
    assert done.stdout.strip() == pixel_hash(original), done.stderr[-3000:]
    assert len([a for a in Hub.asked if "/tree/" in a]) < 12, "more listings than needed"


def test_who_may_not_write_is_told(hub, folder):
    status, _, err = command(hub | dict(HF_TOKEN="wrong"), "data", "push", str(folder), "me/pairs")
    assert status == 1 and "hf auth login" in err and "Traceback" not in err
    assert not Hub.files


def test_a_damaged_folder_does_not_leave(hub, folder, tmp_path):
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    one = next(copy.glob("data/*.parquet"))
    one.write_bytes(one.read_bytes()[:-5])
    status, _, err = command(hub | dict(HF_TOKEN="secret"), "data", "push", str(copy), "me/pairs")
    assert status == 1 and "than its SHA256SUMS says" in err and not Hub.asked


def test_a_hats_catalog_on_the_hub(hub, tmp_path):
    import pyarrow as pa

    from astroclip.formats.hats_writer import write_hats

    rng = np.random.default_rng(0)
    table = pa.table(dict(object_id=np.arange(500), ra=rng.uniform(0, 40, 500), dec=rng.uniform(0, 9, 500)))
    made = write_hats(tmp_path / "toy", [table], part_bytes=4000)
    for path in made.rglob("*"):
        if path.is_file():
            Hub.files[path.relative_to(made).as_posix()] = path.read_bytes()
    code = "from astroclip.formats.hats_files import HatsCatalog as C; c = C('hf://datasets/me/pairs')\n"
    code += "print(len(c), len(c.table.files), sorted(c.column('object_id')[:].tolist()) == list(range(500)))"
    done = subprocess.run([sys.executable, "-c", code], env=hub, capture_output=True, text=True)
    assert done.stdout.split() == [
        "500",
        str(len(list(made.glob("dataset/Norder*/**/*.parquet")))),
        "True",
    ], done.stderr[-2000:]
    assert not [a for a in Hub.asked if "recursive" in a]
