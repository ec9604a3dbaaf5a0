"""The batch scripts against stand-ins for srun, scontrol and gcloud that log their arguments."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.__main__ import parser
from slth_jax.cli.command import parser as verbs

PODS = Path(__file__).parents[2] / "experiments" / "pods"
ARGUMENTS = ["hidden-dim", "--preset", "paper", "--out", "/shared/my results"]

GCLOUD = """
echo "gcloud $4 $5" >> "$LOG"
case "$4" in
  describe)
    [ -e "$LOG.made" ] || exit 1
    echo "$(tail -n 1 "$LOG.states")" ;;
  create) touch "$LOG.made" ;;
  delete) rm "$LOG.made" ;;
  ssh)
    echo "${@: -1}" >> "$LOG"
    status=$(head -n 1 "$LOG.statuses")
    sed -i 1d "$LOG.statuses"
    [ "$status" -eq 255 ] && echo PREEMPTED > "$LOG.states" || echo READY > "$LOG.states"
    exit "$status" ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a script with stand-ins and returns its status and the log."""
    log = tmp_path / "log"

    def stand_in(name, body):
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run(script, *, srun_status=0, ssh_statuses=(0,), arguments=ARGUMENTS, **variables):
        stand_in("srun", f'echo "srun $*" >> "$LOG"\nexit {srun_status}')
        stand_in("scontrol", 'echo "scontrol $*" >> "$LOG"')
        stand_in("gcloud", GCLOUD)
        log.with_name("log.statuses").write_text("\n".join(map(str, ssh_statuses)) + "\n")
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LOG": str(log),
            "SLURM_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": "3",
            "SLURM_ARRAY_TASK_COUNT": "16",
            "SLURM_ARRAY_TASK_MIN": "0",
            "SLURM_ARRAY_TASK_MAX": "15",
            "TPU": "slth",
            "ZONE": "z",
            "TYPE": "t",
            "VERSION": "v",
            "SETUP": "cd /slth",
            **variables,
        }
        done = subprocess.run(["bash", PODS / script, *arguments], env=environment, timeout=30)
        return done.returncode, log.read_text().splitlines()

    return run


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_array.sh"])
@pytest.mark.parametrize("status", [0, 1, 143])
def test_slurm_requeues_preempted_jobs_and_no_others(run, script, status):
    returned, log = run(script, srun_status=status)
    assert returned == status
    assert log[1:] == (["scontrol requeue 77"] if status == 143 else [])
    command = log[0].split(" python -m experiments ")[1].replace("my results", "my_results")
    options = parser().parse_args(command.split())
    assert options.name == "hidden-dim" and options.out == "/shared/my_results"
    assert (options.shard, options.distributed) == (
        ("3/16", "off") if script == "slurm_array.sh" else (None, "on")
    )


@pytest.mark.parametrize("status", [75, 137])
def test_slurm_requeues_a_job_with_a_lost_process_three_times(run, status):
    _, log = run("slurm.sh", srun_status=status)
    assert log[1:] == ["scontrol requeue 77"]
    returned, log = run("slurm.sh", srun_status=status, SLURM_RESTART_COUNT="3")
    assert returned == status and log[-1].startswith("srun ")


def test_slurm_hides_a_model_with_all_processes(run):
    arguments = ["hide", "model", "--out", "/shared/hidden"]
    _, log = run("slurm.sh", arguments=arguments)
    options = verbs().parse_args(log[0].split(" python -m slth_jax ")[1].split())
    assert (options.verb, options.model, options.distributed) == ("hide", "model", "on")


def test_a_task_of_an_array_that_is_submitted_again_takes_the_recorded_number(run):
    alone = {"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "3"}
    _, log = run("slurm_array.sh", **alone, SLURM_ARRAY_TASK_MAX="3")
    assert log[0].endswith(" --shard 3")


def test_cloud_tpu_makes_preempted_machines_anew_until_done(run):
    status, log = run("cloud_tpu.sh", ssh_statuses=(255, 143, 0))
    steps = [line.split()[1] for line in log if line.startswith("gcloud")]
    once = ["describe", "create", "ssh", "describe", "delete"]
    assert status == 0 and steps == once * 3
    (command,) = {line for line in log if not line.startswith("gcloud")}
    assert command.startswith(
        "--command=cd /slth && SLTH_JOIN_SECONDS=300 python -m experiments hidden-dim "
    )
    assert r"/shared/my\ results" in command and command.endswith("--distributed on")


def test_cloud_tpu_stops_at_an_error_of_the_program(run):
    status, log = run("cloud_tpu.sh", ssh_statuses=(2, 0))
    assert status == 2 and sum(line.startswith("gcloud ssh") for line in log) == 1
    assert log[-1].startswith("gcloud delete")


def test_the_kubernetes_command_is_one_that_parses():
    text = (PODS / "gke_jobset.yaml").read_text()
    (command,) = re.findall(r"command: \[(.*)\]", text)
    words = [word.strip().strip('"') for word in command.split(",")]
    assert words[:3] == ["python", "-m", "experiments"]
    assert parser().parse_args(words[3:]).distributed == "on"
    yaml = pytest.importorskip("yaml")
    spec = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == words and spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [143]


@pytest.mark.parametrize("script", sorted(path.name for path in PODS.glob("*.sh")))
def test_shellcheck(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", PODS / script], check=True)
