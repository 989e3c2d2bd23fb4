"""The models against the original implementation's numbers (golden vectors), and what must hold for any weights."""

import json

import numpy as np
import pytest
import torch

from astroclip.models.astroclip import AstroCLIP
from astroclip.models.layers import CrossAttentionPool
from astroclip.models.specformer import SpecFormer
from astroclip.models.vit import VisionTransformer, resize_positions

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def npz(goldens, name):
    return {k: v for k, v in np.load(goldens / f"{name}_io.npz").items()}


def deviation(ours, golden):
    ours = ours.numpy() if torch.is_tensor(ours) else np.asarray(ours)
    assert ours.shape == golden.shape
    return float(np.abs(ours - golden).max())


@pytest.fixture(scope="module")
def specformer(goldens):
    return SpecFormer.from_pretrained(goldens / "specformer.ckpt", device="cpu")


@pytest.fixture(scope="module")
def vit(goldens):
    heads = json.loads(str(npz(goldens, "astrodino")["config_json"]))["num_heads"]
    return VisionTransformer.from_pretrained(goldens / "astrodino.ckpt", device="cpu", num_heads=heads)


def read_astroclip(goldens, name):
    config = json.loads(str(npz(goldens, "astroclip")["config_json"]))
    heads = (
        {}
        if name == "astroclip"
        else dict(
            image_num_heads=config["image_backbone"]["num_heads"],
            spectrum_num_heads=config["spectrum_backbone"]["num_heads"],
        )
    )
    return AstroCLIP.from_pretrained(goldens / f"{name}.ckpt", device="cpu", **heads)


# The spectrum transformer


def test_specformer_preprocessing(goldens, specformer):
    z = npz(goldens, "specformer")
    flux = torch.from_numpy(z["spectra"])
    assert deviation(specformer.preprocess(flux), z["preprocessed"]) < TOLERANCE
    assert deviation(specformer.preprocess(flux[:2, :260]), z["preprocessed_len260"]) < TOLERANCE
    assert deviation(specformer.preprocess(flux[:3, :257, 0]), z["preprocessed_len257"]) < TOLERANCE


def test_specformer_outputs(goldens, specformer):
    z = npz(goldens, "specformer")
    out = specformer(torch.from_numpy(z["spectra"]))
    assert deviation(out["embedding"], z["embedding"]) < TOLERANCE
    assert deviation(out["reconstructions"], z["reconstructions"]) < TOLERANCE
    assert deviation(out["embedding"].mean(1), z["embedding_mean"]) < TOLERANCE
    single = specformer(torch.from_numpy(z["spectra"][:1]))["embedding"].mean(1)
    assert deviation(single, z["single_embedding_mean"]) < TOLERANCE


def test_specformer_masked(goldens, specformer):
    z = npz(goldens, "specformer")
    out = specformer(torch.from_numpy(z["spectra"]), masked=torch.from_numpy(z["masked_tokens"]))
    direct = specformer.head(specformer.forward_tokens(torch.from_numpy(z["masked_input"])))
    assert deviation(out["reconstructions"], direct.numpy()) < TOLERANCE
    changed = z["masked_input"] != z["preprocessed"]
    assert changed.sum() == z["masked_loss_n_elements"]
    loss = ((out["reconstructions"].numpy() - z["preprocessed"])[changed] ** 2).mean()
    assert abs(loss - z["masked_loss"]) < TOLERANCE


# The image transformer


@pytest.mark.parametrize("size", [144, 60])
def test_vit_outputs(goldens, vit, size):
    z = npz(goldens, "astrodino")
    out = vit.forward_features(torch.from_numpy(z[f"images_{size}"]))
    assert deviation(out["x_norm_clstoken"], z[f"x_norm_clstoken_{size}"]) < TOLERANCE
    assert deviation(out["x_norm_patchtokens"], z[f"x_norm_patchtokens_{size}"]) < TOLERANCE


def test_vit_details(goldens, vit):
    z = npz(goldens, "astrodino")
    x = torch.from_numpy(z["images_144"])
    out = vit.forward_features(x, torch.from_numpy(z["mask_144"]))
    assert deviation(out["x_norm_clstoken"], z["masked_x_norm_clstoken_144"]) < TOLERANCE
    assert deviation(out["x_norm_patchtokens"], z["masked_x_norm_patchtokens_144"]) < TOLERANCE
    assert deviation(resize_positions(vit.pos_embed, (5, 5)), z["pos_encoding_60"]) < TOLERANCE
    assert deviation(torch.stack(vit.last_patch_tokens(x, 2)), z["last2_patch_tokens_144"]) < TOLERANCE


# Both towers


