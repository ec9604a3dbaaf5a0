"""Describe a random transformer made of products: the spec, and the parts that it lists.

The logits of a model in `models.decoder` depend on its weights only through the matrices in the
table below. There z is a normalised row of activations, extended by a constant coordinate 1 if the
model has biases or shifts:

    wte, wpe, wtt    one-hot token, position or token type to row    [vocabulary, d], ...
    B.qk        z_i W z_j^T, a matrix per query head; with rotary positions two per frequency
    B.vo        z_j W, a matrix per query head
    B.in, B.gate, B.out, unembed   the other linear maps

where B is the number of a block.

If attention is factored, the four projections B.q, B.k, B.v and B.o replace B.qk and B.vo. If the
embedding is tied, unembed can be the product of `gain` and the transpose of wte, where `gain` is
the map that applies the last norm's gain and shift. If norms follow the residual sums (BERT), their
gains and shifts act inside the residual stream. Gain and shift of each norm are then one more
linear map (ln_e, B.ln_1 or B.ln_2), and z is the output of such a map.

Each matrix is approximated by a product ``left right`` of two random matrices: `right [n, r]` is
the grouped factor, whose mask is set by a rule (`construction.rules`); `left [p, n]` is the free
factor, whose mask is stored in the ticket. The matrices of query heads that share a key/value head
are stacked vertically in one product, so these heads share `right`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from slth_jax import checks
from slth_jax.construction import rules
from slth_jax.construction.rules import Rule, Search
from slth_jax.factored.part import Bands, Part
from slth_jax.models import Settings

FORMS = ("linear", "relu")
ATTENTION = ("merged", "factored")
SCALINGS = ("largest", "spread", "rows")  # 'spread' occurs only in tickets of an earlier version
NORMS = ("ln_e", "ln_1", "ln_2")
_SAMPLES = 16  # the number of samples per subset sum of a norm's map, if bands are used
KEEP = {
    "embedding": ("wte", "wpe", "wtt"),
    "unembedding": ("unembed",),
    "attention": ("qk", "vo", "q", "k", "v", "o"),
    "layers": ("in", "gate", "out"),
    "norms": NORMS,
}
"""The parts of a model that can be copied from the target, and the kinds of their matrices."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """Everything that determines a random network, except for its seed and its scales.

    Attributes:
      settings: the settings of the model to hide.
      samples: the number of random samples per subset sum. If no ReLU stands between the factors, a
        column of the grouped factor has this number of hidden units. With a ReLU the column has
        twice this number of units, because only the units with one sign of their weight contribute
        to a subset sum.
      construction: the rule that assigns hidden units to columns.
      form: 'linear' if no product has a ReLU between its two factors; 'relu' if every product has a
        ReLU there (Lemma 2), except the merged matrices of attention.
      constant: whether inputs of linear maps are extended by a constant coordinate 1, for biases
        and shifts.
      layers: whether the model has fully connected layers.
      keep: the parts that are copied from the target unchanged: 'embedding', 'unembedding',
        'attention', 'layers', 'norms'.
      attention: 'merged' if the merged query-key and value-output matrices of each head are
        products (the paper's construction); 'factored' if each projection is a product.
      shared: whether one product is used for both the embedding and the output layer of a tied
        model.
      scaling: the method that chooses the scale of a free factor. 'largest': a fixed multiple of
        the matrix's largest entry. 'rows': one scale per row (see `network.LEVELS`). Tickets of an
        earlier version may have 'spread', which gives a smaller scale than 'largest' if the largest
        entry is far above the root mean square.
      bands: the settings of bands, for which ``samples = 2^bits``; None for subset sums.
      finer: exceptions from `samples`, as pairs of a matrix's name, such as '3.k', and its number
        of samples per subset sum.
    """

    settings: Settings
    samples: int
    construction: Rule
    form: str = "linear"
    constant: bool = False
    layers: bool = True
    keep: tuple[str, ...] = ()
    attention: str = "merged"
    shared: bool = False
    scaling: str = "largest"
    bands: Bands | None = None
    finer: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        if self.bands is None:
            checks.integer("samples", self.samples, low=2, high=64)
        self._check_finer()
        self._check_bands()
        checks.choice("form", self.form, FORMS)
        for name in self.keep:
            checks.choice("keep", name, tuple(KEEP))
        checks.choice("attention", self.attention, ATTENTION)
        checks.choice("scaling", self.scaling, SCALINGS)
        if self.shared and not can_share(self.settings, self.form, self.keep):
            allowed = "false unless the embedding is tied, random and without a ReLU"
            raise checks.fail("shared", allowed, self.shared)

    def _check_finer(self) -> None:
        if not self.finer:
            return
        if self.bands is not None:
            raise checks.fail("finer", "empty if bands are given", self.finer)
        names = {part.name for part in self.every_part}
        for name, samples in self.finer:
            if name not in names:
                raise checks.fail("finer", "pairs of a matrix's name and its samples", name)
            checks.integer(f"the samples of {name}", samples, low=2, high=64)

    def samples_of(self, name: str) -> int:
        """Return the number of samples per subset sum of the matrix `name`, such as '3.q'."""
        return dict(self.finer).get(name, self.samples)

    def _check_bands(self) -> None:
        if (self.bands is None) != (self.construction.band is None):
            allowed = "'band' if and only if bits are given"
            raise checks.fail("construction", allowed, repr(self.construction.name))
        if self.bands is None:
            return
        checks.choice("scaling", self.scaling, ("largest",))
        units = 2**self.bands.bits
        checks.integer("samples", self.samples, low=units, high=units)
        checks.choice("form", self.form, ("linear",))
        parts = [part for part in self.every_part if part.band is not None]
        for name, _ in self.bands.others:
            if name not in {part.name for part in parts}:
                kinds = sorted({part.kind for part in parts})
                checks.choice("a kind of matrix", name, kinds)

    @property
    def row_scales(self) -> bool:
        """Whether each row of a free factor has a separate scale."""
        return self.scaling == "rows" or (self.bands is not None and self.bands.row_scales)

    @property
    def inputs(self) -> int:
        """The number of inputs of a map on the residual stream: d, plus 1 if `constant` is true."""
        return self.settings.width + int(self.constant)

    @property
    def every_part(self) -> tuple[Part, ...]:
        """All parts, random or kept, in the order in which the model uses them."""
        return tuple(
            dataclasses.replace(part, index=index) for index, part in enumerate(self._parts())
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are random, not copied from the target."""
        return tuple(part for part in self.every_part if part.kind not in self._kept)

    @property
    def kept_parts(self) -> tuple[Part, ...]:
        """The parts that are copied from the target unchanged."""
        return tuple(part for part in self.every_part if part.kind in self._kept)

    @property
    def _kept(self) -> set[str]:
        return {kind for name in self.keep for kind in KEEP[name]}

    def diagonal(self, part: Part) -> bool:
        """Return whether the part is a norm's map: a diagonal of gains, and a row of shifts."""
        return self._diagonal(part.kind)

    def _diagonal(self, kind: str) -> bool:
        if self.bands is not None:
            return kind in NORMS or (kind == "gain" and self.bands.diagonal_gain)
        return kind in NORMS or (kind == "gain" and self.scaling != "largest")

    def rule(self, part: Part) -> Rule:
        """Return the rule for a part; for a norm's map, a rule of subset sums without shift units.

        Without shift units the zeros outside the diagonal of a norm's map are exact, because the
        subset of a zero entry is empty.
        """
        if not self.diagonal(part):
            return self.construction
        rule = rules.RULES["reach"] if self.construction.band is not None else self.construction
        return dataclasses.replace(rule, search=Search())

    def num_column_levels(self, part: Part) -> int:
        """Return the number of column scales that a ticket stores for a part."""
        scaled = self.bands is not None and self.bands.column_scales and part.band is not None
        return part.count * part.columns if scaled else 0

    def num_levels(self, part: Part) -> int:
        """Return the number of row scales that a ticket stores for a part."""
        of_band = part.band is not None and self.row_scales
        return part.count * part.rows if of_band or self.scaling == "rows" else 0

    def _parts(self) -> Iterable[Part]:
        s = self.settings
        relu = self.form == "relu"
        yield self._part(None, "wte", (1, s.vocab_size, s.width), True, relu)
        if s.positions == "learned":
            yield self._part(None, "wpe", (1, s.max_length, s.width), True, relu)
        if s.token_types:
            yield self._part(None, "wtt", (1, s.token_types, s.width), True, relu)
        if s.embedding_norm:
            yield self._linear(None, "ln_e", self.inputs, s.width)
        for block in range(s.num_blocks):
            yield from self._attention(block)
            if s.post_norm:
                yield self._linear(block, "ln_1", self.inputs, s.width)
            if self.layers:
                yield self._linear(block, "in", self.inputs, s.hidden_width)
                if s.gated:
                    yield self._linear(block, "gate", self.inputs, s.hidden_width)
                yield self._linear(block, "out", s.hidden_width + int(self.constant), s.width)
                if s.post_norm:
                    yield self._linear(block, "ln_2", self.inputs, s.width)
        if s.states:
            return
        if self.shared:
            yield self._linear(None, "gain", self.inputs, s.width)
        else:
            yield self._linear(None, "unembed", self.inputs, s.outputs)

    def _attention(self, block: int) -> Iterable[Part]:
        s = self.settings
        if self.attention == "factored":
            yield self._linear(block, "q", self.inputs, s.num_heads * s.head_width)
            yield self._linear(block, "k", self.inputs, s.num_kv_heads * s.head_width)
            yield self._linear(block, "v", self.inputs, s.num_kv_heads * s.value_width)
            heads = s.num_heads * s.value_width + int(self.constant)
            yield self._linear(block, "o", heads, s.width)
            return
        group = s.num_heads // s.num_kv_heads  # query heads per key/value head
        if s.positions == "rotary":
            # There are two matrices per query head and frequency: for the cosine and for the sine.
            shape = s.num_kv_heads * len(s.rotary), group * 2 * self.inputs, self.inputs
        else:
            # Keys need no constant, which would add the same number to all logits of a row.
            shape = s.num_kv_heads, group * self.inputs, s.width
        yield self._part(block, "qk", shape, True, False)
        shape = s.num_kv_heads, group * s.width, self.inputs
        yield self._part(block, "vo", shape, False, False)

    def _linear(self, block: int | None, kind: str, inputs: int, outputs: int) -> Part:
        # With a ReLU units are grouped over inputs, as in Lemma 2; else over the smaller side.
        relu = self.form == "relu"
        if relu or inputs <= outputs:
            return self._part(block, kind, (1, outputs, inputs), False, relu)
        return self._part(block, kind, (1, inputs, outputs), True, False)

    def _part(
        self, block: int | None, kind: str, shape: tuple[int, int, int], inputs: bool, relu: bool
    ) -> Part:
        count, rows, columns = shape
        name = kind if block is None else f"{block}.{kind}"
        samples = self.samples_of(name) * (2 if relu else 1)
        units = max(samples * columns // 8 * 8, -(-columns // 8) * 8)  # whole bytes of mask bits
        band, weights = None, "uniform"
        if self.bands is not None and self._diagonal(kind):
            units = _SAMPLES * columns // 8 * 8
        elif self.bands is not None:
            band, weights = self.bands.band(name), self.bands.weights
            units = columns << band.bits
        return Part(block, kind, 0, count, rows, columns, units, inputs, relu, band, weights)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as a dict of values that JSON can store."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {
            "settings": dataclasses.asdict(self.settings),
            "construction": {
                "name": self.construction.name,
                "search": dataclasses.asdict(self.construction.search),
            },
            "keep": list(self.keep),
            "bands": None if self.bands is None else dataclasses.asdict(self.bands),
            "finer": [list(entry) for entry in self.finer],
        }


def from_json(fields: Mapping[str, Any]) -> Spec:
    """Return the spec from a dict that `Spec.to_json` returned."""
    construction = dict(fields["construction"])
    rule = rules.get(construction.pop("name"))
    # Older files also store the fields of `Search`; the oldest of them lack `centred`.
    search = Search(**construction.get("search", construction))
    rotary = tuple(checks.number("rotary", value) for value in fields["settings"]["rotary"])
    settings = {**fields["settings"], "rotary": rotary}
    bands = _bands(fields.get("bands"))
    if bands is not None:
        rule = bands.rule()
    read = {
        "settings": Settings(**settings),
        "construction": dataclasses.replace(rule, search=search),
        "keep": tuple(fields["keep"]),
        "bands": bands,
        "finer": tuple((name, samples) for name, samples in fields.get("finer", ())),
    }
    return Spec(**{**fields, **read})


def _bands(fields: Mapping[str, Any] | None) -> Bands | None:
    if fields is None:
        return None
    others = tuple((kind, bits) for kind, bits in fields["others"])
    return Bands(**{"column_scales": False, "diagonal_gain": False, **fields, "others": others})


def can_share(settings: Settings, form: str, keep: Iterable[str]) -> bool:
    """Return whether one product can be both the embedding and, transposed, the output layer."""
    return settings.tied and form == "linear" and not {"embedding", "unembedding"} & set(keep)


def num_bits(parts: Iterable[Part]) -> int:
    """Return the number of mask bits that a ticket stores for these parts."""
    return sum(8 * part.num_bytes for part in parts)
