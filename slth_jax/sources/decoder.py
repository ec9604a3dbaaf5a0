"""A whole random transformer as a source that tickets name: weights, and what their masks leave."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from slth_jax.models import Settings
from slth_jax.sources import assemble, products
from slth_jax.sources.recipe import Part, Recipe, from_json
from slth_jax.storage import CheckpointError


def read(options: Mapping[str, Any]) -> tuple[Recipe, dict[str, list[float]]]:
    """Return the recipe and the scales in a ticket's options."""
    fields = dict(options)
    scales = fields.pop("scales")
    return from_json(fields), scales


def fingerprint(options: Mapping[str, Any], seed: int) -> str:
    """Return the SHA-256 by which a ticket knows its weights, see `products.fingerprint`."""
    recipe, scales = read(options)
    digest = hashlib.sha256()
    for part in recipe.parts:
        key = products.part_key(seed, part, recipe)
        for g in range(part.count):
            one = products.product(key, part, g, recipe.construction)
            print_ = products.fingerprint(one, scales[part.name][g], part)
            digest.update(f"{part.name} {g} {print_}\n".encode())
    return digest.hexdigest()


def materialize(
    options: Mapping[str, Any], seed: int, bits: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], Settings]:
    """Return the masked source as it is, weights times masks, and the settings it runs with.

    For `models.decoder`: attention with heads as wide as there are hidden units, the other maps as
    products of two matrices. All of it is held in memory: for small models.

    Raises:
      CheckpointError: parts were kept of the target, which has no factors.
    """
    recipe, scales = read(options)
    if recipe.keep:
        raise CheckpointError(f"the source must be random in all parts, got keep={recipe.keep}")

    def factors(part: Part) -> tuple[np.ndarray, np.ndarray]:
        key = products.part_key(seed, part, recipe)
        packed = np.asarray(bits[part.name]).reshape(part.count, -1)
        left, right = [], []
        for g in range(part.count):
            one = products.product(key, part, g, recipe.construction)
            left.append(products.masked_left(one, part, scales[part.name][g], packed[g]))
            right.append(products.masked_right(one, part))
        return np.stack(left), np.stack(right)

    return assemble.factored(recipe, factors), assemble.factored_settings(recipe)
