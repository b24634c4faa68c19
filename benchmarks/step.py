"""Steps and images per second of each coupling, and the ratio of a step to the network passes that it cannot avoid.

    python benchmarks/step.py [--device cuda] [--dataset digits] [--steps 200]

A step of IC needs a student pass with gradient and a teacher pass without; GC(mu) adds mu passes without gradient for
the endpoint prediction; CD with a trained denoiser adds one. `ratio` is the time of the step over the time of these.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gcflow.config import RunConfig
from gcflow.pipeline.params import Params
from gcflow.preconditioning import to_model_space
from gcflow.training import initial_state, train

METHODS = {"ic": 0.0, "ot": 0.0, "gc": 0.5, "gc-mu1": 1.0, "cd": 1.0}
ROUNDS = 5


def seconds(work: Callable[[], None], device: str) -> float:
    """Least wall time of `work` over a few rounds, after one to warm up."""
    times = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def main() -> None:
    """Prints one line per coupling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--steps", type=int, default=100, help="steps per round")
    options = parser.parse_args()

    params = Params(Path("params.yaml"))
    data = load(params, options.dataset).to(options.device)
    threads = params.run_config(f"{options.dataset}/ic/0").training.cpu_threads
    torch.set_num_threads(threads)
    sys.stdout.write(
        f"{platform.machine()}, torch {torch.__version__}, {options.device}, {threads} thread(s), "
        f"best of {ROUNDS} rounds of {options.steps} steps\n"
        f"{'method':<8} {'steps/s':>9} {'images/s':>10} {'passes ms':>10} {'step ms':>8} {'ratio':>6} {'to IC':>6}\n"
    )
    reference = 0.0
    for method, extra_passes in METHODS.items():
        config = params.run_config(f"{options.dataset}/{method}/0")
        step = step_seconds(config, data, options.steps, options.device)
        passes = pass_seconds(config, data, extra_passes, options.device)
        reference = reference or step
        batch = config.training.batch
        sys.stdout.write(
            f"{method:<8} {1 / step:>9.1f} {batch / step:>10.0f} {1000 * passes:>10.2f} {1000 * step:>8.2f} "
            f"{step / passes:>6.2f} {step / reference:>6.2f}\n"
        )


def load(params: Params, dataset: str) -> torch.Tensor:
    """The samples of a data set, without touching the project's own folder."""
    source = params.dataset(dataset).data
    return torch.from_numpy(source.load().samples)


def step_seconds(config: RunConfig, data: torch.Tensor, steps: int, device: str) -> float:
    """Seconds per step of the real loop."""
    # Halfway through training, so that the schedule has left its short beginning.
    training = replace(config.training, steps=2 * steps, snapshot_every=2 * steps)
    frozen = initial_state(config, tuple(data.shape[1:]), device).ema if config.method.reference else None

    def loop() -> None:
        state = initial_state(config, tuple(data.shape[1:]), device)
        state.step = steps
        train(replace(config, training=training), data, state, frozen=frozen)

    return seconds(loop, device) / steps


def pass_seconds(config: RunConfig, data: torch.Tensor, extra_passes: float, device: str) -> float:
    """Seconds of the bare passes of one step: forward and backward, the teacher's forward, and the extra forwards."""
    state = initial_state(config, tuple(data.shape[1:]), device)
    x = to_model_space(data[: config.training.batch], config.process)
    sigma = torch.full((len(x),), 1.0, device=device)
    extra = round(extra_passes * len(x))

    def passes() -> None:
        for _ in range(20):
            state.model(x, sigma).square().mean().backward()
            with torch.no_grad():
                state.model(x, sigma)
                if extra:
                    state.ema(x[:extra], sigma[:extra])

    return seconds(passes, device) / 20


if __name__ == "__main__":
    main()
