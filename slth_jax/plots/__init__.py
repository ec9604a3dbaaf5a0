"""Plot tickets: functions take trees of arrays and return a matplotlib `Figure`.

`style` contains colours, axes and `save`. `pictures` plots matrices (`masks`, `attention_maps`),
and `curves` plots errors (`entry_errors`, `error_bands`). matplotlib, which the extra `plots`
installs, is imported when the first figure is made. The functions do not show figures. After
``%matplotlib inline`` a notebook shows a figure that is the last expression of a cell.
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
