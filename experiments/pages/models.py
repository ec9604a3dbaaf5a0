"""Blocks on published models of which all weights are hidden."""

from typing import Any

from experiments.pages.blocks import g, read, wrapped


def readme_models() -> str:
    """Return the README's paragraph on a sentence encoder and a chat model."""
    encoder, chat = read("real_minilm"), read("real_chat")
    close, same = encoder["compare"], chat["compare"]
    return wrapped(
        f"Larger models, every matrix random, {encoder['hide']['samples']} samples per entry "
        f"({chat['device']}, {chat['date']}). all-MiniLM-L6-v2 (22.6 million weights) takes "
        f"{_minutes(encoder)} minutes and {_megabytes(encoder)} MB of masks and scales: on "
        f"{close['sentences']:,} lines of WikiText-2 the cosine of the ticket's sentence embedding to "
        f"the target's is {close['mean_cosine']:.8f} on average, and the nearest neighbours of "
        f"{close['equal_nearest']} of {close['queries']} queries are equal. SmolLM2-135M-Instruct "
        f"takes {_minutes(chat)} minutes, a kill included, and {_megabytes(chat)} MB, as many as in "
        f"bfloat16: on {same['tokens']:,} tokens of WikiText-2 the first choice is equal in "
        f"{100 * same['top1_agreement']:.1f} %, the perplexity is {same['ticket_perplexity']:.3f} "
        f"(target {same['target_perplexity']:.3f}), and {same['equal_answers']} of "
        f"{len(same['answers'])} chat answers are equal to the end or for 48 tokens "
        f"(`python -m experiments.benchmarks.real_models minilm|chat FOLDER`)."
    )


def scales_of_rows() -> str:
    """Return the errors of all-MiniLM-L6-v2 with a scale per row and with a scale per matrix."""
    rows, matrix = read("real_minilm"), read("real_minilm_matrix")
    errors = [run["hide"]["relative_error"] for run in (rows, matrix)]
    return wrapped(
        f"Measured on all-MiniLM-L6-v2 at {rows['hide']['samples']} samples "
        f"({rows['device']}, {rows['date']}): with a scale per row the relative error of a matrix is "
        f"{g(errors[0]['median'])} in the median and {g(errors[0]['largest'])} at most, with one "
        f"scale per matrix {g(errors[1]['median'])} and {g(errors[1]['largest'])}. The files have "
        f"{rows['hide']['ticket_bytes']:,} and {matrix['hide']['ticket_bytes']:,} bytes, the runs "
        f"take {rows['hide']['seconds']:.0f} and {matrix['hide']['seconds']:.0f} s."
    )


def hide_large() -> str:
    """Return the cost of a model with a billion weights, and of hiding some of its blocks."""
    run = read("hide_large")
    whole, blocks = run["whole"], run["blocks"]
    return wrapped(
        f"A random Llama of the shape of Llama-3.2-1B ({whole['parameters'] / 1e9:.2f} billion "
        f"weights) at {run['samples']} samples (`python -m experiments.benchmarks.hide_large`, "
        f"{run['device']}, {run['date']}, beside other programs): the dry run says "
        f"{whole['num_sums'] / 1e9:.2f} billion subset sums, a ticket of "
        f"{whole['ticket_bytes'] / 1e9:.2f} GB and {g(whole['hours'])} hours. "
        f"{blocks['blocks']} blocks were hidden, {blocks['num_sums'] / 1e6:.0f} million sums in "
        f"{blocks['seconds'] / 60:.0f} minutes and {blocks['peak_bytes'] / 2**30:.1f} GiB, "
        f"{blocks['sums_per_second'] / 1000:.0f} thousand per second; at that rate the whole takes "
        f"{g(whole['num_sums'] / blocks['sums_per_second'] / 3600)} hours. The largest relative "
        f"error of a matrix is {g(blocks['largest_relative_error'])}."
    )


def key_biases() -> str:
    """Return the errors of a random Qwen2 with large key biases."""
    run = read("key_biases")
    runs, samples = run["runs"], run["samples"]
    (none,), (slow, slow_finer), (every, every_finer) = (runs[n] for n in ("none", "slow", "all"))
    (more,) = set(slow_finer["finer"].values())
    bits = 100 * (slow_finer["mask_bits"] / slow["mask_bits"] - 1)
    exact = every_finer["error_of_exact_queries_and_keys"]
    return wrapped(
        f"Measured on a random Qwen2 of two blocks and width 64 at {samples} samples "
        f"(`python -m experiments.benchmarks.key_biases`, {run['device']}, {run['date']}): the root "
        f"mean square error of the logits is {g(none['error'])} of their standard deviation. With "
        f"key biases of {run['size']:.0f} at the slowly turning coordinates it is "
        f"{g(slow['error'])} with {samples} samples for all matrices, and {g(slow_finer['error'])} "
        f"with {more} for the keys, at {bits:.1f} % more mask bits. With such biases at all "
        f"coordinates it is {g(every['error'])} and {g(every_finer['error'])}; with exact queries "
        f"and keys it would be {g(exact)}, since there the biases multiply the errors of the rows "
        f"that attention reads. No finer encoding of queries and keys removes that."
    )


def _minutes(run: dict[str, Any]) -> str:
    return g(run["hide"]["seconds"] / 60)


def _megabytes(run: dict[str, Any]) -> str:
    return f"{run['hide']['ticket_bytes'] / 1e6:.0f}"
