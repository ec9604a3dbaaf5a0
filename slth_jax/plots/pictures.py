"""Plot matrices as pictures: the masks of a ticket, and attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slth_jax import attention, checks, storage
from slth_jax.plots import style
from slth_jax.types import ArrayLike, AttentionParams, PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEPT, _PRUNED = style.COLORS[0], "#dddddd"
# Maps the name of each projection of attention to the meaning of its short side.
_NAMES = {"w_q": "query", "w_k": "key", "w_v": "value", "w_o": "output"}
_SIDES = {"w_q": "input", "w_k": "input", "w_v": "input", "w_o": "output"}
_CELLS = 1024  # the largest number of cells per side, since a screen shows no more


def masks(
    masks: PyTree, *, weights: PyTree | None = None, head: int = 0, limit: int = 12
) -> Figure:
    """Plot masks, one below the other, with a coloured cell for each kept connection.

    The long side of a matrix is horizontal, so hidden units are shown from left to right. If a
    matrix has more than 1024 rows or columns, only the first 1024 are shown, and the matrix's title
    mentions this cut.

    Args:
      masks: booleans in any tree, such as `AttentionParams [h, m, n]`, the result of
        `ticket.masks(ticket)`, or the masks of `edge_popup.fit` (None for arrays without a mask).
        Arrays of one dimension are left out.
      weights: the source weights in the same tree; kept cells then show each weight's sign and
        magnitude.
      head: the index of the matrix to plot if an array is a stack, for example of heads.
      limit: the largest number of masks to plot; if there are more, the first masks are shown.

    Raises:
      ValueError: there is no mask to plot, no such head, or a weight has another shape than its
        mask.
    """
    shown = {n: np.asarray(m) for n, m in storage.named_leaves(masks).items() if np.ndim(m) >= 2}
    if not shown:
        raise checks.fail("masks", "a tree with at least one array of two dimensions", "none")
    numbers = {} if weights is None else storage.named_leaves(weights)
    checks.integer("limit", limit, low=1)
    names = list(shown)[:limit]
    drawn = [_matrix(shown[name], head, name) for name in names]
    heights = [0.55 + min(max(0.08 * part.shape[0], 0.5), 1.5) for part in drawn]
    drawing = style.blank(8.0, sum(heights) + 0.5)
    panels = drawing.subplots(len(names), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, name, mask in zip(panels, names, drawn, strict=True):
        weight = None
        if weights is not None:
            if name not in numbers or np.shape(numbers[name]) != shown[name].shape:
                given = np.shape(numbers[name]) if name in numbers else "none"
                raise checks.fail(f"weights.{name}", f"of shape {shown[name].shape}", given)
            weight = _matrix(np.asarray(numbers[name], np.float32), head, name)
        # Cells wider than a pixel are drawn with sharp edges; narrower cells are averaged.
        sharp = "nearest" if mask.shape[1] <= 512 else None
        axes.imshow(_cells(mask, weight), aspect="auto", interpolation=sharp)
        # Flax calls the array in a parameter "value"; the title leaves this word out.
        place, _, last = name.removesuffix(".value").rpartition(".")
        title = " ".join(part for part in (place, _NAMES.get(last, last)) if part)
        part = f", head {head}" if last in _NAMES else f"[{head}]" if shown[name].ndim > 2 else ""
        size = " × ".join(map(str, mask.shape))
        cut = f", the first {_CELLS} of each side" if max(mask.shape) > _CELLS else ""
        axes.set_title(
            f"{title}{part}: {size}, {100 * mask.mean():.0f} % kept{cut}", fontsize=9, loc="left"
        )
        axes.set_ylabel(_SIDES.get(last, ""), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.yaxis.get_major_locator().set_params(integer=True)
        if mask.shape[0] == 1:
            axes.set_yticks([0])
    if all(name.rpartition(".")[2] in _NAMES for name in names):
        panels[-1].set_xlabel("hidden unit", fontsize=8)
    _legend(drawing, weights is not None)
    if len(shown) > limit:
        drawing.suptitle(f"{limit} of {len(shown)} masks", fontsize=10)
    return drawing


def attention_maps(
    target: AttentionParams,
    ticket: AttentionParams,
    x: ArrayLike,
    *,
    head: int = 0,
    attn_mask: ArrayLike | None = None,
    tokens: Sequence[str] | None = None,
) -> Figure:
    """Plot the attention maps (`attention.pattern`) of target and ticket, and their difference.

    Args:
      target, ticket: projections with equal numbers of heads and inputs; a ticket is source times
        masks.
      x: the tokens `[t, m]` of one sequence.
      head: the index of the head.
      attn_mask: booleans `[t, t]`, True if token i may attend to token j; None if all may.
      tokens: the t words to write at the axes; None to write the tokens' indices.

    Raises:
      ValueError: `attention.pattern` refuses the input, there is no such head, or `tokens` does not
        have t words.
    """
    maps = [np.asarray(attention.pattern(p, x, attn_mask)) for p in (target, ticket)]
    if maps[0].shape != maps[1].shape:
        raise checks.fail("ticket", f"{len(maps[0])} heads, as target", len(maps[1]))
    checks.integer("head", head, low=0, high=len(maps[0]) - 1)
    of_target, of_ticket = (stack[head] for stack in maps)
    if tokens is not None and len(tokens) != len(of_target):
        raise checks.fail("tokens", f"{len(of_target)} words, one per row of x", len(tokens))
    difference = np.abs(of_ticket - of_target)
    top = max(float(of_target.max()), float(of_ticket.max()))
    drawing = style.blank(9.6, 3.4)
    panels = drawing.subplots(1, 3, sharey=True)
    for axes, look, title in zip(
        panels, (of_target, of_ticket), ("target", "ticket"), strict=False
    ):
        image = axes.imshow(look, cmap="cividis", vmin=0, vmax=top)
        axes.set_title(title, fontsize=10)
    drawing.colorbar(image, ax=panels[:2], label="attention", shrink=0.8)
    image = panels[2].imshow(difference, cmap="cividis", vmin=0)
    panels[2].set_title(f"difference, {difference.max():.2g} at most", fontsize=10)
    drawing.colorbar(image, ax=panels[2], label="absolute difference", shrink=0.8)
    for axes in panels:
        axes.set_xlabel("attended token")
        if tokens is None:
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.yaxis.get_major_locator().set_params(integer=True)
        else:
            axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
            axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
    panels[0].set_ylabel(f"token (head {head})")
    return drawing


def _matrix(stack: np.ndarray, head: int, name: str) -> np.ndarray:
    """Return the matrix of `head`, transposed if its long side is not horizontal."""
    matrices = stack.reshape(-1, *stack.shape[-2:])
    checks.integer(f"head of {name}", head if stack.ndim > 2 else 0, low=0, high=len(matrices) - 1)
    matrix = matrices[head if stack.ndim > 2 else 0]
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _cells(mask: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Return the colours `[rows, columns, 3]` of a mask's cells, at most `_CELLS` per side."""
    from matplotlib.colors import to_rgb

    mask = mask[:_CELLS, :_CELLS].astype(bool)
    kept: Any = to_rgb(_KEPT)
    if weight is not None:
        weight = weight[:_CELLS, :_CELLS]
        top = np.abs(weight).max() or 1.0
        kept = _signed()(0.5 + 0.5 * weight / top)[..., :3]
    return np.where(mask[..., None], kept, to_rgb(_PRUNED))


def _signed() -> Any:
    """Return the colour map for weights, from the most negative through 0 to the largest."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("signed", [style.COLORS[1], "white", style.COLORS[0]])


def _legend(drawing: Figure, signed: bool) -> None:
    from matplotlib.patches import Patch

    kept = {"kept": _KEPT} if not signed else {
        "kept, positive": style.COLORS[0], "kept, negative": style.COLORS[1]
    }  # fmt: skip
    patches = [
        Patch(color=color, label=name) for name, color in {**kept, "pruned": _PRUNED}.items()
    ]
    drawing.legend(
        handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=8
    )
