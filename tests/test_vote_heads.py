"Heads that read votes: they learn fractions and counts, repeat themselves, and their answers are kept."

import numpy as np
import pytest
import torch
from scipy.stats import dirichlet_multinomial, multinomial

from astroclip.probes import vote_heads

rng = np.random.default_rng(0)
X = rng.normal(0, 1, (700, 5)).astype(np.float32)
P = np.exp(1.5 * np.stack([X[:, 0], -X[:, 0], X[:, 1]], 1).astype(float))
P /= P.sum(1, keepdims=True)
K = np.stack([rng.multinomial(n, p) for n, p in zip(rng.integers(0, 12, 700), P)])
SPLIT = np.repeat([0, 1, 2], [500, 60, 140])


def test_likelihoods_are_those_of_scipy():
    s = rng.uniform(1, 40, 20)
    expected = [
        dirichlet_multinomial(c * p, k.sum()).logpmf(k) if k.sum() else 0.0 for c, p, k in zip(s, P, K)
    ]
    np.testing.assert_allclose(vote_heads.log_likelihood(K[:20], P[:20], s), expected, atol=1e-9)
    np.testing.assert_allclose(
        vote_heads.log_likelihood(K[:20], P[:20]),
        [multinomial(k.sum(), p).logpmf(k) for p, k in zip(P, K[:20])],
        atol=1e-9,
    )
    assert np.isclose(
        np.exp(vote_heads.log_likelihood(np.array([[2, 1]]), np.array([[0.5, 0.5]]), 2.0)[0]), 1 / 4
    )  # by hand: all splits alike


def test_likelihood_of_counts_has_a_gradient_and_none_without_votes():
    p, s = (
        torch.tensor([[0.2, 0.8], [0.2, 0.8]], requires_grad=True),
        torch.tensor([3.0, 3.0], requires_grad=True),
    )
    vote_heads.count_likelihood(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), p, s).sum().backward()
    assert p.grad[0, 0] > 0 and abs(s.grad[1]) < 1e-6 and torch.isfinite(p.grad).all()


def test_soft_cross_entropy_once_and_twice():
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    target = torch.tensor([[0.5, 0.25, 0.25]])
    assert torch.isclose(
        vote_heads.soft_cross_entropy(logits, target)[0], torch.nn.functional.cross_entropy(logits, target)
    )
    assert torch.isclose(
        vote_heads.soft_cross_entropy(logits, target, twice=True)[0],
        torch.nn.functional.cross_entropy(logits.softmax(1), target),
    )


@pytest.mark.parametrize("protocol", ["released", "corrected"])
def test_soft_labels_learn_repeat_and_do_not_see_the_test(protocol):
    train, val, test = (SPLIT == i for i in range(3))

    def fit(seed=0, k=K):
        return (
            vote_heads.SoftLabels(protocol, epochs=12, seed=seed)
            .fit(X[train], k[train], X[val], k[val])
            .predict(X)
        )

    p = fit()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert (p[test].argmax(1) == P[test].argmax(1)).mean() > 0.8
    np.testing.assert_array_equal(p, fit())
    assert not np.allclose(p, fit(seed=1))
    np.testing.assert_array_equal(p, fit(k=np.where(test[:, None], 50, K)))


def test_released_ignores_validation_and_keeps_raw_features():
    def fit(kv):
        return vote_heads.SoftLabels("released", epochs=2).fit(X[:300], K[:300], X[300:360], kv)

    np.testing.assert_array_equal(fit(K[300:360]).predict(X[:5]), fit(K[300:360] * 0).predict(X[:5]))
    assert not fit(K[300:360]).errors
    head = fit(K[300:360])
    assert torch.equal(head.scaled(X[:3]), torch.as_tensor(X[:3]))


def test_best_weights_are_a_copy():
    net = torch.nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    values = iter([3.0, 1.0, 2.0, 2.5])
    seen = []

    def validate():
        seen.append(net.weight.item())
        return next(values)

    errors = vote_heads.train(
        net,
        lambda rows: (net.weight - 1).square().sum(),
        lambda: torch.arange(4),
        validate,
        epochs=4,
        patience=9,
        lr=0.1,
    )
    assert errors == [3.0, 1.0, 2.0, 2.5] and net.weight.item() == seen[1] != seen[3]


