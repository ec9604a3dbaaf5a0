"""The engine: single rows, shift units against brute force, masks that match the report."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from cells import cells
from jax.sharding import AxisType, NamedSharding
from refusals import refusals

from slth_jax.construction import engine, rules, search

KEY = jax.random.key(11, impl="threefry2x32")
P, N, R = 8, 26, 5
# Rules of subset sums; shortest paths have tests of their own.
RULES = {name: rule for name, rule in rules.RULES.items() if rule.band is None}
RULES["few rolls"] = rules.shift(2, 2, 0.4)


def uniform(index, *shape):
    return jax.random.uniform(jax.random.fold_in(KEY, index), shape, minval=-1.0)


def problem():
    """Targets beyond some groups' reach, so that rows keep shift units."""
    return uniform(0, P, N), uniform(1, N, R), 1.5 * uniform(2, P, R)


@functools.cache
def solver(rule):
    """Return one compiled program for every test of a rule."""

    def run(left, right, target):
        assignment = rule.assignment(right, N, left=left, target=target)
        return assignment, engine.solve_rows(left, right, target, assignment, rule)

    return jax.jit(run)


@functools.cache
def solved(name):
    return solver(RULES[name])(*problem())


@pytest.mark.parametrize("name", cells(RULES, fast=("fitted",)))
def test_masks_reach_what_is_reported(name):
    left, right, target = problem()
    assignment, rows = solved(name)
    of_left = engine.left_mask(assignment, rows.kept, rows.pattern, N)
    of_right = engine.right_mask(assignment, N)
    product = np.asarray(left * of_left, np.float64) @ np.asarray(right * of_right, np.float64)
    np.testing.assert_allclose(product, rows.total, atol=2e-6)
    np.testing.assert_allclose(np.abs(product - target), rows.error, atol=2e-6)
    assert of_left.dtype == of_right.dtype == bool
    if name != "proof":
        assert np.asarray(of_right).any(axis=1).all(), "no unit is left over"
    assert rows.pattern.any() == (RULES[name].search.shift_units > 0)


@pytest.mark.parametrize("name", cells(RULES, fast=("proof",)))
def test_a_row_depends_on_no_other_row(name):
    left, right, target = problem()
    assignment, rows = solved(name)
    order = np.random.default_rng(0).permutation(P)
    _, mixed = solver(RULES[name])(left[order], right, target[order])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), rows, mixed)
    rows_alone = engine.solve_rows(left[2:5], right, target[2:5], assignment, RULES[name])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:5], b), rows, rows_alone)


