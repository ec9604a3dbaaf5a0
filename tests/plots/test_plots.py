"""Pictures show the numbers they are given: read back from the figure, not looked at."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusals

from slth_jax import attention, cli, construction, initializers, plots, storage, ticket

KEY = jax.random.key(5, impl="threefry2x32")
SHAPE = {"num_heads": 2, "d_in": 3, "d_out": 2}


@pytest.fixture(scope="module")
def layers():
    """Return target, source and half-random masks of attention with two heads."""
    target = initializers.theory_attention(KEY, **SHAPE, n_k=4, n_v=4)
    source = initializers.theory_attention(jax.random.fold_in(KEY, 1), **SHAPE, n_k=20, n_v=12)
    return target, source, jax.tree.map(lambda w: w > 0.1, source)


def cells(axes):
    """Return the colours in an image, `[rows, columns, 3]`."""
    return np.asarray(axes.images[0].get_array())


def png(tmp_path, figure):
    path = tmp_path / "figure.png"
    plots.save(figure, path)
    return path.read_bytes()


def test_masks_of_a_head_are_its_projections(layers, tmp_path):
    _, _, masks = layers
    figure = plots.masks(masks, head=1)
    panels = figure.axes
    assert [axes.get_title(loc="left").split(",")[0] for axes in panels] == [
        "query", "key", "value", "output",
    ]  # fmt: skip
    for axes, mask in zip(panels, masks, strict=True):
        mask = np.asarray(mask)[1]
        mask = mask.T if mask.shape[0] > mask.shape[1] else mask
        kept = np.isclose(cells(axes), (0, 0x72 / 255, 0xB2 / 255)).all(-1)
        np.testing.assert_array_equal(kept, mask)
        assert f"{100 * mask.mean():.0f} % kept" in axes.get_title(loc="left")
    assert png(tmp_path, figure).startswith(b"\x89PNG")


def test_masks_with_weights_show_signs(layers):
    _, source, masks = layers
    panel = plots.masks(masks, weights=source).axes[0]
    red, _, blue = np.moveaxis(cells(panel), -1, 0)
    weight, mask = np.asarray(source.w_q)[0], np.asarray(masks.w_q)[0]
    np.testing.assert_array_equal((blue > red)[mask], (weight > 0)[mask])
    np.testing.assert_allclose(cells(panel)[~mask], 0xDD / 255)


def test_masks_of_any_tree_and_of_large_matrices():
    tree = {
        "a": {"kernel": jnp.ones((1500, 2), bool), "bias": None},
        **{f"b{i}": jnp.zeros((2, 2, 3), bool) for i in range(4)},
        "c": jnp.ones((3,), bool),
    }
    figure = plots.masks(tree, limit=3)
    assert "first 1024" in figure.axes[0].get_title(loc="left")
    assert cells(figure.axes[0]).shape == (2, 1024, 3)
    assert len(figure.axes) == 3 and figure.get_suptitle() == "3 of 5 masks"


def test_entry_errors_are_those_of_the_merged_matrices(layers):
    target, source, _ = layers
    masks = construction.prune_attention(source, target)
    pruned = construction.apply_masks(source, masks)
    figure = plots.entry_errors({"ticket": pruned, "itself": target}, target)
    for axes, name in zip(figure.axes, ("w_qk", "w_vo"), strict=True):
        wished = np.asarray(getattr(attention.merge(target), name), float)
        errors = np.abs(np.asarray(getattr(attention.merge(pruned), name), float) - wished)
        ours, exact, floor = axes.lines
        drawn = np.asarray(ours.get_xdata())
        np.testing.assert_allclose(drawn, np.sort(errors.ravel()), atol=1e-6)
        assert ours.get_ydata()[-1] == 1 and np.all(np.diff(ours.get_ydata()) > 0)
        height = floor.get_xdata()[0]
        np.testing.assert_allclose(height, np.abs(wished).max() * 2.0**-24, rtol=1e-5)
        assert np.max(exact.get_xdata()) <= height


def test_attention_maps_are_softmax(layers):
    target, source, masks = layers
    x = np.asarray(jax.random.normal(KEY, (5, 3)))
    causal = attention.causal_mask(5)
    pruned = construction.apply_masks(source, masks)
    figure = plots.attention_maps(target, pruned, x, head=1, attn_mask=causal, tokens=list("abcde"))
    shown = []
    for axes, params in zip(figure.axes, (target, pruned), strict=False):
        q, k = (x.astype(float) @ np.asarray(w, float)[1] for w in params[:2])
        logits = np.where(np.asarray(causal), q @ k.T / np.sqrt(q.shape[1]), -np.inf)
        expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(cells(axes), expected, atol=1e-5)
        shown.append(cells(axes))
    np.testing.assert_allclose(cells(figure.axes[2]), np.abs(shown[1] - shown[0]))


def test_error_bands_are_quantiles_over_seeds():
    errors = np.random.default_rng(0).lognormal(size=(40, 3))
    errors[0, 1] = 0  # left out: a logarithmic axis has no 0
    figure = plots.error_bands([8, 16, 32], {"proof": errors, "reach": 2 * errors})
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    middle = [np.median(errors[:, 0]), np.median(errors[1:, 1]), np.median(errors[:, 2])]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), middle, rtol=1e-5)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), np.multiply(2, middle), rtol=1e-5)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "proof, median of 40 seeds", "reach, median of 40 seeds",
    ]  # fmt: skip
    corners = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(
        [corners[:, 1].min(), corners[:, 1].max()],
        [min(np.quantile(c[c > 0], 0.25) for c in errors.T),
         max(np.quantile(c[c > 0], 0.75) for c in errors.T)],
        rtol=1e-5,
    )  # fmt: skip


def test_bad_input_is_one_line(layers, tmp_path):
    target, source, masks = layers
    x = np.ones((4, 3), np.float32)
    for call, words in (
        (lambda: plots.masks({"a": jnp.ones(3, bool)}), "masks must be a tree with"),
        (lambda: plots.masks(masks, head=2), "head of w_q must be an integer in"),
        (lambda: plots.masks(masks, weights=target), "weights.w_q must be of shape"),
        (lambda: plots.entry_errors(jax.tree.map(lambda w: w[:1], target), target), "tickets 'ti"),
        (lambda: plots.attention_maps(target, source, x, head=2), "head must be an integer in"),
        (lambda: plots.attention_maps(target, source, x, tokens=["a"]), "tokens must be 4 words"),
        (lambda: plots.error_bands([1, 2], np.ones((3, 3))), "errors must be of shape"),
        (lambda: plots.save(plots.figure()[0], tmp_path / "x.jpg"), "path must be NAME.png"),
    ):
        with refusals(words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_command_draws_a_ticket(tmp_path, capsys):
    options = {**SHAPE, "n_k": 6, "n_v": 6}
    weights = initializers.theory_attention(jax.random.key(3, impl=ticket.IMPL), **options)
    path = tmp_path / "one.ticket.safetensors"
    ticket.save(path, ticket.create("theory", options, 3, jax.tree.map(lambda w: w > 0, weights)))
    out = tmp_path / "masks.png"
    assert cli.main(["ticket", "show", "--plot", str(out), str(path)]) == 0
    assert "masks.png: 4 masks" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["ticket", "show", "--plot", str(tmp_path / "x.jpg"), str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: path must be NAME.png")


def test_without_matplotlib_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from slth_jax import plots\n"
        "try: plots.figure()\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'figures need matplotlib: pip install "slth-jax[plots]"\n'


def test_figures_are_nobody_elses(tmp_path):
    """They leave nothing in pyplot's memory, and a failed write leaves no file."""
    from matplotlib import pyplot

    figure, _ = plots.figure()
    assert pyplot.get_fignums() == []
    with pytest.raises(storage.CheckpointError):
        plots.save(figure, tmp_path / "none" / "figure.png")
    assert list(tmp_path.iterdir()) == []
