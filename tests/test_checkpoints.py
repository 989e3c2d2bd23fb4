"""Checkpoints: every layout loads, our own files round-trip, and hostile or damaged files do nothing but raise one clear error."""

import collections
import copyreg
import io
import json
import os
import pickle
import random
import resource
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from astroclip.models.astroclip import AstroCLIP
from astroclip.models.pretrained import convert, describe, save
from astroclip.models.specformer import SpecFormer
from astroclip.models.unpickle import CheckpointError, Record, TorchArchive, read_pickle
from astroclip.models.vit import VisionTransformer

NEEDED = {
    "astroclip_cli_hparams": dict(image_num_heads=4, spectrum_num_heads=4),
    "astrodino": dict(num_heads=4),
}


def tiny_specformer():
    torch.manual_seed(0)
    return SpecFormer(window=20, stride=10, embed_dim=16, depth=2, num_heads=2).eval()


def official_names(model):
    "The state dict of a SpecFormer under the names of the original."
    table = [
        ("norm1.", "layernorm1."),
        ("norm2.", "layernorm2."),
        ("attn.qkv.", "attention.attention."),
        ("attn.proj.", "attention.projection."),
        ("mlp.fc1.", "mlp.encoder."),
        ("mlp.fc2.", "mlp.decoder."),
    ]

    def rename(k):
        for a, b in table:
            k = k.replace(a, b)
        return "final_layernorm." + k[5:] if k.startswith("norm.") else k

    return {rename(k): v for k, v in model.state_dict().items()}


def official(model, **more):
    c = model.config
    hyper = dict(
        input_dim=c["window"] + 2,
        embed_dim=c["embed_dim"],
        num_layers=c["depth"],
        num_heads=c["num_heads"],
        max_len=c["max_len"],
        slice_section_length=c["window"],
        slice_overlap=c["window"] - c["stride"],
        dropout=0.0,
    )
    return {"epoch": 3, "state_dict": official_names(model), "hyper_parameters": hyper} | more


def write(path, obj):
    torch.save(obj, path)
    return path


# Layouts


def test_prefixes_and_bare_state_dict(tmp_path):
    model = tiny_specformer()
    x = torch.randn(2, 7781)
    expected = model(x)["embedding"]
    state = official_names(model)
    for i, content in enumerate(
        [
            official(model),
            state,
            {"state_dict": {"module." + k: v for k, v in state.items()}},
            {"teacher": {"module.backbone." + k: v for k, v in state.items()}},
        ]
    ):
        heads = {} if i == 0 else {"num_heads": 2}
        again = SpecFormer.from_pretrained(write(tmp_path / f"{i}.ckpt", content), device="cpu", **heads)
        assert torch.equal(again(x)["embedding"], expected) and not again.training


@pytest.mark.parametrize("chunks", [0, 1, 2, 4])
def test_block_chunks(tmp_path, chunks):
    torch.manual_seed(0)
    vit = VisionTransformer(48, 12, 24, depth=4, num_heads=3).eval()

    def chunked(k):
        if not chunks or not k.startswith("blocks."):
            return k
        i = int(k.split(".")[1])
        return f"blocks.{i // (4 // chunks)}." + k[len("blocks.") :]

    state = {f"backbone.{chunked(k)}": v.half().float() for k, v in vit.state_dict().items()} | {
        "dino_head.mlp.0.weight": torch.zeros(3, 3)
    }
    again = VisionTransformer.from_pretrained(
        write(tmp_path / "v.ckpt", {"teacher": state}), device="cpu", num_heads=3
    )
    assert len(again.blocks) == 4 and again.image_size == 48 and again.patch_size == 12
    assert torch.equal(again.blocks[3].mlp.fc1.weight, vit.blocks[3].mlp.fc1.weight.half().float())


def test_half_precision_becomes_float32(tmp_path):
    content = official(tiny_specformer())
    content["state_dict"] = {k: v.bfloat16() for k, v in content["state_dict"].items()}
    assert {
        p.dtype
        for p in SpecFormer.from_pretrained(write(tmp_path / "h.ckpt", content), device="cpu").parameters()
    } == {torch.float32}


