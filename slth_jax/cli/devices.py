"""The number of devices into which a CPU is split, set before JAX is imported."""

import os


def split_cpu(devices: int | None) -> None:
    """Split the CPU into so many devices; None for one per core, or the environment's number.

    One CPU device keeps little more than one core busy.
    """
    if devices is None:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count() or 1))
        return
    if devices < 1:
        raise ValueError(f"--devices must be an integer >= 1, got {devices}")
    os.environ["JAX_NUM_CPU_DEVICES"] = str(devices)
