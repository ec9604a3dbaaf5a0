"""What is guaranteed against what is measured: depth, input length, input bound at random."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claims, fits, measure, options, plots
from experiments.folder import RunFolder, Sweep
from experiments.theory.sources import narrow, narrow_layers, random_source
from experiments.theory.targets import random_transformer
from slth_jax import checks, construction, ticket, transformer
from slth_jax.construction import guarantee, on_inputs
from slth_jax.sweep import Results
from slth_jax.transformer import Block, Linear
from slth_jax.types import Array, Hparams, Key, PaddedAttention

FLOAT64 = True

D_K = 4
# Powers of two, exact in float32: a ticket is drawn again, bit for bit, to be bounded.
TARGET_SCALE = 0.25
LENGTHS = (2, 4, 8, 16, 32, 64)
KINDS = {"error": "measured", "bound_on": "guaranteed, these inputs", "bound": "guaranteed, all"}


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is repeated from.

    Attributes:
      seeds: trials a setting; each draws its own target, source and input.
      rules: how hidden units are dealt.
      dims: widths d of the transformer.
      heads: heads at each of dims.
      units: hidden units n_MHA = n_FC of the source for each of the d coordinates.
      depths: numbers of blocks B that are looked at; the largest is drawn.
    """

    seeds: int = 560
    rules: tuple[str, ...] = ("proof", "reach", "fitted")
    dims: tuple[int, ...] = (2, 4)
    heads: tuple[int, ...] = (2, 1)
    units: tuple[int, ...] = (6, 10, 16)
    depths: tuple[int, ...] = (1, 2, 3, 4, 6, 8)

    def __post_init__(self):
        options.check(
            self,
            least={"dims": 1, "heads": 1, "units": 4, "depths": 1},
            words={"rules": construction.CONSTRUCTIONS},
        )
        if len(self.heads) != len(self.dims):
            raise checks.fail("heads", "as many as dims", self.heads)


PRESETS = {
    "quick": Config(seeds=60, dims=(2,), heads=(2,), units=(6, 12)),
    "paper": Config(),
}


class Shape(NamedTuple):
    """What one compiled program is for."""

    rule: str
    d: int
    heads: int
    depth: int


class Drawn(NamedTuple):
    """A trial's networks, a block each row of every array, and its input."""

    source: Block
    target: Block
    x: Array  # [t, d], rows from `length` on are padding
    alpha: Array
    length: Array


def draw(shape: Shape, key: Key, width: Array, width_max: int) -> Drawn:
    """Draw target, source and input: alpha log-uniform in [1/4, 4], T one of `LENGTHS`.

    Rows have random directions and norms up to alpha; the first is as long as alpha.
    """
    # Other widths have other targets, sources and inputs; the rules are compared on the same.
    key = jax.random.fold_in(key, width)
    for_target, for_source, for_x, for_alpha, for_length = jax.random.split(key, 5)

    def block(b: Array) -> tuple[Block, Block]:
        (target,) = random_transformer(
            jax.random.fold_in(for_target, b), num_blocks=1, d=shape.d, d_k=D_K, heads=shape.heads
        )
        weights = target.attention
        attention = weights._replace(
            w_q=weights.w_q * TARGET_SCALE, w_v=weights.w_v * (TARGET_SCALE / shape.heads)
        )
        layers = tuple(Linear(layer.w * TARGET_SCALE) for layer in target.layers)
        target = Block(attention, layers)
        (source,) = random_source(
            jax.random.fold_in(for_source, b),
            (target,),
            n_mha=width,
            n_fc=(width,),
            padded=(width_max, (width_max,)),
        )
        return source, target

    source, target = jax.vmap(block)(jnp.arange(shape.depth))
    wide = jax.dtypes.canonicalize_dtype(jnp.float64)
    alpha = 2 ** jax.random.uniform(for_alpha, (), jnp.float32, -2, 2).astype(wide)
    longest = max(LENGTHS)
    numbers = jax.random.normal(for_x, (longest, shape.d + 1), jnp.float32).astype(wide)
    part = jnp.abs(jnp.tanh(numbers[:, -1])).at[0].set(1)
    rows = numbers[:, :-1] / jnp.linalg.norm(numbers[:, :-1], axis=-1, keepdims=True)
    length = jax.random.choice(for_length, jnp.asarray(LENGTHS))
    return Drawn(source, target, rows * part[:, None] * alpha, alpha, length)