@pytest.mark.parametrize(
    "name,cls,parameters",
    [
        ("specformer", SpecFormer, None),
        ("astrodino", VisionTransformer, None),
        ("astroclip", AstroCLIP, None),
        ("astroclip_cli_hparams", AstroCLIP, None),
    ],
)
def test_convert_gives_the_same_model(goldens, tmp_path, name, cls, parameters):
    source, heads = goldens / f"{name}.ckpt", NEEDED.get(name, {})
    folder = convert(source, tmp_path / "out", **heads)
    a, b, c = [
        cls.from_pretrained(s, device="cpu", **h)
        for s, h in [(source, heads), (folder, {}), (folder / "model.safetensors", {})]
    ]
    for k, v in a.state_dict().items():
        assert torch.equal(v, b.state_dict()[k]) and torch.equal(v, c.state_dict()[k])
    about, before = describe(folder), describe(source)
    assert about["kind"] == before["kind"] == cls.__name__ and about["parameters"] == before[
        "parameters"
    ] == sum(p.numel() for p in a.parameters())
    card = (folder / "README.md").read_text()
    assert before["sha256"] in card and about["sha256"] in card and a.config == b.config
    assert json.loads((folder / "config.json").read_text())["sha256"] == about["sha256"]


def test_loaded_models_are_in_evaluation_mode_and_trainable(goldens):
    model = AstroCLIP.from_pretrained(goldens / "astroclip.ckpt", device="cpu")
    assert not any(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())


def test_sizes_that_are_not_the_published_ones(tmp_path):
    "Windows of 12 every 5, 60 positions only: the file says all of it, and spectra that are too long for it are refused."
    torch.manual_seed(0)
    model = SpecFormer(
        window=12, stride=5, embed_dim=12, depth=3, num_heads=3, max_len=60, n_pixels=250, mlp_ratio=2
    ).eval()
    again = SpecFormer.from_pretrained(write(tmp_path / "s.ckpt", official(model)), device="cpu")
    x = torch.randn(2, 250)
    assert torch.equal(again(x)["embedding"], model(x)["embedding"])
    with pytest.raises(ValueError, match="expected"):
        again(torch.randn(1, 7781))


@pytest.mark.slow
def test_full_size_loads_into_its_own_memory(tmp_path):
    "370,798,358 parameters load and embed in under 6 GB, and loading does not need the weights twice."
    from astroclip.evaluation.parity import cost, random_astroclip

    folder = random_astroclip(tmp_path / "full")
    assert describe(folder)["parameters"] == 370_798_358
    found = cost(folder, n=2, precision="bfloat16", device="cpu")
    assert found["peak_gb"] < 3.5 and found["image_embeddings"].shape == found[
        "spectrum_embeddings"
    ].shape == (2, 1024)


# Head counts


def test_head_counts_are_never_guessed(goldens):
    with pytest.raises(ValueError, match="give num_heads="):
        VisionTransformer.from_pretrained(goldens / "astrodino.ckpt", device="cpu")
    with pytest.raises(ValueError, match="image_num_heads="):
        AstroCLIP.from_pretrained(goldens / "astroclip_cli_hparams.ckpt", device="cpu")
    with pytest.raises(ValueError, match="spectrum_num_heads="):
        AstroCLIP.from_pretrained(goldens / "astroclip_cli_hparams.ckpt", device="cpu", image_num_heads=4)
    with pytest.raises(ValueError, match="does not divide"):
        VisionTransformer.from_pretrained(goldens / "astrodino.ckpt", device="cpu", num_heads=7)
    for wrong in [dict(image_num_heads=8), dict(spectrum_num_heads=2), dict(cross_num_heads=1)]:
        with pytest.raises(ValueError, match="but this model has 4"):
            AstroCLIP.from_pretrained(goldens / "astroclip.ckpt", device="cpu", **wrong)
    with pytest.raises(ValueError, match="but this model has 4"):
        SpecFormer.from_pretrained(goldens / "specformer.ckpt", device="cpu", num_heads=2)


def test_head_counts_of_our_own_files(tmp_path):
    folder = tiny_specformer().save_pretrained(tmp_path / "m")
    assert SpecFormer.from_pretrained(folder, device="cpu", num_heads=2).config["num_heads"] == 2
    with pytest.raises(ValueError, match="but this model has 2"):
        SpecFormer.from_pretrained(folder, device="cpu", num_heads=4)


