"""Command-line options for devices and processes, applied before JAX is imported."""

import argparse
import os


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Add the option `--distributed` (see `distributed.joined`)."""
    parser.add_argument(
        "--distributed",
        metavar="HOW",
        default="off",
        help="join the processes of a pod: on (as the scheduler describes them), auto (if there is "
        "a scheduler), off (default), or HOST:PORT,I/N for process I of N, with process 0 at "
        "HOST:PORT",
    )


def split_cpu(devices: int | None) -> None:
    """Split the CPU into `devices` JAX devices.

    If `devices` is None, the environment variable JAX_NUM_CPU_DEVICES contains the number of
    devices; if the variable is not set, there is one device per core. JAX keeps little more than
    one core busy per CPU device.
    """
    if devices is None:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count() or 1))
        return
    if devices < 1:
        raise ValueError(f"--devices must be an integer >= 1, got {devices}")
    os.environ["JAX_NUM_CPU_DEVICES"] = str(devices)
