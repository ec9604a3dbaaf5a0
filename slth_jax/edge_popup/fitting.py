"""`fit`: edge-popup for any model of the user's, a single run of the loop."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks, storage, supermask
from slth_jax.edge_popup import scores as edge
from slth_jax.edge_popup.loop import Log, train
from slth_jax.edge_popup.program import Program
from slth_jax.edge_popup.runs import Runs
from slth_jax.edge_popup.scores import Hparams, Recipe, State, Trainable, Variant
from slth_jax.types import Array, Key, PyTree

_SCORES = 1 << 20  # folded into the key
Choose = Callable[[str, Array], bool]


@dataclasses.dataclass(frozen=True, repr=False)
class Fit:
    """What a fit found.

    Attributes:
      masks: booleans in the tree of the parameters, None where nothing is masked: the best ones.
      ticket: source weights times masks, in the tree of the parameters.
      best_loss, best_step: of the evaluation that they come from, and what learns with them.
      log: an entry an evaluation: 'step', 'loss' (mean of the training losses since the last),
        and 'validation' where validation batches were given.
    """

    masks: PyTree
    ticket: PyTree
    best_loss: float
    best_step: int
    log: list[dict[str, float]]

    def __repr__(self) -> str:
        kept = [np.asarray(mask) for mask in jax.tree.leaves(self.masks)]
        size, num = sum(m.size for m in kept), sum(int(m.sum()) for m in kept)
        return (
            f"Fit(best loss {self.best_loss:.4g} at step {self.best_step}, "
            f"{num:,} of {size:,} connections kept)"
        )


def fit(
    key: Key,
    params: PyTree,
    loss: Callable[[PyTree, PyTree], Array],
    batch: Callable[[int], PyTree],
    *,
    keep: float,
    recipe: Recipe,
    learning_rate: float,
    variant: Variant | str = "ramanujan",
    mask: Choose | None = None,
    learn: Choose | None = None,
    draw: Callable[[Key], PyTree] | None = None,
    validation: Sequence[PyTree] = (),
    evaluate_every: int = 100,
    evaluate_first: bool = False,
    accumulate: int = 1,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> Fit:
    """Learn which of the weights `params` to keep; they themselves are never trained.

    Args:
      key: a typed PRNG key: first scores and re-drawing come from it.
      params: the random source in any tree of arrays: nested dictionaries, tuples, a Flax NNX
        `State`, linen variables.
      loss: ``loss(params, batch) -> scalar``, a mean over the batch.
      batch: ``batch(step)`` returns the batch of a step; the same one whenever it is asked.
      keep: fraction of each matrix that is kept, in (0, 1].
      recipe: steps, warm-up and decay of AdamW, see `Recipe`.
      learning_rate: the highest.
      variant: a form of edge-popup, or its name in `VARIANTS`.
      mask: ``mask(name, array)`` says which arrays carry scores; None for all of floating point
        with two dimensions or more. Names are places: 'layers.0.kernel'.
      learn: which of the other arrays train as they are; None for none: biases and gains stay.
      draw: ``draw(key) -> params`` from the source's distribution, for variants that re-draw
        weights (IteRand).
      validation: batches; masks are the best by their mean loss. Without them, by the mean
        training loss since the last evaluation.
      evaluate_every: steps between evaluations, each followed by a checkpoint.
      evaluate_first: begin the log with an evaluation of the first scores, random masks.
      accumulate: parts of a batch that go through the model one after another.
      out: a folder for checkpoints; a fit that was stopped goes on there, to the same bits.
      progress: called with (step, steps, the last log entry) after each evaluation.

    Raises:
      ValueError: arguments that cannot be used, or a loss that is not finite; one line.
      CheckpointError: `out` holds another fit, is in use, or cannot be written to.
      SystemExit: 143, after SIGTERM, once the step in flight is made and saved in `out`.

    Examples:
      Which half of a random matrix another map keeps, found from what that map does:

      >>> w = jax.random.normal(jax.random.key(1), (16, 4))
      >>> hidden = supermask.from_scores(jax.random.normal(jax.random.key(2), w.shape), 0.5)
      >>> found = fit(
      ...     jax.random.key(0),
      ...     {"w": w},
      ...     lambda params, x: jnp.mean((x @ params["w"] - x @ (w * hidden)) ** 2),
      ...     lambda step: jax.random.normal(jax.random.key(step), (32, 16)),
      ...     keep=0.5,
      ...     recipe=Recipe(steps=100),
      ...     learning_rate=0.05,
      ... )
      >>> bool((found.masks["w"] == hidden).all())
      True
    """
    chosen = edge.VARIANTS[checks.choice("variant", variant, edge.VARIANTS)] \
        if isinstance(variant, str) else variant  # fmt: skip
    checks.number("keep", keep, low=0, high=1, open_low=True)
    checks.number("learning_rate", learning_rate, low=0)
    model = _Model(params, loss, mask, learn)
    config = {
        "keep": float(keep), "learning_rate": float(learning_rate),
        "evaluate_every": evaluate_every, "accumulate": accumulate,
        "recipe": dataclasses.asdict(recipe),
        "variant": dataclasses.asdict(chosen), "masked": sorted(model.masked),
        "learned": sorted(model.learned), "key": np.asarray(jax.random.key_data(key)).tolist(),
        "params": model.fingerprint(),
    }  # fmt: skip
    runs = Runs(
        Program(model.loss, recipe, chosen, accumulate=accumulate),
        Hparams(float(keep), float(learning_rate)),
        key,
        start=lambda: model.start(jax.random.fold_in(key, _SCORES), chosen, recipe),
        batches=lambda begin, end: batch(begin),
        validation=validation,
        draw=None if draw is None else lambda fresh_key: model.drawn(draw(fresh_key)),
    )

    def told(step: int, steps: int, log: Log) -> None:
        if progress is not None:
            progress(step, steps, _entry(log[-1]))

    _, best, log = train(
        runs,
        evaluate_every=evaluate_every,
        evaluate_first=evaluate_first,
        out=out,
        config=config,
        progress=told,
    )
    named = {name: supermask.unpack(bits, model.masked[name]) for name, bits in best.masks.items()}
    final = {**model.fixed, **model.arrays, **jax.tree.map(jnp.asarray, best.params)}
    kept = {name: final[name] * m.astype(final[name].dtype) for name, m in named.items()}
    return Fit(
        masks=model.tree({name: named.get(name) for name in model.names}),
        ticket=model.tree({**final, **kept}),
        best_loss=float(best.loss),
        best_step=int(best.step),
        log=[_entry(entry) for entry in log],
    )


def _entry(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return an entry of the log without what differs from machine to machine."""
    return {name: value for name, value in entry.items() if name != "steps_per_second"}


