"""Blocks on published models hidden whole."""

from typing import Any

from experiments.pages.blocks import g, read, wrapped


def readme_models() -> str:
    """The README's sentences on a sentence encoder and a chat model."""
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
    """Errors of all-MiniLM-L6-v2 with a scale per row and with one per matrix."""
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


def _minutes(run: dict[str, Any]) -> str:
    return g(run["hide"]["seconds"] / 60)


def _megabytes(run: dict[str, Any]) -> str:
    return f"{run['hide']['ticket_bytes'] / 1e6:.0f}"
