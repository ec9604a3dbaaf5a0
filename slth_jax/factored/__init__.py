"""A random transformer made of products of matrices, which is the source 'decoder' of tickets.

`spec` lists the parts of the network (`part`), and `network` adds a seed and scales. `products`
draws the random factors of a part row by row, and `solve` finds the masks of these rows. `assemble`
turns masked parts into parameters of `models.decoder`. `source` computes the weights of a ticket
from its header and masks.
"""

from slth_jax.factored.network import Network
from slth_jax.factored.part import Bands, Part
from slth_jax.factored.spec import Spec, from_json, num_bits

__all__ = ["Bands", "Network", "Part", "Spec", "from_json", "num_bits"]
