"""Encoders: states and embeddings of BERT and RoBERTa folders against transformers."""

import json

import numpy as np
import pytest
import torch
import transformers
from refusals import refusals

from slth_jax import models

TOKENS = np.random.default_rng(0).integers(2, 29, (3, 11))  # without RoBERTa's padding
TYPES = np.random.default_rng(1).integers(0, 2, (3, 11))
KEPT = np.arange(11)[None] < np.array([11, 4, 7])[:, None]
SMALL = {
    "vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 20, "max_position_embeddings": 13,
}  # fmt: skip
OTHER = SMALL | {"hidden_act": "gelu_new", "layer_norm_eps": 0.01, "type_vocab_size": 3}
FOLDERS = {
    "bert": ("bert", SMALL),
    "other": ("bert", OTHER),
    "roberta": ("roberta", SMALL | {"type_vocab_size": 2}),
    "other roberta": ("roberta", OTHER | {"pad_token_id": 0, "max_position_embeddings": 12}),
}


@pytest.fixture(scope="module", params=FOLDERS)
def bert(request, tmp_path_factory):
    """Return a folder and the network in it; every parameter matters."""
    kind, fields = FOLDERS[request.param]
    net = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **fields))
    net = net.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp(request.param)
    net.save_pretrained(folder)
    return folder, net


def states(net, tokens=TOKENS, **inputs):
    with torch.no_grad():
        output = net(torch.tensor(tokens), **{k: torch.tensor(v) for k, v in inputs.items()})
    return output.last_hidden_state.numpy()


def test_states_are_those_of_transformers(bert):
    folder, net = bert
    reader = models.weights.open(folder)
    reader.check_entries()
    params = reader.load()
    ours = models.apply(params, TOKENS, reader.settings)
    np.testing.assert_allclose(ours, states(net), atol=2e-5)
    ours = models.apply(params, TOKENS, reader.settings, token_types=TYPES)
    np.testing.assert_allclose(ours, states(net, token_type_ids=TYPES), atol=2e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_embeddings_do_not_depend_on_padding(bert, pooling):
    folder, net = bert
    reader = models.weights.open(folder)
    params = reader.load()
    ours = models.embeddings(params, TOKENS, reader.settings, kept=KEPT, pooling=pooling)
    theirs = states(net, attention_mask=KEPT.astype(int))
    rows = (
        theirs[:, 0]
        if pooling == "first"
        else np.stack([theirs[i, KEPT[i]].mean(0) for i in range(3)])
    )
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    np.testing.assert_allclose(ours, rows, atol=2e-5)
    alone = models.embeddings(params, TOKENS[1:2, :4], reader.settings, pooling=pooling)
    np.testing.assert_allclose(ours[1:2], alone, atol=2e-5)


@pytest.mark.parametrize("pad", [1, 0])
def test_a_roberta_attends_to_no_padding_and_is_written_as_it_is_read(pad, tmp_path):
    config = transformers.RobertaConfig(**SMALL | {"pad_token_id": pad, "type_vocab_size": 1})
    net = transformers.RobertaModel(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # the padding's rows too, which must not matter
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(pad)))
    net.save_pretrained(tmp_path / "a")
    reader = models.weights.open(tmp_path / "a")
    assert reader.settings.max_length == 13 - pad - 1
    tokens = np.where(KEPT, TOKENS, pad)
    ours = models.apply(reader.load(), tokens, reader.settings)
    theirs = states(net, tokens, attention_mask=KEPT.astype(int))
    np.testing.assert_allclose(ours[KEPT], theirs[KEPT], atol=2e-5)
    models.weights.save(tmp_path / "b", reader.load(), reader.settings)
    again = models.weights.open(tmp_path / "b")
    assert again.settings == reader.settings
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "b", add_pooling_layer=False)
    assert type(loaded) is transformers.RobertaModel
    np.testing.assert_allclose(states(loaded), states(net), atol=2e-5)
    # The output layer of a masked language model does not change the states.
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path / "c")
    with_head = models.weights.open(tmp_path / "c")
    assert with_head.settings == reader.settings
    for changes, line in (
        ({"pad_token_id": 12}, "max_position_embeddings must be above pad_token_id . 1 = 13, got"),
        ({"pad_token_id": None}, "pad_token_id must be an integer"),
        ({"pad_token_id": -1}, "pad_token_id must be an integer"),
        ({"is_decoder": True}, "is_decoder must be False or None in a roberta"),
    ):
        path = tmp_path / "b" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"is_decoder": False} | changes))
        with refusals(line):
            models.weights.open(tmp_path / "b")


def test_an_encoder_is_refused_by_the_name_of_what_it_is_not(bert, tmp_path):
    folder, net = bert
    reader = models.weights.open(folder)
    for changes, line in (
        ({"is_decoder": True}, "is_decoder must be False or None"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be"),
        ({"type_vocab_size": 7}, "type_vocab_size must be"),
    ):
        net.save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with refusals(line):
            models.weights.open(tmp_path)
    with refusals("token_types must be in"):
        models.apply(reader.load(), TOKENS, reader.settings, token_types=TYPES + 9)
    with refusals("settings must be of an encoder"):
        models.embeddings({}, TOKENS, models.preset("nano").settings)
    with refusals("settings must be causal"):
        models.init_cache(reader.settings, 1, 4)
