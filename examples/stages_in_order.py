"""Runs the stages of a target one after another, on a machine that has neither Snakemake nor DVC nor MLflow.

python examples/stages_in_order.py [TARGET] [--scale SCALE]

In a project's folder. TARGET is what `gcflow plan` takes, by default everything of the scale; SCALE is by default
`rehearsal`. What is done is left out, so the same command goes on where it stopped; a stage that fails ends it.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from gcflow.errors import GcflowError
from gcflow.pipeline.graph import Graph
from gcflow.pipeline.params import Params


def main() -> None:
    """Runs what is left, and says how long each stage took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="all")
    parser.add_argument("--scale", default="rehearsal")
    chosen = parser.parse_args()
    try:
        graph = Graph(Params(Path("params.yaml")), chosen.scale)
        names = graph.target(chosen.target)
    except GcflowError as error:
        sys.exit(str(error))
    left = [name for name in names if name not in graph.done(names)]
    begun = time.monotonic()
    for number, name in enumerate(left, start=1):
        start = time.monotonic()
        _, *words = graph.jobs[name].command.split()
        if subprocess.run([sys.executable, "-m", "gcflow", *words], check=False).returncode:
            sys.exit(f"{name} failed")
        print(f"[{number}/{len(left)}] {name}: {time.monotonic() - start:.1f} s", flush=True)
    print(f"{len(left)} stages in {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main()
