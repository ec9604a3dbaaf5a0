"""Generate the blocks on published models whose weights are all hidden."""

from typing import Any

from experiments.pages.blocks import g, read, wrapped


def readme_models() -> str:
    """Return the README's paragraph on a hidden sentence encoder and a hidden chat model."""
    encoder, chat = read("real_minilm"), read("real_chat")
    close, same = encoder["compare"], chat["compare"]
    return wrapped(
        f"Larger models were hidden with every matrix random and {encoder['hide']['samples']} samples "
        f"per entry ({chat['device']}, {chat['date']}). all-MiniLM-L6-v2 (22.6 million weights) takes "
        f"{_minutes(encoder)} minutes and {_megabytes(encoder)} MB of masks and scales. On "
        f"{close['sentences']:,} lines of WikiText-2 the cosine between the sentence embeddings of ticket "
        f"and target is {close['mean_cosine']:.8f} on average, and the nearest neighbours of "
        f"{close['equal_nearest']} of {close['queries']} queries are equal. SmolLM2-135M-Instruct "
        f"takes {_minutes(chat)} minutes, including a kill, and {_megabytes(chat)} MB, the same as in "
        f"bfloat16. On {same['tokens']:,} tokens of WikiText-2 the top-1 token is equal at "
        f"{100 * same['top1_agreement']:.1f} % of the positions, and the perplexity is "
        f"{same['ticket_perplexity']:.3f} (target {same['target_perplexity']:.3f}). "
        f"{same['equal_answers']} of {len(same['answers'])} chat answers are equal, to their end or for "
        f"48 tokens (`python -m experiments.benchmarks.real_models minilm|chat FOLDER`)."
    )


def scales_of_rows() -> str:
    """Return the sentence on all-MiniLM-L6-v2's errors with a scale per row or per matrix."""
    rows, matrix = read("real_minilm"), read("real_minilm_matrix")
    errors = [run["hide"]["relative_error"] for run in (rows, matrix)]
    return wrapped(
        f"Both were measured on all-MiniLM-L6-v2 at {rows['hide']['samples']} samples "
        f"({rows['device']}, {rows['date']}). With a scale per row the relative error of a matrix is "
        f"{g(errors[0]['median'])} in the median and at most {g(errors[0]['largest'])}; with a scale per "
        f"matrix it is {g(errors[1]['median'])} and {g(errors[1]['largest'])}. The files have "
        f"{rows['hide']['ticket_bytes']:,} and {matrix['hide']['ticket_bytes']:,} bytes, and the runs "
        f"take {rows['hide']['seconds']:.0f} and {matrix['hide']['seconds']:.0f} s."
    )


def hide_large() -> str:
    """Return the paragraph on the cost of hiding a model with a billion weights."""
    run = read("hide_large")
    whole, blocks = run["whole"], run["blocks"]
    return wrapped(
        f"The cost of a random Llama with the shape of Llama-3.2-1B ({whole['parameters'] / 1e9:.2f} "
        f"billion weights) was measured at {run['samples']} samples (`python -m "
        f"experiments.benchmarks.hide_large`, {run['device']}, {run['date']}, beside other programs). The "
        f"dry run estimates {whole['num_sums'] / 1e9:.2f} billion subset sums, a ticket of "
        f"{whole['ticket_bytes'] / 1e9:.2f} GB and {g(whole['hours'])} hours. "
        f"Then {blocks['blocks']} blocks were hidden: {blocks['num_sums'] / 1e6:.0f} million subset sums "
        f"in {blocks['seconds'] / 60:.0f} minutes ({blocks['sums_per_second'] / 1000:.0f} thousand per "
        f"second) and {blocks['peak_bytes'] / 2**30:.1f} GiB. At this rate the whole model takes "
        f"{g(whole['num_sums'] / blocks['sums_per_second'] / 3600)} hours. The largest relative "
        f"error of a matrix is {g(blocks['largest_relative_error'])}."
    )


def key_biases() -> str:
    """Return the paragraph on the errors of a hidden random Qwen2 with large key biases."""
    run = read("key_biases")
    runs, samples = run["runs"], run["samples"]
    (none,), (slow, slow_finer), (every, every_finer) = (runs[n] for n in ("none", "slow", "all"))
    (more,) = set(slow_finer["finer"].values())
    bits = 100 * (slow_finer["mask_bits"] / slow["mask_bits"] - 1)
    exact = every_finer["error_of_exact_queries_and_keys"]
    return wrapped(
        f"This was measured on a random Qwen2 with two blocks and width 64 at {samples} samples "
        f"(`python -m experiments.benchmarks.key_biases`, {run['device']}, {run['date']}). The root "
        f"mean square error of the logits, divided by their standard deviation, is {g(none['error'])} "
        f"without large biases. With key biases of {run['size']:.0f} at the coordinates that rotate "
        f"slowly, it is {g(slow['error'])} with {samples} samples for all matrices, and "
        f"{g(slow_finer['error'])} with {more} samples for the keys, which need {bits:.1f} % more mask "
        f"bits. With such biases at all coordinates it is {g(every['error'])} and "
        f"{g(every_finer['error'])}. Even with exact queries and keys it would be {g(exact)}, because "
        f"these biases multiply the errors in the inputs of attention, which no finer encoding of "
        f"queries and keys removes."
    )


def _minutes(run: dict[str, Any]) -> str:
    return g(run["hide"]["seconds"] / 60)


def _megabytes(run: dict[str, Any]) -> str:
    return f"{run['hide']['ticket_bytes'] / 1e6:.0f}"
