"""Damaged files and unexpected arguments are refused in one line or read right."""

import json
import random

import numpy as np
import pytest
from refusals import signatures_unchecked

from experiments.fuzz import mutations, run
from experiments.fuzz.__main__ import main
from experiments.fuzz.subject import Subject

SEALED = Subject("x", lambda _: None, lambda *_: None, lambda _: None)
# The runs that these subjects repeat take seconds per case.
LONG = (
    "fit folder", "report", "hide folder", "band ticket bytes", "encoder ticket bytes",
    "model ticket bytes", "band ticket header", "encoder ticket header", "model ticket header",
)  # fmt: skip


@pytest.fixture(autouse=True)
def as_users_call():
    with signatures_unchecked():
        yield


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(subject.name, marks=[pytest.mark.slow] if subject.name in LONG else [])
        for subject in run.SUBJECTS
    ],
)
def test_damaged_files_are_refused_or_read_right(name):
    counts, failures = run.run(20, 0, [name])
    assert not failures and counts[name].total() == 20
    # A damaged checkpoint of a fit is computed again, so such a folder is hardly ever refused.
    assert counts[name]["refused"] > 0 or name == "fit folder"


def test_unexpected_arguments_are_refused_in_one_line():
    counts, failures = run.run(150, 0, ["arguments"])
    assert not failures and counts["arguments"]["refused"] > 100


def test_the_command_writes_its_counts(tmp_path, capsys):
    assert main(["--cases", "5", "--only", "llama2.c", "--out", str(tmp_path / "f.json")]) == 0
    report = json.loads((tmp_path / "f.json").read_text())
    assert sum(report["counts"]["llama2.c"].values()) == 5 and not report["failures"]
    assert "5 cases, 0 failures" in capsys.readouterr().out


def refuse(message):
    def call():
        raise ValueError(message)

    return call


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: 3, "same"),
        (lambda: 4, "other numbers"),
        (refuse("a is damaged"), "refused"),
        (refuse("two\nlines"), "lines"),
        (refuse("\x1b[31mred"), "lines"),
        (lambda: [][0], "trace"),
        (lambda: np.ones(220_000_000).sum() and 3, "memory"),
    ],
)
def test_every_fault_is_seen(call, word):
    assert run.verdict(call, SEALED, 3).split(":")[0] == word


def test_a_seed_makes_the_same_changes():
    data = bytes(range(100))
    value = {"a": [1, {"b": 2.0}], "c": "x"}
    for change, x in ((mutations.change_bytes, data), (mutations.json_text, value)):
        first, second = ([change(random.Random(i), x) for i in range(50)] for _ in range(2))
        assert first == second and any(entry != x for entry in first)