def make_trial(shape: Shape):
    """Return the trial: draw, prune block by block, measure the error behind every block."""

    def trial(key: Key, hparams: Hparams):
        drawn = draw(shape, key, hparams["width"], hparams["width_max"])
        prune = partial(construction.prune_transformer, construction=shape.rule)
        masks = jax.vmap(lambda s, t: prune((s,), (t,))[0])(drawn.source, drawn.target)
        wide = partial(jax.tree.map, lambda w: w.astype(drawn.x.dtype))
        found = wide(construction.apply_masks(drawn.source, masks))
        inside = jnp.arange(drawn.x.shape[0]) < drawn.length
        attn_mask = jnp.broadcast_to(inside[None], (inside.size, inside.size))

        def step(rows, blocks):
            rows = tuple(
                transformer.apply_block(block, x, attn_mask)
                for block, x in zip(blocks, rows, strict=True)
            )
            apart = jnp.linalg.norm(rows[0] - rows[1], axis=-1)
            return rows, jnp.max(jnp.where(inside, apart, 0))

        _, error = jax.lax.scan(step, (drawn.x, drawn.x), (found, wide(drawn.target)))
        return {"error": error, "alpha": drawn.alpha, "length": drawn.length}, masks

    return trial


def sweeps(config: Config) -> list[Sweep]:
    """Return what `run` computes."""
    return [
        Sweep(
            f"{shape.rule}, d = {shape.d}",
            make_trial(shape),
            grid={"width": tuple(shape.d * n for n in config.units)},
            padded=("width",),
            part=f"{shape.rule}-d{shape.d}-h{shape.heads}",
        )
        for shape in _shapes(config)
    ]


def _shapes(config: Config) -> list[Shape]:
    return [
        Shape(rule, d, heads, max(config.depths))
        for rule in config.rules
        for d, heads in zip(config.dims, config.heads, strict=True)
    ]


def run(config: Config, out: RunFolder) -> dict[str, Any]:
    """Prune and measure, bound every ticket twice, compare slopes, draw the figure."""
    trials: list[dict[str, Any]] = []
    for shape, sweep in zip(_shapes(config), sweeps(config), strict=True):
        results = out.sweep(sweep)
        with out.progress(f"bounds, {sweep.part}") as update:
            for done, found in enumerate(_bounded(shape, results, config.depths)):
                trials += found
                update(done + 1, len(results.rows))
    out.write_rows(trials)
    rows = measure.summarize(
        trials,
        ("rule", "d", "heads", "width", "num_blocks"),
        violations=("violated", sum),
        violations_on=("violated_on", sum),
        vacuous=("vacuous", measure.mean),
        vacuous_on=("vacuous_on", measure.mean),
        ratio=("ratio", np.median),
        ratio_on=("ratio_on", np.median),
    )
    _draw(out, trials, config.depths)
    return {
        "rows": rows,
        "trials": len(trials) // len(config.depths),
        "comparisons": len(trials),
        "violations": sum(row["violated"] for row in trials),
        "violations_on": sum(row["violated_on"] for row in trials),
        "on_inputs_above_all": sum(row["bound_on"] > row["bound"] for row in trials),
        "by_depth": measure.summarize(
            trials,
            ("num_blocks",),
            vacuous=("vacuous", measure.mean),
            vacuous_on=("vacuous_on", measure.mean),
            ratio=("ratio", np.median),
            ratio_on=("ratio_on", np.median),
        ),
        "fit": slopes(trials),
        "claims": compare(trials),
        "paper": {
            "statement": "errors within epsilon at every T; widths grow with log(alpha^3), and "
            "by a constant factor in epsilon for every further block (Theorems 9, 11, 14)"
        },
    }


def compare(trials: Sequence[dict[str, Any]]) -> list[claims.Claim]:
    """Say how many measured errors stay below either bound."""
    told = []
    for violated, what in (("violated", "all inputs"), ("violated_on", "the given input")):
        broken = sum(row[violated] for row in trials)
        here = f"{len(trials) - broken} of {len(trials)}"
        words = f"measured errors within the bound for {what}"
        told.append(claims.statement(words, "all", here, broken == 0))
    return told


