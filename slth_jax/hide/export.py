"""Write a ticket's network as a folder that `transformers` loads.

If attention is factored (one product per projection), the multiplied-out matrices of a ticket have
the same shapes as the target's matrices. If a norm precedes linear maps, its gain and shift are
folded into the matrices of these maps. The exported norm therefore gets a gain of 1 and a shift of
0.
"""

import os

import numpy as np
from jaxtyping import Float

from slth_jax import checks, models
from slth_jax.factored.spec import NORMS
from slth_jax.hide.model import Opened, of_ticket, opened
from slth_jax.models import Settings
from slth_jax.models.settings import vector_shapes
from slth_jax.models.weights import stacked

Arrays = dict[str, np.ndarray]
# The largest accepted residual of the output layer's bias, divided by the root mean square norm of
# the layer's columns.
_RESIDUAL = 0.01


def to_huggingface(ticket: str | os.PathLike[str], out: str | os.PathLike[str]) -> Opened:
    """Write the merged network of a ticket's file to the folder `out`; return the opened ticket.

    The network must be of a type that `models.weights.save` can write, such as Llama, GPT-2 or
    BERT. A folder of tokenizer files beside the ticket is copied.

    Raises:
      ValueError: the ticket's attention is merged, or `models.weights.save` cannot write the
        network.
      CheckpointError: the ticket is damaged, or the folder cannot be written to.
    """
    whole = opened(ticket)
    if whole.spec.attention != "factored":
        allowed = "'factored' in an export, since merged heads are as wide as the model"
        raise checks.fail("attention", allowed, repr(whole.spec.attention))
    model = of_ticket(whole)
    settings = model.settings
    params = stacked(model.ends(), map(model.block, range(settings.num_blocks)))
    _norms(params, settings)
    _output_bias(params, settings)
    for name, shape in vector_shapes(settings).items():
        if name.endswith(".bias") and settings.positions != "rotary" and name != "unembed.bias":
            params.setdefault(name, np.zeros(shape, np.float32))
    models.weights.save(out, params, settings)
    tokenizer = models.tokens.find(None, ticket, settings.vocab_size)
    if tokenizer is not None and tokenizer.is_dir():
        models.tokens.copy(tokenizer, out)
    return whole


def _norms(params: Arrays, settings: Settings) -> None:
    """Turn the linear maps of norms into gains and shifts; set absent gains to 1, shifts to 0."""
    for norm in NORMS:
        name = norm if norm == "ln_e" else f"h.{norm}"
        if f"{name}.map" not in params:
            continue
        matrix = params.pop(f"{name}.map")  # [d, d] or [b, d, d]
        gain = np.diagonal(matrix, axis1=-2, axis2=-1)
        if np.any(matrix - gain[..., None] * np.eye(settings.width, dtype=np.float32)):
            raise checks.fail(f"{norm}.map", "a diagonal in an export", "other entries")
        params[f"{name}.gain"] = np.ascontiguousarray(gain)
        if f"{name}.map.bias" in params:
            params[f"{name}.bias"] = params.pop(f"{name}.map.bias")
    for name, shape in vector_shapes(settings).items():
        if name.rpartition(".")[0].removeprefix("h.") in ("ln_1", "ln_2", "ln_f"):
            value = 1.0 if name.endswith(".gain") else 0.0
            params.setdefault(name, np.full(shape, value, np.float32))


def _output_bias(params: Arrays, settings: Settings) -> None:
    """Turn the output layer's bias, which no model type has, into a shift of the last norm.

    The shift s is the least-squares solution of ``s W = bias``, where W is the output layer's
    matrix. RMS norms have no shift, so s is 0 for them.

    Raises:
      ValueError: an entry of the residual ``s W - bias`` exceeds 1 % of the root mean square of the
        norms of W's columns.
    """
    bias = params.pop("unembed.bias", None)
    if bias is None:
        return
    w = params["unembed"].astype(np.float64)  # [d, outputs]
    shift: np.ndarray = np.zeros(settings.width)
    if settings.norm == "layer":
        shift = np.linalg.lstsq(w @ w.T, w @ bias)[0]
        params["ln_f.bias"] = shift.astype(np.float32)
    rest = np.abs(shift @ w - bias).max()
    if rest > _RESIDUAL * _column_norm(w):
        raise checks.fail("unembed.bias", "a shift of the last norm in an export", "another bias")


def _column_norm(w: Float[np.ndarray, "d outputs"]) -> float:
    """Return the root mean square of the Euclidean norms of the columns of `w`."""
    return float(np.sqrt(np.square(w).sum() / w.shape[1]))
