"""A model as matrices, with nothing random in it: folding, rotary positions, grouped queries."""

import dataclasses

import numpy as np
import pytest
from refusals import refusals

from slth_jax import hide, models
from slth_jax.factored import assemble, from_json
from slth_jax.hide import Model
from slth_jax.hide.targets import Targets

NEW_FIELDS = ("attention", "shared", "scaling")  # of a spec; older files lack them
NAMES = ("llama", "gpt2", "plain_llama", "classifier", "bert")


@pytest.mark.parametrize("attention", ["merged", "factored"])
@pytest.mark.parametrize("name", NAMES)
def test_the_merged_matrices_compute_the_reference(name, attention, models_on_disk):
    path, tokens, expected = models_on_disk[name]
    reader = models.weights.open(path)
    spec = hide.make_spec(reader, samples=4, attention=attention)
    assert spec.shared == reader.settings.tied
    targets = Targets(reader, spec)

    def entries(part):
        return np.stack([targets.product(part, g) for g in range(part.count)])

    merged = Model(
        assemble.merged_settings(spec),
        lambda: assemble.merged_ends(spec, entries),
        lambda b: assemble.merged_block(spec, b, entries),
    )
    ours = hide.logits(hide.of_target(reader), tokens)
    if expected is not None:
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    np.testing.assert_allclose(hide.logits(merged, tokens), ours, atol=2e-4)
    assert not any("gain" in name for name in merged.ends()), "normalisation is parameter-free"


def test_norms_in_the_residual_stream_are_maps(models_on_disk):
    reader = models.weights.open(models_on_disk["bert"][0])
    spec = hide.make_spec(reader, samples=6, attention="factored")
    block = [f"0.{kind}" for kind in ("q", "k", "v", "o", "ln_1", "in", "out", "ln_2")]
    names = [part.name for part in spec.parts]
    assert names == ["wte", "wpe", "wtt", "ln_e", *block, *(f"1{name[1:]}" for name in block)]
    norm = Targets(reader, spec).product(spec.parts[8], 0)  # 8 columns and the constant's row
    expected = np.diag(reader.block(0)["ln_1.gain"]), reader.block(0)["ln_1.bias"]
    np.testing.assert_array_equal(norm.T if norm.shape[0] == 8 else norm, np.vstack(expected))


def test_no_part_is_forgotten_and_all_is_counted(models_on_disk):
    reader = models.weights.open(models_on_disk["llama"][0])
    spec = hide.make_spec(reader, samples=6, attention="merged")
    kinds = [part.name for part in spec.parts]
    assert kinds == [
        "wte", "0.qk", "0.vo", "0.in", "0.gate", "0.out", "1.qk", "1.vo", "1.in", "1.gate",
        "1.out", "unembed",
    ]  # fmt: skip
    qk = spec.parts[1]
    # 2 key/value heads times 2 frequencies; 2 query heads, cosine and sine, 8 inputs and the 1.
    assert (qk.count, qk.rows, qk.columns) == (4, 2 * 2 * 9, 9)
    assert qk.units == 6 * 9 // 8 * 8
    assert qk.num_weights == 4 * 48 * (36 + 9) and qk.num_sums == 4 * 36 * 9
    kept = dataclasses.replace(spec, keep=("embedding", "unembedding"))
    assert [part.name for part in kept.kept_parts] == ["wte", "unembed"]
    assert from_json(spec.to_json()) == spec


def test_specs_of_older_files_are_read(models_on_disk):
    reader = models.weights.open(models_on_disk["llama"][0])
    written = hide.make_spec(reader, samples=6).to_json()
    search = written["construction"]["search"]
    flat = {**written, "construction": {"name": "shift", **search}}
    oldest = {name: value for name, value in search.items() if name != "centred"}
    for fields in (written, flat, {**written, "construction": {"name": "shift", **oldest}}):
        rule = from_json(fields).construction
        assert (rule.name, rule.search.rerolls, rule.search.centred) == ("shift", 160, False)


def test_factored_attention_has_a_product_per_projection(models_on_disk):
    reader = models.weights.open(models_on_disk["llama"][0])
    spec = hide.make_spec(reader, samples=6)
    assert spec.attention == "factored"  # the form with fewer subset sums
    kinds = [part.name for part in spec.parts if part.block == 0]
    assert kinds == ["0.q", "0.k", "0.v", "0.o", "0.in", "0.gate", "0.out"]
    q, k, _, o = spec.parts[1:5]
    # 8 inputs and the constant; 4 query and 2 key/value heads of width 4.
    assert (q.num_sums, k.num_sums, o.num_sums) == (9 * 16, 9 * 8, 17 * 8)
    merged = hide.make_spec(reader, samples=6, attention="merged")
    assert sum(p.num_sums for p in spec.parts) < sum(p.num_sums for p in merged.parts)


@pytest.mark.parametrize(
    ("model", "options", "shared"),
    [
        ("plain_llama", {}, True),
        ("plain_llama", {"tied": "twice"}, False),
        ("plain_llama", {"form": "relu"}, False),
        ("plain_llama", {"keep": ("embedding",)}, False),
        ("llama", {}, False),  # not tied
    ],
)
def test_a_tied_embedding_is_one_product(model, options, shared, models_on_disk):
    reader = models.weights.open(models_on_disk[model][0])
    spec = hide.make_spec(reader, samples=6, **options)
    assert spec.shared == shared
    assert spec.every_part[-1].name == ("gain" if shared else "unembed")
    assert from_json(spec.to_json()) == spec
    old = {name: value for name, value in spec.to_json().items() if name not in NEW_FIELDS}
    assert (from_json(old).attention, from_json(old).shared) == ("merged", False)
    if not shared:
        with refusals("shared must be false unless the embedding is tied"):
            dataclasses.replace(spec, shared=True, form="relu")
