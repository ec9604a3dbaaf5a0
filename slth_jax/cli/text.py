"""Texts on the command line: the options of verbs that write texts, and the writer itself."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slth_jax.hide import Model
    from slth_jax.models import Settings


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options with which a text is written."""
    parser.add_argument("--length", type=int, default=200, help="tokens to add (default: 200)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 for the likeliest token (default)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="llama2.c file or folder of GPT-2's two files (default: the file beside the model)",
    )
    parser.add_argument(
        "--devices", type=int, help="split a CPU into so many devices (default: one per core)"
    )


class Writer:
    """Continues the prompt of a command line with different models.

    Attributes:
      file: the tokenizer's file.
      prompt: the tokens of the prompt.
    """

    def __init__(self, options: argparse.Namespace, model: str, settings: "Settings"):
        """Find the tokenizer and encode the prompt."""
        from slth_jax import models

        self._options = options
        self.file = models.tokens.find(options.tokenizer, model, settings.vocab_size)
        self._tokenizer = models.tokens.open_tokenizer(self.file)
        self.prompt = self._tokenizer.encode(options.prompt)

    def write(self, model: "Model") -> tuple[list[int], str]:
        """Return tokens and text of the prompt and its continuation."""
        import jax

        from slth_jax import models

        options = self._options
        tokens = models.generate(
            model.load(),
            model.settings,
            self.prompt,
            options.length,
            temperature=options.temperature,
            key=jax.random.key(options.seed, impl="threefry2x32"),
            stop=self._tokenizer.stop,
        )
        return tokens, self._tokenizer.decode(tokens)
