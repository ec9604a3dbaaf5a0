"""Networks that were really trained: read, scored, refused."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from refusals import refusals

from experiments.trained_target import pretrained

SHARED = Path(os.environ.get("SLTH_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.slow
def test_a_small_network_learns_to_add_and_is_read_back_in_both_layouts(small_network):
    network, files = small_network
    task = pretrained.task_of(network)
    assert task.name == "addition modulo 7" and task.tokens.shape == (49, 3)
    scores = pretrained.score(network, task, pretrained.read_out(network, task, network.blocks))
    assert float(scores["accuracy"]) == 1.0 and float(scores["margin"]) > 0
    for path in files:
        again = pretrained.load(str(path))
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(network), strict=True):
            np.testing.assert_array_equal(a, b)


def test_networks_that_the_theory_does_not_cover_are_refused(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, **{"blocks.0.ln1.w": np.ones(3), "pos_embed.W_pos": np.ones((3, 3))})
    with refusals(r"^weights must be a network without normalisation"):
        pretrained.load(str(path))
    path.write_bytes(b"no archive")
    with refusals(r"^weights must be a NumPy archive"):
        pretrained.load(str(path))
    np.savez(path, **{"pos_embed.W_pos": np.ones((3, 3))})
    with refusals(r"^weights must be an archive with"):
        pretrained.load(str(path))


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "pretrained").is_dir(), reason=f"no published networks under {SHARED}"
)
def test_published_networks_do_what_their_authors_say():
    network = pretrained.load(str(SHARED / "pretrained" / "modadd113_1L_d128_h4.npz"))
    task = pretrained.task_of(network)
    scores = pretrained.score(network, task, pretrained.read_out(network, task, network.blocks))
    assert task.answers.size == 12_769 and float(scores["accuracy"]) == 1.0
    network = pretrained.load(str(SHARED / "pretrained" / "induction_2L_d48_h4.npz"))
    task = pretrained.task_of(network)
    scores = pretrained.score(network, task, pretrained.read_out(network, task, network.blocks))
    assert float(scores["loss"]) < 3.0 < np.log(128)
    with refusals("without normalisation"):
        pretrained.load(str(SHARED / "pretrained" / "brackets_3L_d56_h2.npz"))
