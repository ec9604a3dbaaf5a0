"""The wheels that a notebook installs, and whether they belong together: recorded versions."""

import logging

import jax
import pytest

from experiments.notebooks import run
from slth_jax import wheels

# Versions as they were found installed, by environment.
OLD = {"jax": "0.7.2", "jaxlib": "0.7.2"}
OLD_CUDA = {**OLD, "jax-cuda12-plugin": "0.7.2", "jax-cuda12-pjrt": "0.7.2"}
OLD_TPU = {**OLD, "libtpu": "0.0.21"}
NEW = {"jax": "0.10.2", "jaxlib": "0.10.2"}
NEW_CUDA = {**NEW, "jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2"}
NEW_TPU = {**NEW, "libtpu": "0.0.42.1"}


@pytest.mark.parametrize(
    ("versions", "tpu", "driver", "expected"),
    [
        ({}, False, None, None),
        (OLD, False, None, None),
        (OLD, True, None, "tpu"),
        (OLD_TPU, False, None, "tpu"),
        (OLD_CUDA, False, None, "cuda12"),  # a runtime whose GPU was not attached
        (OLD_CUDA, False, 580, "cuda12"),  # the plugin decides, before the driver
        ({**OLD, "jax-cuda13-plugin": "0.7.2"}, False, 550, "cuda13"),
        ({}, False, 580, "cuda13"),
        (NEW, False, 550, "cuda12"),
        (NEW, False, 470, None),
        ({**OLD_TPU, "jax-cuda12-plugin": "0.7.2"}, False, 535, "cuda12"),
    ],
)
def test_the_extra_is_that_of_the_machine(versions, tpu, driver, expected):
    assert wheels.extra(versions, tpu=tpu, driver=driver) == expected


@pytest.mark.parametrize(
    ("versions", "libtpu", "words"),
    [
        (OLD_CUDA, "0.0.21.*", None),
        (NEW_CUDA, "0.0.42.*", None),
        (NEW_TPU, "0.0.42.*", None),
        ({**NEW, "libtpu": "0.0.42"}, "0.0.42.*", None),
        ({**NEW, "libtpu": "0.0.421"}, "0.0.42.*", "libtpu 0.0.421 does not belong to jax 0.10.2"),
        ({**NEW_CUDA, **OLD_CUDA, **NEW}, "0.0.42.*", "jax-cuda12-plugin 0.7.2 does not belong to"),
        ({**OLD_TPU, **NEW}, "0.0.42.*", "libtpu 0.0.21 does not belong to jax 0.10.2"),
        ({"jax": "0.10.2"}, None, "jax or jaxlib is not installed"),
    ],
)
def test_wheels_of_two_releases_are_named(versions, libtpu, words):
    line = wheels.mismatch(versions, libtpu)
    assert line is None if words is None else words in line


def test_a_plugin_that_jax_does_not_use_is_one_line(monkeypatch, caplog):
    line = wheels.unused({**NEW, "jax-cuda12-plugin": "0.7.2"}, "cpu", None)
    assert "jax-cuda12-plugin 0.7.2 is installed but not used" in line and "\n" not in line
    assert "does not belong to jaxlib 0.10.2" in line and "slth-jax[cuda12]" in line
    assert "JAX finds no such device" in wheels.unused(NEW_TPU, "cpu", "0.0.42.*")
    assert wheels.unused(NEW_TPU, "tpu", "0.0.42.*") is None
    assert wheels.unused(NEW, "cpu", None) is None
    monkeypatch.setattr(wheels, "installed", lambda: NEW_CUDA)
    wheels.warn_if_unused.cache_clear()
    with caplog.at_level(logging.WARNING):
        wheels.warn_if_unused()  # JAX_PLATFORMS is set while tests run: nothing
        assert jax.config.jax_platforms == "cpu" and not caplog.records
        wheels.warn_if_unused.cache_clear()
        jax.config.update("jax_platforms", None)
        try:
            wheels.warn_if_unused()
            wheels.warn_if_unused()
        finally:
            jax.config.update("jax_platforms", "cpu")
    assert [
        record.getMessage().count("is installed but not used") for record in caplog.records
    ] == [1]
    wheels.warn_if_unused.cache_clear()


def test_the_advice_of_this_environment(monkeypatch):
    assert wheels.mismatch(wheels.installed(), wheels.needed_libtpu()) is None
    assert wheels.needed_libtpu().startswith("0.")
    assert "RESTART THE SESSION" in wheels.advice()  # the process that installs has JAX loaded
    monkeypatch.setattr(wheels, "installed", lambda: {**OLD_CUDA, **NEW})
    monkeypatch.setattr(wheels, "nvidia_driver", lambda: 580)
    monkeypatch.setattr(wheels, "has_tpu", lambda: False)
    assert wheels.extras("plots") == "plots,cuda12"
    assert "in a fresh runtime" in wheels.advice() and "slth-jax[cuda12]" in wheels.advice()


def test_all_notebooks_have_the_same_install_cell():
    def install(name):
        cells = [c.source for c in run.read(name).cells if c.cell_type == "code"]
        return cells[0].replace('"plots", "models"', '"plots"')

    cells = {install(name) for name in run.NAMES}
    assert len(cells) == 1 and "wheels.advice()" in cells.pop()
