"""Generate the paragraphs on hidden models: published models and large random models."""

from typing import Any

from experiments.pages.blocks import g, read, wrapped


def readme_models() -> str:
    """Return the README's paragraph on a hidden sentence encoder and a hidden chat model."""
    encoder, chat = read("real_minilm"), read("real_chat")
    close, same = encoder["compare"], chat["compare"]
    return wrapped(
        f"Larger models were hidden with {encoder['hide']['samples']} samples per entry "
        f"({chat['device']}, {chat['date']}); every matrix of these tickets is random. "
        f"Hiding all-MiniLM-L6-v2 (22.6 million weights) takes {_minutes(encoder)} minutes, and "
        f"its masks and scales need {_megabytes(encoder)} MB. On "
        f"{close['sentences']:,} lines of WikiText-2 the cosine between the ticket's and the target's "
        f"sentence embedding is {close['mean_cosine']:.8f} on average, and ticket and target find "
        f"the same nearest neighbour for {close['equal_nearest']} of {close['queries']} query "
        f"sentences. Hiding "
        f"SmolLM2-135M-Instruct takes {_minutes(chat)} minutes, in a run that was killed and "
        f"resumed once. Its masks and scales need {_megabytes(chat)} MB, as much as the target's "
        f"weights in bfloat16. On {same['tokens']:,} tokens of WikiText-2 ticket and target have "
        f"the same top-1 token at {100 * same['top1_agreement']:.1f} % of the positions, and the "
        f"ticket's perplexity is {same['ticket_perplexity']:.3f} (target "
        f"{same['target_perplexity']:.3f}). Ticket and target give the same answer to "
        f"{same['equal_answers']} of {len(same['answers'])} questions; answers are compared up to "
        f"their end or their 48th token (`python -m "
        f"experiments.benchmarks.real_models minilm|chat FOLDER`)."
    )


def scales_of_rows() -> str:
    """Return the paragraph that compares a scale per row with a scale per matrix."""
    rows, matrix = read("real_minilm"), read("real_minilm_matrix")
    errors = [run["hide"]["relative_error"] for run in (rows, matrix)]
    return wrapped(
        f"One scale per row and one scale per matrix were compared on all-MiniLM-L6-v2 with "
        f"{rows['hide']['samples']} samples ({rows['device']}, {rows['date']}). With one scale per "
        f"row, the relative error of a matrix is {g(errors[0]['median'])} in the median and at "
        f"most {g(errors[0]['largest'])}, the file has {rows['hide']['ticket_bytes']:,} bytes, and "
        f"the run takes {rows['hide']['seconds']:.0f} s. With one scale per matrix, the relative "
        f"error is {g(errors[1]['median'])} in the median and at most {g(errors[1]['largest'])}, "
        f"the file has {matrix['hide']['ticket_bytes']:,} bytes, and the run takes "
        f"{matrix['hide']['seconds']:.0f} s."
    )


def hide_large() -> str:
    """Return the paragraph on the cost of hiding a model with a billion weights."""
    run = read("hide_large")
    whole, blocks = run["whole"], run["blocks"]
    return wrapped(
        f"The cost of hiding a random Llama with the shape of Llama-3.2-1B "
        f"({whole['parameters'] / 1e9:.2f} "
        f"billion weights) was measured with {run['samples']} samples per entry (`python -m "
        f"experiments.benchmarks.hide_large`, {run['device']}, {run['date']}, while other programs "
        f"ran). The dry run estimates {whole['num_sums'] / 1e9:.2f} billion subset sums, a ticket "
        f"of "
        f"{whole['ticket_bytes'] / 1e9:.2f} GB and {g(whole['hours'])} hours. "
        f"Then {blocks['blocks']} blocks of the model were hidden, which took "
        f"{blocks['seconds'] / 60:.0f} minutes for {blocks['num_sums'] / 1e6:.0f} million subset sums "
        f"({blocks['sums_per_second'] / 1000:.0f} thousand per second) and "
        f"{blocks['peak_bytes'] / 2**30:.1f} GiB of memory. At this rate, hiding the whole model "
        f"takes {g(whole['num_sums'] / blocks['sums_per_second'] / 3600)} hours. The largest "
        f"relative error of a hidden matrix is {g(blocks['largest_relative_error'])}."
    )


def key_biases() -> str:
    """Return the paragraph on the logit errors of a hidden Qwen2 with large key biases."""
    run = read("key_biases")
    runs, samples = run["runs"], run["samples"]
    (none,), (slow, slow_finer), (every, every_finer) = (runs[n] for n in ("none", "slow", "all"))
    (more,) = set(slow_finer["finer"].values())
    bits = 100 * (slow_finer["mask_bits"] / slow["mask_bits"] - 1)
    exact = every_finer["error_of_exact_queries_and_keys"]
    return wrapped(
        f"The effect of large key biases was measured on a random Qwen2 with two blocks and width "
        f"64, hidden with {samples} samples "
        f"(`python -m experiments.benchmarks.key_biases`, {run['device']}, {run['date']}). The root "
        f"mean square error of the logits, divided by their standard deviation, is {g(none['error'])} "
        f"without large biases. With key biases of {run['size']:.0f} at the coordinates of lowest "
        f"rotary frequency, the error is {g(slow['error'])} if all matrices have {samples} "
        f"samples, and {g(slow_finer['error'])} if key matrices have {more} samples, for which the "
        f"ticket needs {bits:.1f} % more mask bits. With key biases of {run['size']:.0f} at all "
        f"coordinates, the error is {g(every['error'])} if all matrices have {samples} samples, "
        f"and {g(every_finer['error'])} if key matrices have {more} samples. Even with exact "
        f"queries and keys the error would be {g(exact)}: biases at all coordinates multiply the "
        f"errors in the inputs of attention, and more samples for queries and keys do not reduce "
        f"those errors."
    )


def _minutes(run: dict[str, Any]) -> str:
    return g(run["hide"]["seconds"] / 60)


def _megabytes(run: dict[str, Any]) -> str:
    return f"{run['hide']['ticket_bytes'] / 1e6:.0f}"
