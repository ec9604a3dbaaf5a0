"""Every experiment on processes of a device each, against one process of all devices.

`SLTH_EVERY_EXPERIMENT=1` runs all experiments, `SLTH_PROCESSES=4` with four processes.
"""

import json
import os

import pytest
from processes import finish, start
from test_contract import SMALLEST, TRAINED

from slth_jax import ticket

# A single run, so that the rows of its batches are split.
ROWS = {"language rows": ("language", 1, ("methods=dense",))}
TIMED = ("tokens_per_second",)
PROCESSES = int(os.environ.get("SLTH_PROCESSES", "2"))


def measured(folder):
    """Return the rows of a run without the values that differ from run to run."""
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def same(ours, theirs):
    """Compare values of JSON, numbers within 1e-5."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            same(ours[name], theirs[name])
    else:
        assert ours == (pytest.approx(theirs, rel=1e-5) if isinstance(ours, float) else theirs)


def case(name):
    """Return the name; all but one take minutes, and are skipped unless asked for."""
    asked = name == "hidden-dim" or os.environ.get("SLTH_EVERY_EXPERIMENT") == "1"
    skip = pytest.mark.skipif(not asked, reason="takes minutes: set SLTH_EVERY_EXPERIMENT=1")
    return pytest.param(name, marks=skip)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case(name) for name in (*SMALLEST, *ROWS)])
def test_several_processes_have_the_rows_of_one(case, text_folder, small_network, tmp_path):
    name, seeds, more = ROWS.get(case, (case, 2, ()))
    options = [*SMALLEST[name], *more]
    if name in TRAINED:
        options += [f"data={text_folder}", f"cache={tmp_path}/cache"]
    if name == "trained-target":
        options.append(f"weights={small_network[1][0]}")
    folders = {count: tmp_path / f"{count}" for count in (1, PROCESSES)}
    for count, folder in folders.items():

        def arguments(index, port, count=count, folder=folder):
            words = ["-m", "experiments", name, "--out", folder, "--seeds", seeds]
            words += [word for option in options for word in ("--set", option)]
            return words + ["--distributed", f"localhost:{port},{index}/{count}"] * (count > 1)

        statuses, texts = finish(start(arguments, count, devices=PROCESSES // count), 900)
        assert statuses == [0] * count, texts
    ours, theirs = measured(folders[PROCESSES]), measured(folders[1])
    if name in TRAINED:
        for row, reference in zip(ours, theirs, strict=True):
            same(row, reference)
    else:
        assert ours == theirs
    tickets = sorted((folders[PROCESSES] / "tickets").glob("*.ticket.safetensors"))
    assert len(tickets) == len(list((folders[1] / "tickets").glob("*.ticket.safetensors")))
    for path in tickets:
        assert ticket.verify(path).num_kept > 0