@pytest.mark.parametrize("name", ["astroclip", "astroclip_cli_hparams"])
def test_astroclip_outputs(goldens, name):
    z, model = npz(goldens, "astroclip"), read_astroclip(goldens, name)
    images, spectra = torch.from_numpy(z["images"]), torch.from_numpy(z["spectra"])
    tokens = model.image_encoder.tokens(images)
    image, spectrum = model(images, spectra)
    assert deviation(tokens, z["image_tokens"]) < TOLERANCE
    assert (
        deviation(model.image_encoder.head.cross_attention(tokens)[:, None], z["image_cross_attention"])
        < TOLERANCE
    )
    tokens = model.spectrum_encoder.tokens(spectra)
    assert (
        deviation(model.spectrum_encoder.head.cross_attention(tokens)[:, None], z["spectrum_cross_attention"])
        < TOLERANCE
    )
    assert deviation(image, z["image_embeddings"]) < TOLERANCE
    assert deviation(spectrum, z["spectrum_embeddings"]) < TOLERANCE


def test_batch_of_one_size_and_order(goldens):
    z, model = npz(goldens, "astroclip"), read_astroclip(goldens, "astroclip")
    for encoder, x in [(model.image_encoder, z["images"]), (model.spectrum_encoder, z["spectra"])]:
        x = torch.from_numpy(x)
        whole = encoder(x)
        assert deviation(torch.cat([encoder(x[i : i + 1]) for i in range(len(x))]), whole.numpy()) < TOLERANCE
        assert deviation(encoder(x.flip(0)).flip(0), whole.numpy()) < TOLERANCE


def test_logits_and_loss(goldens):
    from astroclip.losses.contrastive import clip_loss

    z, model = npz(goldens, "astroclip"), read_astroclip(goldens, "astroclip")
    image, spectrum = model(torch.from_numpy(z["images"]), torch.from_numpy(z["spectra"]))
    assert abs(float(clip_loss(image, spectrum, logit_scale=15.5)) - z["clip_loss"]) < TOLERANCE
    unit = [e / e.norm(dim=1, keepdim=True).clamp(min=1e-3) for e in (image, spectrum)]
    assert deviation(15.5 * unit[0] @ unit[1].T, z["logits_per_image"]) < TOLERANCE


# Any weights


def small(configuration="corrected", **options):
    torch.manual_seed(0)
    model = AstroCLIP(
        VisionTransformer(48, 12, 32, 2, 2, layer_scale=0.5),
        SpecFormer(80, 40, 32, 2, 2),
        embed_dim=16,
        num_heads=2,
        configuration=configuration,
        **options,
    ).eval()
    torch.nn.init.normal_(model.image_encoder.backbone.pos_embed)
    return model


@pytest.mark.parametrize("batch", [1, 5])
def test_folded_query_equals_multihead_attention(batch):
    torch.manual_seed(1)
    for dim, embed_dim, heads in [(24, 24, 1), (24, 32, 4), (32, 24, 8)]:
        pool = CrossAttentionPool(dim, embed_dim, heads)
        for p in pool.parameters():
            torch.nn.init.normal_(p, std=0.3)
        mha = torch.nn.MultiheadAttention(embed_dim, heads, kdim=dim, vdim=dim, batch_first=True)
        parts = [pool.q, pool.k, pool.v]
        if dim == embed_dim:
            mha.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        else:
            for name, p in zip(("q", "k", "v"), parts):
                getattr(mha, f"{name}_proj_weight").copy_(p.weight)
        mha.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        mha.out_proj.load_state_dict(pool.proj.state_dict())
        x = torch.randn(batch, 11, dim)
        expected, weights = mha(pool.query.expand(len(x), -1, -1), x, x, average_attn_weights=False)
        assert deviation(pool(x), pool.norm(expected[:, 0]).numpy()) < TOLERANCE
        assert deviation(pool.weights(x), weights[:, :, 0].numpy()) < TOLERANCE


def nanomaggies(n=3, size=56, seed=0):
    return np.random.default_rng(seed).normal(0.01, 0.05, (n, 3, size, size)).astype("float32")


def test_released_ignores_patch_order_and_corrected_does_not():
    x = torch.rand(2, 3, 48, 48)
    patches = x.unfold(2, 12, 12).unfold(3, 12, 12).reshape(2, 3, 16, 12, 12)[:, :, torch.randperm(16)]
    shuffled = patches.reshape(2, 3, 4, 4, 12, 12).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 48, 48)
    change = {
        c: deviation(small(c).image_encoder(shuffled), small(c).image_encoder(x).numpy())
        for c in ("released", "corrected")
    }
    assert change["released"] < TOLERANCE < 1e-2 < change["corrected"]


