"""Options of the subcommands that generate text, and the class that generates the text."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slth_jax.hide import Model
    from slth_jax.models import Settings


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by all subcommands that generate text."""
    parser.add_argument("--length", type=int, default=200, help="tokens to add (default: 200)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 for the likeliest token (default)"
    )
    parser.add_argument(
        "--chat", metavar="TEXT", help="a message to answer, by the tokenizer's chat template"
    )
    tokenizer(parser)


def tokenizer(parser: argparse.ArgumentParser) -> None:
    """Add the options `--tokenizer` and `--devices`."""
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="folder with tokenizer.json or GPT-2's two files, or a llama2.c file (default: the "
        "files beside the model)",
    )
    parser.add_argument(
        "--devices", type=int, help="number of devices to split a CPU into (default: one per core)"
    )


class Writer:
    """Continue the command line's prompt, or answer its chat message, with one or several models.

    Attributes:
      prompt: the tokens of the prompt.
    """

    def __init__(self, options: argparse.Namespace, model: str, settings: "Settings"):
        """Find the tokenizer of the model at the path `model` and encode the prompt.

        Raises:
          ValueError: both a chat message and a prompt are given, the tokenizer for a chat message
            is not a folder or has no chat template, or the model cannot process the prompt's
            tokens.
        """
        import numpy as np

        from slth_jax import checks, models

        self._options = options
        path = models.tokens.find(options.tokenizer, model, settings.vocab_size)
        self._tokenizer = models.tokens.open_tokenizer(path)
        self._chat = options.chat is not None
        if self._chat and options.prompt:
            raise checks.fail("--chat", "given without --prompt", "both")
        if not self._chat:
            self.prompt = self._tokenizer.encode(options.prompt or "")
        elif isinstance(self._tokenizer, models.tokens.FolderTokenizer):
            self.prompt = self._tokenizer.chat(options.chat)
        else:
            allowed = "given only if the tokenizer is a folder with a chat template"
            raise checks.fail("--chat", allowed, repr(self._tokenizer))
        models.decoder.check_tokens(np.asarray([self.prompt], np.int32), settings)

    def write(self, model: "Model") -> tuple[list[int], str]:
        """Return all tokens, including the prompt's, and the text (of a chat, only the answer)."""
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
        first = len(self.prompt) if self._chat else 0
        return tokens, self._tokenizer.decode(tokens[first:])
