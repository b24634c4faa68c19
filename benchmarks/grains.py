"""What the tree of grains costs: a step of CIFAR-10's network against the same micro-batches added up in place.

Both train the paper's network on random images, in turns; without the tree each gradient is added to the one before, as
`backward` does by itself. `python benchmarks/grains.py > benchmarks/grains.txt`
"""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from gcflow.batches import Batches
from gcflow.distributed import World
from gcflow.pipeline.params import Params
from gcflow.training import Helpers, gradient_of_batch, initial_state, make_gradient, make_loss

BATCH, GRAIN, STEPS, ROUNDS = 16, 8, 1, 6
OVERRIDES = {"training": {"batch": BATCH, "grain": GRAIN, "cpu_threads": 2, "precision": "float32"}}


def main() -> None:
    """Prints medians, and the ratio of each pair of turns."""
    params = Params(Path(__file__).with_name("cifar10.yaml"))
    config = params.run_config("cifar10/ic/0", OVERRIDES)
    training = config.training
    torch.set_num_threads(training.cpu_threads)
    state = initial_state(config, (3, 32, 32))
    loss_of, parameters = make_loss(config, state, Helpers()), list(state.model.parameters())
    data = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    with Batches(config, data, torch.device("cpu"), World()) as batches:
        grains = batches[0]
    gradient_of = make_gradient(loss_of, training, state.flat)

    def tree() -> None:
        gradient_of_batch(gradient_of, grains, training, World())

    def plain() -> None:
        for grain in grains:
            (loss_of(grain) * (GRAIN / BATCH)).backward()

    def seconds(step: Callable[[], None]) -> float:
        begun = time.perf_counter()
        for _ in range(STEPS):
            for parameter in parameters:
                parameter.grad = None
            step()
        return (time.perf_counter() - begun) / STEPS

    seconds(tree), seconds(plain)
    turns = [(seconds(tree), seconds(plain)) for _ in range(ROUNDS)]
    ratios = [with_tree / without for with_tree, without in turns]
    click.echo(f"torch {torch.__version__}, {platform.machine()}, {training.cpu_threads} threads; batch {BATCH}")
    click.echo(f"grains of {GRAIN} along the tree   {statistics.median(t for t, _ in turns):.3f} s a step")
    click.echo(f"micro-batches of {GRAIN} in place  {statistics.median(p for _, p in turns):.3f} s a step")
    spread = statistics.stdev(ratios) / ROUNDS**0.5
    click.echo(f"ratio, mean of {ROUNDS} turns      {statistics.mean(ratios):.3f} ± {spread:.3f} (standard error)")


if __name__ == "__main__":
    main()