@pytest.mark.parametrize("configuration", ["released", "corrected"])
def test_attention_weights_sum_to_one(configuration):
    model = small(configuration)
    image = model.image_attention(nanomaggies())
    spectrum = model.spectrum_attention(np.random.default_rng(0).normal(size=(2, 7781)))
    assert image.shape == (3, 2, 4, 4) and spectrum.shape == (
        2,
        2,
        model.spectrum_encoder.backbone.num_tokens,
    )
    assert np.allclose(image.sum((2, 3)), 1, atol=1e-5) and np.allclose(spectrum.sum(2), 1, atol=1e-5)
    assert image.min() >= 0 and spectrum.min() >= 0


def test_embed_arrays():
    model, images = small(), nanomaggies()
    whole = model.embed_images(images)
    assert whole.shape == (3, 16) and whole.dtype == np.float32
    assert np.allclose(model.embed_images(images, batch_size=2), whole, atol=TOLERANCE)
    assert np.allclose(model.embed_images(images[1]), whole[1:2], atol=TOLERANCE)
    flux = np.random.default_rng(1).normal(size=(3, 7781)).astype("float32")
    whole = model.embed_spectra(flux)
    assert whole.shape == (3, 16) and whole.dtype == np.float32
    assert np.allclose(model.embed_spectra(flux[2]), whole[2:], atol=TOLERANCE)
    assert np.allclose(model.embed_spectra(flux[..., None], batch_size=1), whole, atol=TOLERANCE)
    assert model.embed_images(images[:0]).shape == (0, 16) and model.embed_spectra(flux[:0]).shape == (0, 16)
    assert not model.training


@pytest.mark.parametrize(
    "bad",
    [
        nanomaggies()[:, :2],
        nanomaggies()[0, 0],
        nanomaggies(size=40),
        np.full((1, 3, 56, 56), np.nan, "float32"),
        nanomaggies().transpose(0, 2, 3, 1),
    ],
)
def test_bad_images_are_refused(bad):
    with pytest.raises(ValueError):
        small().embed_images(bad)


def test_bad_spectra_are_refused():
    model, flux = small(), np.ones((2, 7781), "float32")
    wavelength = 3600 + 0.8 * np.arange(7781)
    for arguments in [
        dict(flux=flux[:, :500]),
        dict(flux=flux * np.nan),
        dict(flux=flux, ivar=np.zeros_like(flux)),
        dict(flux=flux, wavelength=wavelength[:50]),
        dict(flux=flux, wavelength=wavelength + 50_000),
        dict(flux=flux[None, None]),
    ]:
        with pytest.raises(ValueError):
            model.embed_spectra(**arguments)


def test_bad_network_inputs_are_refused():
    model = small()
    for x in [torch.rand(2, 4, 48, 48), torch.rand(3, 48, 48), torch.rand(2, 3, 50, 48)]:
        with pytest.raises(ValueError):
            model.image_encoder(x)
    for x in [torch.rand(2, 10), torch.rand(7781), torch.rand(2, 7781, 2)]:
        with pytest.raises(ValueError):
            model.spectrum_encoder(x)


def test_published_sizes():
    with torch.device("meta"):
        model = AstroCLIP(VisionTransformer(), SpecFormer(), configuration="released")

    def count(m):
        return sum(p.numel() for p in m.parameters())

    assert count(model.spectrum_encoder.backbone) == 43_177_750
    assert count(model.image_encoder.backbone) == 302_954_496
    assert count(model) == 370_798_358


def test_stochastic_depth_keeps_the_mean():
    from astroclip.models.layers import drop_path

    torch.manual_seed(0)
    x = torch.zeros(10, 2, 3)
    mean = torch.stack([drop_path(x, torch.ones_like, 0.3) for _ in range(400)]).mean(0)
    assert (mean - 1).abs().max() < 0.15
    assert torch.equal(drop_path(x, torch.ones_like, 0.0), torch.ones_like(x))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu(goldens):
    z, model = npz(goldens, "astroclip"), read_astroclip(goldens, "astroclip").cuda()
    image, spectrum = model(torch.from_numpy(z["images"]).cuda(), torch.from_numpy(z["spectra"]).cuda())
    assert (
        deviation(image.cpu(), z["image_embeddings"]) < TOLERANCE
        and deviation(spectrum.cpu(), z["spectrum_embeddings"]) < TOLERANCE
    )


def test_every_golden_file(shared):
    from astroclip.evaluation.parity import deviations

    rows = deviations(shared / "goldens")
    assert len({r["file"] for r in rows}) == 8 and all(r["deviation"] < TOLERANCE for r in rows), rows
