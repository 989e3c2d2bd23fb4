"Baselines against the original's numbers, torchvision's ResNets, and the layout of Stein et al.'s checkpoint."

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from types import SimpleNamespace

from astroclip.models.baselines import ConvAttention, ConvNeXt, MorphologyMLP, ResNet, perceptron
from astroclip.models.stein import embed_images, load_stein
from astroclip.models.unpickle import CheckpointError


@pytest.fixture(scope="module")
def golden(goldens):
    data = dict(np.load(goldens / "baselines_io.npz"))
    return json.loads(str(data.pop("config_json"))), {k: torch.from_numpy(v) for k, v in data.items()}


@pytest.fixture(scope="module")
def weights(goldens):
    return lambda name: load_file(goldens / f"baseline_{name}.safetensors")


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@torch.no_grad()
def test_conv_attention_golden(golden, weights):
    config, g = golden
    c = config["spectrum_encoder"]
    net = ConvAttention(c["n_latent"], c["n_hidden"], c["dropout"]).eval()
    net.load_state_dict(weights("spectrum_encoder"))
    h, a = net.attend(g["spectra"])
    close(h, g["spectrum_encoder_h"])
    close(a, g["spectrum_encoder_a"])
    close(net(g["spectra"]), g["spectrum_encoder_output"])
    close(net(g["spectra"][1:2, :, None]), g["spectrum_encoder_output"][1:2])


@torch.no_grad()
@pytest.mark.parametrize(
    "name, given, expected",
    [("photometry_mlp", "photometry", "mlp_output"), ("fewshot_mlp", "features", "fewshot_mlp_output")],
)
def test_perceptron_golden(golden, weights, name, given, expected):
    config, g = golden
    c = config[name]
    net = perceptron(c["n_in"], c["n_out"], c["n_hidden"], c.get("dropout", 0.0)).eval()
    net.load_state_dict(weights(name))
    close(net(g[given]), g[expected])


@torch.no_grad()
def test_morphology_golden(golden, weights):
    config, g = golden
    net = MorphologyMLP(**config["morphology_mlp"]).eval()
    net.load_state_dict(weights("morphology_mlp"))
    close(net.probabilities(g["features"]), g["morphology_mlp_output"])


@torch.no_grad()
def fill(net):
    "Weights that need no random generator: a cosine of the element's number, scaled so that signals neither die nor explode."
    for name, value in net.state_dict().items():
        if value.dtype == torch.long:
            continue
        wave = torch.cos(0.37 * torch.arange(value.numel(), dtype=torch.float64)).view(value.shape)
        if "running_var" in name:
            wave = 1 + 0.5 * wave
        elif value.ndim > 1:
            wave = wave * (2 / value[0].numel()) ** 0.5
        else:
            wave = 0.1 * wave + float("weight" in name)
        value.copy_(wave)
    return net.eval()


# torchvision 0.28's ResNet(BasicBlock, [2, 2, 2, 2], num_classes=4) and ResNet(Bottleneck, [3, 4, 6, 3], num_classes=4), filled as above
TORCHVISION = {
    18: [
        [-0.43915096, -0.28085667, 0.17441827, 0.53646469],
        [-0.40584257, -0.25526434, 0.17111416, 0.50699866],
    ],
    50: [
        [-4.47128677, 3.82977104, -1.36603642, -1.37565506],
        [-4.38630629, 3.76002836, -1.33881807, -1.34969974],
    ],
}


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_equals_torchvision(depth):
    net = fill(ResNet(4) if depth == 18 else ResNet.fifty(4))
    x = (
        (0.5 + 0.5 * torch.sin(0.05 * torch.arange(2 * 3 * 64 * 64, dtype=torch.float64)))
        .view(2, 3, 64, 64)
        .float()
    )
    torch.testing.assert_close(net(x), torch.tensor(TORCHVISION[depth]), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "net, shape", [(ResNet(2, width=8), (3, 96, 96)), (ConvNeXt(2), (3, 96, 96)), (ConvAttention(2), (1000,))]
)
@torch.no_grad()
def test_evaluation_does_not_depend_on_the_batch(net, shape):
    x = torch.rand(5, *shape)
    close(net.eval()(x)[2:3], net(x[2:3]))
    close(net(x.flip(0)).flip(0), net(x))


def moco(folder, head=256, prefix="", **more):
    torch.manual_seed(0)
    net = ResNet(outputs=16, depths=(1, 2, 1, 1), bottleneck=True, width=8, head=head).eval()
    state = {
        f"{prefix}encoder_{c}.{k}": v * (1 if c == "q" else 2)
        for c in "qk"
        for k, v in net.state_dict().items()
    }
    state |= {f"{prefix}queue": torch.randn(16, 64), f"{prefix}queue_ptr": torch.zeros(1, dtype=torch.long)}
    file = folder / "stein.ckpt"
    torch.save(
        {"state_dict": state, "hyper_parameters": SimpleNamespace(base_encoder="resnet50", emb_dim=16)}
        | more,
        file,
    )
    return net, file


@pytest.mark.parametrize("head, prefix", [(256, ""), (0, ""), (0, "module.")])
def test_stein_reads_the_query_encoder(tmp_path, head, prefix):
    net, file = moco(tmp_path, head, prefix)
    read = load_stein(file, "cpu")
    assert not read.training
    images = np.random.default_rng(0).normal(0, 0.02, (3, 3, 152, 152)).astype(np.float32)
    np.testing.assert_array_equal(embed_images(read, images), embed_images(net, images))
    assert embed_images(read, images).shape == (3, 16)


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_stein_runs_nothing_of_the_file(tmp_path):
    target = tmp_path / "trap"
    _, file = moco(tmp_path, callbacks=Trap(str(target)))
    load_stein(file, "cpu")
    assert not target.exists()


def test_stein_says_what_does_not_fit(tmp_path):
    net, file = moco(tmp_path)
    state = {f"encoder_q.{k}": v for k, v in net.state_dict().items()}
    for change, message in [
        (lambda s: s.pop("encoder_q.bn1.weight"), "bn1.weight"),
        (lambda s: s.update({"encoder_q.layer1.0.extra": torch.zeros(2)}), "extra"),
        (lambda s: s.update({"encoder_q.fc.0.bias": torch.zeros(3)}), "fc.0.bias"),
        (lambda s: s.update({"encoder_q.conv1.weight": torch.zeros(3)}), "conv1"),
    ]:
        broken = dict(state)
        change(broken)
        torch.save({"state_dict": broken}, file)
        with pytest.raises(CheckpointError, match=message):
            load_stein(file, "cpu")


def test_saved_and_read_again(tmp_path):
    for cls, x in [
        (ResNet, torch.rand(2, 3, 64, 64)),
        (ConvNeXt, torch.rand(2, 3, 64, 64)),
        (ConvAttention, torch.randn(2, 2000)),
    ]:
        net = cls(2).eval()
        net.save_pretrained(tmp_path / cls.__name__)
        close(cls.from_pretrained(tmp_path / cls.__name__, device="cpu")(x), net(x), atol=0)
