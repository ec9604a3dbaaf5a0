#!/bin/bash
# One sweep over all GPUs of a Slurm allocation, one process a GPU:
#   sbatch --nodes=2 experiments/pods/slurm.sh hidden-dim --preset paper --out /shared/results/fig4
# The output folder must be seen by every node. Preempted or out of time, the job goes back into
# the queue and goes on where it was. (--gpus-per-task would hide GPUs from JAX's detection.)
#SBATCH --job-name=slth
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120

srun --kill-on-bad-exit=0 python -m experiments "$@" --distributed on
status=$?
# 143 = ended by SIGTERM, finished chunks are safe.
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
