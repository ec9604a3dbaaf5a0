"""The theorem in one file: it needs jax and slth_jax alone, and its ticket meets the target."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.examples import one_ticket


def test_one_ticket_needs_jax_and_the_library_alone():
    tree = ast.parse(Path(one_ticket.__file__).read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    assert modules == {"jax", "slth_jax"}


def test_one_ticket_approximates_its_target():
    """The theorem holds with high probability: a rare source lacks samples for some entry."""
    outputs, errors = jax.lax.map(one_ticket.main, jax.random.split(jax.random.key(0), 4))
    assert jnp.all(outputs > 0.1)
    assert jnp.median(errors / outputs) < 1e-3


def test_masks_of_one_ticket_keep_each_hidden_unit_for_one_input():
    source, target = (one_ticket.draw(jax.random.key(1), n) for n in (one_ticket.N, 4))
    _, m_k, m_v, _ = one_ticket.prune_attention(source, target)
    for mask in (m_k, m_v):
        assert mask.shape == (one_ticket.HEADS, one_ticket.D, one_ticket.N)
        assert jnp.all(mask.sum(axis=1) == 1)
