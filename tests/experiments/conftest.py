"""Shared by tests of experiments: a small text, a small trained network."""

import jax
import numpy as np
import pytest

from experiments.trained_target import modular

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "one", "dog", "ran", "=", ","]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Return a folder with a few random sentences in the place of WikiText-2."""
    folder = tmp_path_factory.mktemp("data") / "wikitext-2"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for split, lines in (("train", 300), ("valid", 40), ("test", 40)):
        sentences = (" " + " ".join(draw.choice(WORDS, 12)) + " \n" for _ in range(lines))
        (folder / f"{split}.txt").write_text("".join(sentences))
    return folder.parent


def archive(network, turned):
    """Return a network as the arrays of an archive, in one layout or the other."""

    def turn(w):
        return np.swapaxes(np.asarray(w), -1, -2) if turned else np.asarray(w)

    attn, layers = network.blocks[0].attention, network.blocks[0].layers
    h, v, m = attn.w_o.shape
    w_o = np.asarray(attn.w_o)
    return {
        "embed.W_E": turn(network.w_e),
        "pos_embed.W_pos": np.asarray(network.w_pos),
        **{f"blocks.0.attn.W_{n}": turn(getattr(attn, f"w_{n.lower()}")) for n in "QKV"},
        "blocks.0.attn.W_O": w_o.reshape(h * v, m).T if turned else w_o,
        "blocks.0.mlp.W_in": turn(layers[0].w),
        "blocks.0.mlp.b_in": np.asarray(layers[0].b),
        "blocks.0.mlp.W_out": turn(layers[1].w),
        "blocks.0.mlp.b_out": np.asarray(layers[1].b),
        "unembed.W_U": turn(network.w_u),
    }


@pytest.fixture(scope="session")
def small_network(tmp_path_factory):
    """Return a network that adds modulo 7, and its archive in two layouts."""
    key = jax.random.key(0, impl="threefry2x32")
    network = modular.train(key, modulus=7, d=32, heads=2, hidden=40, steps=300)
    files = []
    for turned in (False, True):
        files.append(tmp_path_factory.mktemp("network") / f"turned-{turned}.npz")
        np.savez(files[-1], **archive(network, turned))
    return network, files
