"""Generate the parts of the README and of `docs/` that contain numbers, from committed results.

    python -m experiments.pages            # rewrite all blocks
    python -m experiments.pages --check    # exit with 1 if a page differs
    python -m experiments.pages --pictures # plot the committed pictures from the same results, too

A block is the text of a page between ``<!-- begin NAME -->`` and ``<!-- end -->``. The function
NAME in a module of `render.MODULES` returns the Markdown of the block NAME. The module `blocks` reads
the JSON files of results and formats numbers, `render` replaces the blocks of a page, and
`pictures` plots the committed pictures.
"""
