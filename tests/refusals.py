"""Expect that a call refuses its arguments with one line."""

import contextlib
from collections.abc import Iterator

import jaxtyping
import pytest


@contextlib.contextmanager
def refusals(match: str, error: type[Exception] = ValueError) -> Iterator[pytest.ExceptionInfo]:
    """Expect an `error` whose message is one line that matches the regular expression `match`.

    The checks of signatures are off inside, as they are for users: the library itself must refuse.
    """
    with signatures_unchecked(), pytest.raises(error, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value), "a refusal must be one line"


@contextlib.contextmanager
def signatures_unchecked() -> Iterator[None]:
    """Switch the checks of signatures off, as they are for users."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
