#!/bin/bash
# Two nodes with 8 GPUs each. A node is a worker: one message leaves it a step, whatever number of GPUs it has.
#     .venv/bin/pip install '.[training,tensorflow,cuda]'  # once
#     sbatch examples/slurm.sh --config=configs/cifar10.py --workdir=/shared/runs/cifar10
# The trainer takes the coordinator's address and the processes' number and index from what srun sets. Ten
# minutes before the time limit SLURM sends SIGTERM: all processes write a checkpoint and end with exit code 4,
# and the job is requeued to resume.
#SBATCH --job-name=def_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append

# One process a node, with all its GPUs: JAX would give it the one of its local rank.
export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
# If a process dies, the others end by themselves (exit code 6). srun does not take the number of CPUs from sbatch.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 .venv/bin/python train.py "$@" \
  --config.num_workers="$SLURM_NNODES" --config.inside="$SLURM_GPUS_ON_NODE"
code=$?
if [ $code -eq 4 ]; then  # ExitCode.STOPPED in def_jax/trainer/launch/exits.py
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