# Strict loading


def broken(**change):
    content = official(tiny_specformer())
    content["state_dict"].update(change)
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if v is not None}
    return content


@pytest.mark.parametrize(
    "change,message",
    [
        ({"blocks.1.mlp.encoder.bias": None}, "1 missing: blocks.1.mlp.fc1.bias"),
        ({"head.bias": None, "final_layernorm.bias": None}, "2 missing: head.bias, norm.bias"),
        ({"surprise.weight": torch.zeros(2)}, "1 unexpected: surprise.weight"),
        ({"head.weight": torch.zeros(22, 15)}, r"head.weight \(22, 15\) \(expected"),
        ({"blocks.0.layernorm1.weight": torch.zeros(16, 1)}, "1 of another shape"),
        ({"blocks.7.layernorm1.weight": torch.zeros(16)}, "blocks are missing"),
        ({"blocks.99999.layernorm1.weight": torch.zeros(16)}, "unexpected"),
        ({"data_embed.weight": torch.zeros(16)}, "expected 2 axes"),
        ({"data_embed.weight": torch.zeros(0, 22)}, "expected 2 axes"),
        ({"norm.weight": torch.zeros(16)}, "two tensors are both norm.weight"),
        ({"number": 3}, "no table of tensors"),
    ],
)
def test_wrong_tensors_are_listed(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        SpecFormer.from_pretrained(write(tmp_path / "x.ckpt", broken(**change)), device="cpu", num_heads=2)


@pytest.mark.parametrize(
    "hyper",
    [
        dict(slice_overlap=20),
        dict(slice_overlap=30),
        dict(slice_section_length=30),
        dict(slice_overlap="x"),
        dict(num_heads=True),
        dict(num_heads=[2]),
        dict(num_heads=-2),
        dict(dropout=-1.0),
        dict(dropout="x"),
        dict(slice_overlap=float("nan")),
    ],
)
def test_senseless_hyper_parameters(tmp_path, hyper):
    content = official(tiny_specformer())
    content["hyper_parameters"].update(hyper)
    with pytest.raises(CheckpointError):
        SpecFormer.from_pretrained(write(tmp_path / "x.ckpt", content), device="cpu")


def test_wrong_class_is_named(goldens):
    with pytest.raises(ValueError, match="use SpecFormer.from_pretrained"):
        AstroCLIP.from_pretrained(goldens / "specformer.ckpt", device="cpu")


def test_sources_that_do_not_exist(tmp_path):
    for source in [tmp_path / "none.ckpt", "none.ckpt", "folder/none.ckpt", tmp_path]:
        with pytest.raises(FileNotFoundError):
            SpecFormer.from_pretrained(source, device="cpu")
    with pytest.raises(ValueError, match="device"):
        SpecFormer.from_pretrained(tmp_path, device="gpu")


def test_hub_repository_from_the_cache(tmp_path, monkeypatch):
    "A repository in the cache loads without any connection; one that is not there is a clear error."
    hub = pytest.importorskip("huggingface_hub")
    cache = tmp_path / "hub"
    snapshot = cache / "models--owner--name" / "snapshots" / ("a" * 40)
    tiny_specformer().save_pretrained(snapshot)
    (cache / "models--owner--name" / "refs").mkdir()
    for ref in ("main", "v1"):
        (cache / "models--owner--name" / "refs" / ref).write_text("a" * 40)
    real = hub.snapshot_download
    monkeypatch.setattr(
        hub, "snapshot_download", lambda repo, **k: real(repo, cache_dir=cache, local_files_only=True, **k)
    )
    for revision in (None, "v1"):
        assert (
            SpecFormer.from_pretrained("owner/name", device="cpu", revision=revision).config["embed_dim"]
            == 16
        )
    with pytest.raises(FileNotFoundError, match="owner/other"):
        SpecFormer.from_pretrained("owner/other", device="cpu")
    with pytest.raises(FileNotFoundError, match="hub"):
        SpecFormer.from_pretrained("owner/name", device="cpu", revision="v2")


# Hostile files: each of these would act, if anything of the file were imported or called


class Act:
    "Leaves a mark on the disk when unpickled the ordinary way."

    def __init__(self, mark, how="system"):
        self.mark, self.how = str(mark), how

    def __reduce__(self):
        if self.how == "system":
            return os.system, (f"touch {self.mark}",)
        if self.how == "eval":
            return eval, (f"open({self.mark!r}, 'w')",)
        if self.how == "nested":
            return map, (os.system, [f"touch {self.mark}"])
        if self.how == "state":
            return collections.OrderedDict, (), {"x": Act(self.mark)}
        if self.how == "items":
            return list, (), None, iter([Act(self.mark)])
        if self.how == "reconstruct":
            return copyreg._reconstructor, (Act, object, Act(self.mark))
        return open, (self.mark, "w")


HOW = ["system", "eval", "nested", "state", "items", "reconstruct", "open"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "place",
    ["hyper_parameters", "inside_hyper_parameters", "optimizer_states", "callbacks", "state_dict", "top"],
)
def test_nothing_of_the_file_runs(tmp_path, how, place):
    mark, model = tmp_path / "mark", tiny_specformer()
    evil, content = Act(mark, how), official(model)
    if place == "hyper_parameters":
        content["hyper_parameters"] = evil
    elif place == "inside_hyper_parameters":
        content["hyper_parameters"] |= {"image_encoder": [{"deep": (evil,)}], "lr": evil}
    elif place == "optimizer_states":
        content["optimizer_states"] = [{"state": {0: {"step": evil}}}]
    elif place == "callbacks":
        content["callbacks"] = {"ModelCheckpoint": evil}
    elif place == "state_dict":
        content["state_dict"]["evil"] = evil
    else:
        content = evil
    path = write(tmp_path / "evil.ckpt", content)
    if place in (
        "inside_hyper_parameters",
        "optimizer_states",
        "callbacks",
    ):  # the tensors are fine: it loads, and nothing else happens
        assert SpecFormer.from_pretrained(path, device="cpu").config["embed_dim"] == 16
        describe(path)
    else:
        with pytest.raises(ValueError):
            SpecFormer.from_pretrained(path, device="cpu")
    assert not mark.exists()
    with zipfile.ZipFile(path) as z:  # the file is what it claims to be: an ordinary unpickler acts
        try:
            pickle.Unpickler(io.BytesIO(z.read("evil/data.pkl"))).load()
        except Exception:
            pass


def test_extension_registry_is_refused():
    with pytest.raises(CheckpointError, match="EXT1"):
        read_pickle(b"\x80\x02\x82\x01.")


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02cos\nsystem\n(U\x04truetR}b.",
    ],
)
def test_every_way_to_write_a_call_gives_a_record(program):
    assert isinstance(read_pickle(program), Record)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80",
        b"\x80\x02",
        b"}",
        b"(((",
        b"h\x01.",
        b"a.",
        b"s.",
        b"]K\x01u.",
        b"K\x01K\x02a.",
        b"\xff",
        b"\x8e" + b"\xff" * 8,
        b"B" + b"\xff" * 4,
        b"I" + b"9" * 6000 + b"\n.",
        b"2.",
        b"0.",
        b"1.",
        b"\x80\x02K\x01Q.",
        b"(K\x01}s.",
    ],
)
def test_damaged_programs_are_one_error(program):
    with pytest.raises(CheckpointError):
        read_pickle(program)