def _bounded(
    shape: Shape, results: Results, depths: Sequence[int]
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each trial, one for each depth: measured, guaranteed for all, for this x.

    Errors are measured in float64, so the guarantees are for that.
    """
    widest = max(row["width"] for row in results.rows)
    again = jax.jit(partial(draw, shape, width_max=widest))
    for index, row in enumerate(results.rows):
        width = int(row["width"])
        drawn = jax.tree.map(
            np.asarray, again(jax.random.key(row["seed"], impl=ticket.IMPL), width=width)
        )
        source, target, masks = _blocks(shape, drawn, results.arrays(index), width)
        x = drawn.x[None, : int(drawn.length)]
        alpha = float(np.linalg.norm(x, axis=-1).max())
        for_all = guarantee.guarantee(
            source, masks, target, alpha, num_tokens=x.shape[1], dtype=x.dtype
        )
        on_x = on_inputs.guarantee_on(source, masks, target, x, dtype=x.dtype)
        yield [
            _row(shape, row, depth, for_all.blocks, on_x, float(drawn.alpha), x.shape[1])
            for depth in depths
        ]


def _row(shape, row, depth, for_all, on_x, alpha, length) -> dict[str, Any]:
    error = float(row["error"][depth - 1])
    bound, bound_on = for_all[depth - 1], float(on_x.blocks[depth - 1].max())
    size = float(on_x.norms[depth - 1].max())
    return {
        "rule": shape.rule,
        "d": shape.d,
        "heads": shape.heads,
        "width": row["width"],
        "num_blocks": depth,
        "seed": row["seed"],
        "alpha": alpha,
        "length": length,
        "error": error,
        "bound": bound,
        "bound_on": bound_on,
        "norm": size,
        "violated": int(not error <= bound),
        "violated_on": int(not error <= bound_on),
        "vacuous": int(not bound < size),
        "vacuous_on": int(not bound_on < size),
        "ratio": bound / max(error, 1e-300),
        "ratio_on": bound_on / max(error, 1e-300),
    }


def _blocks(shape: Shape, drawn: Drawn, stored: Any, width: int) -> tuple[Any, Any, Any]:
    """Return source, target and masks, block by block, at the true width."""
    named = PaddedAttention(**stored["attention"])
    layers = tuple(Linear(layer["w"]) for layer in stored["layers"].values())
    source, target, masks = [], [], []
    for b in range(shape.depth):
        one = partial(jax.tree.map, lambda w, b=b: w[b])
        from_block, mask = one(drawn.source), one(Block(named, layers))
        source.append(_narrow(from_block, width))
        masks.append(_narrow(mask, width))
        target.append(one(drawn.target))
    return source, target, masks


def _narrow(block: Block, width: int) -> Block:
    return Block(narrow(block.attention, width), narrow_layers(block.layers, (width,)))


def slopes(trials: Sequence[dict[str, Any]], floor: float = 1e-12) -> dict[str, Any]:
    """Return how the logarithm of each quantity grows with log alpha, log T and B.

    Least squares with an intercept for each setting; at every depth for alpha and T, over all
    depths for B (in factors a block). Tickets that err by less than `floor` are left out.
    """
    used = [row for row in trials if row["error"] > floor]
    told: dict[str, Any] = {}
    for kind in KINDS:
        of = {}
        for depth in sorted({row["num_blocks"] for row in used}):
            here = [row for row in used if row["num_blocks"] == depth]
            by = [np.log([row[name] for row in here]) for name in ("alpha", "length")]
            fit = fits.within(_settings(here), by, np.log([row[kind] for row in here]))
            of[str(depth)] = dict(zip(("alpha", "length"), fit, strict=True)) if fit else {}
        trial = [(*key, row["seed"]) for key, row in zip(_settings(used), used, strict=True)]
        depth_fit = fits.within(
            trial,
            [np.array([row["num_blocks"] for row in used], float)],
            np.log([row[kind] for row in used]),
        )
        told[kind] = {"by_depth": of, "block": depth_fit[0] if depth_fit else {}}
    return told


def _settings(rows: Sequence[dict[str, Any]]) -> list[tuple]:
    return [tuple(row[name] for name in ("rule", "d", "heads", "width")) for row in rows]


def _draw(out: RunFolder, trials: Sequence[dict[str, Any]], depths: Sequence[int]) -> None:
    figure, (by_alpha, by_length, by_depth) = plots.several(3, 12.0, 3.8)
    edges = 2 ** np.linspace(-2, 2, 9)
    for index, (kind, label) in enumerate(KINDS.items()):
        at = {depth: [row for row in trials if row["num_blocks"] == depth] for depth in depths}
        for depth, style in ((min(depths), "-"), (max(depths), "--")):
            rows = at[depth]
            middle = [
                [row for row in rows if low <= row["alpha"] < high]
                for low, high in itertools.pairwise(edges)
            ]
            of_length = [[row for row in rows if row["length"] == t] for t in LENGTHS]
            for axes, where, groups in (
                (by_alpha, np.sqrt(edges[1:] * edges[:-1]), middle),
                (by_length, np.array(LENGTHS), of_length),
            ):
                _line(axes, where, groups, kind, label, index, style)
        _line(by_depth, np.array(depths), list(at.values()), kind, label, index, "-")
    for axes, name in ((by_alpha, r"input bound $\alpha$"), (by_length, "input length $T$")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel(name)
    by_depth.set_xlabel("blocks $B$")
    for axes in (by_alpha, by_length, by_depth):
        axes.set_yscale("log")
    by_alpha.set_ylabel("largest error of a row, median")
    by_depth.legend(frameon=False, fontsize=7)
    least, most = min(depths), max(depths)
    figure.suptitle(
        "Tickets in random transformers, measured and guaranteed "
        f"(left, middle: solid B = {least}, dashed B = {most})"
    )
    out.figure(figure, "bounds")


def _line(axes, where, groups, kind, label, index, style) -> None:
    kept = [(x, [row[kind] for row in group]) for x, group in zip(where, groups, strict=True)]
    kept = [(x, values) for x, values in kept if values]
    axes.plot(
        [x for x, _ in kept],
        [np.median(values) for _, values in kept],
        style,
        marker="o",
        markersize=3,
        color=plots.COLORS[index],
        linewidth=1.3,
        label=label,
    )
