"Supervised training: resumption, early stopping, evaluation mode, order of predictions."

import itertools

import h5py
import numpy as np
import pytest
import torch

from astroclip.models.baselines import ConvAttention, ConvNeXt, ResNet, perceptron
from astroclip.training.supervised import (
    ArrayFeed,
    ImageFeed,
    Labels,
    SpectrumFeed,
    Supervised,
    predict,
    train_supervised,
)

N = 96
TRAIN, VALIDATION, TEST = (np.arange(N) % 3 == i for i in range(3))


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("toy") / "survey.h5"
    with h5py.File(path, "w") as f:
        f["targetid"], f["redshift"] = np.arange(N), rng.random(N, np.float32)
        f["image"] = rng.normal(0.02, 0.05, (N, 3, 40, 40)).astype(np.float16)
        f["flux"], f["ivar"] = (
            rng.normal(1, 1, (N, 1200)).astype(np.float16),
            (rng.random((N, 1200)) > 0.05).astype(np.float16),
        )
    return path


def table(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (N, 4))
    return x, np.stack([x.sum(1), x[:, 0] ** 2], 1) + 0.01 * rng.normal(0, 1, (N, 2))


def net(seed=0):
    torch.manual_seed(seed)
    return perceptron(4, 2, dropout=0.2)


@pytest.mark.parametrize("stop", [5, 6, 13])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, stop):
    x, y = table()
    feed, labels, config = ArrayFeed(x, TRAIN), Labels(y, TRAIN), Supervised(epochs=6, batch_size=8)
    whole = net()
    rows = list(train_supervised(whole, feed, labels, TRAIN, VALIDATION, config))
    file = tmp_path / "checkpoint.pt"
    for _ in itertools.islice(train_supervised(net(), feed, labels, TRAIN, VALIDATION, config, file), stop):
        pass
    resumed = net(1)
    again = list(train_supervised(resumed, feed, labels, TRAIN, VALIDATION, config, file))
    assert again == rows[again[0]["step"] :]
    for a, b in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(a, b)


def test_it_stops_early_and_keeps_the_best():
    x, y = table()
    y[VALIDATION] = np.random.default_rng(1).normal(
        0, 1, (VALIDATION.sum(), 2)
    )  # nothing to learn: validation soon worsens
    feed, labels, config = (
        ArrayFeed(x, TRAIN),
        Labels(y, TRAIN),
        Supervised(epochs=60, batch_size=8, patience=3, lr=3e-3),
    )
    model = net()
    rows = list(train_supervised(model, feed, labels, TRAIN, VALIDATION, config))
    losses = [r["val_loss"] for r in rows if r["val_loss"] is not None]
    assert len(losses) < 60 and len(losses) - 1 - int(np.argmin(losses)) == 3
    error = predict(model, feed, VALIDATION) - labels.targets[VALIDATION].numpy()
    np.testing.assert_allclose(np.square(error).mean(), min(losses), rtol=1e-6)


def test_the_schedule_is_on_and_batches_are_whole():
    x, y = table()
    config = Supervised(epochs=4, batch_size=10, warmup=3)
    rows = list(train_supervised(net(), ArrayFeed(x, TRAIN), Labels(y, TRAIN), TRAIN, VALIDATION, config))
    rates = [r["lr"] for r in rows]
    assert len(rows) == config.steps(TRAIN.sum()) == 12
    assert max(rates) == config.lr and rates[-1] < 0.1 * config.lr


@pytest.mark.parametrize("kind", ["image", "spectrum"])
def test_predictions_are_in_order_and_forget_nobody(survey, kind):
    torch.manual_seed(0)
    model, feed = (
        (ResNet(2, width=8), ImageFeed(survey, 32))
        if kind == "image"
        else (ConvAttention(2), SpectrumFeed(survey))
    )
    model.train()
    all_at_once, by_fives = (predict(model, feed, TEST, size) for size in (256, 5))
    assert all_at_once.shape == (TEST.sum(), 2) and model.training
    np.testing.assert_allclose(all_at_once, by_fives, atol=1e-5)
    x, rows = next(feed(TEST, 256))
    assert (rows == np.flatnonzero(TEST)).all()
    np.testing.assert_allclose(model.eval()(x[3:4]).detach(), all_at_once[3:4], atol=1e-5)


@pytest.mark.parametrize(
    "model, kind",
    [
        (ResNet(2, width=8), "image"),
        (ConvNeXt(2, (1, 1, 1, 1), (8, 16, 16, 16)), "image"),
        (ConvAttention(2), "spectrum"),
    ],
)
def test_every_baseline_trains(survey, model, kind):
    feed = ImageFeed(survey, 32) if kind == "image" else SpectrumFeed(survey)
    before = [p.clone() for p in model.parameters()]
    rows = list(
        train_supervised(
            model, feed, Labels(table()[1], TRAIN), TRAIN, VALIDATION, Supervised(epochs=2, batch_size=16)
        )
    )
    assert len(rows) == 4 and np.isfinite([r["loss"] for r in rows]).all()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters())) and not model.training


@pytest.mark.parametrize("train", [False, True])
def test_kept_rows_are_the_rows_of_the_file(survey, monkeypatch, train):
    def walk():
        found = [
            (x.sum((1, 2, 3)).numpy(), r) for x, r in ImageFeed(survey, 40, shift=0)(TRAIN, 10, train=train)
        ]
        x, rows = (np.concatenate(part) for part in zip(*found))
        order = np.argsort(rows)
        return rows[order], x[order], [len(r) for _, r in found]

    kept = walk()
    monkeypatch.setattr("astroclip.training.supervised.KEEP", 0)
    streamed = walk()
    assert kept[2] == streamed[2] == ([10, 10, 10] if train else [10, 10, 10, 2])
    both, i, j = np.intersect1d(
        kept[0], streamed[0], return_indices=True
    )  # the two orders leave out other rows
    assert len(both) >= (28 if train else 32)
    np.testing.assert_allclose(kept[1][i], streamed[1][j], rtol=1e-4)


def test_few_labels_are_fewer_than_a_batch(survey):
    few = TRAIN & (np.arange(N) < 12)
    rows = list(
        train_supervised(
            ResNet(2, width=8),
            ImageFeed(survey, 32),
            Labels(table()[1], few),
            few,
            VALIDATION,
            Supervised(epochs=2),
        )
    )
    assert len(rows) == 2


@pytest.mark.parametrize("bad", [np.full(N, np.nan), np.zeros((N, 2, 2))])
def test_bad_labels_are_refused(bad):
    with pytest.raises(ValueError):
        Labels(bad, TRAIN)
