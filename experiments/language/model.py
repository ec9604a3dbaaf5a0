"""Define the experiments' GPT-2: its network, and which of its arrays are masked or trained."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from slth_jax import checks, edge_popup, models
from slth_jax.models.settings import matrix_shapes, vector_shapes
from slth_jax.types import ArrayLike, Key

Params = dict[str, Float[Array, "..."]]

# This number is folded into the run's key for the scores; it is larger than the numbers that are
# folded in for the matrices.
_SCORES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Model:
    """A network, and the choice of its parameters that are trained.

    Attributes:
      settings: the shape of the network.
      initial: the distribution of its initial weights.
      embeddings: 'masked' (random and fixed, with trained masks) or 'learned' (trained).
      gains: 'fixed' (all gains stay 1 and all biases 0) or 'learned' (both are trained).
    """

    settings: models.Settings
    initial: models.Initial = models.Initial()  # noqa: RUF009, frozen
    embeddings: str = "masked"
    gains: str = "fixed"

    def __post_init__(self):
        checks.choice("embeddings", self.embeddings, ("masked", "learned"))
        checks.choice("gains", self.gains, ("fixed", "learned"))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A dict from the names of the random weight matrices to their shapes."""
        return matrix_shapes(self.settings)

    @property
    def learned(self) -> tuple[str, ...]:
        """The names of the parameters that are trained without masks."""
        names = ("wte", "wpe") if self.embeddings == "learned" else ()
        return names + (tuple(vector_shapes(self.settings)) if self.gains == "learned" else ())

    @property
    def masked(self) -> tuple[str, ...]:
        """The names of the matrices that have a mask."""
        return tuple(name for name in self.shapes if name not in self.learned)

    @property
    def num_parameters(self) -> int:
        """The number of parameters, including gains and biases; the tied `wte` is counted once."""
        return models.num_parameters(self.settings, self.initial)

    @property
    def paper_qk_scale(self) -> float:
        """The paper's factor ``n_K^(1/4)`` for query and key weights; 2.83 for head width 64."""
        return self.settings.head_width**0.25

    def init(self, key: Key, qk_scale: ArrayLike = 1.0) -> Params:
        """Draw the initial weights (see `models.initialise`)."""
        return models.initialise(key, self.settings, self.initial, qk_scale=qk_scale)

    def start(
        self, key: Key, variant: edge_popup.Variant, qk_scale: ArrayLike = 1.0
    ) -> tuple[Params, edge_popup.Trainable]:
        """Return the source weights, and the trained arrays (scores and learned parameters).

        The weights are equal, bit for bit, to the weights that `init` returns. Therefore the run's
        key, the model and the masks determine a ticket.
        """
        weights = self.init(key, qk_scale)
        learned = {name: weights.pop(name) for name in self.learned}
        matrices = {name: weights[name] for name in self.masked}
        # Embeddings have the outputs on the first axis; other matrices are applied as x @ w.
        fan_in = {name: shape[-2] for name, shape in self.shapes.items()}
        fan_in |= {"wte": self.settings.width, "wpe": self.settings.width}
        scores = edge_popup.init_scores(
            jax.random.fold_in(key, _SCORES), matrices, variant, fan_in=fan_in
        )
        return weights, edge_popup.Trainable(scores, learned)

    def options(self) -> dict[str, Any]:
        """Return the options of the ticket source 'gpt2' that describe this network."""
        names = ("num_blocks", "width", "num_heads", "vocab_size", "max_length", "activation")
        options = {name: getattr(self.settings, name) for name in names}
        options |= {"embeddings": self.embeddings, "gains": self.gains}
        options |= {"init_sd": self.initial.sd, "embedding_sd": self.initial.embedding_sd}
        return {name: value for name, value in options.items() if value is not None}
