#!/bin/bash
# Run a sweep on the tasks of a Slurm job array, which need no communication:
#   sbatch --array=0-15 experiments/pods/slurm_array.sh hidden-dim --preset paper --out /shared/results/fig4
# All tasks use the same folder; each computes a share of the chunks, and the last task to end
# writes the summary. A task that is preempted or out of time is requeued separately. The folder
# contains the number of shards, so failed tasks can be resubmitted with --array=3 or --array=3,7.
#SBATCH --job-name=slth
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120

shard=$SLURM_ARRAY_TASK_ID
count=$SLURM_ARRAY_TASK_COUNT
# If only some tasks are resubmitted, the number of tasks is not the number of shards.
if [ "$count" -gt 1 ] && [ "$SLURM_ARRAY_TASK_MIN" -eq 0 ] && [ "$SLURM_ARRAY_TASK_MAX" -eq $((count - 1)) ]; then
  shard=$shard/$count
fi
srun python -m experiments "$@" --shard "$shard"
status=$?
# Status 143: the program was ended by SIGTERM, and finished chunks are saved.
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
