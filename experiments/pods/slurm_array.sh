#!/bin/bash
# One sweep over the tasks of a Slurm job array, which need no communication:
#   sbatch --array=0-15 experiments/pods/slurm_array.sh hidden-dim --preset paper --out /shared/results/fig4
# Every task computes its share of the chunks into the one folder; the task that ends last writes
# the summary. Each task is requeued by itself when it is preempted or out of time. The folder
# records the number of shards: failed tasks are submitted again with --array=3 or --array=3,7.
#SBATCH --job-name=slth
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120

shard=$SLURM_ARRAY_TASK_ID
count=$SLURM_ARRAY_TASK_COUNT
# Only the whole array has as many tasks as there are shards.
if [ "$count" -gt 1 ] && [ "$SLURM_ARRAY_TASK_MIN" -eq 0 ] && [ "$SLURM_ARRAY_TASK_MAX" -eq $((count - 1)) ]; then
  shard=$shard/$count
fi
srun python -m experiments "$@" --shard "$shard"
status=$?
# 143 = ended by SIGTERM, finished chunks are safe.
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
