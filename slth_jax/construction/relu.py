"""Find masks of ReLU networks that have two random layers per layer of the target (Lemma 2).

The mask connects each unit k of the first random layer to one input j. Units with a positive weight
``w1_kj`` pass on the positive part of x_j, and units with a negative weight its negative part.
Every entry of the target therefore becomes two subset sums over products ``w2_ik w1_kj``, one for
each sign of ``w1_kj`` (Pensia et al. 2020).
"""

from collections.abc import Sequence
from functools import partial

import jax

from slth_jax import checks
from slth_jax.construction import engine, rules
from slth_jax.construction.engine import Problem, Pruned, Solved
from slth_jax.construction.rules import Rule
from slth_jax.transformer import Linear, validate_biases
from slth_jax.types import Array, ArrayLike


def prune_relu_layer(
    w1: ArrayLike, w2: ArrayLike, target: ArrayLike, *, construction: str | Rule = "fitted"
) -> tuple[Array, Array]:
    """Return the masks of `solve_relu_layer`: booleans `mask1 [n, i]` and `mask2 [o, n]`."""
    return solve_relu_layer(w1, w2, target, construction=construction).masks


def solve_relu_layer(
    w1: ArrayLike, w2: ArrayLike, target: ArrayLike, *, construction: str | Rule = "fitted"
) -> Pruned:
    """Mask a random two-layer ReLU net so that it approximates a linear map (Lemma 2).

    ``target x ~ (w2 * mask2) relu((w1 * mask1) x)``.

    Args:
      w1: the weights of the first random layer `[n, i]`.
      w2: the weights of the second random layer `[o, n]`.
      target: the matrix `[o, i]` of the linear map to approximate.
      construction: a `Rule`, or the name of a rule, as in `prune_product`. Units are grouped over
        the inputs; shift units and bands are not used.

    Returns:
      The boolean masks `(mask1 [n, i], mask2 [o, n])`, and a `Report`.

    Raises:
      ValueError: shapes do not fit, values are not finite, or there are fewer than two hidden units
        per input.
    """
    given = {"w1": w1, "w2": w2, "target": target}
    w1, w2, target = (checks.array(n, w, ndim=2, kind="factor") for n, w in given.items())
    source, linear = (Linear(w1), Linear(w2)), (Linear(target),)
    rule = rules.get(construction)
    validate_layers(source, linear, ("w1", "w2", "target"))
    (mask1, mask2), (report,) = _solve_layers(source, linear, rule=rule)
    return Pruned((mask1.w, mask2.w), report)


def prune_layers(
    source: Sequence[Linear], target: Sequence[Linear], *, construction: str | Rule = "fitted"
) -> tuple[Linear, ...]:
    """Return the masks of `solve_layers`: 2 L layers of booleans, with None for biases."""
    return solve_layers(source, target, construction=construction).masks


def solve_layers(
    source: Sequence[Linear], target: Sequence[Linear], *, construction: str | Rule = "fitted"
) -> Pruned:
    """Mask a random ReLU net of 2 L layers so that it approximates a net of L layers (Theorem 10).

    Layers 2l and 2l + 1 of `source` together approximate layer l of `target`. Biases are never
    masked: layer 2l of `source` must have none, and layer 2l + 1 the bias of layer l of `target`.

    Args:
      source: the 2 L random layers.
      target: the L layers to approximate.
      construction: as in `solve_relu_layer`.

    Returns:
      The masks of the layers of `source`, and a list with one `Report` per layer of `target`.

    Raises:
      ValueError: `source` does not have twice as many layers as `target`, biases do not match, or
        `solve_relu_layer` would raise an error.
    """
    rule = rules.get(construction)
    validate_layers(source, target)
    return Pruned(*_solve_layers(tuple(source), tuple(target), rule=rule))


@partial(jax.jit, static_argnames="rule")
def _solve_layers(source, target, *, rule: Rule):
    solved = engine.solve(layer_problems(source, target, rule))
    reports = [
        engine.joined([plus.report, minus.report])
        for plus, minus in zip(solved[::2], solved[1::2], strict=True)
    ]
    return layer_masks(solved), reports


def layer_problems(source: Sequence[Linear], target: Sequence[Linear], rule: Rule) -> list[Problem]:
    """Return two `Problem`s per layer of `target`: one for positive and one for negative inputs.

    Shift units (units connected to several inputs) are not used. The ReLU of such a unit would pass
    on the positive part of a sum of inputs, while the sum of the positive parts of the inputs is
    needed.
    """
    rule = rule.for_relu()
    problems = []
    for first, second, layer in zip(source[::2], source[1::2], target, strict=True):
        width = engine.hidden_width(second.w, first.w)
        assignment = rule.assignment(first.w, width, left=second.w, target=layer.w)
        for half in engine.split_by_sign(assignment, first.w):
            problems.append(Problem(second.w, first.w, layer.w, half, rule, width))
    return problems


def layer_masks(solved: Sequence[Solved]) -> tuple[Linear, ...]:
    """Return the masks of two source layers for each pair of solved problems."""
    masks = []
    for plus, minus in zip(solved[::2], solved[1::2], strict=True):
        masks += [
            Linear(plus.right_mask | minus.right_mask),
            Linear(plus.left_mask | minus.left_mask),
        ]
    return tuple(masks)


def validate_layers(
    source: Sequence[Linear],
    target: Sequence[Linear],
    names: tuple[str, str, str] | None = None,
) -> None:
    """Refuse a random ReLU network whose layers or biases do not fit the target network.

    Args:
      source: the 2 L random layers.
      target: the L layers to approximate.
      names: for error messages, the names of the first two source layers and of the target layer
        that they approximate. If `names` is None, the messages name layers by their index.
    """
    if len(source) != 2 * len(target):
        allowed = f"a ReLU net of {2 * len(target)} layers, twice the target's"
        raise checks.fail("source", allowed, f"{len(source)} layers")
    for l, layer in enumerate(target):
        first, second = source[2 * l], source[2 * l + 1]
        name1, name2, target_name = names or (
            f"source[{2 * l}].w",
            f"source[{2 * l + 1}].w",
            f"target[{l}].w",
        )
        o, i = checks.array(target_name, layer.w, ndim=2, kind="factor").shape
        w1 = checks.array(name1, first.w, shape=(None, i), kind="factor")
        w2 = checks.array(name2, second.w, shape=(o, w1.shape[0]), kind="factor")
        width = engine.hidden_width(w2, w1)
        name = f"the hidden width n of {name1} and {name2}"
        engine.validate_width(name, w1.shape[0], width, 2 * i)
        validate_biases(first, second, layer)
