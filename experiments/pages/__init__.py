"""Numbers on the pages, written from committed results.

    python -m experiments.pages            # rewrite all blocks
    python -m experiments.pages --check    # exit with 1 if a page differs

A page contains blocks between ``<!-- begin NAME -->`` and ``<!-- end -->``. The function NAME of
`law`, `results`, `guarantees`, `supermasks`, `bits` or `trust` returns the block's Markdown from JSON files
(`blocks` reads them and formats numbers); `render` replaces the blocks of a page.
"""
