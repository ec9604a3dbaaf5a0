"""Networks and layers are read as their maker computes them, or refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from cells import cells

pytest.importorskip("torch", reason="PyTorch is not installed")

from experiments.networks import kinds
from experiments.networks.__main__ import main
from experiments.networks.judge import Case, judge
from experiments.pages.blocks import read

COMMITTED = {entry["name"]: entry["kind"] for entry in read("networks")["named"]}
LAYERS = ("torch", "linen", "nnx")


@pytest.mark.parametrize("kind", cells(kinds.DRAWS, fast=("llama", "bert")))
def test_drawn_networks_are_read_as_their_maker_computes_them_or_refused(kind, tmp_path):
    for i in range(8 if kind in LAYERS else 3):
        folder = tmp_path / str(i)
        folder.mkdir()
        verdict = kinds.drawn(kind, f"suite {i}")(folder)
        assert not verdict.fault, verdict


def of_a_layer(case):
    return case.name.partition(":")[0] in LAYERS


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if of_a_layer(case) else pytest.mark.slow)
        for case in kinds.CASES
    ],
)
def test_named_networks_have_the_verdicts_on_the_page(case, tmp_path):
    verdict = judge(case, tmp_path)
    assert verdict.kind == COMMITTED[case.name], verdict


def test_the_page_has_every_named_network_and_no_fault():
    assert COMMITTED.keys() == {case.name for case in kinds.CASES}
    assert set(COMMITTED.values()) == {"read", "refused"}
    assert not read("networks")["faults"]


def refuse(message):
    def ours():
        raise ValueError(message)

    return ours


def fail():
    raise TypeError("no such argument")


@pytest.mark.parametrize(
    "ours, makers, kind",
    [
        (lambda: np.ones(3), lambda: np.ones(3) + 1e-5, "read"),
        (lambda: np.ones(3), lambda: np.ones(3) + 1e-3, "other outputs"),
        (lambda: np.ones(3), lambda: np.ones((1, 3)), "other outputs"),
        (lambda: np.full(3, np.nan), lambda: np.ones(3), "other outputs"),
        (lambda: np.ones(3), fail, "other outputs"),
        (refuse("a must be 1, got 2"), fail, "refused"),
        (refuse("two\nlines"), fail, "lines"),
        (fail, fail, "trace"),
    ],
)
def test_every_fault_is_seen(ours, makers, kind, tmp_path):
    verdict = judge(Case("x", lambda folder: (ours, makers)), tmp_path)
    assert verdict.kind == kind and verdict.fault == (kind not in ("read", "refused"))


def test_the_command_writes_its_verdicts(tmp_path, capsys):
    out = tmp_path / "networks.json"
    assert main(["--draws", "2", "--only", "torch", "--out", str(out)]) == 0
    report = json.loads(Path(out).read_text())
    assert report["drawn"]["torch"]["drawn"] == 2
    assert {entry["name"].partition(":")[0] for entry in report["named"]} == {"torch"}
    assert "0 faults" in capsys.readouterr().out
