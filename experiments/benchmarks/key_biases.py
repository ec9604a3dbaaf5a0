"""Measure the logit errors of tickets of a random Qwen2 model whose key biases are large.

    python -m experiments.benchmarks.key_biases --out DIR

The model has two blocks of width 64; it is hidden with 16 samples per entry. In each head, key
biases of +-100 are set at no coordinate, at the coordinates with the lowest rotary frequencies, or
at all coordinates. Logit errors are divided by the standard deviation of the logits. The command
writes ``key_biases.json`` into DIR.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SIZE, VOCABULARY, HEAD = 100.0, 97, 16
PLACES = {"none": (), "slow": (6, 7, 14, 15), "all": tuple(range(HEAD))}


def write_model(folder: Path, places: Sequence[int]) -> None:
    """Write a random Qwen2 whose key biases are +-100 at the coordinates `places` of each head."""
    import torch
    import transformers

    generator = torch.Generator().manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, array in model.named_parameters():
            deviation = 0.1 if array.ndim == 1 else 1.0 if "embed" in name else 0.125
            if "norm" not in name:
                array.copy_(deviation * torch.randn(array.shape, generator=generator))
        for layer in model.model.layers:
            bias = layer.self_attn.k_proj.bias
            signs = torch.sign(torch.randn(bias.shape, generator=generator))
            for i in range(len(bias)):
                if i % HEAD in places:
                    bias[i] = SIZE * signs[i]
    model.save_pretrained(folder)


def measure(folder: Path, samples: int) -> list[dict[str, Any]]:
    """Hide the model without and with additional samples for large biases; return both results."""
    from slth_jax import hide, models
    from slth_jax.factored import assemble
    from slth_jax.hide.targets import Targets

    reader = models.weights.open(folder / "model")
    spec = hide.make_spec(reader, samples=samples)
    tokens = np.random.default_rng(5).integers(0, VOCABULARY, (4, 48))
    logits = hide.logits(hide.of_target(reader), tokens)
    exact = Targets(reader, spec)

    def error(model: Any) -> float:
        measured = hide.measures(logits, hide.logits(model, tokens), None)
        return measured["rms_logit_difference"] / measured["logit_sd"]

    results = []
    for number, trial in enumerate(dict.fromkeys((dataclasses.replace(spec, finer=()), spec))):
        start = time.perf_counter()
        opened = hide.opened(hide.solve(reader, trial, folder / f"ticket-{number}"))
        seconds = time.perf_counter() - start

        def entries(part: Any, opened: Any = opened) -> np.ndarray:
            if part.kind in ("q", "k"):
                return exact.product(part, 0)[None]
            return opened.entries(part)

        model = hide.of_ticket(opened)
        with_exact = model._replace(
            ends=partial(assemble.merged_ends, spec, entries),
            block=partial(assemble.merged_block, spec, entries=entries),
        )
        results.append({
            "finer": dict(trial.finer), "error": error(model), "seconds": seconds,
            "error_of_exact_queries_and_keys": error(with_exact),
            "mask_bits": opened.ticket.metadata["mask_bits"],
        })  # fmt: skip
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse `arguments`, run the benchmark, write the results, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", required=True)
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args(arguments)
    from experiments.machine import report
    from slth_jax import storage

    out = storage.make_folder(options.out)
    runs = {}
    for name, places in PLACES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder) / "model", places)
            runs[name] = measure(Path(folder), options.samples)
        print(name, runs[name], flush=True)
    results = {**report(), "samples": options.samples, "size": SIZE, "runs": runs}
    storage.write_json(out / "key_biases.json", results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
