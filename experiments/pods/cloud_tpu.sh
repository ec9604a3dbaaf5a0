#!/bin/bash
# One sweep over a Cloud TPU pod slice of spot machines, made anew whenever it is taken away:
#   TPU=slth ZONE=us-east5-a TYPE=v6e-16 VERSION=v2-alpha-tpuv6e \
#     SETUP='...' experiments/pods/cloud_tpu.sh hidden-dim --preset paper --out /mnt/results/fig4
# SETUP is run first on every host: it mounts the results (Filestore or another NFS: a bucket
# mounted as a folder has neither locks nor atomic renames), installs `slth-jax[tpu]` and changes
# into the repository.
set -u
here=(--zone="$ZONE" --quiet)
printf -v arguments '%q ' "$@"
# SETUP does not end at the same time on every host.
command="$SETUP && SLTH_JOIN_SECONDS=300 python -m experiments ${arguments}--distributed on"

while true; do
  gcloud compute tpus tpu-vm describe "$TPU" "${here[@]}" > /dev/null 2>&1 ||
    gcloud compute tpus tpu-vm create "$TPU" "${here[@]}" \
      --accelerator-type="$TYPE" --version="$VERSION" --spot || exit
  gcloud compute tpus tpu-vm ssh "$TPU" "${here[@]}" --worker=all --command="$command"
  status=$?
  state=$(gcloud compute tpus tpu-vm describe "$TPU" "${here[@]}" --format='value(state)')
  # A machine that still stands was not taken away: done, or an error of ours.
  [ "$state" = READY ] && [ "$status" -ne 143 ] && break
  gcloud compute tpus tpu-vm delete "$TPU" "${here[@]}"
done
gcloud compute tpus tpu-vm delete "$TPU" "${here[@]}"
exit "$status"
