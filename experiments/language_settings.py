"""What the language experiments have in common: the options of model, training and text."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import text, training
from experiments.folder import RunFolder
from experiments.training_job import Job
from slth_jax import checks, edge_popup, gpt2, storage


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Options of model, training and text; the defaults run in minutes on a CPU.

    Attributes:
      keep: fraction of each matrix that is kept (the paper's k).
      variant: a name in `edge_popup.VARIANTS`.
      steps, warmup: optimiser steps, and those of the linear warm-up.
      rows, length: sequences of a batch and their length.
      learning_rate, final: the highest, and the last as a fraction of it (cosine decay).
      weight_decay: of AdamW, on the scores.
      chunk: steps between evaluations; each is followed by a storage.
      eval_rows: validation windows; 0 for all of the text.
      accumulate, dtype, remat, mesh: see `training_job.Job`.
      activation, embeddings, gains: see `gpt2.Config`.
      init_sd, embedding_sd: of the random weights. None: 0.55 / sqrt(width), which is GPT-2's 0.02
        at width 768, and 1.5 / sqrt(width), since a narrow tied random embedding of
        0.55 / sqrt(width) cannot make the logits large enough.
      corpus, tokenizer, data, cache: see `text.load`.
    """

    keep: float = 0.3
    variant: str = "ramanujan"
    steps: int = 500
    warmup: int = 20
    rows: int = 16
    length: int = 64
    learning_rate: float = 1e-2
    final: float = 0.1
    weight_decay: float = 0.01
    chunk: int = 100
    eval_rows: int = 512
    accumulate: int = 1
    dtype: str = "float32"
    remat: bool = False
    mesh: tuple[int, ...] = ()
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
        """Return the job of one model.

        Raises:
          ValueError: an option that is not allowed; one line.
        """
        checks.number("keep", self.keep, low=0, high=1, open_low=True)
        checks.choice("variant", self.variant, edge_popup.VARIANTS)
        checks.choice("tokenizer", self.tokenizer, text.VOCAB_SIZES)
        width = gpt2.preset(model, width_multiplier=width_multiplier).width
        config = gpt2.preset(
            model,
            width_multiplier=width_multiplier,
            vocab_size=text.VOCAB_SIZES[self.tokenizer],
            activation=self.activation,
            embeddings=self.embeddings,
            gains=self.gains,
            init_sd=0.55 / math.sqrt(width) if self.init_sd is None else self.init_sd,
            embedding_sd=1.5 / math.sqrt(width) if self.embedding_sd is None else self.embedding_sd,
        )
        recipe = edge_popup.Recipe(
            steps=self.steps,
            warmup=self.warmup,
            final=self.final,
            weight_decay=self.weight_decay,
        )
        return Job(
            model=config,
            recipe=recipe,
            variant=edge_popup.VARIANTS[self.variant],
            rows=self.rows,
            length=self.length,
            eval_rows=self.eval_rows,
            chunk=self.chunk,
            accumulate=self.accumulate,
            dtype=self.dtype,
            remat=self.remat,
            dense=dense,
            mesh=self.mesh,
        )


PAPER: dict[str, Any] = {
    # 50 epochs of 227 steps; 512 sequences a step follow from the size of WikiText-103.
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
"""The paper's recipe (section 4), for accelerators."""


def load_text(settings: ModelSettings) -> text.Corpus:
    """Return the corpus that the settings name."""
    return text.load(
        settings.data,
        corpus=settings.corpus,
        tokenizer=settings.tokenizer,
        cache=settings.cache,
    )


def train_in_groups(
    name: str,
    job: Job,
    runs: Sequence[training.Run],
    at_once: int,
    corpus: text.Corpus,
    out: RunFolder,
) -> list[training.Outcome]:
    """Train `runs`, `at_once` in one program (0 for all), and save their tickets.

    `name` tells this job's checkpoints and logs from those of others in the run's folder.
    """
    size = at_once or len(runs)
    logs = storage.make_folder(out.path / "logs")
    outcomes = []
    for begin in range(0, len(runs), size):
        group, part = runs[begin : begin + size], f"{name}-{begin}"
        with out.progress(f"{name}, {len(group)} of {len(runs)} runs") as update:
            outcome = training.train(
                job,
                group,
                corpus,
                out.checkpoints / part,
                log_file=logs / f"{part}.jsonl",
                progress=update,
            )
        training.save_tickets(outcome, out.tickets, prefix=f"{name}-")
        outcomes.append(outcome)
    return outcomes


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation (of a sample) and count."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "count": len(values),
    }
