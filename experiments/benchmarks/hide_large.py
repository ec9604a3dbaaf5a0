"""Hide the first blocks of a random Llama-3.2-1B, and estimate the cost of the whole model.

    python -m experiments.benchmarks.hide_large --work FOLDER [--samples 16] [--blocks 2]

The model has the shape of Llama-3.2-1B. Its weights are drawn block by block (bfloat16, standard
deviation 0.02) and written to FOLDER (3 GB). A dry run estimates the cost of hiding the whole
model. Then a smaller model that contains only the first blocks is written, and all matrices of
these blocks are hidden. One block contains 5 % of the whole model's weights.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from experiments import machine
from slth_jax import hide, models, storage, ticket
from slth_jax.cli.memory import peak_bytes

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}
# From numbers of samples to nanoseconds per subset sum on an H100, estimated from its data sheet.
H100 = {12: 4, 16: 11, 20: 50, 24: 230}


def block_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a block's arrays, as a dict from the arrays' names in the file."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    return {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (hidden, width),
        "mlp.up_proj.weight": (hidden, width),
        "mlp.down_proj.weight": (width, hidden),
    }


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """Write a random model as a folder for `transformers`, with one file of weights per block."""
    folder.mkdir(parents=True, exist_ok=True)
    width = config["hidden_size"]
    files: dict[str, str] = {}

    def write(name: str, seed: int, shapes: dict[str, tuple[int, ...]]) -> None:
        rng = np.random.default_rng(seed)
        arrays = {
            key: np.ones(shape, ml_dtypes.bfloat16)
            if len(shape) == 1
            else (0.02 * rng.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)
            for key, shape in shapes.items()
        }
        safetensors.numpy.save_file(arrays, folder / name, {"format": "pt"})
        files.update(dict.fromkeys(arrays, name))

    ends = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    write("model-ends.safetensors", 0, ends)
    for block in range(config["num_hidden_layers"]):
        shapes = {f"model.layers.{block}.{n}": shape for n, shape in block_shapes(config).items()}
        write(f"model-{block:02d}.safetensors", 1 + block, shapes)
    (folder / "config.json").write_text(json.dumps(config))
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def whole(folder: Path, samples: int) -> dict[str, Any]:
    """Estimate the cost of hiding the whole model by a dry run."""
    begun = time.perf_counter()
    reader = models.weights.open(folder)
    cost = hide.estimate(reader, hide.make_spec(reader, samples=samples))
    hours = cost.num_sums * H100[samples] * 1e-9 / 3600 if samples in H100 else None
    return {
        "parameters": reader.num_bytes // 4,
        **cost._asdict(),
        "hours": cost.seconds / 3600,
        "solver_hours_on_an_h100": hours,
        "seconds_of_the_dry_run": time.perf_counter() - begun,
    }


def blocks(folder: Path, samples: int, out: Path) -> dict[str, Any]:
    """Hide the blocks of the model in `folder`; return a dict of times, sizes and errors."""
    reader = models.weights.open(folder)
    spec = hide.make_spec(reader, samples=samples, keep=("embedding", "unembedding"))
    begun = time.perf_counter()
    cpu = time.process_time()
    path = hide.solve(reader, spec, out)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    metadata = ticket.open(path).metadata
    errors = [part["relative_error"] for part in metadata["parts"].values()]
    sums = metadata["num_sums"]
    return {
        "blocks": reader.settings.num_blocks,
        "num_sums": sums,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "sums_per_second": sums / seconds,
        "largest_relative_error": max(errors),
        "mask_bytes": metadata["mask_bits"] // 8,
        "peak_bytes": peak_bytes(),
    }


def main() -> None:
    """Write the random models, measure the cost of hiding them, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", required=True, help="a folder for the models, 3 GB")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--out", default="experiments/benchmarks/results")
    options = parser.parse_args()
    work, load = Path(options.work), os.getloadavg()[0]
    # The model with only the first blocks gets a small embedding, because its embedding is not
    # hidden.
    few = {"num_hidden_layers": options.blocks, "vocab_size": 256}
    for name, config in (("whole", CONFIG), ("blocks", CONFIG | few)):
        if not (work / name / "model.safetensors.index.json").exists():
            write_model(work / name, config)
    result = {
        "samples": options.samples,
        "whole": whole(work / "whole", options.samples),
        "blocks": blocks(work / "blocks", options.samples, work / "run"),
        "load_average": load,
        **machine.report(),
    }
    print(json.dumps(result, indent=1))
    storage.write_json(storage.make_folder(options.out) / "hide_large.json", result)


if __name__ == "__main__":
    main()
