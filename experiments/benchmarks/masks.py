"""Hash constructed masks, to show that a change of the code changes no mask.

    python -m experiments.benchmarks.masks --out FILE.json [--against FILE.json]

The masks come from direct calls of `prune_*` with every rule, from figures 4 to 6 (quick), from a
trained target, and from `hide` of stories260K with 20 samples. The trained target and stories260K
are read from ``$SLTH_DATA/pretrained``; both are skipped if SLTH_DATA is not set. The program uses
only public names and the files of finished runs, so that it also runs with older versions of the
library. With ``--against`` the program also prints the entries that differ from the given file, and
its exit status is 1 if any entry differs.
"""

import argparse
import functools
import hashlib
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RULES = ("proof", "reach", "shift", "fitted")
PRODUCTS = ((3, 24, 2), (2, 80, 1), (8, 112, 8), (4, 57, 6))  # p, n, r; 80 is not enumerated
ATTENTIONS = ((1, 2, 1, 20), (2, 5, 4, 80), (1, 8, 8, 128))  # heads, d_in, d_out, n_k = n_v
RELU_LAYERS = ((2, 40, 3), (5, 60, 4), (4, 200, 4))  # i, n, o
PADDING = {"k_units", "v_units"}  # boolean fields of version 0.1 that are not masks


