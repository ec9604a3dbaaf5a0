#!/bin/bash
# One sweep or training over all GPUs of a Slurm allocation, one process per GPU:
#   sbatch --nodes=2 experiments/pods/slurm.sh hidden-dim --preset paper --out /shared/results/fig4
#   sbatch --nodes=2 experiments/pods/slurm.sh hide MODEL --out /shared/hidden
# The output folder must be seen by every node. Preempted or out of time, the job goes back into
# the queue and continues. (--gpus-per-task would hide GPUs from JAX's detection.)
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
# 143 = ended by SIGTERM; everything that was finished is saved.
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
# 75 = a process lost another one; 137 = a process was killed. A node may be broken, or the memory
# too small: three more tries.
elif [ "$status" -eq 75 ] || [ "$status" -eq 137 ]; then
  [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
