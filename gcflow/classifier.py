"""A small classifier whose penultimate layer gives the features in which small images are compared."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from gcflow.randomness import batch_indices, derived_seed, generator

FEATURES = 64


class MaxPool(nn.MaxPool2d):
    """2x2 maximum pooling; in evaluation as two maxima of strided views, a tenth of the time on the CPU."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] to [n, C, H // 2, W // 2]."""
        if self.training:
            # Of equal pixels it gives the gradient to one alone.
            return super().forward(x)
        rows = torch.maximum(x[:, :, :-1:2], x[:, :, 1::2])
        return torch.maximum(rows[..., :-1:2], rows[..., 1::2])


class ImageClassifier(nn.Module):
    """Three convolutions and a layer of 64 features, for uint8 images [n, C, H, W] with even sides."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape

        def stage(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

        self.body = nn.Sequential(
            stage(channels, 32),
            stage(32, 64),
            MaxPool(),
            stage(64, 64),
            nn.Flatten(),
            nn.Linear(64 * (height // 2) * (width // 2), FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """uint8 images to features [n, 64]."""
        return self.body(images.float() / 127.5 - 1)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images to logits [n, K]."""
        return self.head(self.features(images))


def split(count: int, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training part and of the held-out part of `count` samples."""
    order = torch.randperm(count, generator=generator(seed, "split"))
    size = round(count * held_out)
    return order[size:], order[:size]


def train_classifier(
    images: Tensor, labels: Tensor, held_out: float, epochs: int, batch: int, learning_rate: float, seed: int
) -> tuple[ImageClassifier, float]:
    """Trains on the part not held out; returns the classifier in evaluation mode and its held-out accuracy.

    Args:
        images: uint8 [n, C, H, W].
        labels: int64 [n], in 0 .. K - 1.
        held_out: share of the images kept for the accuracy, in (0, 1).
        epochs: passes over the training part.
        batch: batch size.
        learning_rate: peak of a one-cycle schedule, AdamW.
        seed: of split, weights, order and noise.
    """
    train, test = split(len(images), held_out, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "classifier"))
        classifier = ImageClassifier(tuple(images.shape[1:]), int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    steps = max(2, epochs * len(train) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for step in range(steps):
        chosen = train[batch_indices(seed, step, batch, len(train))]
        pixels = images[chosen].float()
        # Noise keeps the features from resting on single grey levels, which generated images never hit exactly.
        pixels += 12.75 * torch.randn(pixels.shape, generator=generator(seed, step, "pixel-noise"))
        loss = functional.cross_entropy(classifier(pixels), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    classifier.eval().requires_grad_(False)
    accuracy = (classifier(images[test]).argmax(1) == labels[test]).float().mean().item()
    return classifier, accuracy
