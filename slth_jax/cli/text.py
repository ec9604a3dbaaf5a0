"""The options of verbs that write texts."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """Add what a text is written with."""
    parser.add_argument("--length", type=int, default=200, help="tokens to add (default: 200)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 for the likeliest token (default)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="llama2.c file or folder of GPT-2's two files (default: the one that lies beside)",
    )
    parser.add_argument(
        "--devices", type=int, help="split a CPU into so many devices (default: one a core)"
    )
