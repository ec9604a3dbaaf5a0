"""Print an error as one line and choose the exit status, in the same way for all commands."""

import errno
import os
import sys
from collections.abc import Callable

STATUSES = {
    0: "done",
    1: "an error of the program, with its traceback",
    2: "an error of the input or of a file, in one line",
    75: "another process of the run is lost; the same command continues",
    130: "interrupted by Ctrl-C; the same command continues",
    143: "ended by SIGTERM (preempted); the same command continues",
}
VARIABLES = {
    "SLTH_TRACEBACK": "1 to print tracebacks instead of one line",
    "SLTH_CLAIM_SECONDS": "seconds until a dead process loses its folder in a bucket (45)",
    "SLTH_JOIN_SECONDS": "seconds within which all processes of a run must join (40)",
    "SLTH_DATA": "a folder with published networks and texts, for tests",
    "JAX_PLATFORMS": "cpu, cuda or tpu, to override the choice of JAX",
    "JAX_NUM_CPU_DEVICES": "the number of devices that a CPU is split into",
}


def epilog() -> str:
    """Return the end of a help text, which lists exit statuses and environment variables."""
    lines = ["exit statuses:", *(f"  {status:<4} {words}" for status, words in STATUSES.items())]
    lines += ["environment:", *(f"  {name:<20} {words}" for name, words in VARIABLES.items())]
    return "\n".join(lines)


def run(command: Callable[[], object]) -> int:
    """Call `command` and return the exit status; print an expected error on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that a terminal lacks becomes '?'
            stream.reconfigure(errors="replace")
    try:
        command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        _discard_output()
    except OSError as error:
        if not _of_standard_output(error):
            return report(error)
        _discard_output()
        return refuse(f"cannot write the standard output: {error.strerror}")
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return 0


def report(error: BaseException) -> int:
    """Print an expected error as one line and return the exit status; raise any other error."""
    if isinstance(error, KeyboardInterrupt):
        return refuse("interrupted: the same command continues", 130)
    if os.environ.get("SLTH_TRACEBACK") or not _is_expected(error):
        raise error
    return refuse((str(error).splitlines() or [type(error).__name__])[0])


def refuse(message: str, status: int = 2) -> int:
    """Print ``error: message``, with control characters escaped; return `status`."""
    if sys.stderr is not None:
        print(f"error: {_escaped(message)}", file=sys.stderr)
    return status


def show(text: str) -> None:
    """Print text that may come from an untrusted file, with control characters escaped."""
    print("\n".join(map(_escaped, text.split("\n"))))


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _is_expected(error: BaseException) -> bool:
    """Return whether an error is due to bad input and not to the program."""
    from slth_jax.storage import CheckpointError

    return isinstance(error, (ValueError, CheckpointError, ModuleNotFoundError))


def _of_standard_output(error: OSError) -> bool:
    """Return whether an error comes from standard output; only such errors name no file."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
    return error.filename is None and error.errno in full and sys.stdout is not None


def _discard_output() -> None:
    """Redirect standard output to the null device, so that closing it raises no second error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
