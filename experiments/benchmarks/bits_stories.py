"""Compare tickets of the model stories260K with the rounded model, at equal bits per weight.

    SLTH_DATA=... python -m experiments.benchmarks.bits_stories --out DIR [--bits 3,4,5,6,8]

Tickets and rounded models are evaluated on texts that stories260K generates, as in
`experiments.benchmarks.hide`. The size of a ticket is the size of its file. Rounding uses the best
clipping value and a 16-bit scale for every 64 entries of a row. The size of a rounded model is the
size of its rounded entries and scales. In a rounded model the gains of normalisation layers are not
rounded; in a ticket the gains are multiplied into the matrices. If DIR already contains the results
of a setting, the setting is not measured again.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import machine
from experiments.benchmarks.hide import _texts
from experiments.rounding import rounded
from slth_jax import hide, models, storage
from slth_jax.factored import Bands
from slth_jax.plots import style

NAME = "bits_stories"
Texts = list[tuple[int, list[int]]]


def compared(target: hide.Model, other: hide.Model, texts: Texts) -> dict[str, float]:
    """Compare the logits of `other` and `target` at every token of `texts`; return the measures."""
    rows = np.zeros((len(texts), max(len(tokens) for _, tokens in texts)), np.int32)
    for row, (_, tokens) in zip(rows, texts, strict=True):
        row[: len(tokens)] = tokens
    theirs, ours = hide.logits(target, rows), hide.logits(other, rows)
    equal, count, same, losses = 0, 0, 0, np.zeros(2)
    for (prompt, tokens), a, b in zip(texts, theirs, ours, strict=True):
        size = len(tokens)
        agree = a[:size].argmax(-1) == b[:size].argmax(-1)
        equal += bool(agree[prompt - 1 :].all())  # the greedy continuations are equal
        count, same = count + size, same + int(agree.sum())
        for i, logits in enumerate((a, b)):
            perplexity = hide.compare.perplexity(logits[None, :size], np.asarray([tokens]))
            losses[i] += size * np.log(perplexity)
    target_perplexity, perplexity = np.exp(losses / count)
    return {
        "texts": len(texts),
        "equal_texts": equal,
        "top1_agreement": same / count,
        "target_perplexity": float(target_perplexity),
        "perplexity": float(perplexity),
    }


def rounded_model(target: hide.Model, bits: int) -> tuple[hide.Model, int]:
    """Round a model's matrices; return the rounded model, and the size of its matrices in bytes."""
    sizes = {}

    def apply(arrays: Any, place: str) -> dict[str, np.ndarray]:
        result = {}
        for name, value in arrays.items():
            matrix = np.asarray(value, np.float32)
            if "gain" in name or matrix.ndim < 2:
                result[name] = matrix
                continue
            rows = matrix if name == "wte" else matrix.T  # each row belongs to a token or an output
            values = rounded(rows.astype(np.float64), bits, 64).astype(np.float32)
            result[name] = values if name == "wte" else np.ascontiguousarray(values.T)
            sizes[place + name] = rows.size * bits / 8 + 2 * len(rows) * -(-rows.shape[1] // 64)
        return result

    blocks = [apply(target.block(b), f"{b}.") for b in range(target.settings.num_blocks)]
    ends = apply(target.ends(), "")
    model = target._replace(ends=lambda: ends, block=lambda b: blocks[b])
    return model, int(sum(sizes.values()))


def ticket(reader: Any, bands: Bands, seed: int, out: Path) -> tuple[hide.Model, dict[str, Any]]:
    """Hide a model by the rule `band`; return the ticket's model, and a dict of size and time."""
    others = "".join(f"-{kind}{bits}" for kind, bits in bands.others)
    scales = "-columns" if bands.column_scales else ""
    name = f"{bands.bits}{others}-{bands.states}-{bands.weights}{scales}-{seed}"
    folder = out / "tickets" / name
    start = time.perf_counter()
    path = hide.solve(reader, hide.make_spec(reader, bits=bands), folder, seed=seed)
    seconds = time.perf_counter() - start
    hide.clean(folder)
    model = hide.of_ticket(path)
    params = {name: np.asarray(value) for name, value in model.load().items()}
    model = model._replace(
        ends=lambda: {n: v for n, v in params.items() if not n.startswith("h.")},
        block=lambda b: {n[2:]: v[b] for n, v in params.items() if n.startswith("h.")},
    )
    numbers = {"states": bands.states, "weights": bands.weights, "seed": seed}
    numbers |= {"others": dict(bands.others), "seconds": round(seconds, 1)}
    return model, {"bytes": path.stat().st_size, **numbers}


def main() -> None:
    """Measure all settings that DIR has no result for; write the results as JSON, and plot them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/bits"))
    parser.add_argument("--bits", default="3,4,5,6,8,10,12")
    parser.add_argument("--states", type=int, default=12)
    parser.add_argument("--weights", default="sign_uniform")
    parser.add_argument("--scales", choices=("rows", "both"), default="both")
    parser.add_argument("--others", default="", help="KIND=B,KIND=B")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = Path(os.environ["SLTH_DATA"]) / "pretrained"
    reader = models.weights.open(data / "stories260K.bin")
    target = hide.of_target(reader)
    texts = _texts(target, models.tokens.open_tokenizer(data / "tok512.bin"), 200)
    path = storage.make_folder(options.out) / f"{NAME}.json"
    rows: list[dict[str, Any]] = storage.read_json(path)["rows"] if path.exists() else []
    pairs = [pair.split("=") for pair in options.others.split(",") if pair]
    others = tuple(sorted((kind, int(bits)) for kind, bits in pairs))
    for bits in map(int, options.bits.split(",")):
        columns = options.scales == "both"
        bands = Bands(bits, options.states, options.weights, column_scales=columns, others=others)
        setting = {"method": "band", "bits": bits, "states": bands.states}
        setting |= {"weights": bands.weights, "seed": options.seed, "others": dict(others)}
        setting |= {"scales": options.scales}
        if not any(setting.items() <= row.items() for row in rows):
            model, numbers = ticket(reader, bands, options.seed, options.out)
            rows.append({**setting, **numbers, **compared(target, model, texts)})
            print(rows[-1], flush=True)
        setting = {"method": "rounding", "bits": bits}
        if not any(setting.items() <= row.items() for row in rows):
            model, size = rounded_model(target, bits)
            rows.append({**setting, "bytes": size, **compared(target, model, texts)})
            print(rows[-1], flush=True)
        storage.write_json(path, {"machine": machine.report(), "rows": rows})
    style.save(picture(rows), options.out / f"{NAME}.png")


def picture(rows: list[dict[str, Any]]) -> Any:
    """Plot the perplexity and the share of equal top-1 tokens against the number of bytes."""
    figure, axes = style.several(2, 7.6, 3.8)
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = sorted((r for r in rows if r["method"] == method), key=lambda row: row["bytes"])
        size = [row["bytes"] / 1e6 for row in mine]
        line = "o-" if method == "rounding" else "o"
        axes[0].plot(size, [row["perplexity"] for row in mine], line, label=method)
        axes[1].plot(size, [100 * row["top1_agreement"] for row in mine], line, label=method)
    axes[0].axhline(rows[0]["target_perplexity"], color="k", linestyle="--", label="target")
    axes[0].set(ylabel="perplexity of the target's texts", yscale="log")
    axes[1].set_ylabel("same first choice (%)")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    for axis in axes:
        axis.set_xlabel("megabytes")
        axis.legend(fontsize=9)
    return figure


if __name__ == "__main__":
    main()
