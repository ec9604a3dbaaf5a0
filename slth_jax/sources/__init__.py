"""Sources: what a ticket is drawn from.

`registry` names them: a ticket's recipe, a sweep and the command line speak of a source by its
name, and `get` finds the `Source`: how its weights are drawn, and, where a ticket of it stores
something else than plain masks of them, how masked weights are made.

The source 'decoder' is a whole random transformer: `recipe` says what parts it has, `products`
draws them row by row, `assemble` puts masked parts together to a model, `decoder` reads a ticket's
options and makes its weights.
"""

from slth_jax.sources.registry import SOURCES, Source, Sources, get

__all__ = ["SOURCES", "Source", "Sources", "get"]
