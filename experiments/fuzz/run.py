"""Run the cases one after another in this process, and decide whether each case passed."""

import contextlib
import dataclasses
import io
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.fuzz import run_folders, tickets, tokenizers, trained_models
from experiments.fuzz.arguments import CALLS
from experiments.fuzz.subject import Subject, equal
from slth_jax.storage import CheckpointError

SUBJECTS = (
    *tickets.SUBJECTS,
    *trained_models.SUBJECTS,
    *tokenizers.SUBJECTS,
    *run_folders.SUBJECTS,
)
MOST_BYTES = 3 << 29  # 1.5 GiB
SECONDS = 120
REFUSALS = (ValueError, CheckpointError, ModuleNotFoundError)


class Slow(BaseException):
    """A case takes longer than `SECONDS`."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A case that was neither read correctly nor refused with a one-line message.

    Attributes:
      subject: the name of the subject.
      case: the number of the case, which determines the case's changes.
      words: the fault and, for an exception, the line of code that raised it.
    """

    subject: str
    case: int
    words: str


def run(
    cases: int, seed: int, only: Sequence[str] = (), progress: Callable[[str], None] = print
) -> tuple[dict[str, Counter[str]], list[Failure]]:
    """Run cases of all subjects in turn; return the counts of verdicts per subject, and failures.

    Args:
      cases: the number of cases, which is divided among the subjects.
      seed: the seed of all random changes; case i of a subject depends only on the seed, the
        subject and i.
      only: names of subjects, or prefixes of names; empty for all subjects.
      progress: a function that is called with a line of text for each failure.
    """
    counts: dict[str, Counter[str]] = {}
    failures: list[Failure] = []
    names = [subject.name for subject in SUBJECTS] + ["arguments"]
    begins = tuple(word for word in only if word not in names)
    names = [name for name in names if not only or name in only or name.startswith(begins)]
    if not names:
        raise ValueError(f"only must be among {', '.join(s.name for s in SUBJECTS)}, arguments")
    share = [cases // len(names) + (i < cases % len(names)) for i in range(len(names))]
    for name, count in zip(names, share, strict=True):
        counts[name] = Counter()
        with contextlib.ExitStack() as stack:
            judge = _arguments if name == "arguments" else _judge_of(name, stack)
            for case in range(count):
                verdict = judge(random.Random(f"{seed} {name} {case}"))
                kind = verdict.split(":")[0]
                counts[name][kind] += 1
                if kind not in ("refused", "same", "read"):
                    verdict = verdict.encode("ascii", "backslashreplace").decode()
                    failures.append(Failure(name, case, verdict))
                    progress(f"{name} {case}: {verdict}")
    return counts, failures


def _judge_of(name: str, stack: contextlib.ExitStack) -> Callable[[random.Random], str]:
    """Return a function that damages and reads a copy of a subject, and returns the verdict."""
    (subject,) = (subject for subject in SUBJECTS if subject.name == name)
    whole = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    with contextlib.redirect_stdout(io.StringIO()):
        subject.write(whole)
        with _copy(whole) as folder:
            expected = subject.read(folder)

    def judge(rng: random.Random) -> str:
        with _copy(whole) as folder:
            subject.change(rng, folder)
            return verdict(lambda: subject.read(folder), subject, expected)

    return judge


@contextlib.contextmanager
def _copy(whole: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as parent:
        yield Path(shutil.copytree(whole, Path(parent) / "copy", symlinks=True))


def _arguments(rng: random.Random) -> str:
    return verdict(rng.choice(CALLS)(rng), None, None)


def verdict(call: Callable[[], Any], subject: Subject | None, expected: Any) -> str:
    """Call a function and return the verdict on the call.

    The verdict is 'refused' (a one-line error), 'same' (the expected result), 'read' (another
    result), or a fault, written as the kind of the fault, a colon and a description.

    Args:
      call: the function.
      subject: the subject that the function reads; None for a call with unexpected arguments.
      expected: the result of reading the undamaged subject.
    """
    before = _reset_peak()

    def too_slow(*_):
        raise Slow

    previous = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call()
    except REFUSALS as error:
        line = str(error)
        if "\n" in line or not line.isprintable():
            return f"lines: {type(error).__name__} of several lines: {line[:300]!r}"
        if not line or len(line) > 1500:
            return f"lines: {type(error).__name__} of {len(line)} characters"
        kind = "refused"
    except Slow:
        return f"slow: more than {SECONDS} s"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [f for f in frames if "slth_jax/" in f.filename or "experiments/" in f.filename]
        at = f"{Path(inside[-1].filename).name}:{inside[-1].lineno}" if inside else "?"
        line = str(error).split("\n")[0]
        return f"trace: {type(error).__name__} at {at}: {line[:200]}"
    else:
        kind = "read"
        if subject is not None and equal(result, expected):
            kind = "same"
        elif subject is not None and subject.sealed:
            return "other numbers: accepted, and not the result of the whole file"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    grown = _peak() - before
    return kind if grown < MOST_BYTES else f"memory: {grown / 2**30:.1f} GiB"


def _reset_peak() -> int:
    """Reset this process's peak memory if the system allows it; return the peak in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes the current size
    return _peak()


def _peak() -> int:
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
