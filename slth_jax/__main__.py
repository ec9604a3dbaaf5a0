"""`python -m slth_jax`, which is the command `slth-jax`."""

import sys

from slth_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
