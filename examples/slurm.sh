#!/bin/bash
# Two nodes with 8 GPUs each, one process and one worker per node, so that one message leaves each node:
#     .venv/bin/pip install '.[training,tensorflow,cuda]'  # once
#     sbatch examples/slurm.sh --config=configs/cifar10.py --workdir=/shared/runs/cifar10 \
#         --config.num_workers=2 --config.shards_per_worker=8
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

# Under srun, JAX would give a process one GPU. The eight of a node share its batch and its matrices.
export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7
# If a process dies, the others end by themselves (exit code 6). srun does not take the number of CPUs from sbatch.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 .venv/bin/python train.py "$@"
code=$?
if [ $code -eq 4 ]; then  # ExitCode.STOPPED in def_jax/trainer/launch/exits.py
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
