"""Five introductory notebooks, which import nothing from `experiments`.

    python -m experiments.notebooks [NAME ...]

The command executes the notebooks from top to bottom and writes them with their outputs; it needs
the extra `notebooks`. `run` executes a single notebook; the tests use it. Every notebook has a line
``QUICK = False``; ``QUICK = True`` makes the computation small.
"""
