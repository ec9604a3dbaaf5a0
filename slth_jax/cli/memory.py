"""The memory that this process has used."""

import sys


def peak_bytes() -> int:
    """Return this process's peak memory use in bytes; 0 on systems without POSIX."""
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