@pytest.mark.parametrize("name", ["proof", "few rolls"])
def test_rows_spread_over_devices_stay_there_and_keep_their_bits(name):
    left, right, target = problem()
    assignment, rows = solved(name)
    mesh = jax.make_mesh((4,), ("row",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, jax.P("row"))
    args = *(jax.device_put(x, spread) for x in (left, target)), right, assignment
    run = jax.jit(lambda l, t, r, d: engine.solve_rows(l, r, t, d, RULES[name]))
    compiled = run.lower(args[0], args[1], right, assignment).compile()
    assert "all-gather" not in compiled.as_text() and "all-reduce" not in compiled.as_text()
    for result, want in zip(run(args[0], args[1], right, assignment), rows, strict=True):
        assert not result.size or result.sharding.spec[0] == "row"
        np.testing.assert_array_equal(result, want)


@pytest.mark.parametrize("r, columns", [(3, 2), pytest.param(4, 4, marks=pytest.mark.slow)])
def test_with_every_reroll_each_block_gets_the_best_of_all_patterns_and_subsets(r, columns):
    rule = rules.shift(2, columns, reroll=1.0)
    left, right, target = uniform(0, 4, 16), uniform(1, 16, r), 1.5 * uniform(2, 4, r)
    assignment = rule.assignment(right, 16)
    assert (np.asarray(assignment.shift) >= 0).all()
    rows = engine.solve_rows(left, right, target, assignment, rule)
    l, w, t = (np.asarray(x, np.float64) for x in (left, right, target))
    for i in range(4):
        for b, shift in enumerate(np.asarray(assignment.shift)):
            block = range(r)[b * assignment.columns : (b + 1) * assignment.columns]
            scores = []
            for pattern in itertools.product([0, 1], repeat=2):
                score = 0.0
                for j in block:
                    column_units = np.asarray(assignment.units)[j][np.asarray(assignment.filled)[j]]
                    subsets = np.array(list(itertools.product([0, 1], repeat=len(column_units))))
                    value = t[i, j] - np.dot(pattern, l[i, shift] * w[shift, j])
                    score += (
                        np.abs(subsets @ (l[i, column_units] * w[column_units, j]) - value).min()
                        ** 2
                    )
                scores.append(score)
            assert np.sum(np.asarray(rows.error)[i, block] ** 2) == pytest.approx(
                min(scores), rel=1e-3
            )


@pytest.mark.slow
def test_more_rolls_are_never_worse_and_end_the_tail():
    left, right, target = uniform(3, 32, 40), uniform(4, 40, 4), 0.5 * uniform(5, 32, 4)
    worst = []
    for rule in (rules.get("reach"), rules.shift(4, 4, 0.5), rules.shift(4, 4, 1.0)):
        rows = engine.solve_rows(left, right, target, rule.assignment(right, 40), rule)
        worst.append(float(rows.error.max()))
    assert worst[0] > 10 * worst[1] and worst[1] >= worst[2]


@pytest.mark.slow
def test_centred_patterns_are_tried_in_the_order_that_numpy_finds():
    left, right, target = uniform(0, 3, 24), uniform(1, 24, 4), 1.5 * uniform(2, 3, 4)
    rule = rules.shift(3, 2, reroll=1.0, rerolls=3, centred=True)
    assignment = rule.assignment(right, 24)
    ordered = np.asarray(search._ordered(search.sums(left, right, target, assignment), rule.search))
    assert ordered.shape == (3, 2, 4)
    l, w, t = (np.asarray(x, np.float64) for x in (left, right, target))
    for i, b in itertools.product(range(3), range(2)):
        worst = []
        for number in range(8):
            off = []
            for j in (2 * b, 2 * b + 1):
                column_units = np.asarray(assignment.units)[j][np.asarray(assignment.filled)[j]]
                samples = l[i, column_units] * w[column_units, j]
                kept = [
                    u for bit, u in enumerate(np.asarray(assignment.shift)[b]) if number >> bit & 1
                ]
                value = t[i, j] - (l[i, kept] * w[kept, j]).sum()
                off.append((value - samples.sum() / 2) ** 2 / (samples**2).sum() * 4)
            worst.append(max(off))
        ordered_worst = np.array(worst)[ordered[i, b]]
        np.testing.assert_allclose(
            ordered_worst, np.sort(worst)[:4], rtol=2e-3
        )  # squares of 12 bits


def centred_by_hand(left, right, target, signs):
    """Assign in float64 as `rules.fitted` says; yields the value of each unit."""
    l, w, t = (np.asarray(x, np.float64) for x in (left, right, target))
    n, r = w.shape
    missing = np.stack([t.T, t.T]) if signs else t.T[None]
    units = n / r / len(missing)
    size = np.minimum(2 * 0.3 * np.sqrt((t**2).mean(axis=0) * units / (l**2).mean()), 1)
    free = set(range(n))
    for turn in range(n):
        j, kind = turn % r, turn // r % 2 if signs else 0
        gain = {
            k: w[k, j] * (l[:, k] @ missing[kind, j])
            - (abs(w[k, j]) - size[j]) ** 2 * (l[:, k] @ l[:, k]) / 8
            for k in free
            if not signs or (w[k, j] < 0) == kind
        }
        if not gain:
            break
        chosen = yield gain
        free.remove(chosen)
        missing[kind, j] -= l[:, chosen] * w[chosen, j] / 2


@pytest.mark.parametrize("signs", [False, True], ids=["linear", "across a ReLU"])
def test_fitted_units_are_those_that_bring_targets_to_the_middle_of_their_sums(signs):
    left, right = uniform(0, 6, 60), uniform(1, 60, 3)
    target = uniform(2, 6, 3) * np.array([[0.02, 0.3, 5.0]], np.float32)
    rule = dataclasses.replace(rules.get("fitted"), search=rules.Search())
    rule = rule.for_relu() if signs else rule
    assignment = rule.assignment(right, 60, left=left, target=target)
    assert sorted(np.asarray(assignment.units)[np.asarray(assignment.filled)]) == list(range(60))
    by_hand = centred_by_hand(left, right, target, signs)
    gain = next(by_hand)
    for turn in range(24):  # later on there are no units of some sign
        chosen = int(assignment.units[turn % 3, turn // 3])
        assert chosen in gain
        # Factors are whole numbers up to 64, by which the best of all may change.
        assert gain[chosen] >= max(gain.values()) - 0.05 * (max(gain.values()) - min(gain.values()))
        gain = by_hand.send(chosen)


@pytest.mark.slow
def test_fitted_targets_lie_nearer_to_the_middle_than_those_assigned_by_size():
    left, right, target = uniform(3, 16, 160), uniform(4, 160, 8), 3 * uniform(5, 16, 8)
    off = {}
    for name in ("reach", "fitted"):
        rule = dataclasses.replace(rules.get(name), search=rules.Search())
        assignment = rule.assignment(right, 160, left=left, target=target)
        samples = np.asarray(search.sums(left, right, target, assignment).samples)[:, 0]
        spread = np.sqrt((samples**2).sum(axis=-1)) / 2
        off[name] = np.sqrt((((target - samples.sum(axis=-1) / 2) / spread) ** 2).mean())
    assert off["fitted"] < 0.7 * off["reach"]


def test_a_rule_that_reads_the_target_needs_it():
    with refusals(r"^construction must be a rule that needs no target"):
        rules.get("fitted").assignment(uniform(1, 20, 3), 20)


@pytest.mark.slow
def test_narrow_sources_have_fewer_shift_units_and_every_column_a_unit():
    rule = rules.shift(4, 2)
    right = uniform(6, 20, 3)
    for width, rounds in ((3, 0), (4, 0), (7, 0), (8, 1), (15, 1), (20, 2)):
        assignment = jax.jit(rule.assignment)(right, width)
        alone = rule.assignment(right[:width], width)
        assert int((assignment.shift >= 0).sum()) == 2 * rounds
        assert np.asarray(assignment.filled)[:, 0].all()
        np.testing.assert_array_equal(alone.shift, assignment.shift)
        slots = alone.units.shape[1]
        np.testing.assert_array_equal(alone.units, assignment.units[:, :slots])
        assert int(assignment.filled.sum()) == int(alone.filled.sum()) == width - 2 * rounds


@pytest.mark.slow
def test_one_batch_of_problems_gives_what_each_gives_alone():
    rule = RULES["few rolls"]
    first, second = problem(), (uniform(7, 2, 3, 17), uniform(8, 2, 17, 4), uniform(9, 2, 3, 4))
    both = engine.solve([engine.product(*args, rule) for args in (first, second)])
    for args, (of_left, of_right, report) in zip((first, second), both, strict=True):
        (alone,) = engine.solve([engine.product(*args, rule)])
        np.testing.assert_array_equal(of_left, alone.left_mask)
        np.testing.assert_array_equal(of_right, alone.right_mask)
        assert of_left.shape == args[0].shape and of_right.shape == args[1].shape
        assert float(report.max_error) == float(alone.report.max_error)
    assert repr(report).startswith("Report(num_sums=24, out_of_reach=")
