"""Measure the squared error of masks and quantisers at equal numbers of bits per matrix entry.

    python -m experiments.benchmarks.bits --preset quick|full --out DIR

The target matrices have Gaussian or Laplace entries. If ``$SLTH_DATA`` is set to the folder that
contains `pretrained`, a matrix of the model stories260K is approximated too. Each method
approximates a matrix with b bits per entry, which are mask bits or the bits of a quantiser. The
bits that store scales are added: 32 bits per matrix for masks, 16 bits per 128 entries for
rounding. The rule `fitted` assigns hidden units to columns depending on the target, so the bits
that encode this assignment are added too. The assignment is a mask, which needs log2 N bits if
there are N masks of its shape with its number of ones. Errors are mean squared errors divided by
the mean square of the target. The figure also shows Shannon's lower bound.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import machine
from experiments.rounding import rounded
from slth_jax import construction, models
from slth_jax.plots import style

Row = dict[str, Any]
PRESETS = {
    "quick": {"shape": (32, 128), "bits": (2, 3, 4, 5), "states": 12, "seeds": 1},
    "full": {"shape": (128, 128), "bits": (1, 2, 3, 4, 5, 6), "states": 15, "seeds": 3},
}


def lloyd_max(target: np.ndarray, bits: int) -> np.ndarray:
    """Return `target` rounded to ``2^bits`` levels that are fitted to its entries (Lloyd 1982).

    Lloyd's iteration runs three times: it starts from the quantiles of the entries times 1, times
    3^(1/2) and times 3. The best of the three local optima is used. At small errors the density of
    optimal levels is proportional to the cube root of the density of the entries. For Gaussian
    entries this cube root is wider than the density by a factor 3^(1/2), and for Laplace entries by
    a factor 3.
    """
    quantiles = np.quantile(target, (np.arange(2**bits) + 0.5) / 2**bits)
    tried = (_lloyd(target, quantiles * factor) for factor in (1.0, 3**0.5, 3.0))
    return min(tried, key=lambda x: np.sum((x - target) ** 2))


def _lloyd(target: np.ndarray, levels: np.ndarray) -> np.ndarray:
    flat = target.ravel()
    for _ in range(3000):
        cells = np.searchsorted((levels[1:] + levels[:-1]) / 2, flat)
        counts = np.bincount(cells, minlength=levels.size)
        sums = np.bincount(cells, flat, minlength=levels.size)
        after = np.where(counts > 0, sums / np.maximum(counts, 1), levels)
        if np.array_equal(after, levels):
            break
        levels = after
    return levels[cells].reshape(target.shape)


# For each number of bits per entry: the number of entries in a block, and the number of
# coefficients. A block stores a 16-bit seed, a 4-bit exponent and 4 bits per coefficient.
SEEDLM = {3: (12, 4), 4: (8, 3)}


def seedlm(target: np.ndarray, bits: int) -> np.ndarray:
    """Approximate each block of `target` by ``U t`` (SeedLM, arXiv 2410.10714); return the matrix.

    U is a pseudo-random matrix, and t contains a few rounded coefficients. For each block the best
    of ``2^16 - 1`` seeds of U is used. NumPy draws U, whereas the published method uses a shift
    register. At most 128 blocks of a target are computed; the remaining entries of the result are
    NaN.
    """
    size, terms = SEEDLM[bits]
    blocks = target.ravel()[: min(target.size // size, 128) * size].reshape(-1, size)
    best, least = np.zeros_like(blocks), np.full(len(blocks), np.inf)
    drawn = np.random.default_rng(0).uniform(-1, 1, (2**16 - 1, size, terms)).astype(np.float32)
    for u in np.array_split(drawn, 64):
        t = np.linalg.pinv(u)[:, None] @ blocks[None, :, :, None]  # [seeds, blocks, terms, 1]
        largest = np.abs(t).max(axis=(2, 3), keepdims=True) + 1e-30
        step = 2.0 ** np.ceil(np.log2(largest / 7.5))
        values = (u[:, None] @ (np.clip(np.round(t / step), -8, 7) * step))[..., 0]
        error = np.sum((values - blocks) ** 2, axis=-1)
        seed = error.argmin(axis=0)
        error = error[seed, np.arange(len(blocks))]
        best = np.where((error < least)[:, None], values[seed, np.arange(len(blocks))], best)
        least = np.minimum(error, least)
    result = np.full(target.size, np.nan)
    result[: best.size] = best.ravel()
    return result.reshape(target.shape)


def by_rule(rule: Any, overhead: dict[int, float]) -> Callable:
    """Return a function that approximates a target by subset sums, with `bits` samples per entry.

    Args:
      rule: the name of the rule that assigns hidden units to columns.
      overhead: a dict from `bits` to the number of additional bits per entry. If the mask of the
        right factor depends on the target, the returned function stores in this dict how many bits
        that mask needs.
    """

    def method(key: jax.Array, target: np.ndarray, bits: int) -> np.ndarray:
        (p, r), of = target.shape, construction.RULES[rule]
        swapped = of.either_side and p < r  # the smaller side is grouped
        columns = p if swapped else r
        n = bits * columns
        keys = jax.random.split(key, 2)
        right = jax.random.uniform(keys[1], (n, r), minval=-1.0)
        largest = float(np.abs(target).max())

        def product(factor: float) -> np.ndarray:
            left = factor * largest * jax.random.uniform(keys[0], (p, n), minval=-1.0)
            masks = construction.prune_product(left, right, target, construction=rule)
            if of.needs_target:
                share = np.clip(float(np.mean(masks[0 if swapped else 1])), 1e-9, 1 - 1e-9)
                entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
                overhead[bits] = float(n * columns / target.size * entropy)
            return np.asarray((left * masks[0]) @ (right * masks[1]))

        return min(map(product, (0.3, 0.6, 0.9, 1.25)), key=lambda x: np.sum((x - target) ** 2))

    return method


def by_band(source: str, states: int) -> Callable[[jax.Array, np.ndarray, int], np.ndarray]:
    """Return a function that encodes a target by `encode_matrix`, with `bits` bits per entry."""

    def method(key: jax.Array, target: np.ndarray, bits: int) -> np.ndarray:
        of = construction.encode_matrix(key, target, bits=bits, states=states, source=source)
        return np.asarray((of.left * of.left_mask) @ (of.right * of.right_mask))

    return method


def targets(shape: tuple[int, int], seeds: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield triples: a distribution's name, a seed, and a target matrix of mean square near 1."""
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        yield "gaussian", seed, generator.standard_normal(shape).astype(np.float32)
        yield "laplace", seed, (generator.laplace(size=shape) / 2**0.5).astype(np.float32)
    folder = Path(os.environ.get("SLTH_DATA", "")) / "pretrained" / "stories260K.bin"
    if "SLTH_DATA" in os.environ and folder.exists():
        block = models.weights.open(folder).block(2)
        matrix = np.asarray(block["mlp.in"], np.float32).T
        yield "stories260K", 0, matrix / np.sqrt(np.mean(matrix**2))


