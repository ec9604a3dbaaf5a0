"""Draw pictures of tickets: functions take trees of arrays and return a matplotlib `Figure`.

`style` holds colours, axes and `save`; `pictures` draws matrices (`masks`, `attention_maps`) and
`curves` draws errors (`entry_errors`, `error_bands`). matplotlib, the extra `plots`, is imported
when the first figure is made. No function shows or stores a figure. A notebook shows a figure that
stands last in a cell, after ``%matplotlib inline``.
"""

from slth_jax.plots.curves import band, entry_errors, error_bands
from slth_jax.plots.pictures import attention_maps, masks
from slth_jax.plots.style import COLORS, PAPER, figure, save, several, two

__all__ = [
    "COLORS",
    "PAPER",
    "attention_maps",
    "band",
    "entry_errors",
    "error_bands",
    "figure",
    "masks",
    "save",
    "several",
    "two",
]