def test_repeated_containers_do_not_explode():
    "Forty doublings of a tuple, as a value (shared, so small) and as a dictionary key (hashing it would never end)."
    doubling = b"N" + b"".join(b"2\x86" for _ in range(60))
    assert isinstance(read_pickle(b"\x80\x02" + doubling + b"."), tuple)
    assert isinstance(next(iter(read_pickle(b"\x80\x02}" + doubling + b"Ns."))), Record)


def test_size_limits(monkeypatch):
    with pytest.raises(CheckpointError, match="instructions"):
        read_pickle(b"\x80\x02" + b"N0" * 600_000 + b"N.")
    with pytest.raises(CheckpointError, match="bytes"):
        read_pickle(b"\x80\x02" + b"N0" * (17 << 20) + b"N.")


def rewrite(source, target, change=lambda name, data: data, method=zipfile.ZIP_STORED, more=()):
    "Copy a zip archive, its entries changed."
    with zipfile.ZipFile(source) as a, zipfile.ZipFile(target, "w") as b:
        for info in a.infolist():
            data = change(info.filename, a.read(info))
            if data is not None:
                b.writestr(info.filename, data, compress_type=method)
        for name, data in more:
            b.writestr(name, data)
    return target


def refused(path, match=None):
    with pytest.raises(CheckpointError, match=match):
        SpecFormer.from_pretrained(path, device="cpu", num_heads=2)


