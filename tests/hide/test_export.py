"""Tickets as folders of transformers, which loads them and computes the ticket's logits."""

import numpy as np
import pytest
from cells import cells

from slth_jax import cli, hide, models
from slth_jax.construction import rules

NAMES = ("llama", "gpt2", "plain_llama", "bert")


@pytest.mark.parametrize("name", cells(NAMES, fast=()))
def test_transformers_computes_the_tickets_logits(name, models_on_disk, tmp_path, capsys):
    import torch
    import transformers

    path, tokens, _ = models_on_disk[name]
    reader = models.weights.open(path)
    options = {"samples": 14, "construction": rules.shift(2, 4, 0.5), "attention": "factored"}
    ticket = hide.solve(reader, hide.make_spec(reader, **options), tmp_path / "run")
    expected = hide.logits(hide.of_ticket(ticket), tokens)
    folder = str(tmp_path / "folder")
    assert cli.main(["ticket", "export", str(ticket), "--to", "huggingface", "--out", folder]) == 0
    kind = transformers.AutoModel if name == "bert" else transformers.AutoModelForCausalLM
    extra = {"add_pooling_layer": False} if name == "bert" else {}
    net = kind.from_pretrained(folder, dtype=torch.float32, **extra).eval()
    with torch.no_grad():
        theirs = net(torch.tensor(tokens))[0].numpy()
    # The bias of a GPT-2's output layer is a shift in least squares.
    tolerance = 5e-3 if name == "gpt2" else 1e-3
    np.testing.assert_allclose(theirs, expected, atol=tolerance * expected.std())
    again = models.weights.open(folder)
    np.testing.assert_allclose(hide.logits(hide.of_target(again), tokens), theirs, atol=1e-4)


@pytest.mark.slow
def test_a_network_without_a_layout_is_refused(models_on_disk, tmp_path, capsys):
    for name, attention, words in (
        ("plain_llama", "merged", "attention must be 'factored' in an export"),
        ("classifier", "factored", "in a GPT-2"),
    ):
        reader = models.weights.open(models_on_disk[name][0])
        spec = hide.make_spec(reader, samples=6, construction="reach", attention=attention)
        ticket = hide.solve(reader, spec, tmp_path / name)
        arguments = ["--to", "huggingface", "--out", str(tmp_path / "folder")]
        assert cli.main(["ticket", "export", str(ticket), *arguments]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()
