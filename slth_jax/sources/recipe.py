"""A whole random transformer as a source: its parts, each a stack of products of two matrices.

A model of the family in `models.decoder` depends on its weights through these matrices alone, with
z the normalised row, extended by a constant coordinate 1 where there are biases or shifts:

    wte, wpe    one-hot token or position to row         [vocabulary, d], [positions, d]
    B.qk        z_i W z_j^T, a matrix a query head; with rotary positions two for each frequency
    B.vo        z_j W, a matrix a query head
    B.in, B.gate, B.out, unembed   the other linear maps

Each matrix is hidden in a product ``left right`` of two random ones: `right [n, r]` is the grouped
factor, whose mask is a rule (`construction.rules`), `left [p, n]` the free one, whose mask is the
ticket. Query heads that share a key/value head share `right`: their matrices stand one below the
other in one product.
"""

import dataclasses
import math
from typing import Any

from slth_jax import checks
from slth_jax.construction import rules
from slth_jax.construction.rules import Rule, Search
from slth_jax.models import Settings

FORMS = ("linear", "relu")
BLOCK_KINDS = ("qk", "vo", "in", "gate", "out")


@dataclasses.dataclass(frozen=True)
class Part:
    """A stack of `count` products ``left [rows, units] right [units, columns]``."""

    name: str
    count: int
    rows: int
    columns: int
    units: int
    # Whether the rows are the inputs of the map (`left` comes first) or its outputs.
    rows_are_inputs: bool
    # Whether a ReLU stands between the factors.
    relu: bool

    @property
    def kind(self) -> str:
        """The name without the block's number."""
        return self.name.rpartition(".")[2]

    @property
    def num_sums(self) -> int:
        """The number of entries to be met."""
        return self.count * self.rows * self.columns

    @property
    def num_weights(self) -> int:
        """The number of random weights."""
        return self.count * self.units * (self.rows + self.columns)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the masks of the free factors."""
        return self.count, self.rows, self.units


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a random transformer is drawn from, besides its seed and its scales.

    Attributes:
      settings: of the model to hide.
      samples: random samples of each subset sum. In products without a ReLU these are all hidden
        units of a column of the grouped factor; with one there are twice as many, since an entry
        is two sums, over the units of either sign.
      construction: the rule that deals units to columns.
      form: 'linear', nothing between the two factors, or 'relu' (Lemma 2) for the maps outside
        of attention.
      constant: whether rows are extended by a constant coordinate, to carry biases and shifts.
      layers: whether there are fully connected layers.
      keep: parts left as the target's: 'embedding', 'unembedding', 'attention', 'layers'.
    """

    settings: Settings
    samples: int
    construction: Rule
    form: str = "linear"
    constant: bool = False
    layers: bool = True
    keep: tuple[str, ...] = ()

    def __post_init__(self):
        checks.integer("samples", self.samples, low=2, high=64)
        checks.choice("form", self.form, FORMS)
        for name in self.keep:
            checks.choice("keep", name, tuple(KEEP))

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in the order in which the model uses them."""
        s, one = self.settings, int(self.constant)
        d, group = s.width, s.num_heads // s.num_kv_heads
        relu = self.form == "relu"

        def made(name, count, rows, columns, inputs, relu):
            samples = 2 * self.samples if relu else self.samples
            units = max(samples * columns // 8 * 8, -(-columns // 8) * 8)
            return Part(name, count, rows, columns, units, inputs, relu)

        def linear(name: str, inputs: int, outputs: int) -> Part:
            # Across a ReLU units are grouped over inputs, as in Lemma 2; else over the fewer.
            if relu or inputs <= outputs:
                return made(name, 1, outputs, inputs, False, relu)
            return made(name, 1, inputs, outputs, True, False)

        found = [made("wte", 1, s.vocab_size, d, True, relu)]
        if s.positions == "learned":
            found.append(made("wpe", 1, s.max_length, d, True, relu))
        for b in range(s.num_blocks):
            if s.positions == "rotary":
                count = s.num_kv_heads * len(s.rotary)
                found.append(made(f"{b}.qk", count, group * 2 * (d + one), d + one, True, False))
            else:
                # A key's constant would add the same to all logits of a row.
                found.append(made(f"{b}.qk", s.num_kv_heads, group * (d + one), d, True, False))
            found.append(made(f"{b}.vo", s.num_kv_heads, group * d, d + one, False, False))
            if self.layers:
                found.append(linear(f"{b}.in", d + one, s.hidden_width))
                if s.gated:
                    found.append(linear(f"{b}.gate", d + one, s.hidden_width))
                found.append(linear(f"{b}.out", s.hidden_width + one, d))
        found.append(linear("unembed", d + one, s.outputs))
        kept = {kind for name in self.keep for kind in KEEP[name]}
        return tuple(part for part in found if part.kind not in kept)

    @property
    def kept_parts(self) -> tuple[Part, ...]:
        """The parts that stay the target's."""
        mine = {part.name for part in self.parts}
        whole = dataclasses.replace(self, keep=())
        return tuple(part for part in whole.parts if part.name not in mine)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe in JSON's types."""
        rule = self.construction
        return {
            "settings": dataclasses.asdict(self.settings),
            "samples": self.samples,
            "construction": {
                "name": rule.name,
                "search": dataclasses.asdict(rule.search),
            },
            "form": self.form,
            "constant": self.constant,
            "layers": self.layers,
            "keep": list(self.keep),
        }


KEEP = {
    "embedding": ("wte", "wpe"),
    "unembedding": ("unembed",),
    "attention": ("qk", "vo"),
    "layers": ("in", "gate", "out"),
}
"""What can be left as the target's, and the kinds of parts that it is made of."""


def from_json(fields: dict[str, Any]) -> Recipe:
    """Return the recipe that `Recipe.to_json` wrote."""
    construction = dict(fields["construction"])
    rule = rules.get(construction.pop("name"))
    # Older files store the fields of `Search` beside the name, and the oldest without `centred`.
    search = Search(**construction.get("search", construction))
    rule = dataclasses.replace(rule, search=search)
    shape = {**fields["settings"], "rotary": tuple(fields["settings"]["rotary"])}
    return Recipe(
        **{
            **fields,
            "settings": Settings(**shape),
            "construction": rule,
            "keep": tuple(fields["keep"]),
        }
    )


def num_bits(parts: tuple[Part, ...]) -> int:
    """Return the number of mask bits of some parts."""
    return sum(math.prod(part.shape) for part in parts)