def test_zip_tricks(tmp_path):
    good = write(tmp_path / "good.ckpt", official(tiny_specformer()))
    refused(rewrite(good, tmp_path / "a.ckpt", method=zipfile.ZIP_DEFLATED), "compressed")
    refused(rewrite(good, tmp_path / "b.ckpt", more=[("other/data.pkl", b"N.")]), "found 2")
    with pytest.warns(UserWarning):
        rewrite(good, tmp_path / "c.ckpt", more=[("good/data.pkl", b"N.")])
    refused(tmp_path / "c.ckpt", "found 2")
    with pytest.warns(UserWarning):
        rewrite(good, tmp_path / "c2.ckpt", more=[("good/data/0", b"N.")])
    refused(tmp_path / "c2.ckpt", "one name")
    refused(rewrite(good, tmp_path / "d.ckpt", lambda n, d: None if n.endswith("data.pkl") else d), "found 0")
    refused(
        rewrite(good, tmp_path / "e.ckpt", lambda n, d: None if n.endswith("/data/3") else d),
        "missing from the archive",
    )
    refused(
        rewrite(good, tmp_path / "f.ckpt", lambda n, d: d[:-4] if n.endswith("/data/3") else d), "bytes, not"
    )
    refused(
        rewrite(good, tmp_path / "g.ckpt", lambda n, d: b"big" if n.endswith("byteorder") else d),
        "big-endian",
    )
    refused(
        rewrite(good, tmp_path / "h.ckpt", lambda n, d: b"\x80\x02}." if n.endswith("data.pkl") else d),
        "no table",
    )
    refused(
        rewrite(good, tmp_path / "i.ckpt", lambda n, d: b"\x80\x02K\x01." if n.endswith("data.pkl") else d),
        "no table",
    )
    data = bytearray(good.read_bytes())
    data[data.find(b"good/data/2") + 200] ^= 1  # a flipped bit in the numbers: the checksum tells
    (tmp_path / "j.ckpt").write_bytes(data)
    refused(tmp_path / "j.ckpt", "damaged")
    for name in ("k.ckpt", "l.ckpt"):
        (tmp_path / name).write_bytes(b"" if name == "k.ckpt" else pickle.dumps({"state_dict": 1}))
    refused(tmp_path / "k.ckpt", "not a zip archive")
    refused(tmp_path / "l.ckpt", "not a zip archive")


def test_overlapping_entries(tmp_path):
    "Many entries of the directory that point at the same megabyte would unfold to gigabytes."
    data, out = os.urandom(1 << 20), io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("x/data.pkl", b"N.")
        z.writestr("x/data/0", data)
        first = z.infolist()[-1]
        for i in range(1, 50):
            clone = zipfile.ZipInfo(f"x/data/{i}")
            for a in ("header_offset", "CRC", "file_size", "compress_size", "compress_type"):
                setattr(clone, a, getattr(first, a))
            z.filelist.append(clone)
            z.NameToInfo[clone.filename] = clone
    path = tmp_path / "o.ckpt"
    path.write_bytes(out.getvalue())
    refused(path, "overlap")


def tensor_program(size, stride, offset=0, numel=4):
    "A pickle of {'data_embed.weight': tensor of any declared shape}, written by hand."

    class Writer(pickle._Pickler):
        def persistent_id(self, x):
            return ("storage", torch.FloatStorage, "0", "cuda:0", numel) if isinstance(x, Stand) else None

    class Stand:
        pass

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                Stand(),
                offset,
                size,
                stride,
                False,
                collections.OrderedDict(),
            )

    out = io.BytesIO()
    Writer(out, protocol=2).dump({"data_embed.weight": Tensor()})
    return out.getvalue()