class _Model:
    """The user's tree as named arrays, and which of them are masked, learned, left alone."""

    def __init__(self, params: PyTree, loss: Callable, mask: Choose | None, learn: Choose | None):
        every = {n: jnp.asarray(x) for n, x in storage.named_leaves(params).items()}
        self.names = tuple(every)
        self._structure = jax.tree.structure(params)
        self._loss = loss
        floating = {n for n, x in every.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        # Counters and random keys (of dropout, say) are no weights: no run's state holds them.
        self.fixed = {n: x for n, x in every.items() if n not in floating}
        self.arrays = {n: x for n, x in every.items() if n in floating}
        wanted = mask or (lambda name, x: x.ndim >= 2)
        self.masked = {n: self.arrays[n].shape for n in floating if wanted(n, self.arrays[n])}
        self.masked = {name: self.masked[name] for name in self.names if name in self.masked}
        if not self.masked:
            raise checks.fail("params", "a tree with at least one array to mask", list(self.names))
        for name, shape in self.masked.items():
            if len(shape) < 2:
                raise checks.fail(f"mask of {name!r}", "of an array of two dimensions", shape)
        self.learned = {
            n for n in floating - self.masked.keys() if learn and learn(n, self.arrays[n])
        }

    def tree(self, named: Mapping[str, Any]) -> PyTree:
        """Return named arrays in the user's tree."""
        return jax.tree.unflatten(self._structure, [named[name] for name in self.names])

    def loss(self, named: Mapping[str, Array], batch: PyTree) -> Array:
        """Return the user's loss of named arrays."""
        return self._loss(self.tree({**self.fixed, **named}), batch)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the names, shapes and bytes of the arrays."""
        digest = hashlib.sha256()
        for name, leaf in sorted(self.arrays.items()):
            value = np.asarray(leaf)
            digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def start(self, key: Key, variant: Variant, recipe: Recipe) -> State:
        """Return the state before the first step."""
        weights = {n: x for n, x in self.arrays.items() if n not in self.learned}
        learned = {n: x for n, x in self.arrays.items() if n in self.learned}
        scores = edge.init_scores(key, {n: weights[n] for n in self.masked}, variant)
        return edge.start(weights, Trainable(scores, learned), recipe)

    def drawn(self, tree: PyTree) -> dict[str, Array]:
        """Return a fresh draw of the source as named arrays."""
        fresh = storage.named_leaves(tree)
        if fresh.keys() != set(self.names):
            allowed = f"of a tree with leaves {list(self.names)}"
            raise checks.fail("draw", allowed, list(fresh))
        return {name: jnp.asarray(fresh[name]) for name in self.masked}
