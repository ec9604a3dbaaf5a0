"""Generate the blocks of README and pages that contain numbers, from committed results.

    python -m experiments.pages            # rewrite all blocks
    python -m experiments.pages --check    # exit with 1 if a page differs
    python -m experiments.pages --pictures # plot the committed pictures from the same results, too

A page contains blocks between ``<!-- begin NAME -->`` and ``<!-- end -->``. The function NAME in a
module of `render.MODULES` returns the Markdown of the block. `blocks` reads the JSON files of
results and formats numbers; `render` replaces the blocks of a page; `pictures` plots the committed
pictures.
"""