def test_vote_counts_learn_fractions_and_agreement():
    pi = np.random.default_rng(1).standard_gamma(6 * P) + 1e-9
    k = np.stack([rng.multinomial(30, p) for p in pi / pi.sum(1, keepdims=True)])
    votes = {
        "three": k,
        "two": np.stack([k[:, 0], k[:, 1:].sum(1)], 1),
        "never asked": np.zeros((700, 4), int),
    }
    found = vote_heads.fit_heads(X, {"three": k}, SPLIT, questions=("three",))["soft_labels"]["three"]

    def pick(rows):
        return {q: v[rows] for q, v in votes.items()}

    head = vote_heads.VoteCounts().fit(X[SPLIT == 0], pick(SPLIT == 0), X[SPLIT == 1], pick(SPLIT == 1))
    made = head.predict(X)
    test = SPLIT == 2
    for q, v in votes.items():
        p, s = made[q]
        assert p.shape == v.shape and s.shape == (700,)
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-4)
    assert 3 < np.median(made["three"][1][test]) < 12
    assert (
        vote_heads.log_likelihood(k[test], made["three"][0][test], made["three"][1][test]).mean()
        > vote_heads.log_likelihood(k[test], found[0][test]).mean()
    )
    np.testing.assert_allclose(made["two"][0][:, 0], made["three"][0][:, 0], atol=0.25)
    assert 3 < vote_heads.best_concentration(k[test], P[test]) < 12


def test_heads_side_by_side_are_the_heads_alone():
    train, val = SPLIT == 0, SPLIT == 1
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(3)
    try:
        found = vote_heads.fit_heads(X, {"a": K, "b": K[:, :2]}, SPLIT, questions=("a", "b"))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(
        found["soft_labels"]["b"][0],
        vote_heads.SoftLabels().fit(X[train], K[train, :2], X[val], K[val, :2]).predict(X),
    )
    one = (
        vote_heads.VoteCounts()
        .fit(X[train], {"a": K[train], "b": K[train, :2]}, X[val], {"a": K[val], "b": K[val, :2]})
        .predict(X)
    )
    np.testing.assert_array_equal(found["vote_counts"]["a"][0], one["a"][0])
    assert torch.equal(state, torch.random.get_rng_state())


def test_answers_come_back_as_they_were_kept(tmp_path):
    answers = {
        ("image", "vit", "soft_labels"): {"q": (P, np.inf)},
        ("image", "vit", "vote_counts"): {"q": (P, np.arange(700.0))},
    }
    vote_heads.save_answers(tmp_path / "answers.npz", answers, SPLIT > 0)
    again = vote_heads.load_answers(tmp_path / "answers.npz")
    assert list(again) == list(answers) and again["image", "vit", "soft_labels"]["q"][1] == np.inf
    for key in answers:
        np.testing.assert_allclose(again[key]["q"][0], np.where((SPLIT > 0)[:, None], P, np.nan), rtol=1e-6)
    np.testing.assert_allclose(
        again["image", "vit", "vote_counts"]["q"][1][SPLIT > 0], np.arange(500.0, 700.0)
    )


def test_nothing_to_learn_from_is_said():
    for head in (vote_heads.SoftLabels(), vote_heads.VoteCounts()):
        votes = K[:50] * 0
        with pytest.raises(ValueError, match="nothing to learn"):
            head.fit(X[:50], votes if isinstance(head, vote_heads.SoftLabels) else {"q": votes})
    with pytest.raises(ValueError, match="released or corrected"):
        vote_heads.SoftLabels("original")
    assert "vote_counts" not in vote_heads.fit_heads(X, {"q": K}, SPLIT, "released", questions=("q",))


def test_dropout_keeps_the_mean_and_stops_in_evaluation():
    drop = vote_heads.QuickDropout(0.25, torch.Generator().manual_seed(0))
    x = torch.ones(301, 7)
    y = drop(x)
    assert (
        y.unique().tolist() == pytest.approx([0.0, 4 / 3]) and abs(y.mean() - 1) < 0.05 and y.shape == x.shape
    )
    assert torch.equal(drop.eval()(x), x)
