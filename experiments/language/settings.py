"""Define the options for model, training and text that the language experiments share."""

import dataclasses
import math
from typing import Any

import jax

from experiments.language import text
from experiments.language.job import Job, Work
from experiments.language.model import Model
from slth_jax import checks, edge_popup, models
from slth_jax.distributed import on_first

GPT2 = tuple(name for name, (_, start) in models.PRESETS.items() if start == models.initial.GPT2)
"""The names of the GPT-2 networks in `models.PRESETS`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Work):
    """Options for model, training and text. With the defaults a run takes minutes on a CPU.

    Attributes:
      keep: the fraction of each matrix that is kept (the paper's k).
      variant: the form of edge-popup, a name in `edge_popup.VARIANTS`.
      steps: the number of optimiser steps.
      warmup: the number of steps of the linear warm-up.
      learning_rate: the highest learning rate.
      final: the learning rate at the end of the cosine decay, as a fraction of the highest rate.
      weight_decay: AdamW's weight decay, which is applied to the scores.
      activation: the activation function, a name in `models.ACTIVATIONS`.
      embeddings: masked (random and fixed, with trained masks) or learned (trained).
      gains: fixed (all gains stay 1 and all biases 0) or learned (both are trained).
      init_sd: the standard deviation of random weights; none for 0.55 / sqrt(width), which at width
        768 is GPT-2's value 0.02.
      embedding_sd: the standard deviation of random embeddings; none for 1.5 / sqrt(width). With
        0.55 / sqrt(width) the logits of a narrow network with tied embeddings are too small.
      corpus: a folder in `data`, such as wikitext-2.
      tokenizer: bytes (256 tokens) or gpt2 (50,257 tokens).
      data: the folder of the texts, empty for $SLTH_DATA; hub:NAME, such as hub:wikitext-103-v1,
        fetches them with the library `datasets`.
      cache: the folder in which tokens are stored; empty for $SLTH_CACHE or ~/.cache/slth_jax.
    """

    keep: float = 0.3
    variant: str = "ramanujan"
    steps: int = 500
    warmup: int = 20
    learning_rate: float = 1e-2
    final: float = 0.1
    weight_decay: float = 0.01
    activation: str = "relu"
    embeddings: str = "masked"
    gains: str = "fixed"
    init_sd: float | None = None
    embedding_sd: float | None = None
    corpus: str = "wikitext-2"
    tokenizer: str = "bytes"
    data: str = ""
    cache: str = ""

    def job(self, model: str, *, width_multiplier: float = 1.0, dense: bool = False) -> Job:
        """Return the job that trains one model.

        Raises:
          ValueError: an option is not allowed; the message has one line.
        """
        checks.number("keep", self.keep, low=0, high=1, open_low=True)
        checks.choice("variant", self.variant, edge_popup.VARIANTS)
        checks.choice("tokenizer", self.tokenizer, text.VOCAB_SIZES)
        checks.choice("model", model, GPT2)
        shape, _ = models.preset(
            model,
            width_multiplier=width_multiplier,
            vocab_size=text.VOCAB_SIZES[self.tokenizer],
            activation=self.activation,
        )
        root = math.sqrt(shape.width)
        initial = models.Initial(
            sd=0.55 / root if self.init_sd is None else self.init_sd,
            embedding_sd=1.5 / root if self.embedding_sd is None else self.embedding_sd,
        )
        variant = edge_popup.VARIANTS[self.variant]
        if variant.scope == "array":  # each array stacks the matrices of all blocks
            variant = dataclasses.replace(variant, scope="matrix")
        return Job(
            model=Model(shape, initial, self.embeddings, self.gains),
            schedule=edge_popup.Schedule(**self._of(edge_popup.Schedule)),
            variant=variant,
            dense=dense,
            **self._of(Work),
        )

    def _of(self, kind: type) -> dict[str, Any]:
        """Return a dict of the options that are also fields of the dataclass `kind`."""
        fields = {field.name for field in dataclasses.fields(kind)}
        return {name: value for name, value in vars(self).items() if name in fields}


PAPER_RECIPE: dict[str, Any] = {
    # 50 epochs of 227 steps; an epoch of WikiText-103 with 227 steps has 512 sequences per step.
    "steps": 50 * 227,
    "warmup": 227,
    "rows": 512,
    "length": 1024,
    "learning_rate": 1e-4,
    "final": 0.1,
    "chunk": 227,
    "eval_rows": 0,
    "accumulate": 64,
    "dtype": "bfloat16",
    "remat": True,
    "init_sd": 0.02,
    "embedding_sd": 0.02,
    "corpus": "wikitext-103",
    "tokenizer": "gpt2",
}
"""The paper's training options (section 4), which need accelerators."""


def load_text(settings: Settings) -> text.Corpus:
    """Return the corpus that the settings name."""

    def load() -> text.Corpus:
        return text.load(
            settings.data,
            corpus=settings.corpus,
            tokenizer=settings.tokenizer,
            cache=settings.cache,
        )

    def make_cache() -> None:
        load()

    if jax.process_count() > 1:
        on_first(make_cache)  # one process only, because hosts may share the cache
    return load()
