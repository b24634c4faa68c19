"""The scheduler's own overhead: jobs of one second through the profile `slurm`, on a Slurm booted for it.

Needs root and the packages slurm-wlm and munge: `python benchmarks/slurm.py [JOBS]`.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from slurm_cluster import Cluster  # noqa: E402

SNAKEFILE = """
rule all:
    default_target: True
    input:
        [f"out/{{n}}" for n in range({jobs})],
    localrule: True


rule second:
    output:
        "out/{{n}}",
    resources:
        mem_mb=100,
    shell:
        "sleep 1; touch {{output}}"
"""


def main(jobs: int) -> None:
    """Times a dry run and the real one."""
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder) / "cluster") as cluster:
        work = Path(folder) / "work"
        work.mkdir()
        (work / "Snakefile").write_text(SNAKEFILE.format(jobs=jobs))
        command = ["snakemake", "--profile", str(ROOT / "workflow" / "profiles" / "slurm")]
        for more in (["-n"], []):
            begun = time.monotonic()
            # A rule of `set-resources` that this workflow lacks is no mistake.
            result = subprocess.run(
                [*command, *more], cwd=work, env=cluster.environment, capture_output=True, text=True, check=False
            )
            taken = time.monotonic() - begun
            if result.returncode != 0:
                sys.exit(result.stdout[-3000:] + result.stderr[-3000:])
            print(f"{' '.join(['snakemake', *more])}: {jobs} jobs of one second, {taken:.1f} s")  # noqa: T201
        made = len(list((work / "out").iterdir()))
        print(f"{made} files; {taken / jobs:.2f} s a job on the clock; {len(cluster.jobs())} Slurm jobs")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
