# What a job asks a cluster for, as its size demands. One machine reads none of it.

import re
from math import prod

from gcflow.config import process_counts

# Per process of a GPU job: CUDA's libraries alone take several gigabytes of it.
GPU_PROCESS_MB = 12_000
CPU_PROCESS_MB = 3_000
# For the background thread of the pairings, and what feeds the GPU.
CPUS_PER_GPU = 4
# A folder of images of the user's own says how many there are only once it was read.
UNKNOWN_DATA_MB = 16_000
PREPARE_WORKERS = 8


def whole_number(variable, default):
    """A setting of the environment, checked before anything is submitted."""
    value = os.environ.get(variable) or str(default)
    if not re.fullmatch("[1-9][0-9]*", value):
        raise WorkflowError(
            f"{variable} is {value!r}, expected a whole number from 1 up"
        )
    return int(value)


# What a job may ask for at most: a run that takes longer goes on in the next one.
MINUTES = whole_number("GCFLOW_SLURM_MINUTES", 24 * 60)
PROCESSES = whole_number("GCFLOW_PROCESSES", 1)


def on_gpu(wildcards):
    """Whether the networks of a data set are worth a GPU; an MLP on points or 8x8 images is not."""
    return PARAMS.dataset(wildcards.dataset).network.architecture != "mlp"


def data_mb(wildcards):
    source = PARAMS.dataset(wildcards.dataset).data
    if source.count is None:
        return UNKNOWN_DATA_MB
    return source.count * prod(source.shape) // 2**20


def train_processes(wildcards):
    """As many as its batches can be shared among; what is not worth a GPU is not worth several."""
    run = Run(wildcards.dataset, wildcards.method, int(wildcards.seed))
    possible = process_counts(PARAMS.run_config(run.name).training.grains)
    return max(n for n in possible if n <= PROCESSES) if on_gpu(wildcards) else 1


def train_priority(wildcards):
    """The longest first, so that the short ones fill the end."""
    run = Run(wildcards.dataset, wildcards.method, int(wildcards.seed))
    training = PARAMS.run_config(run.name).training
    return training.steps * training.batch


def train_gpus(wildcards):
    """One for each process of a run."""
    return train_processes(wildcards) if on_gpu(wildcards) else 0


def train_cpus(wildcards):
    return max(train_threads(wildcards), CPUS_PER_GPU * train_gpus(wildcards))


def train_memory(wildcards):
    per_process = GPU_PROCESS_MB if on_gpu(wildcards) else CPU_PROCESS_MB
    return per_process * max(1, train_gpus(wildcards)) + 2 * data_mb(wildcards)


def long_minutes(wildcards):
    """Of what can go on where an earlier job stopped."""
    return MINUTES if on_gpu(wildcards) else min(120, MINUTES)


def gpus(wildcards):
    return int(on_gpu(wildcards))


def cpus(wildcards):
    return CPUS_PER_GPU if on_gpu(wildcards) else 1


def memory(wildcards, attempt):
    """A job that ended for lack of memory gets more; it ends early, unlike a training that is continued."""
    process = GPU_PROCESS_MB if on_gpu(wildcards) else CPU_PROCESS_MB
    return (process + 2 * data_mb(wildcards)) * attempt


def minutes(wildcards, attempt):
    return min((240 if on_gpu(wildcards) else 60) * attempt, MINUTES)


def prepare_cpus(wildcards):
    """Archives of photographs are decoded by as many processes; points and 8x8 images take a second."""
    return PREPARE_WORKERS if on_gpu(wildcards) else 1


def partition(wildcards):
    """Where a job of a data set goes; an empty name is the cluster's default."""
    everything = os.environ.get("GCFLOW_SLURM_PARTITION", "")
    return (
        os.environ.get("GCFLOW_SLURM_GPU_PARTITION", everything)
        if on_gpu(wildcards)
        else everything
    )
