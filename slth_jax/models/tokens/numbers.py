"""Write tokens as decimal numbers instead of text, for models without a tokenizer."""

from collections.abc import Iterable

from slth_jax import checks


class Numbers:
    """A tokenizer whose texts are the decimal numbers of tokens, separated by spaces."""

    start: int | None = None
    stop: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        """Return the numbers in `text` as tokens.

        Raises:
          ValueError: `text` contains anything but numbers.
        """
        words = text.replace(",", " ").split()
        if not all(word.isascii() and word.isdigit() for word in words):
            allowed = "token numbers such as '1 15 7', since there is no tokenizer (--tokenizer)"
            raise checks.fail("--prompt", allowed, repr(text)[:80])
        return [int(word) for word in words]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return a text with the numbers of `tokens`, separated by spaces."""
        return " ".join(str(int(token)) for token in tokens)
