"""Subjects: ticket files of a layer and of a whole model, and folders of unfinished `hide` runs."""

import contextlib
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.fuzz import mutations
from experiments.fuzz.subject import Subject, bytes_of
from experiments.fuzz.trained_models import BERT, write_folder, write_llama2c
from slth_jax import attention, hide, initializers, models, storage, ticket
from slth_jax.construction import prune_attention
from slth_jax.factored import Bands

INPUTS = np.random.default_rng(0).normal(size=(1, 3, 2)).astype(np.float32)
_NAME = "ticket.safetensors"


def _drawn(n: int, seed: int):
    key = jax.random.key(seed, impl=ticket.IMPL)
    return initializers.theory_attention(key, num_heads=1, d_in=2, d_out=2, n_k=n, n_v=n)


def _write_ticket(folder: Path) -> None:
    options = {"num_heads": 1, "d_in": 2, "d_out": 2, "n_k": 12, "n_v": 12}
    masks = prune_attention(_drawn(12, 1), _drawn(2, 9), construction="proof")
    pruned = jax.tree.map(lambda w, mask: w * mask, _drawn(12, 1), masks)
    error = float(attention.error(pruned, _drawn(2, 9), INPUTS).mean())
    made_of = {"error": error, "dtype": "float32", "versions": {"jax": jax.__version__}}
    whole = ticket.create("theory", options, 1, masks, metadata=made_of)
    ticket.save(folder / "a.ticket.safetensors", whole)


def _read_ticket(folder: Path) -> Any:
    path = folder / "a.ticket.safetensors"
    ticket.describe(ticket.open(path))
    ticket.verify(path)
    loaded = ticket.load(path)
    target = _drawn(2, 9)
    ticket.verify(path, target=target, inputs=INPUTS)
    return ticket.materialize(loaded)


def _crafted(name: str) -> Callable[[random.Random, Path], None]:
    """Return a function that changes a ticket's header.

    The function changes the ticket's metadata and updates the checksum of the metadata, or it
    changes the header's table of tensors.
    """

    def change(rng: random.Random, folder: Path) -> None:
        file = folder / name
        header, data = mutations.split_safetensors(file.read_bytes())
        if rng.random() < 0.7:
            _, _, text = header["__metadata__"]["ticket"].partition(" ")
            text = mutations.json_text(rng, json.loads(text)).decode("utf-8", "replace")
            digest = hashlib.sha256(text.encode()).hexdigest()
            header["__metadata__"]["ticket"] = f"{digest} {text}"
        else:
            header = mutations.change_json(rng, header)
        file.write_bytes(mutations.safetensors_bytes(header, data))

    return change


def _write_model_ticket(folder: Path) -> None:
    write_llama2c(folder)
    _hide_alone(folder, "model.bin", samples=3)


def _write_bands(folder: Path) -> None:
    write_llama2c(folder)
    _hide_alone(folder, "model.bin", bits=Bands(2, states=4))


def _write_encoder(folder: Path) -> None:
    write_folder(**BERT)(folder / "bert")
    _hide_alone(folder, "bert", samples=3)


def _hide_alone(folder: Path, model: str, **options: Any) -> None:
    """Hide the model `model` in a folder, then remove everything in the folder but the ticket."""
    reader = models.weights.open(folder / model)
    hide.solve(reader, hide.make_spec(reader, **options), folder / "out")
    (folder / "out" / _NAME).replace(folder / _NAME)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != _NAME:
            entry.unlink()


def _read_model_ticket(folder: Path) -> Any:
    path = folder / _NAME
    ticket.describe(ticket.open(path))
    ticket.verify(path)
    return hide.of_ticket(path).load()


def _write_hide(folder: Path) -> None:
    """Write the folder of an unfinished `hide`, which contains every second file of masks."""
    write_llama2c(folder)
    with contextlib.suppress(hide.Unfinished):
        _hide(folder, shard="0/2")


def _hide(folder: Path, shard: str | None = None) -> storage.Place:
    reader = models.weights.open(folder / "model.bin")
    spec = hide.make_spec(reader, samples=3)
    return hide.solve(reader, spec, folder / "out", shard=shard)


def _change_hide(rng: random.Random, folder: Path) -> None:
    mutations.change_folder(rng, folder / "out")


def _read_hide(folder: Path) -> Any:
    whole = ticket.load(_hide(folder))
    return dict(whole.bits), whole.options, whole.fingerprint


SUBJECTS: tuple[Subject, ...] = (
    Subject("ticket bytes", _write_ticket, bytes_of("a.ticket.safetensors"), _read_ticket),
    Subject("ticket header", _write_ticket, _crafted("a.ticket.safetensors"), _read_ticket, False),
    Subject("model ticket bytes", _write_model_ticket, bytes_of(_NAME), _read_model_ticket),
    Subject("model ticket header", _write_model_ticket, _crafted(_NAME), _read_model_ticket,
            sealed=False),
    Subject("band ticket bytes", _write_bands, bytes_of(_NAME), _read_model_ticket),
    Subject("band ticket header", _write_bands, _crafted(_NAME), _read_model_ticket, sealed=False),
    Subject("encoder ticket bytes", _write_encoder, bytes_of(_NAME), _read_model_ticket),
    Subject("encoder ticket header", _write_encoder, _crafted(_NAME), _read_model_ticket,
            sealed=False),
    Subject("hide folder", _write_hide, _change_hide, _read_hide),
)  # fmt: skip
