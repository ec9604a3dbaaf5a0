#!/bin/bash
# Run a sweep on a Cloud TPU pod slice of spot machines, which is recreated after each preemption:
#   TPU=slth ZONE=us-east5-a TYPE=v6e-16 VERSION=v2-alpha-tpuv6e \
#     SETUP='...' experiments/pods/cloud_tpu.sh hidden-dim --preset paper --out /mnt/results/fig4
# SETUP runs first on every host. It mounts the folder of results, installs `slth-jax[tpu]` and
# changes into the repository. The folder must be on Filestore or another NFS, since a bucket that
# is mounted as a folder has neither locks nor atomic renames.
set -u
here=(--zone="$ZONE" --quiet)
printf -v arguments '%q ' "$@"
# SETUP ends at different times on different hosts, so processes wait up to 300 s for each other.
command="$SETUP && SLTH_JOIN_SECONDS=300 python -m experiments ${arguments}--distributed on"

while true; do
  gcloud compute tpus tpu-vm describe "$TPU" "${here[@]}" > /dev/null 2>&1 ||
    gcloud compute tpus tpu-vm create "$TPU" "${here[@]}" \
      --accelerator-type="$TYPE" --version="$VERSION" --spot || exit
  gcloud compute tpus tpu-vm ssh "$TPU" "${here[@]}" --worker=all --command="$command"
  status=$?
  state=$(gcloud compute tpus tpu-vm describe "$TPU" "${here[@]}" --format='value(state)')
  # If the slice still exists, it was not preempted: the program has ended or failed.
  [ "$state" = READY ] && [ "$status" -ne 143 ] && break
  gcloud compute tpus tpu-vm delete "$TPU" "${here[@]}"
done
gcloud compute tpus tpu-vm delete "$TPU" "${here[@]}"
exit "$status"
