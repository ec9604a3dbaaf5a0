"""Embed texts with the encoder in a ticket.

The random weights are generated from the ticket's seed, compared with the ticket's fingerprint, and
masked; no trained number is read.
"""

import argparse
from pathlib import Path

from slth_jax.cli import outcome, text

HELP = "embed texts with the encoder in a ticket, and nothing else"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("ticket", help="DIR/ticket.safetensors, as `slth-jax hide` writes it")
    parser.add_argument(
        "--text",
        action="append",
        required=True,
        metavar="TEXT",
        help="a text; if the option is repeated, the cosines of all pairs are printed",
    )
    parser.add_argument("--out", metavar="X.npz", help="write the embeddings, `embeddings [n, d]`")
    text.tokenizer(parser)


def run(options: argparse.Namespace) -> None:
    """Generate the ticket's weights, then print or save the embeddings of the texts."""
    from slth_jax.cli.devices import split_cpu

    split_cpu(options.devices)
    import numpy as np

    from slth_jax import checks, hide, models, storage

    if options.out is not None and not options.out.endswith(".npz"):
        raise checks.fail("out", "NAME.npz", repr(options.out))
    opened = hide.opened(options.ticket)
    settings = opened.spec.settings
    folder = models.tokens.find(options.tokenizer, options.ticket, settings.vocab_size)
    if folder is None or not Path(folder).is_dir():
        raise checks.fail("--tokenizer", "a folder with tokenizer.json", str(folder))
    sentences = models.tokens.Sentences(Path(folder), settings.max_length)
    tokens, kept = sentences.batch(options.text)
    embeddings = hide.embeddings(
        hide.of_ticket(opened),
        tokens,
        kept=kept,
        pooling=sentences.pooling,
        normalise=sentences.normalise,
    )
    if options.out is not None:
        with storage.writing(options.out) as file:
            np.savez(file, embeddings=embeddings)
        outcome.show(f"{options.out}: {len(embeddings)} embeddings of width {settings.width}")
    else:
        for row in embeddings:
            print(" ".join(f"{value:.6g}" for value in row))
    if len(embeddings) > 1:
        unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        outcome.show("cosines:")
        for row, words in zip(unit @ unit.T, options.text, strict=True):
            outcome.show(" ".join(f"{value:7.4f}" for value in row) + f"  {words[:60]}")
