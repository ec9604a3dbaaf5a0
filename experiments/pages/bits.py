"""Generate the parts of docs/bits.md, and one of the README, that contain numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.pages.blocks import g, read, table, wrapped


def readme_bits() -> str:
    """Return the README's paragraph on the tickets that need the fewest bytes."""
    stories = read("bits_stories")["rows"]
    tickets = [row for row in stories if row["method"] == "band"]
    small = min((r for r in tickets if r["perplexity"] <= 1.9), key=lambda row: row["bytes"])
    close = max(tickets, key=lambda row: row["top1_agreement"])
    rounding = [row for row in stories if row["method"] == "rounding"]
    peer = min((r for r in rounding if r["perplexity"] <= 1.9), key=lambda row: row["bytes"])
    rows = [r for r in read("bits")["rows"] if (r["target"], r["nominal"]) == ("gaussian", 4)]
    band, lloyd = (
        np.mean([row["error"] for row in rows if row["method"] == method])
        for method in ("band, sign x uniform", "Lloyd-Max")
    )
    coded = np.pi * np.e / 6 * 2.0**-8  # uniform steps, entropy-coded, at small errors
    return wrapped(
        f"The masks of a ticket can need as few bytes as a quantised model. With `hide --bits B` "
        f"the masks have B bits per weight; a shortest-path search selects them. With 4 bits per "
        f"weight, the mean squared error of Gaussian weights is {g(float(band))} times their "
        f"variance. A scalar quantiser that is fitted to these weights has an error of "
        f"{g(float(lloyd))} times their variance, or about {g(coded)} times with entropy coding. "
        f"A ticket of stories260K with {small['bytes'] / 1e6:.3f} MB has perplexity "
        f"{small['perplexity']:.2f}. The perplexity of stories260K is "
        f"{small['target_perplexity']:.2f}, and with weights rounded to "
        f"{peer['bytes'] / 1e6:.3f} MB it is {peer['perplexity']:.2f}. A ticket with "
        f"{close['bytes'] / 1e6:.2f} MB predicts the same top-1 token as stories260K at "
        f"{100 * close['top1_agreement']:.1f} % of the positions. The page on "
        f"[bits](docs/bits.md) explains these masks, proves a lower bound on the error, and "
        f"compares other methods."
    )


def bits_models() -> str:
    """Return the paragraphs on all-MiniLM-L6-v2 and SmolLM2-135M-Instruct hidden by `--bits`."""
    encoder, chat = read("real_minilm_bits"), read("real_chat_bits")
    close, near = encoder["compare"], chat["compare"]
    parts = near["ticket_perplexity"] / near["target_perplexity"] - 1
    return "\n\n".join(
        wrapped(text)
        for text in (
            f"all-MiniLM-L6-v2 was hidden with {_stored(encoder)}. On {close['sentences']:,} lines of "
            f"WikiText-2 the cosine between the ticket's and the target's sentence embedding is "
            f"{close['mean_cosine']:.5f} on average and at least {close['least_cosine']:.4f}. "
            f"Ticket and target find the same nearest neighbour for {close['equal_nearest']} of "
            f"{close['queries']} query sentences.",
            f"SmolLM2-135M-Instruct was hidden with {_stored(chat)}. On {near['tokens']:,} tokens of "
            f"WikiText-2 the ticket's "
            f"perplexity is {near['ticket_perplexity']:.2f} (target {near['target_perplexity']:.2f}, "
            f"{100 * parts:+.1f} %), and ticket and target have the same top-1 token at "
            f"{100 * near['top1_agreement']:.1f} % of the positions. "
            f"Ticket and target generate equal answers to {near['equal_answers']} of "
            f"{len(near['answers'])} questions.",
        )
    )


def _stored(run: dict[str, Any]) -> str:
    """Return text on a model hidden by `--bits`: its bits per entry, bytes, time and command."""
    cost = run["hide"]
    bands, weights = cost["bands"], cost["target_bytes"] // 4
    others = "".join(f" ({bits} for the matrix {kind})" for kind, bits in bands["others"])
    minutes = (
        f"{cost['seconds'] / 60:.0f} minutes"
        if cost["seconds"] > 120
        else f"{cost['seconds']:.0f} s"
    )
    return (
        f"{bands['bits']} bits per entry{others}, in {minutes}. The ticket has "
        f"{cost['ticket_bytes'] / 1e6:.1f} MB, which is {8 * cost['ticket_bytes'] / weights:.2f} "
        f"bits for each of the {weights / 1e6:.1f} million weights (`python -m "
        f"experiments.benchmarks.real_models {run['command']}`, "
        f"{run['device']}, {run['date']}{', ' + run['note'] if run['note'] else ''})"
    )


def bits_errors() -> str:
    """Return the table of relative squared errors on Gaussian matrices.

    The table has a row for each method and a column for each number of bits per entry.
    """
    result = read("bits")
    rows = [row for row in result["rows"] if row["target"] == "gaussian"]
    columns = sorted({row["nominal"] for row in rows})
    lines: list[Sequence[Any]] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for bits in columns:
            mine = [r for r in rows if (r["method"], r["nominal"]) == (method, bits)]
            if not mine:
                cells.append("")
                continue
            error, size = (np.mean([r[name] for r in mine]) for name in ("error", "bits"))
            note = f" ({size:.2f} bits)" if size > bits + 0.05 else ""
            cells.append(f"{g(float(error))}{note}")
        lines.append([method, *cells])
    lines.append(["Shannon's bound", *(g(4.0**-bits) for bits in columns)])
    return table(["method", *(f"{bits} bits" for bits in columns)], lines)


def bits_stories() -> str:
    """Return the table that compares tickets of stories260K with its rounded weights."""
    rows = sorted(read("bits_stories")["rows"], key=lambda row: (row["method"], row["bytes"]))
    lines = []
    for row in rows:
        name = row["method"]
        if name == "band":
            others = "".join(f", {kind} {bits}" for kind, bits in row["others"].items())
            name = f"ticket, {row['weights']}, 2^{row['states']} states, seed {row['seed']}{others}"
        lines.append(
            (
                name,
                row["bits"],
                f"{row['bytes'] / 1e6:.3f}",
                f"{row['perplexity']:.3f}",
                f"{100 * row['top1_agreement']:.1f}",
                f"{row['equal_texts']} of {row['texts']}",
            )
        )
    names = ("model", "bits", "MB", "perplexity", "equal top-1 tokens (%)", "equal texts")
    note = f"\n\nThe perplexity of stories260K itself is {rows[0]['target_perplexity']:.3f}."
    return table(names, lines) + note


def bits_sparse() -> str:
    """Return the table of densities, entropies and errors of masks that keep few samples."""
    result = read("sparse")
    rows = [
        (
            row["samples"], "no limit" if row["most"] is None else row["most"],
            f"{100 * row['kept']:.0f} %", f"{row['bits']:.1f}", g(row["error"]),
        )
        for row in result["rows"]
    ]  # fmt: skip
    names = ("samples m", "limit k", "kept", "bits per entry", "median error")
    note = (
        f"Each row of the table was measured on {result['entries']:,} matrix entries "
        f"({result['device']}, {result['date']})."
    )
    return f"{table(names, rows)}\n\n{note}"
