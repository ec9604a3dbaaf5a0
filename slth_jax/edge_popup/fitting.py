"""`fit`: edge-popup for any model, with many runs compiled into one program."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slth_jax import checks
from slth_jax.edge_popup.loop import train
from slth_jax.edge_popup.model import Loss, Masking, Parts, by_name, fraction
from slth_jax.edge_popup.prepare import Prepared
from slth_jax.edge_popup.results import Fits, Setting
from slth_jax.edge_popup.scores import Keep
from slth_jax.edge_popup.training import Training, listed
from slth_jax.types import Key, PyTree

CONTROLS = ("dense", "random")


def fit(
    key: Key,
    params: PyTree | Callable[[Key], PyTree],
    loss: Loss,
    batches: Callable[[int], PyTree],
    *,
    training: Training,
    keep: Keep | Sequence[Keep] = 0.5,
    seeds: int | None = None,
    controls: Sequence[str] = (),
    masking: Masking = Masking(),  # noqa: B008, frozen
    out: str | os.PathLike[str] | None = None,
) -> Fits:
    """Learn which weights of a random network to keep; the weights themselves are never trained.

    There is one run per combination of `keep`, seed and swept value; all runs train as one program.

    Args:
      key: a typed PRNG key, from which initial scores, re-drawn weights and sampled masks are
        drawn.
      params: the random source: any tree of arrays (nested dictionaries, tuples, Linen's
        parameters), a Flax NNX module, or a `Stateful` with parameters and mutable state. `params`
        may also be a function ``params(key)`` that draws such a source. If `params` is a function,
        every seed has different weights, and variants may re-draw weights (IteRand).
      loss: ``loss(params, batch) -> scalar``, a mean over the batch; for a `Stateful` model
        ``loss(params, state, batch, key) -> (scalar, state)``. For a Flax module the loss takes no
        state; `fit` carries the module's state along.
      batches: ``batches(step)`` returns the batch that all runs use at `step`. `batches` must
        return the same batch whenever it is called with the same step.
      training: the number of steps, the optimiser and the options of evaluation.
      keep: the fraction of each array that is kept, in (0, 1], or a dictionary of fractions whose
        keys are names of arrays or beginnings of names ('conv' for 'conv.kernel'). If `keep` is a
        list of fractions or dictionaries, each entry has its own runs. If not all runs keep the
        same fraction, all fractions are rounded to millionths.
      seeds: the number of runs per setting; run i uses ``jax.random.fold_in(key, i)``. If `seeds`
        is None, there is one run per setting, which uses `key` itself.
      controls: further runs, for comparison. 'dense' trains all floating-point arrays without
        masks. 'random' trains all floating-point arrays under random masks, which keep as many
        connections as edge-popup does.
      masking: the choice of the arrays that are masked, and the form of edge-popup.
      out: a folder for checkpoints; None to save no checkpoints. A stopped fit is resumed from the
        folder `out`, and its result is bit-identical to that of an uninterrupted fit.

    Returns:
      One result per run: first the runs of edge-popup, then the controls.

    Raises:
      ValueError: an argument cannot be used, or a loss or gradient is not finite.
      CheckpointError: `out` belongs to another fit (the error message names the difference), is in
        use, or cannot be written to.
      SystemExit: with status 143, after SIGTERM, once the current step is finished and saved in
        `out`.

    Examples:
      A linear map uses only half of the entries of a random matrix. Learn from the outputs of the
      map which entries it uses:

      >>> from slth_jax import supermask
      >>> w = jax.random.normal(jax.random.key(1), (16, 4))
      >>> hidden = supermask.from_scores(jax.random.normal(jax.random.key(2), w.shape), 0.5)
      >>> from slth_jax.edge_popup.schedule import Schedule
      >>> [result] = fit(
      ...     jax.random.key(0),
      ...     {"w": w},
      ...     lambda params, x: jnp.mean((x @ params["w"] - x @ (w * hidden)) ** 2),
      ...     lambda step: jax.random.normal(jax.random.key(step), (32, 16)),
      ...     training=Training(steps=100, optimizer=Schedule(steps=100).optimizer(0.05)),
      ...     keep=0.5,
      ... )
      >>> bool((result.masks["w"] == hidden).all())
      True
    """
    dtype = getattr(key, "dtype", np.dtype(object))
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape:
        shape = getattr(key, "shape", ())
        raise checks.fail("key", "a typed key, jax.random.key(seed)", f"dtype {dtype}, {shape}")
    checks.function("loss", loss)
    checks.function("batches", batches)
    checks.record("training", training, Training)
    checks.record("masking", masking, Masking)
    keys = [key] if seeds is None else [
        jax.random.fold_in(key, seed) for seed in range(checks.integer("seeds", seeds, low=1))
    ]  # fmt: skip
    prepared = Prepared(keys, params, loss, training, masking)
    settings = _settings(prepared.parts, keep, len(keys), controls, training.sweep)
    runs = prepared.runs(settings, batches)
    config = prepared.config(runs, settings) if out is not None else {}
    trained = train(
        runs,
        evaluate_every=training.evaluate_every,
        evaluate_first=training.evaluate_first,
        out=out,
        config=config,
        progress=training.progress,
    )
    return prepared.results(runs, settings, trained)


def _settings(
    parts: Parts,
    keep: Keep | Sequence[Keep],
    seeds: int,
    controls: Sequence[str],
    sweep: Mapping[str, Sequence[float] | np.ndarray],
) -> list[Setting]:
    """Return one setting per run: all combinations of method, fraction, swept values and seed."""
    lists = isinstance(keep, Sequence) and not isinstance(keep, str)
    keeps: Sequence[Any] = [keep]
    if lists or getattr(keep, "ndim", 0) == 1:
        keeps = listed("keep", keep)
    several = any(isinstance(fractions, Mapping) for fractions in keeps)
    expanded: list[Keep] = [by_name(k, parts.masked) if several else fraction(k) for k in keeps]
    checks.different("keep", expanded)
    for name in checks.sequence("controls", controls):
        checks.choice("controls", name, CONTROLS)
    if controls:
        checks.different("controls", controls)
    dense: Keep = dict.fromkeys(parts.masked, 1.0) if several else 1.0
    of_method = {"edge-popup": expanded, "dense": [dense], "random": expanded}
    values = [tuple(map(float, sweep[name])) for name in sweep]
    return [
        Setting(method, fraction, seed, dict(zip(sweep, swept, strict=True)))
        for method in ("edge-popup", *controls)
        for fraction in of_method[method]
        for swept in itertools.product(*values)
        for seed in range(seeds)
    ]
