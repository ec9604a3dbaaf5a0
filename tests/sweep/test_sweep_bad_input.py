"""Refusals of a sweep, one line each."""

import math

import jax.numpy as jnp
import pytest
from refusals import refusals
from sweep_trials import CHEAP, cheap

from slth_jax import sweep
from slth_jax.sweep import plan as sweep_plan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"seeds": []}, "seeds must be a count or at least one integer, got none"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"seeds": [-1]}, r"seeds must be an integer in \[0, 4294967295\], got -1"),
        ({"seeds": [0.5]}, r"seeds must be an integer in .*, got 0.5"),
        ({"grid": {"scale": []}}, "grid must be at least one point, got none"),
        ({"grid": []}, "grid must be at least one point, got none"),
        ({"grid": {"scale": "abc"}}, r"grid\['scale'\] must be a sequence of values, got 'abc'"),
        ({"grid": {"scale": 3}}, r"grid\['scale'\] must be a sequence of values, got 3"),
        ({"grid": {"scale": [object]}}, r"grid\['scale'\] must be made of numbers"),
        ({"grid": {"scale": [1], "seed": [1]}}, "grid must be named by strings other than 'seed'"),
        ({"grid": [{"scale": 1}, {"size": 1}]}, r"grid must be points of the names \['scale'\]"),
        ({"grid": {"scale": [2**40]}}, "must be within int32, got 1099511627776"),
        ({"grid": {"scale": [1.0, math.inf]}}, r"grid\['scale'\] must be made of finite numbers"),
        ({"grid": {"scale": [(1.0, math.nan)]}}, r"made of finite numbers, got nan"),
        ({"grid": {"scale": [1.0, 1e39]}}, r"grid\['scale'\] must be within float32, got 1e\+39"),
        ({"grid": {"scale": [1.0, 1e-60]}}, r"must be within float32, got 1e-60"),
        ({"grid": {"scale": [1.5, 10**400]}}, r"must be within float32, got 1000"),
        ({"config": {"rate": object()}}, r"config\.rate must be in JSON's types"),
        ({"config": {"rate": {1, 2}}}, r"config\.rate must be in JSON's types"),
        ({"out": "results/widths=[8,16]"}, r"path must be a folder without \[ and \]"),
        ({"out": "ftp://bucket/run"}, "path must be a path of this machine or gs://BUCKET/PATH"),
        ({"out": "gs://"}, "path must be a path of this machine or gs://BUCKET/PATH"),
        ({"static": ["size"]}, "static must be one of 'scale', got 'size'"),
        ({"padded": ["size"]}, "padded must be one of 'scale', got 'size'"),
        ({"padded": ["scale"]}, r"grid\['scale'\] must be an integer >= 1, got 0.5"),
        ({"chunk": 0}, "chunk must be an integer >= 1, got 0"),
        ({"batch": 5}, r"batch must be an integer in \[1, 4\], got 5"),
        ({"shard": "3/3"}, "shard must be 'i/n' with 0 <= i < n, got '3/3'"),
        ({"shard": "1"}, "shard must be 'i/n'"),
    ],
)
def test_bad_arguments_are_one_line(changes, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refusals(words) as caught:
        sweep.run(cheap, **{**CHEAP, "out": "run", **changes})
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda h: jnp.ones(()), "trial's result must be a mapping of metrics"),
        (lambda h: {}, "trial's result must be a mapping of metrics"),
        (lambda h: {"scale": h["scale"]}, r"trial's metrics must be named unlike the grid"),
        (lambda h: {h["kind"]: h["scale"]}, "trial's metrics must be"),
        (
            lambda h: {"error": h["scale"], "label": "wide"},
            "^trial's metric 'label' must be a number or an array of numbers, got 'wide'",
        ),
        (lambda h: {"error": None}, "^trial's metric 'error' must be a number .*, got None"),
    ],
)
def test_bad_trials_are_one_line(result, words):
    grid = {"scale": [1.0], "kind": ["a", "b"]}
    with refusals(words) as caught:
        sweep.run(lambda key, hparams: result(hparams), grid=grid, seeds=1)
    assert "\n" not in str(caught.value)


def test_buckets_must_hold_the_largest():
    with refusals("buckets must be up to at least 20, the largest width"):
        sweep_plan.make_plan(seeds=1, grid={"width": [3, 20]}, padded=["width"], buckets=[8, 16])
