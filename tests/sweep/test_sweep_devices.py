"""Sweeps on one device against sweeps on several."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from sweep_trials import KW, mesh_of, same, trial

from slth_jax import construction, initializers, sweep


@pytest.mark.parametrize("count", [2, 4, 8])
def test_results_do_not_depend_on_the_number_of_devices(reference, count):
    same(sweep.run(trial, mesh=mesh_of(count), **KW), reference)


@pytest.mark.slow
def test_tickets_do_not_depend_on_the_number_of_devices():
    target = initializers.theory_attention(
        jax.random.key(1), num_heads=1, d_in=2, d_out=1, n_k=2, n_v=2
    )

    def prune(key, hparams):
        width, padded = hparams["width"], hparams["width_max"]
        source = initializers.theory_attention(
            key, num_heads=1, d_in=2, d_out=1, n_k=width, n_v=width, padded=padded
        )
        masks, report = construction.solve_attention(source, target)
        return {"error": jnp.maximum(report.qk.max_error, report.vo.max_error)}, masks

    # Widths whose square roots XLA's ways to divide round differently.
    sweeps = {"grid": {"width": [9, 11, 14, 21, 22]}, "seeds": 6, "padded": ["width"], "batch": 2}
    on_one, on_four = (
        sweep.run(prune, mesh=mesh_of(count), buckets="largest", **sweeps) for count in (1, 4)
    )
    same(on_one, on_four)


def test_a_mesh_with_other_axes(reference):
    mesh = jax.make_mesh((4, 2), ("trial", "model"), axis_types=(AxisType.Auto,) * 2)
    same(sweep.run(trial, mesh=mesh, **KW), reference)


def test_a_mesh_with_explicit_axes_and_one_of_the_context(reference):
    mesh = jax.make_mesh((8,), ("data",))  # JAX's default axes
    assert mesh.axis_types == (AxisType.Explicit,)
    same(sweep.run(trial, mesh=mesh, **KW), reference)
    with jax.set_mesh(mesh):
        same(sweep.run(trial, **KW), reference)
        assert jax.sharding.get_abstract_mesh().axis_names == ("data",)