def digest(*parts: Any) -> dict[str, Any]:
    """Return the SHA-256 of all masks in `parts`, and the number of entries that the masks keep.

    A mask is hashed as the indices of its kept entries, so that padding at its end has no effect.
    """
    sha, kept = hashlib.sha256(), 0
    for name, mask in _leaves(parts, ""):
        indices = np.argwhere(mask).astype(np.int32)
        sha.update(f"{name} {len(indices)}\n".encode() + indices.tobytes())
        kept += len(indices)
    return {"sha256": sha.hexdigest(), "kept": kept}


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each boolean array of a tree, in sorted order, as a pair of its path and the array."""
    if isinstance(tree, Mapping):
        for key in sorted(tree.keys() - PADDING):
            yield from _leaves(tree[key], f"{name}/{key}")
    elif fields := getattr(tree, "_fields", None) or getattr(tree, "__dataclass_fields__", None):
        yield from _leaves({field: getattr(tree, field) for field in fields}, name)
    elif isinstance(tree, list | tuple):
        yield from _leaves({f"{index:03}": part for index, part in enumerate(tree)}, name)
    elif tree is not None and np.asarray(tree).dtype == bool:
        yield name, np.asarray(tree)


def direct() -> dict[str, Any]:
    """Hash the masks that the functions `prune_*` return, for every rule and several shapes.

    NumPy draws the sources and the targets.
    """
    entries: dict[str, Any] = {}
    for rule in RULES:
        entries |= _direct(functools.partial(_uniform, np.random.default_rng(0)), rule)
    return entries


def _direct(draw: Callable, rule: str) -> dict[str, Any]:
    from slth_jax import construction
    from slth_jax.attention import AttentionParams
    from slth_jax.transformer import Block, Linear

    def attention(h: int, m: int, o: int, n: int) -> AttentionParams:
        return AttentionParams(draw(h, m, n), draw(h, m, n), draw(h, m, n), draw(h, n, o))

    entries = {}
    for p, n, r in PRODUCTS:
        left, right, target = draw(p, n), draw(n, r), draw(p, r)
        masks: Any = construction.prune_product(left, right, target, construction=rule)
        entries[f"prune_product {rule} p={p} n={n} r={r}"] = digest(*masks)
    for h, m, o, n in ATTENTIONS:
        layers = attention(h, m, o, n), attention(h, m, o, 3)
        masks = construction.prune_attention(*layers, construction=rule)
        entries[f"prune_attention {rule} h={h} m={m} o={o} n={n}"] = digest(masks)
    for i, n, o in RELU_LAYERS:
        w1, w2, linear = draw(n, i), draw(o, n), draw(o, i)
        masks = construction.prune_relu_layer(w1, w2, linear, construction=rule)
        entries[f"prune_relu_layer {rule} i={i} n={n} o={o}"] = digest(*masks)
    source, blocks = [], []
    for _ in range(2):
        wide, narrow, bias = attention(1, 4, 4, 64), attention(1, 4, 4, 4), draw(4)
        source.append(Block(wide, (Linear(draw(96, 4)), Linear(draw(4, 96), bias))))
        blocks.append(Block(narrow, (Linear(draw(4, 4), bias),)))
    masks = construction.prune_transformer(source, blocks, construction=rule)
    entries[f"prune_transformer {rule} 2 blocks d=4 n=64 n_fc=96"] = digest(*masks)
    return entries


def _uniform(rng: np.random.Generator, *shape: int):
    import jax.numpy as jnp

    return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)


def _run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", *command, "--quiet"], check=True)


def _experiment(out: Path, name: str, *options: str) -> Path:
    """Run the quick preset of an experiment; figures 4 and 5 use the trained target only."""
    from experiments import registry

    if hasattr(registry.load(name).PRESETS["quick"], "target"):  # version 0.1 had no other target
        options = (*options, "--set", "target=trained")
    folder = out / "-".join([name, *options]).replace("/", "_")
    _run("experiments", name, "--preset", "quick", "--out", str(folder), *options)
    return folder


def _rows(folder: Path, *columns: str) -> dict[str, Any]:
    """Hash the exact values of some columns of ``rows.jsonl``; `total` is the sum of the errors."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    lines = sorted(json.dumps([row.get(name) for name in columns]) for row in rows)
    total = float(np.sum([row["error"] for row in rows]))
    return {"sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(), "total": total}


def _stored(folder: Path) -> dict[str, Any]:
    """Hash the masks of all trials of the sweep in a folder."""
    from slth_jax import sweep

    results = sweep.load(folder)
    return digest(*(results.arrays(index) for index in range(len(results))))


def figure_4(out: Path) -> dict[str, Any]:
    """Run figure 4; return the hash of its masks and the hash of its errors."""
    folder = _experiment(out, "hidden-dim")
    masks = _stored(folder / "checkpoints")
    return {"figure 4": masks, "figure 4, rows": _rows(folder, "width", "seed", "error")}


def figure_5(out: Path) -> dict[str, Any]:
    """Run figure 5 with the sources of figure 4; return the hashes of its masks and errors."""
    folder = _experiment(out, "hidden-dim", "--set", "widths=20,40")
    rows = _rows(_experiment(out, "input-length"), "width", "length", "seed", "error")
    return {"figure 5": _stored(folder / "checkpoints"), "figure 5, rows": rows}


def figure_6(out: Path) -> dict[str, Any]:
    """Run figure 6; return the hash of its errors, and the hash of its masks at width 64.

    The run does not store masks, so the masks at width 64 are computed again from the same target
    and sources.
    """
    import jax

    from slth_jax import construction

    rows = _rows(_experiment(out, "blocks"), "width", "num_blocks", "seed", "error")
    for_target, _ = jax.random.split(jax.random.key(0, impl="threefry2x32"))
    target = _public("random_transformer")(for_target, num_blocks=3, d=2, d_k=8)
    random_source, masks = _public("random_source"), []
    for seed in range(10):
        key = jax.random.key(seed, impl="threefry2x32")
        source = random_source(key, target, n_mha=64, n_fc=(64,), padded=(64, (64,)))
        masks.append(construction.prune_transformer(source, target, construction="proof"))
    return {"figure 6, width 64": digest(*masks), "figure 6, rows": rows}


def _public(name: str) -> Callable:
    """Return the function `name`, searched for in all modules of `experiments`."""
    import experiments

    for module in pkgutil.walk_packages(experiments.__path__, "experiments."):
        path = Path(experiments.__path__[0], *module.name.split(".")[1:]).with_suffix(".py")
        if path.exists() and f"\ndef {name}(" in path.read_text():
            return getattr(importlib.import_module(module.name), name)
    raise LookupError(name)


def trained_target(out: Path) -> dict[str, Any]:
    """Hash a published network's tickets: only attention pruned, and ReLU layers pruned too."""
    weights = f"{os.environ['SLTH_DATA']}/pretrained/modadd113_1L_d128_h4.npz"
    folder = _experiment(out, "trained-target", "--weights", weights)
    parts = {f"trained target, {p.name}": _stored(p) for p in (folder / "checkpoints").iterdir()}
    return parts | {"trained target, rows": _rows(folder, "part", "units", "seed", "error")}


def hide(out: Path) -> dict[str, Any]:
    """Hide stories260K with merged attention, as version 0.1 did; return the hash of the masks."""
    model = f"{os.environ['SLTH_DATA']}/pretrained/stories260K.bin"
    options = ["--samples", "20", "--out", str(out / "hide")]
    if importlib.util.find_spec("slth_jax.factored"):
        options += ["--attention", "merged", "--tied", "twice"]
    _run("slth_jax", "hide", model, *options)
    return {"hide stories260K": packed(out / "hide" / "ticket.safetensors")}


def packed(ticket: Path) -> dict[str, Any]:
    """Return the SHA-256 of a ticket's packed masks, and the number of entries that they keep."""
    import safetensors.numpy

    bits = safetensors.numpy.load_file(ticket)
    sha = hashlib.sha256()
    for name in sorted(bits):
        sha.update(f"{name} {bits[name].shape}\n".encode() + bits[name].tobytes())
    kept = sum(int(np.bitwise_count(part).sum()) for part in bits.values())
    return {"sha256": sha.hexdigest(), "kept": kept}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "direct": lambda out: direct(),
    "figure-4": figure_4,
    "figure-5": figure_5,
    "figure-6": figure_6,
    "trained-target": trained_target,
    "hide": hide,
}
NEED_DATA = ("trained-target", "hide")


def main(arguments: Sequence[str] | None = None) -> int:
    """Hash the masks, write the hashes, and compare them with the hashes in an earlier file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", help="JSON file for the hashes; other entries in it are kept")
    parser.add_argument("--against", help="an earlier file; print the entries that differ")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options = parser.parse_args(arguments)
    path = Path(options.out) if options.out else None
    entries = json.loads(path.read_text()) if path and path.exists() else {}
    for name in options.only.split(","):
        if name in NEED_DATA and "SLTH_DATA" not in os.environ:
            print(f"{name}: skipped, SLTH_DATA is not set", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            measured = PARTS[name](Path(folder))
        for entry, value in measured.items():
            print(f"{entry}: {value}", flush=True)
        entries |= measured
        if path:
            path.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    before = json.loads(Path(options.against).read_text()) if options.against else {}
    differ = [entry for entry in entries.keys() & before.keys() if entries[entry] != before[entry]]
    if options.against:
        print(f"{len(differ)} of {len(entries.keys() & before.keys())} entries differ", *differ)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
