#!/bin/bash
# One run over two nodes: `sbatch --partition=... --gpus-per-node=8 docs/two-nodes.sh cifar10/gc/0`
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
set -euo pipefail

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=${MASTER_ADDR:-$host}
# The same for all nodes of a job, another one for each job.
port=$((20000 + SLURM_JOB_ID % 10000))

# torchrun starts as many processes per node as it has GPUs; they share each batch.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node="${SLURM_GPUS_PER_NODE:-1}" \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$address:$port" \
    --no-python gcflow train "$1" --wait
