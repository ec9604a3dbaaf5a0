"""A transformer as products of random matrices: the source 'decoder' of tickets.

`spec` lists the parts of the network (`part`), `network` adds seed and scales, `products` draws
their random factors row by row, `solve` finds the masks of rows, `assemble` turns masked parts into
the parameters of `models.decoder`, and `source` makes the weights of a ticket from its header and
masks.
"""

from slth_jax.factored.network import Network
from slth_jax.factored.part import Bands, Part
from slth_jax.factored.spec import Spec, from_json, num_bits

__all__ = ["Bands", "Network", "Part", "Spec", "from_json", "num_bits"]
