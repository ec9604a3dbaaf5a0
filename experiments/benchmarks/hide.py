"""Measure the cost of hiding a language model, and compare the tickets with the model.

    python -m experiments.benchmarks.hide MODEL --tokenizer PATH --out DIR [--samples 8,12,16,20]

A setting consists of a number of samples per subset sum, a rule that assigns hidden units, and a
form of attention (merged or factored). For every setting the command constructs a ticket, reads the
ticket's file, and compares the ticket with the model on texts that the model itself generates
(greedy, from fixed prompts). The command writes ``hide.json``, ``hide.csv`` and ``hide.png`` into
DIR. If DIR already contains the results of a setting, the setting is not measured again.
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slth_jax.cli.devices import split_cpu

PROMPTS = (
    "", "Once upon a time", "Tom and Jane", "The dog", "One day, a girl", "Lily liked cats",
    "There was a big tree", "Ben had a red ball", "The sun was hot", "A little boy named Tim",
)  # fmt: skip
SETTINGS = (
    ("proof", "linear", "merged", "twice"),
    ("reach", "linear", "merged", "twice"),
    ("shift", "linear", "merged", "twice"),
    ("shift", "relu", "merged", "twice"),
    ("shift", "linear", "factored", "once"),
)
"""Each setting: the rule, and the forms of products, of attention and of tied embeddings.

The last setting has the defaults of `hide`.
"""

NAMES = ("rule", "form", "attention", "tied")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse `arguments`, run the benchmark, write the results, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--out", required=True)
    parser.add_argument("--samples", default="8,12,16,20", help="numbers, separated by commas")
    parser.add_argument("--length", type=int, default=200, help="tokens of a text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    split_cpu(None)
    from experiments.machine import report
    from slth_jax import hide, models, storage

    out = storage.make_folder(options.out)
    reader = models.weights.open(options.model)
    file = models.tokens.find(options.tokenizer, options.model, reader.settings.vocab_size)
    tokenizer = models.tokens.open_tokenizer(file)
    target = hide.of_target(reader)
    texts = _texts(target, tokenizer, options.length)
    path = out / "hide.json"
    rows: list[dict[str, Any]] = storage.read_json(path)["rows"] if path.exists() else []
    for samples in map(int, options.samples.split(",")):
        for setting in SETTINGS:
            if any(row["samples"] == samples and _setting(row) == setting for row in rows):
                continue
            rows.append(_measure(reader, target, texts, samples, setting, options.seed, out))
            print({name: rows[-1][name] for name in _SHOWN}, flush=True)
            storage.write_json(path, {**report(), "prompts": PROMPTS, "rows": rows})
    with open(out / "hide.csv", "w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    from experiments import plots

    plots.save(picture(rows), out / "hide.png")
    return 0


_SHOWN = ("samples", *NAMES, "seconds", "equal_texts", "top1_agreement", "rms_logit_difference")


def _setting(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in NAMES)


def _texts(target: Any, tokenizer: Any, length: int) -> list[tuple[int, list[int]]]:
    """Generate a text per prompt; return pairs (prompt length in tokens, tokens of the text)."""
    from slth_jax import models

    params, texts = target.load(), []
    for prompt in PROMPTS:
        tokens = tokenizer.encode(prompt)
        stop = (tokenizer.start,)
        whole = models.generate(params, target.settings, tokens, length, stop=stop)
        texts.append((len(tokens), whole))
    return texts


def _measure(
    reader: Any, target: Any, texts: Any, samples: int, setting: tuple[str, ...], seed: int,
    out: Path,
) -> dict[str, Any]:  # fmt: skip
    import numpy as np

    from experiments.machine import report
    from slth_jax import hide

    start = time.perf_counter()
    options: dict[str, Any] = dict(zip(NAMES, setting, strict=True))
    rule = options.pop("rule")
    construction = None if rule == "shift" else rule
    spec = hide.make_spec(reader, samples=samples, construction=construction, **options)
    folder = out / "tickets" / f"{'-'.join(setting)}-{samples}-seed{seed}"
    path = hide.solve(reader, spec, folder, seed=seed)
    seconds = time.perf_counter() - start
    hide.clean(folder)
    ticket = hide.of_ticket(path)
    params = ticket.load()
    ticket = ticket._replace(
        ends=lambda: {n: np.asarray(v) for n, v in params.items() if not n.startswith("h.")},
        block=lambda b: {n[2:]: np.asarray(v[b]) for n, v in params.items() if n.startswith("h.")},
    )
    equal, parts = 0, []
    for prompt, tokens in texts:
        row = np.asarray([tokens], np.int32)
        theirs, ours = hide.logits(target, row), hide.logits(ticket, row)
        # If the top-1 tokens agree at every token of the target's text, the greedy texts are equal.
        same = theirs.argmax(-1)[0] == ours.argmax(-1)[0]
        equal += bool(same[prompt - 1 :].all())
        parts.append((len(tokens), hide.measures(theirs, ours, row)))
    weights = np.array([count for count, _ in parts], float)

    def mean(name: str) -> float:
        return float(np.average([part[name] for _, part in parts], weights=weights))

    squares = np.average([p["rms_logit_difference"] ** 2 for _, p in parts], weights=weights)
    metadata = hide.opened(path).ticket.metadata
    return {
        "samples": samples,
        **dict(zip(NAMES, setting, strict=True)),
        "seed": seed,
        "date": report()["date"],
        "num_sums": metadata["num_sums"],
        "random_weights": metadata["random_weights"],
        "out_of_reach": sum(part["out_of_reach"] for part in metadata["parts"].values()),
        "ticket_bytes": path.stat().st_size,
        "seconds": round(seconds, 1),
        "texts": len(texts),
        "equal_texts": equal,
        "tokens": int(weights.sum()),
        "top1_agreement": mean("top1_agreement"),
        "rms_logit_difference": float(squares**0.5),
        "logit_sd": mean("logit_sd"),
        "target_perplexity": float(np.exp(_mean_log(parts, weights, "target_perplexity"))),
        "ticket_perplexity": float(np.exp(_mean_log(parts, weights, "ticket_perplexity"))),
    }


def _mean_log(parts: Any, weights: Any, name: str) -> float:
    import numpy as np

    return float(np.average([np.log(part[name]) for _, part in parts], weights=weights))


def picture(rows: list[dict[str, Any]]) -> Any:
    """Plot the logit error and the share of equal top-1 tokens against the number of samples."""
    from experiments import plots

    figure, (left, right) = plots.two(7.6, 4.8)
    colors = dict(zip(("reach", "shift", "proof"), plots.COLORS, strict=False))
    for setting in SETTINGS:
        rule, form, attention, _ = setting
        points = sorted(
            (row for row in rows if _setting(row) == setting), key=lambda row: row["samples"]
        )
        if not points:
            continue
        style = "o-" if form == "linear" else "s--"
        style = "^:" if attention == "factored" else style
        label = f"{rule}, {form} form, {attention} attention"
        samples = [row["samples"] for row in points]
        error = [row["rms_logit_difference"] / row["logit_sd"] for row in points]
        left.plot(samples, error, style, color=colors[rule], label=label)
        agreement = [100 * row["top1_agreement"] for row in points]
        right.plot(samples, agreement, style, color=colors[rule], label=label)
    left.set_yscale("log")
    left.set_ylabel("logit error / sd of the logits")
    right.set_ylabel("same first choice (%)")
    for axes in (left, right):
        axes.set_xlabel("random samples per subset sum")
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle("A language model hidden in random weights")
    return figure


if __name__ == "__main__":
    sys.exit(main())