def measure(preset: dict[str, Any]) -> list[Row]:
    """Measure the error of every method at every number of bits; return a dict per measurement."""
    states = preset["states"]
    assignment: dict[int, float] = {}
    methods: dict[str, Callable[[jax.Array, np.ndarray, int], np.ndarray]] = {
        "band, uniform": by_band("uniform", states),
        "band, sign x uniform": by_band("sign_uniform", states),
        "band, sign x normal": by_band("sign_normal", states),
        "proof": by_rule("proof", {}),
        "fitted": by_rule("fitted", assignment),
        "Lloyd-Max": lambda _, w, b: lloyd_max(w, b),
        "rounding, best clip": lambda _, w, b: rounded(w, b),
        "SeedLM": lambda _, w, b: seedlm(w, b),
    }
    rows: list[Row] = []
    for kind, seed, target in targets(preset["shape"], preset["seeds"]):
        for bits in preset["bits"]:
            for name, method in methods.items():
                if name == "SeedLM" and bits not in SEEDLM:
                    continue
                start = time.perf_counter()
                reached = method(jax.random.key(seed), target, bits)
                known = ~np.isnan(reached)
                error = np.sum((reached - target)[known] ** 2) / np.sum(target[known] ** 2)
                overhead = 32 / target.size
                if name in ("Lloyd-Max", "SeedLM", "rounding, best clip"):
                    overhead = 16 / 128 if name == "rounding, best clip" else 0.0
                elif name == "fitted":
                    overhead += assignment[bits]
                rows.append(
                    {
                        "target": kind,
                        "seed": seed,
                        "method": name,
                        "nominal": bits,
                        "bits": bits + overhead,
                        "error": float(error),
                        "seconds": round(time.perf_counter() - start, 2),
                    }
                )
                print({name: rows[-1][name] for name in rows[-1]}, flush=True)
    return rows


def picture(rows: list[Row]) -> Any:
    """Plot mean errors against bits per entry, with one panel for each distribution of targets."""
    kinds = list(dict.fromkeys(row["target"] for row in rows))
    figure, axes = style.several(len(kinds), 2.9 * len(kinds), 4.6, shared=True)
    for axis, kind in zip(axes, kinds, strict=True):
        for name in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if (row["target"], row["method"]) == (kind, name)]
            nominal = sorted({row["nominal"] for row in mine})
            x, y = (
                [np.mean([row[value] for row in mine if row["nominal"] == b]) for b in nominal]
                for value in ("bits", "error")
            )
            axis.plot(x, y, marker="o", markersize=4, label=name)
        bits = np.array(sorted({row["nominal"] for row in rows}))
        axis.plot(bits, 4.0**-bits, "k--", label="Shannon, Gaussian")
        axis.set(xlabel="bits per entry", yscale="log", title=kind)
    axes[0].set_ylabel("relative squared error")
    handles = axes[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def main() -> None:
    """Measure all methods, write the results as JSON, and plot them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("--out", type=Path, default=Path("results/bits"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = measure(PRESETS[options.preset])
    result = {"preset": options.preset, "machine": machine.report(), "rows": rows}
    (options.out / "bits.json").write_text(json.dumps(result, indent=1) + "\n")
    style.save(picture(rows), options.out / "bits.png")


if __name__ == "__main__":
    main()
