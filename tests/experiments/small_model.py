"""A GPT-2 of one block and width 16, for tests of training."""

from experiments.language.model import Model
from slth_jax import models

MODEL = Model(
    models.make_settings(
        num_blocks=1, width=16, num_heads=2, vocab_size=256, max_length=16, activation="relu"
    ),
    models.Initial(sd=0.2, embedding_sd=0.4),
)
