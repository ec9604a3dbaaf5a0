"""Blocks of README and pages with numbers, generated from committed results.

    python -m experiments.pages            # rewrite all blocks
    python -m experiments.pages --check    # exit with 1 if a page differs

A page contains blocks between ``<!-- begin NAME -->`` and ``<!-- end -->``. The function NAME in
`law`, `results`, `guarantees`, `supermasks`, `bits`, `models` or `trust` returns the Markdown of
the block. `blocks` reads the JSON files of results and formats numbers; `render` replaces the
blocks of a page.
"""
