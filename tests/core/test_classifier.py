import pytest
import torch
from builders import random_images
from hypothesis import given
from hypothesis import strategies as st

from gcflow.classifier import FEATURES, ImageClassifier, MaxPool, split, train_classifier
from gcflow.pipeline.features import small
from gcflow.pipeline.features.small import SmallFeatures


def stripes(count=80):
    """Two kinds of 6x6 images that differ in nothing but the direction of their stripes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    rows = torch.arange(6)[:, None].expand(6, 6) % 2 * 200
    images = torch.stack([rows if label else rows.T for label in labels])
    noise = torch.randint(0, 50, (count, 6, 6), generator=generator)
    return (images + noise).to(torch.uint8)[:, None], labels


def trained(seed=0, epochs=6):
    images, labels = stripes()
    return train_classifier(images, labels, 0.25, epochs, 16, 0.01, seed)


@given(count=st.integers(1, 200), held_out=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_the_split_is_a_partition_of_the_asked_size(count, held_out, seed):
    train, test = split(count, held_out, seed)
    assert len(test) == round(count * held_out)
    assert torch.cat([train, test]).sort().values.tolist() == list(range(count))
    again, _ = split(count, held_out, seed)
    assert torch.equal(train, again)


def test_the_classifier_learns_what_separates_the_classes():
    classifier, accuracy = trained()
    assert accuracy == 1.0
    images, labels = stripes()
    _, test = split(len(images), 0.25, 0)
    assert torch.equal(classifier(images[test]).argmax(1), labels[test])


def test_the_reported_accuracy_is_that_of_the_held_out_images():
    images, labels = stripes()
    shuffled = labels[torch.randperm(80, generator=torch.Generator().manual_seed(3))]
    classifier, accuracy = train_classifier(images, shuffled, 0.25, 3, 16, 0.01, 1)
    _, test = split(80, 0.25, 1)
    hits = sum(int(classifier(images[i : i + 1]).argmax() == shuffled[i]) for i in test)
    assert accuracy == pytest.approx(hits / 20)
    assert accuracy < 0.95


def test_training_repeats_itself_whatever_the_global_random_state():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(trained(epochs=2)[0].state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    other = trained(seed=1, epochs=2)[0].state_dict()
    assert not torch.equal(results[0]["head.weight"], other["head.weight"])


def test_a_trained_classifier_is_in_evaluation_mode_and_treats_every_image_alone():
    classifier, _ = trained(epochs=2)
    images, _ = stripes()
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    together = classifier.features(images[:8])
    alone = torch.cat([classifier.features(images[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_features_are_the_non_negative_input_of_the_last_layer():
    classifier, _ = trained(epochs=2)
    images, _ = stripes()
    features = classifier.features(images)
    assert features.shape == (80, FEATURES) == (80, 64)
    assert features.min() == 0
    expected = features @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(classifier(images), expected)


@pytest.mark.parametrize("shape", [(3, 2, 6, 8), (1, 1, 2, 2), (2, 3, 5, 7)])
@pytest.mark.parametrize("training", [False, True])
def test_the_pooling_is_torchs(shape, training):
    # Small integers: many maxima are shared by several pixels.
    images = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(0)).float()
    pixels, expected_pixels = (images.clone().requires_grad_() for _ in range(2))
    pooled, expected = MaxPool().train(training)(pixels), torch.nn.functional.max_pool2d(expected_pixels, 2)
    assert torch.equal(pooled, expected)
    if training:
        for output in (pooled, expected):
            output.square().sum().backward()
        assert torch.equal(pixels.grad, expected_pixels.grad)


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_features_and_probabilities_do_not_depend_on_how_many_images_are_classified_at_once(at_once, monkeypatch):
    monkeypatch.setattr(small, "CLASSIFIED", at_once)
    classifier, _ = trained(epochs=2)
    images, _ = stripes()
    features, probabilities = SmallFeatures("classifier", True, classifier)(images)
    torch.testing.assert_close(features, classifier.features(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probabilities, classifier(images).softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6)])
def test_the_classifier_takes_images_of_any_even_sides_and_channels(shape):
    images = random_images(5, *shape)
    assert ImageClassifier(shape, 7)(images).shape == (5, 7)


def test_the_number_of_classes_is_the_largest_label_plus_one():
    images, labels = stripes(20)
    classifier, _ = train_classifier(images, 3 * labels, 0.25, 1, 8, 0.01, 0)
    assert classifier(images).shape == (20, 4)
