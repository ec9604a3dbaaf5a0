"""The parts of the experiment on guarantees: repeated draws, fitted slopes."""

import jax
import numpy as np
import pytest

from experiments import curves
from experiments.guarantees import plots_bounds, trial
from experiments.trained_target import pretrained
from experiments.trained_target.pretrained import Network, Task


def test_slopes_within_groups_are_found_whatever_the_groups_levels():
    rng = np.random.default_rng(0)
    groups = [(name, i % 3) for i, name in enumerate("abab" * 6)]
    x, z = rng.normal(size=(2, 24))
    level = np.array([100.0 * ord(name) + i for name, i in groups])
    steep, flat = curves.within(groups, [x, z], level + 3 * x)
    assert steep["slope"] == pytest.approx(3) and flat["slope"] == pytest.approx(0, abs=1e-9)
    noisy = curves.within(groups, [x, z], level + 3 * x + rng.normal(size=24))[0]
    assert abs(noisy["slope"] - 3) < 4 * noisy["slope_se"] < 2
    assert curves.within([1, 2], [[1.0, 2.0]], [1.0, 2.0]) == []


@pytest.mark.slow
def test_a_draw_has_rows_up_to_alpha_and_other_numbers_at_other_widths():
    shape = trial.Shape("proof", d=3, heads=2, depth=2)
    key = jax.random.key(0, impl="threefry2x32")
    drawn, other = (trial.draw(shape, key, np.int32(n), 12) for n in (9, 12))
    norms = np.linalg.norm(drawn.x, axis=-1)
    assert norms[0] == pytest.approx(float(drawn.alpha), rel=1e-6) and norms.argmax() == 0
    assert drawn.length in trial.LENGTHS and 0.25 <= drawn.alpha <= 4
    assert drawn.alpha != other.alpha
    assert drawn.source.attention.w_q.shape == (2, 2, 3, 12)
    assert not np.any(drawn.source.attention.w_q[..., 9:])
    assert np.any(drawn.target.layers[0].w[0] != drawn.target.layers[0].w[1])


def test_answers_are_certain_up_to_the_bound_that_can_turn_them():
    """Two columns at distance 5, the answer 10 ahead: a row may move by less than 2."""
    w_u = np.array([[3.0, 0.0], [0.0, -4.0]])
    network = Network(w_e=None, w_pos=None, blocks=(), w_u=w_u)
    task = Task("", tokens=None, positions=None, answers=np.zeros((1, 1), int), choices=2)
    rows = np.array([[[10 / 3, 0.0]]])
    for bound, stored in ((1.99, True), (2.01, False)):
        assert pretrained.certain(network, task, rows, np.full((1, 1), bound)).all() == stored


def test_medians_are_taken_per_input_bound_length_and_depth():
    trials = [
        {
            "num_blocks": depth,
            "alpha": alpha,
            "length": 4,
            "error": alpha,
            "bound_on": 2.0,
            "bound": 3.0,
        }
        for depth in (1, 2, 4)
        for alpha in (1.01, 1.1, 1.3, 2.1)
    ]
    medians = plots_bounds.medians(trials, (1, 2, 4))
    places = [(row["panel"], row["num_blocks"]) for row in medians]
    assert places == [
        *(("depth", 1), ("alpha", 1), ("alpha", 1), ("length", 1), ("depth", 2)),
        *(("depth", 4), ("alpha", 4), ("alpha", 4), ("length", 4)),
    ]
    assert [row["error"] for row in medians[:4]] == pytest.approx([1.2, 1.1, 2.1, 1.2])
    assert [row["x"] for row in medians[1:3]] == pytest.approx([2**0.25, 2**1.25])
    assert medians[0]["bound_on"] == 2.0 and medians[0]["bound"] == 3.0
