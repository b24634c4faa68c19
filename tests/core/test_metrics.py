import math

import numpy as np
import pytest
import torch
from builders import gaussian64 as gaussian
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from gcflow import metrics
from gcflow.metrics import (
    FeatureSet,
    FeatureStatistics,
    InceptionScore,
    PrecisionRecall,
    class_score,
    frechet_distance,
    kernel_distance,
    kernel_inception_distance,
    mean_and_error,
    transport_cost,
)

SEEDS = st.integers(0, 10**6)


def with_moments(seed, count, mean, covariance):
    """A sample whose empirical mean and unbiased covariance are exactly the given ones."""
    raw = gaussian(seed, count, len(mean)).numpy()
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T))).T
    return torch.from_numpy(white @ np.linalg.cholesky(covariance).T + mean)


def random_covariance(seed, size):
    root = gaussian(seed, size, size).numpy()
    return root @ root.T + 0.1 * np.eye(size)


@given(seed=SEEDS, size=st.integers(2, 6))
def test_the_frechet_distance_of_known_moments_is_scipys(seed, size):
    means = gaussian(seed, 2, size).numpy()
    first, second = random_covariance(seed + 1, size), random_covariance(seed + 2, size)
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(first + second - 2 * sqrtm(first @ second).real)
    a, b = with_moments(seed + 3, 40, means[0], first), with_moments(seed + 4, 25, means[1], second)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


@given(seed=SEEDS)
def test_the_frechet_distance_to_itself_is_zero_and_to_a_shifted_copy_the_squared_shift(seed):
    a, shift = gaussian(seed, 30, 5), gaussian(seed + 1, 5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + shift) == pytest.approx(shift.square().sum().item(), abs=1e-8)
    assert frechet_distance(a, a[torch.arange(29, -1, -1)]) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_bears_fewer_samples_than_features():
    a, b = gaussian(0, 4, 10), gaussian(1, 5, 10)
    root = sqrtm(np.cov(a.T) @ np.cov(b.T) + 1e-14 * np.eye(10)).real
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_float32_features_are_compared_in_double_precision():
    a = (gaussian(0, 200, 8) + 1000).float()
    b = a + 0.5
    assert frechet_distance(a, b) == pytest.approx(8 * 0.25, rel=1e-6)


