"""Hide a model: the resumable run from its weights to the file of a ticket."""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slth_jax import checks, storage
from slth_jax.construction import rules
from slth_jax.construction.rules import Rule
from slth_jax.hide import file, pieces, targets
from slth_jax.hide.pieces import Piece
from slth_jax.hide.targets import Targets
from slth_jax.models.weights import Reader
from slth_jax.sources import products
from slth_jax.sources.recipe import Part, Recipe, num_bits

_log = logging.getLogger("slth_jax.hide")
# Called with (subset sums done, subset sums in all).
Progress = Callable[[int, int], None]


class Unfinished(Exception):
    """This shard has done its part; pieces of other shards are missing."""


def make_recipe(
    reader: Reader,
    *,
    samples: int = 20,
    construction: str | Rule | None = None,
    form: str = "linear",
    keep: Sequence[str] = (),
) -> Recipe:
    """Return the recipe of a source for the model of `reader` (see `sources.recipe.Recipe`).

    `construction` None takes the rule that was measured to serve best at so many samples.
    """
    checks.integer("samples", samples, low=2, high=64)
    targets.check(reader)
    rule = rules.for_samples(samples) if construction is None else rules.get(construction)
    if rule.needs_target:  # a hidden model's file holds one of the two masks
        raise checks.fail("construction", "a rule that deals units without the target", rule.name)
    traits = targets.traits(reader)
    return Recipe(reader.settings, samples, rule, form, keep=tuple(sorted(set(keep))), **traits)


