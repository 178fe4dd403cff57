#!/bin/bash
# 16 workers on two nodes with 8 GPUs each, one process per GPU:
#     sbatch examples/slurm.sh --config=configs/cifar10.py --workdir=/shared/runs/cifar10
# train.py finds address, number and index of the processes in what srun sets. Ten minutes before the time is
# up SLURM sends SIGTERM: all processes write a checkpoint and end with exit code 4, and the job goes back
# into the queue to go on.
#SBATCH --job-name=def_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append

# JAX gives each process the GPU of its number on the node, so all of a node's are visible to each.
# A process that dies ends the others by itself (exit code 6).
srun --kill-on-bad-exit=0 .venv/bin/python train.py "$@"
code=$?
if [ $code -eq 4 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
