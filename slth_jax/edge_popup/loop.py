"""The whole of edge-popup for any model: scores trained, evaluated, re-drawn, resumed."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks, storage, supermask
from slth_jax.edge_popup import checkpoints
from slth_jax.edge_popup import scores as edge
from slth_jax.edge_popup.scores import Hparams, Recipe, State, Trainable, Variant
from slth_jax.types import Array, Key, PyTree

_SCORES, _REDRAW = 1 << 20, 1 << 21  # folded into the key
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


class _Best(NamedTuple):
    loss: Array
    step: Array
    bits: dict[str, Array]
    params: dict[str, Array]  # what the masks belong to: weights are re-drawn, biases may learn


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
      accumulate: parts of a batch that go through the model one after another.
      out: a folder for checkpoints; a fit that was stopped goes on there, to the same bits.
      progress: called with (step, steps, the last log entry) after each evaluation.

    Raises:
      ValueError: arguments that cannot be used, one line.
      CheckpointError: `out` holds another fit, is in use, or cannot be written to.
    """
    chosen = edge.VARIANTS[checks.choice("variant", variant, edge.VARIANTS)] \
        if isinstance(variant, str) else variant  # fmt: skip
    checks.number("keep", keep, low=0, high=1, open_low=True)
    checks.number("learning_rate", learning_rate, low=0)
    checks.integer("evaluate_every", evaluate_every, low=1)
    if chosen.redraw_every and draw is None:
        raise checks.fail("draw", "a function of a key for a variant that re-draws weights", None)
    model = _Model(params, loss, mask, learn)
    run = _Run(model, keep, recipe, learning_rate, chosen, accumulate)
    state = run.start(jax.random.fold_in(key, _SCORES))
    best = run.best(state, jnp.inf, 0)
    log: list[dict[str, float]] = []
    config = {
        "keep": float(keep), "learning_rate": float(learning_rate),
        "evaluate_every": evaluate_every, "accumulate": accumulate,
        "recipe": dataclasses.asdict(recipe),
        "variant": dataclasses.asdict(chosen), "masked": sorted(model.masked),
        "learned": sorted(model.learned), "key": np.asarray(jax.random.key_data(key)).tolist(),
        "params": model.fingerprint(),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        folder: Path | None = None
        if out is not None:
            folder = storage.make_folder(out)
            stack.enter_context(storage.lock(folder))
            found = checkpoints.restore(folder, {"state": state, "best": best}, config)
            if found is not None:
                state, best, log = found[0]["state"], found[0]["best"], found[1]
        step, losses = int(state.step), []
        while step < recipe.steps:
            state = run.redrawn(key, state, step, draw)
            state, metrics = run.step(state, batch(step))
            losses.append(metrics["loss"])
            step += 1
            if step % evaluate_every == 0 or step == recipe.steps:
                entry = {"step": step, "loss": float(np.mean(losses))}
                losses = []
                if validation:
                    values = [float(run.evaluate(state, one)) for one in validation]
                    entry["validation"] = float(np.mean(values))
                value = entry.get("validation", entry["loss"])
                if not np.isfinite(value):
                    raise ValueError(f"loss must be finite, got {value} at step {step}")
                log.append(entry)
                if value < float(best.loss):
                    best = run.best(state, value, step)
                if folder is not None:
                    checkpoints.save(folder, step, {"state": state, "best": best}, log, config)
                if progress is not None:
                    progress(step, recipe.steps, entry)
    named = {name: supermask.unpack(bits, model.masked[name]) for name, bits in best.bits.items()}
    final = {**model.fixed, **best.params}
    kept = {name: final[name] * m.astype(final[name].dtype) for name, m in named.items()}
    return Fit(
        masks=model.tree({name: named.get(name) for name in model.names}),
        ticket=model.tree({**final, **kept}),
        best_loss=float(best.loss),
        best_step=int(best.step),
        log=log,
    )


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


class _Run:
    """The compiled functions of a fit."""

    def __init__(self, model, keep, recipe, learning_rate, variant, accumulate):
        self._model, self._recipe, self._variant = model, recipe, variant
        self._rate, self._keep = learning_rate, keep
        hparams = Hparams(jnp.float32(keep), jnp.float32(learning_rate))

        @jax.jit
        def advance(state: State, batch: PyTree):
            return edge.step(
                state, batch, hparams, loss=model.loss, recipe=recipe, variant=variant,
                accumulate=accumulate,
            )  # fmt: skip

        @jax.jit
        def evaluate(state: State, batch: PyTree) -> Array:
            return model.loss(edge.ticket(state.weights, state.trainable, keep, variant), batch)

        @jax.jit
        def packed(state: State) -> dict[str, Array]:
            found = edge.masks(state.trainable.scores, keep, variant)
            return {name: supermask.pack(value) for name, value in found.items()}

        self.step, self.evaluate, self.packed = advance, evaluate, packed

    def start(self, key: Key) -> State:
        """Return the state before the first step."""
        model = self._model
        weights = {n: x for n, x in model.arrays.items() if n not in model.learned}
        learned = {n: model.arrays[n] for n in model.arrays if n in model.learned}
        scores = edge.init_scores(key, {n: weights[n] for n in model.masked}, self._variant)
        state = Trainable(scores, learned)
        return edge.start(weights, state, self._recipe, learning_rate=self._rate)

    def best(self, state: State, loss: float, step: int) -> _Best:
        """Return what a fit keeps of an evaluation."""
        params = {**state.weights, **state.trainable.learned}
        return _Best(jnp.float32(loss), jnp.int32(step), self.packed(state), params)

    def redrawn(self, key: Key, state: State, step: int, draw) -> State:
        """Draw pruned weights anew where the variant does so before this step (IteRand)."""
        every = self._variant.redraw_every
        if not every or step == 0 or step % every:
            return state
        for_fresh, for_choice = jax.random.split(
            jax.random.fold_in(jax.random.fold_in(key, _REDRAW), step)
        )
        fresh = storage.named_leaves(draw(for_fresh))
        if fresh.keys() != set(self._model.names):
            allowed = f"of a tree with leaves {list(self._model.names)}"
            raise checks.fail("draw", allowed, list(fresh))
        return edge.redraw(for_choice, state, fresh, self._keep, self._variant)