@pytest.mark.parametrize(
    "size,stride,offset,numel",
    [
        ((10**6, 10**6), (10**6, 1), 0, 4),
        ((10**12,), (0,), 0, 4),
        ((4,), (1,), 1, 4),
        ((2,), (-1,), 3, 4),
        ((2,), (1,), -1, 4),
        ((2, 2), (1,), 0, 4),
        ((2**62, 4), (0, 0), 0, 4),
        ((True,), (1,), 0, 4),
        ((2.0,), (1,), 0, 4),
        ((4,), (1,), 0, 2**60),
        ((4,), (1,), 0, -4),
        ((1,) * 9, (1,) * 9, 0, 4),
    ],
)
def test_oversized_declared_shapes(tmp_path, size, stride, offset, numel):
    path = tmp_path / "s.ckpt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("s/data.pkl", tensor_program(size, stride, offset, numel))
        z.writestr("s/data/0", bytes(16))
    refused(path)


def test_declared_storage_larger_than_its_entry(tmp_path):
    path = tmp_path / "s.ckpt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("s/data.pkl", tensor_program((2**30, 22), (22, 1), 0, 2**30 * 22))  # 94 GB of four numbers
        z.writestr("s/data/0", bytes(16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path)
    with TorchArchive(path) as archive, pytest.raises(CheckpointError, match="16 bytes"):
        archive.tensor(archive.tree["data_embed.weight"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_truncated_at_every_length(tmp_path):
    data = write(tmp_path / "t.ckpt", official(tiny_specformer())).read_bytes()
    for n in sorted(
        {0, 1, 10, 100, len(data) - 1, len(data) - 22, *random.Random(0).sample(range(len(data)), 40)}
    ):
        (tmp_path / "cut.ckpt").write_bytes(data[:n])
        refused(tmp_path / "cut.ckpt")


def test_random_damage_is_one_error_or_harmless(tmp_path):
    "Bytes of the pickle changed at random: whatever the program has become, it ends in a value or in `CheckpointError`."
    source = write(tmp_path / "f.ckpt", official(tiny_specformer(), callbacks={"x": [1.5, {2}, None]}))
    with zipfile.ZipFile(source) as z:
        program = z.read("f/data.pkl")
    rng, errors = random.Random(1), 0
    for _ in range(1500):
        damaged = bytearray(program)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read_pickle(bytes(damaged))
        except CheckpointError:
            errors += 1
    assert 0 < errors < 1500


def test_damaged_files_of_ours(tmp_path):
    folder = tiny_specformer().save_pretrained(tmp_path / "m")
    file, data = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    for bad in [data[:-100], data[:50], b"", b"\xff" * 100, struct.pack("<Q", 2**60) + data[8:]]:
        file.write_bytes(bad)
        with pytest.raises(ValueError):
            SpecFormer.from_pretrained(folder, device="cpu")
    from safetensors.torch import save_file

    for config in [
        None,
        [],
        {"kind": "SpecFormer"},
        {"kind": "SpecFormer", "config": {"depth": 10**9}},
        {"kind": "SpecFormer", "config": {"colour": 1}},
        {"kind": "SpecFormer", "config": {"embed_dim": -3}},
        {"kind": "SpecFormer", "config": {"embed_dim": "os.system"}},
        {"kind": "Unknown", "config": {}},
    ]:
        save_file({"a": torch.zeros(2)}, file)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError):
            SpecFormer.from_pretrained(folder, device="cpu")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError):
        SpecFormer.from_pretrained(folder, device="cpu")


def test_interrupted_save_leaves_no_half_model(tmp_path, monkeypatch):
    import astroclip.models.pretrained as module

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(OSError):
        save(tiny_specformer(), tmp_path / "m")
    assert (
        not list(Path(tmp_path / "m").glob("*.safetensors")) and not (tmp_path / "m" / "config.json").exists()
    )


def test_the_same_weights_make_the_same_file(tmp_path):
    "Byte for byte, so that a hash names the weights; the library writes a header of several keys in random order."
    tower = VisionTransformer(image_size=24, patch_size=12, embed_dim=16, depth=1, num_heads=1)
    written = []
    for i in range(8):
        tower.save_pretrained(tmp_path / str(i))
        written.append((tmp_path / str(i) / "model.safetensors").read_bytes())
    assert all(w == written[0] for w in written)