def naive_kernel_distance(a, b):
    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def within(rows):
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    across = [kernel(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(across) / len(across)


@given(seed=SEEDS, n=st.integers(2, 7), m=st.integers(2, 7), size=st.integers(1, 5))
def test_the_kernel_distance_agrees_with_a_double_loop(seed, n, m, size):
    a, b = gaussian(seed, n, size), gaussian(seed + 1, m, size) + 0.5
    assert kernel_distance(a, b) == pytest.approx(naive_kernel_distance(a.tolist(), b.tolist()), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 9, 100])
def test_the_kernel_distance_does_not_depend_on_how_many_rows_are_compared_at_once(rows, monkeypatch):
    monkeypatch.setattr(metrics, "KERNEL_ROWS", rows)
    a, b = gaussian(0, 9, 3), gaussian(1, 7, 3) + 0.5
    assert kernel_distance(a, b) == pytest.approx(naive_kernel_distance(a.tolist(), b.tolist()), rel=1e-9)


def test_the_kernel_distance_is_unbiased_between_samples_of_one_distribution():
    distances, biased = [], []
    for seed in range(300):
        a, b = gaussian(seed, 2, 12, 4)
        distances.append(kernel_distance(a, b))
        gram = [((x @ y.T / 4 + 1) ** 3).mean().item() for x, y in [(a, a), (b, b), (a, b)]]
        biased.append(gram[0] + gram[1] - 2 * gram[2])
    error = np.std(distances) / math.sqrt(300)
    assert abs(np.mean(distances)) < 4 * error
    assert min(distances) < 0
    assert np.mean(biased) > 4 * error


@pytest.mark.parametrize("rows", [1, 4, 11, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_feature_set_knows_its_moments_and_the_mean_kernel_of_its_pairs(rows, dtype, monkeypatch):
    monkeypatch.setattr(metrics, "KERNEL_ROWS", rows)
    features = gaussian(0, 11, 3).to(dtype)
    known, x = FeatureSet(features), features.double().numpy()
    kernels = [(x[i] @ x[j] / 3 + 1) ** 3 for i in range(11) for j in range(11) if i != j]
    np.testing.assert_allclose(known.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(known.covariance, np.cov(x.T), rtol=1e-12)
    assert known.mean_kernel.item() == pytest.approx(np.mean(kernels), rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_a_feature_set_gives_the_distances_of_its_features_however_often_it_is_compared(distance):
    features, others = gaussian(0, 30, 4), [gaussian(seed, 20, 4) + 0.5 for seed in (1, 2)]
    known = FeatureSet(features)
    for other in [*others, others[0]]:
        assert distance(other, known) == distance(other, features)
        assert distance(known, other) == distance(features, other)


def statistics_of(*batches):
    statistics = FeatureStatistics()
    for batch in batches:
        statistics.update(batch)
    return statistics


@given(seed=SEEDS, sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8), size=st.integers(1, 5))
def test_feature_statistics_do_not_depend_on_batches_or_their_order(seed, sizes, size):
    features = gaussian(seed, sum(sizes) + 2, size) * 3 + 1000
    batches = torch.split(features, [*sizes, 2])
    for order in (batches, batches[::-1], [features], features[:, None]):
        statistics = statistics_of(*order)
        assert statistics.count == len(features)
        np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-12)
        covariance = np.atleast_2d(np.cov(features.T))
        np.testing.assert_allclose(statistics.covariance, covariance, rtol=1e-10, atol=1e-10 * covariance.max())


def test_merged_feature_statistics_are_those_of_all_features_and_leave_the_other_alone():
    features = gaussian(0, 30, 4)
    first, second = statistics_of(features[:11]), statistics_of(features[11:])
    before = second.tensors()
    first.merge(second)
    first.merge(FeatureStatistics())
    empty = FeatureStatistics()
    empty.merge(first)
    first.update(gaussian(1, 5, 4))
    for merged, rows in ((empty, features), (first, torch.cat([features, gaussian(1, 5, 4)]))):
        np.testing.assert_allclose(merged.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(merged.covariance, np.cov(rows.T), rtol=1e-10)
        assert merged.count == len(rows)
    assert all(torch.equal(second.tensors()[name], before[name]) for name in before)


def statistics_distance(a, b):
    return frechet_distance(statistics_of(a), statistics_of(b))


def short_kid(a, b):
    return kernel_inception_distance(a, b, subsets=2, subset_size=2, seed=0)


def test_feature_statistics_come_back_from_their_tensors_bit_for_bit():
    features = gaussian(0, 20, 3)
    whole, begun = statistics_of(features[:8], features[8:]), statistics_of(features[:8])
    stored = begun.tensors()
    begun.update(features[8:])
    resumed = FeatureStatistics.of(stored)
    resumed.update(features[8:])
    for statistics in (begun, resumed):
        assert statistics.count == whole.count
        assert torch.equal(statistics.mean, whole.mean)
        assert torch.equal(statistics.covariance, whole.covariance)
    assert stored["count"] == 8
    np.testing.assert_allclose(FeatureStatistics.of(stored).covariance, np.cov(features[:8].T), rtol=1e-12)


def test_the_frechet_distance_takes_features_sets_of_them_and_statistics_alike():
    a, b = gaussian(0, 50, 4), 2 * gaussian(1, 60, 4) + 1
    expected = frechet_distance(a, b)
    for first in (FeatureSet(a), statistics_of(a[:7], a[7:])):
        for second in (b, FeatureSet(b), statistics_of(b[:30], b[30:])):
            assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_the_references_root_is_computed_once_until_more_features_come(monkeypatch):
    roots = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: roots.append(1) or eigh(matrix))
    features = gaussian(0, 40, 4)
    reference = statistics_of(features[:30])
    distances = [frechet_distance(gaussian(seed, 20, 4), reference) for seed in (1, 2, 1)]
    assert distances[0] == distances[2] != distances[1]
    assert len(roots) == 1
    reference.update(features[30:])
    assert frechet_distance(features, reference) == pytest.approx(0, abs=1e-9)
    assert len(roots) == 2


def test_kid_is_unbiased_between_samples_of_one_distribution_and_finds_a_shift():
    distances = [
        kernel_inception_distance(*gaussian(seed, 2, 16, 4), subsets=3, subset_size=10, seed=seed)[0]
        for seed in range(300)
    ]
    error = np.std(distances) / math.sqrt(300)
    assert abs(np.mean(distances)) < 4 * error
    assert min(distances) < 0
    shifted = kernel_inception_distance(gaussian(0, 200, 4), gaussian(1, 200, 4) + 1, 5, 100, seed=0)
    assert shifted[0] > 4 * shifted[1] > 0


def test_kid_of_whole_sets_is_the_kernel_distance_up_to_the_pairs_across():
    a, b = gaussian(0, 12, 3), gaussian(1, 12, 3) + 0.5
    mean, deviation = kernel_inception_distance(a, b, subsets=4, subset_size=1000, seed=0)
    assert mean == pytest.approx(kernel_distance(a, b), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_kids_subsets_are_a_function_of_the_seed_alone():
    a, b = gaussian(0, 40, 3).float(), gaussian(1, 50, 3).float()
    torch.manual_seed(0)
    first = kernel_inception_distance(a, b, 3, 10, seed=1)
    torch.manual_seed(1)
    assert kernel_inception_distance(a, b, 3, 10, seed=1) == first
    assert kernel_inception_distance(a, b, 3, 10, seed=2) != first


@given(seed=SEEDS, splits=st.integers(1, 7), extra=st.integers(0, 20), batch=st.integers(1, 30))
def test_the_inception_score_is_that_of_torch_fidelitys_splits_however_it_comes(seed, splits, extra, batch):
    probabilities = torch.softmax(3 * gaussian(seed, splits + extra, 5), dim=1)
    score = InceptionScore(len(probabilities), splits)
    for part in torch.split(probabilities, batch):
        score.update(part)
    p, total, scores = probabilities.numpy(), len(probabilities), []
    for i in range(splits):
        part = p[i * total // splits : (i + 1) * total // splits]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()))
    assert score.value == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9, abs=1e-9)


def test_splits_of_an_indivisible_total_are_torch_fidelitys_and_not_numpys():
    assert InceptionScore(49_997, 10).sizes == [4999, 5000, 5000] * 3 + [5000]


def test_the_inception_score_refuses_what_does_not_add_up():
    with pytest.raises(ValueError, match="3 images cannot be scored in 4 splits"):
        InceptionScore(3, 4)
    with pytest.raises(ValueError, match="0 images"):
        InceptionScore(0, 1)
    score = InceptionScore(4, 2)
    score.update(torch.eye(3))
    with pytest.raises(ValueError, match="1 of 2 splits are complete"):
        _ = score.value
    with pytest.raises(ValueError, match="2 images more than the 4 announced"):
        score.update(torch.eye(3))


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_the_class_score_is_one_for_constant_and_k_for_perfect_and_balanced_predictions(classes):
    constant = torch.softmax(gaussian(0, classes), dim=0).expand(30, classes)
    assert class_score(constant) == pytest.approx(1)
    assert class_score(torch.eye(classes).repeat(4, 1)) == pytest.approx(classes)


NAN, INFINITE = float("nan"), float("inf")
THREE, ONE = torch.eye(3), torch.ones(1, 3)
NOT_FINITE = [torch.tensor([[1.0, value], [2.0, 3.0]]) for value in (NAN, INFINITE)]


@pytest.mark.parametrize(
    "measure",
    [
        lambda x: frechet_distance(x, THREE),
        lambda x: frechet_distance(THREE, x),
        lambda x: kernel_distance(x, THREE),
        lambda x: kernel_distance(THREE, x),
        lambda x: kernel_inception_distance(x, THREE, 2, 2, 0),
        lambda x: kernel_inception_distance(THREE, x, 2, 2, 0),
        FeatureSet,
        lambda x: frechet_distance(statistics_of(x), THREE),
        lambda x: frechet_distance(THREE, statistics_of(x)),
    ],
)
@pytest.mark.parametrize("features", [ONE, ONE[:0], *NOT_FINITE, torch.ones(3)])
def test_features_that_have_no_distance_are_refused_in_one_line(measure, features):
    with pytest.raises(ValueError, match=r"n >= |hold NaN or infinity|at least 2 are needed") as caught:
        measure(features)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, statistics_distance, short_kid])
def test_features_of_different_sizes_are_not_compared(distance):
    with pytest.raises(ValueError, match="features of 3 and of 2 values"):
        distance(torch.eye(3), torch.eye(2))


def test_statistics_that_are_not_finite_are_refused():
    known = statistics_of(gaussian(0, 9, 3))
    damaged = FeatureStatistics.of(known.tensors() | {"mean": torch.tensor([0.0, NAN, 0.0])})
    for pair in ((known, damaged), (damaged, known)):
        with pytest.raises(ValueError, match="moments hold NaN"):
            frechet_distance(*pair)


@pytest.mark.parametrize("score", [class_score, lambda p: InceptionScore(2, 1).update(p)])
@pytest.mark.parametrize("probabilities", [*NOT_FINITE, torch.ones(3)])
def test_probabilities_that_have_no_score_are_refused(score, probabilities):
    with pytest.raises(ValueError, match=r"probabilities (hold NaN|are \[3\])"):
        score(probabilities)


def test_no_probabilities_have_no_score_and_a_single_value_no_error():
    with pytest.raises(ValueError, match="n >= 1"):
        class_score(torch.ones(0, 3))
    with pytest.raises(ValueError, match="1 values"):
        mean_and_error(torch.ones(1))


@given(seed=SEEDS, rows=st.integers(2, 5), copies=st.integers(1, 3))
def test_the_frechet_distance_is_never_negative(seed, rows, copies):
    a = 100 * gaussian(seed, rows, 24).repeat(copies, 1)
    for b in (a, a[torch.arange(len(a)).flip(0)], a + 1e-9 * gaussian(seed + 1, *a.shape), a[:, :1] * torch.ones(24)):
        assert frechet_distance(a, b) >= 0
        assert frechet_distance(statistics_of(a), statistics_of(b)) >= 0


def test_the_transport_cost_is_the_squared_distance_per_pair():
    x = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    z = torch.tensor([[[0.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert transport_cost(x, z).tolist() == [25, 4]


def brute_force(points, others, neighbours):
    def gap(a, b):
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5

    others = others.tolist()
    radii = [sorted(gap(b, c) for c in others)[neighbours] for b in others]
    inside = [any(gap(a, b) <= r for b, r in zip(others, radii, strict=True)) for a in points.tolist()]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_are_those_of_a_brute_force_count(neighbours):
    generated, real = 1.2 * gaussian(7, 40, 3).double() + 0.5, gaussian(8, 60, 3).double()
    values = PrecisionRecall(neighbours=neighbours).compare(generated, real)
    expected = (brute_force(generated, real, neighbours), brute_force(real, generated, neighbours))
    assert (values["precision"], values["recall"]) == expected
    assert 0 < values["recall"] < 1


def test_precision_and_recall_of_closed_cases():
    compare = PrecisionRecall(neighbours=1).compare
    real = torch.arange(2000).double()[:, None]
    assert compare(real, real) == {"precision": 1.0, "recall": 1.0}
    assert compare(real + 1e6, real) == {"precision": 0.0, "recall": 0.0}
    # The balls of the first half reach one beyond its end.
    assert compare(real[:1000], real) == {"precision": 1.0, "recall": 1001 / 2000}
    assert compare(real, real[:1000]) == {"precision": 1001 / 2000, "recall": 1.0}


def test_precision_and_recall_need_more_samples_than_neighbours():
    with pytest.raises(ValueError, match=r"balls are drawn around are \[3, 2\], expected \[n, columns\] with n >= 4"):
        PrecisionRecall().compare(gaussian(0, 9, 2), gaussian(1, 3, 2))
