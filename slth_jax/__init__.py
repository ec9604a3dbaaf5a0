"""Strong lottery tickets for multi-head attention, in JAX.

A strong lottery ticket is a subnetwork of a random, never trained network: the source weights
times a binary mask. Every module is reachable as ``slth_jax.NAME`` and imported when first used.

Where to start::

    initializers.theory_attention(key, ...)          draw a random source
    construction.prune_attention(source, target)     find the masks of a ticket by subset sums
    construction.guaranteed_error(source, ...)       bound the error for all inputs up to a norm
    attention.apply(params, x)                       compute attention of a target or a ticket
    construction.find_width(target, error, key=...)  find the smallest width for an error
    attention.from_torch(layer, num_heads)           convert a PyTorch layer to a target
    edge_popup.fit(key, params, loss, batches, ...)  find masks by training scores instead
    hide.solve(reader, recipe, out)                  store a language model as a seed and masks
    subset_sum.solve(samples, value)                 solve the scalar problem underneath
    ticket.create, save, load, verify, export        write and read a ticket as one small file
    sweep.run(trial, seeds=..., grid=...)            run thousands of trials, batched and resumable
    theory.attention_widths(epsilon, ...)            compute the paper's bounds (arXiv:2511.04217)

On the command line: ``slth-jax --help``.
"""

import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"

# The modules are listed from this folder, so that a new module need not be added here.
__all__ = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "__main__")


def __getattr__(name: str) -> Any:
    """Import a module of the package when it is first accessed (PEP 562)."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return all names, including modules that are not imported yet."""
    return sorted({*globals(), *__all__})
