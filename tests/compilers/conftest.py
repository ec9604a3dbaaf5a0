"""Programs compiled in full by the compilers of machines that are not at hand."""

import pytest


@pytest.fixture(autouse=True)
def _in_full(compiled_in_full):
    """Compile as users do."""