def solve(
    reader: Reader,
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    identity: str = "",
    shard: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Find the masks of all parts and write ``out/ticket.safetensors``; go on where it was stopped.

    Parts are drawn, solved and written in pieces of some seconds; a piece is durable before the
    next one begins, and depends on nothing but the model, the recipe and the seed, so neither a
    kill nor the number of devices or machines changes a bit.

    Args:
      reader: the model to hide.
      recipe: see `make_recipe`.
      out: a folder, new or of the same run.
      seed: of the source, in [0, 2^32).
      identity: tells the model from others; compared when resuming.
      shard: 'i/n' computes every n-th piece from the i-th on; shards share `out`, and the one that
        finds all pieces there joins them.
      progress: called after each piece.

    Returns:
      The path of the ticket.

    Raises:
      ValueError: arguments that cannot be used.
      CheckpointError: `out` holds another run, is in use, or has too little room.
      Unfinished: pieces of other shards are missing.
    """
    seed = checks.integer("seed", seed, low=0, high=2**32 - 1)
    index, count = checks.shard(shard)
    todo = pieces.cut(recipe)
    folder = storage.make_folder(out)
    config = storage.plain({"model": identity, "seed": seed, "recipe": recipe.to_json()})
    path = folder / file.NAME
    with storage.lock_shard(folder, index, count):
        _compare(folder, config)
        if path.exists():
            return path
        store = storage.make_folder(folder / "parts")
        mine = [piece for i, piece in enumerate(todo) if i % count == index]
        _check_room(folder, recipe, [piece for piece in todo if not pieces.exists(store, piece)])
        _compute(reader, recipe, seed, store, config, mine, todo, progress)
        missing = [piece for piece in todo if not pieces.exists(store, piece)]
        if missing:
            raise Unfinished(
                f"shard {shard} is done; {len(missing)} of {len(todo)} pieces of others are missing"
            )
        with storage.lock(folder, name="lock-join", wait=True):
            if not path.exists():
                _join(reader, recipe, seed, store, path, todo, identity)
    return path


def clean(out: str | os.PathLike[str]) -> None:
    """Remove the pieces of a run whose ticket is there."""
    folder = Path(out)
    if (folder / file.NAME).exists():
        shutil.rmtree(folder / "parts", ignore_errors=True)


def identity_of(model: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a model's files."""
    path = Path(model)
    wanted = (".json", ".safetensors")
    files = sorted(f for f in path.iterdir() if f.suffix in wanted) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for one in files:
        with open(one, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _compute(
    reader: Reader,
    recipe: Recipe,
    seed: int,
    store: Path,
    config: dict[str, Any],
    mine: list[Piece],
    todo: list[Piece],
    progress: Progress | None,
) -> None:
    held, mesh = Targets(reader, recipe), products.mesh()
    total = sum(piece.num_sums for piece in mine)
    done = 0
    for piece in mine:
        if not _whole(store, piece):
            start = time.perf_counter()
            bits, told = pieces.compute(piece, recipe, seed, held, mesh)
            told["seconds"] = round(time.perf_counter() - start, 3)
            _record(store.parent, config)
            pieces.write(store, piece, bits, told)
        done += piece.num_sums
        if progress is not None:
            progress(done, total)


def _whole(store: Path, piece: Piece) -> bool:
    if not pieces.exists(store, piece):
        return False
    try:
        pieces.read(store, piece)
    except storage.Damaged as error:
        _log.warning("%s; it is computed again", error)
        return False
    return True


def _join(
    reader: Reader,
    recipe: Recipe,
    seed: int,
    store: Path,
    path: Path,
    todo: list[Piece],
    identity: str,
) -> None:
    told = {piece.name: pieces.read(store, piece)[1] for piece in todo}
    by_part: dict[str, list[Piece]] = {}
    for piece in todo:
        by_part.setdefault(piece.part.name, []).append(piece)
    scales: dict[str, list[float]] = {}
    errors: dict[str, dict[str, Any]] = {}
    prints = hashlib.sha256()
    for name, some in by_part.items():
        parts = [told[piece.name] for piece in some]
        of_product = {int(g): s for part in parts for g, s in part["scales"].items()}
        scales[name] = [of_product[g] for g in sorted(of_product)]
        for part in parts:
            for g in part["fingerprints"]:
                prints.update(f"{name} {g} {part['fingerprints'][g]}\n".encode())
        squares = sum(part["squared_target"] for part in parts)
        errors[name] = {
            "relative_error": (sum(p["squared_error"] for p in parts) / squares) ** 0.5
            if squares
            else 0.0,
            "largest_error": max(part["largest_error"] for part in parts),
            "out_of_reach": sum(part["out_of_reach"] for part in parts),
            "num_sums": some[0].part.num_sums,
            "seconds": round(sum(part["seconds"] for part in parts), 3),
        }
    kept_numbers = sum(part.num_sums for part in recipe.kept_parts)
    held = Targets(reader, recipe)
    metadata = {
        "model": identity,
        "parts": errors,
        "num_sums": sum(part.num_sums for part in recipe.parts),
        "random_weights": sum(part.num_weights for part in recipe.parts),
        "mask_bits": num_bits(recipe.parts),
        # Beyond the seed, the settings and the masks.
        "numbers": {"scales": sum(len(s) for s in scales.values()), "kept": kept_numbers},
        "target_bytes": reader.num_bytes,
        "versions": {"jax": jax.__version__},
    }

    def read(part: Part) -> Iterable[np.ndarray]:
        return (pieces.read(store, piece)[0] for piece in by_part[part.name])

    def kept(part: Part) -> np.ndarray:
        return np.stack([held.product(part, g) for g in range(part.count)])

    file.write(path, recipe, seed, scales, prints.hexdigest(), metadata, read, kept)


def _compare(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a folder of another run, naming the first difference."""
    path = folder / "config.json"
    if not path.exists():
        if (folder / file.NAME).exists():
            raise storage.CheckpointError(f"{folder} has a ticket but {path} is missing")
        return
    there = storage.read_json(path)
    found = storage.difference(there, config)
    if found is not None:
        name, old, new = found
        raise storage.CheckpointError(
            f"{folder} holds another run: {name} is {old!r} there and {new!r} here; "
            "use a new folder"
        )


def _record(folder: Path, config: dict[str, Any]) -> None:
    """Write what the run is, with its first result: one that fails before binds nobody."""
    if not (folder / "config.json").exists():
        storage.write_json(folder / "config.json", config)


def _check_room(folder: Path, recipe: Recipe, missing: list[Piece]) -> None:
    """Refuse a disk that cannot hold the pieces to come and the ticket."""
    bits = sum((piece.stop - piece.start) * piece.part.units for piece in missing)
    kept = 4 * sum(part.num_sums for part in recipe.kept_parts)
    storage.check_room(folder, bits // 8 + num_bits(recipe.parts) // 8 + kept + (1 << 20))
