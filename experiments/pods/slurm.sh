#!/bin/bash
# Run a sweep or a training on all GPUs of a Slurm allocation, with one process per GPU:
#   sbatch --nodes=2 experiments/pods/slurm.sh hidden-dim --preset paper --out /shared/results/fig4
#   sbatch --nodes=2 experiments/pods/slurm.sh hide MODEL --out /shared/hidden
# Every node must be able to access the output folder. If the job is preempted or out of time, it is
# requeued and continues. (--gpus-per-task would hide GPUs from JAX's detection.)
#SBATCH --job-name=slth
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120

[ "$1" = hide ] && program=slth_jax || program=experiments
srun --kill-on-bad-exit=0 python -m "$program" "$@" --distributed on
status=$?
# Status 143: the program was ended by SIGTERM, and its finished work is saved.
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
# Status 75: a process lost the connection to another process; 137: a process was killed. A node may
# be broken, or the memory too small, so the job is tried three more times.
elif [ "$status" -eq 75 ] || [ "$status" -eq 137 ]; then
  [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
