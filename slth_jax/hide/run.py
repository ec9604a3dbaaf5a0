"""Hide a model: a resumable run that reads the model's weights and writes a ticket's file."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slth_jax import checks, storage, ticket
from slth_jax.construction import rules
from slth_jax.construction.rules import Rule
from slth_jax.factored import Bands, Part, Spec, from_json, num_bits, products, source
from slth_jax.factored.spec import ATTENTION, can_share
from slth_jax.hide import pieces, targets
from slth_jax.hide.model import NAME, SOURCE
from slth_jax.hide.pieces import Piece
from slth_jax.hide.targets import Targets
from slth_jax.models.weights import Reader
from slth_jax.storage import Place, RunFolder
from slth_jax.ticket import Tensor, Ticket

# If there are more subset sums than this, the rule makes fewer re-rolls.
_MANY = 1 << 23
SCALES = ("matrix", "rows")  # bands also allow "both": scales of rows and of columns

# A function that is called with the numbers of finished and of all subset sums.
Progress = Callable[[int, int], None]


class Unfinished(Exception):
    """Raised if this call's share of the pieces is complete, but other pieces are missing."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """A model, the random network in which it is hidden, and the folder of the results."""

    reader: Reader
    spec: Spec
    seed: int
    identity: str
    folder: RunFolder

    @property
    def path(self) -> Place:
        return self.folder.path / NAME

    @property
    def targets(self) -> Targets:
        return Targets(self.reader, self.spec)

    def array(self, name: str, piece: Piece) -> np.ndarray:
        arrays, _ = self.folder.load(piece.name, contents=piece[1:])
        return arrays[name]

    def report(self, piece: Piece) -> dict[str, Any]:
        _, notes = self.folder.load(piece.name, contents=piece[1:])
        return notes


class _Folder(RunFolder):
    """The folder of a run; the first version of the library called the spec 'recipe'."""

    def recorded(self) -> dict[str, Any] | None:
        config = super().recorded()
        if config is not None and {"recipe", "spec"} & config.keys():
            # Fields that an older version lacked get their default values.
            spec = from_json(config.pop("recipe", None) or config["spec"])
            config["spec"] = storage.plain(spec.to_json())
        return config


def make_spec(
    reader: Reader,
    *,
    samples: int = 20,
    construction: str | Rule | None = None,
    form: str = "linear",
    keep: Sequence[str] = (),
    attention: str | None = None,
    tied: str = "once",
    bits: int | Bands | None = None,
    scales: str | None = None,
) -> Spec:
    """Return the spec of a random network in which the model of `reader` can be hidden.

    Args:
      reader: the model to hide.
      samples, form, keep: see `factored.Spec`.
      construction: a rule or its name; None for the rule and the scales that measurements showed
        to be best at this number of samples and entries.
      attention: 'merged' or 'factored'. None means 'factored' if `bits` is given; if not, None
        means the choice with fewer subset sums.
      tied: 'once' to use one product for both a tied embedding and the last map, if this is
        possible (see `factored.spec.can_share`); 'twice' for two products.
      bits: the number of mask bits per entry, or a `factored.Bands` with all settings, to use bands
        (`construction.rules.band`); None to use subset sums.
      scales: the scales for subset sums: 'rows' for one scale of 4 bits per row of a free factor,
        or 'matrix' for one scale per free factor, as in the paper. None means 'matrix' if
        `construction` is given or `attention` is 'merged'; if not, None means 'rows'. For bands,
        `scales` must be None, since `factored.Bands` sets the scales.

    Raises:
      ValueError: an argument cannot be used, or the model cannot be hidden.
    """
    checks.instance("reader", reader, Reader, "an open file (models.weights.open)")
    checks.integer("samples", samples, low=2, high=64)
    targets.check(reader)
    fields: dict[str, Any] = targets.traits(reader)
    if bits is not None:
        if construction is not None:
            raise checks.fail("construction", "absent if bits are given", construction)
        if scales is not None:
            raise checks.fail("scales", "absent if bits are given", scales)
        bands = bits if isinstance(bits, Bands) else Bands(bits)
        rule, fields["bands"], samples = bands.rule(), bands, 2**bands.bits
    else:
        rule = rules.for_samples(samples) if construction is None else rules.get(construction)
        if rule.needs_target or rule.band is not None or rule.most is not None:
            # The ticket of a whole model contains only the masks of free factors.
            allowed = "a rule of subset sums that assigns without the target"
            raise checks.fail("construction", allowed, rule.name)
    checks.choice("tied", tied, ("once", "twice"))
    kept = tuple(sorted(set(keep)))
    shared = tied == "once" and can_share(reader.settings, form, kept)
    if attention is None and bits is not None:
        attention = "factored"
    specs = [
        Spec(
            reader.settings, samples, rule, form,
            keep=kept, attention=name, shared=shared, **fields,
        )
        for name in (ATTENTION if attention is None else (attention,))
    ]  # fmt: skip

    def num_sums(spec: Spec) -> int:
        return sum(part.num_sums for part in spec.every_part)

    spec = min(specs, key=num_sums)
    if bits is not None:
        return spec
    if construction is None and num_sums(spec) > _MANY:
        spec = dataclasses.replace(spec, construction=rules.for_samples(samples, many=True))
    if scales is None:
        as_in_the_paper = construction is not None or attention == "merged"
        scales = "matrix" if as_in_the_paper else "rows"
    scaling = {"matrix": "largest", "rows": "rows"}[checks.choice("scales", scales, SCALES)]
    spec = dataclasses.replace(spec, scaling=scaling)
    return dataclasses.replace(spec, finer=targets.finer(reader, spec))


def solve(
    reader: Reader,
    spec: Spec,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    identity: str = "",
    shard: str | None = None,
    progress: Progress | None = None,
) -> Place:
    """Find the masks of all parts and write ``out/ticket.safetensors``; resume a stopped run.

    The work is cut into pieces (rows of one part) that take some seconds each. Each piece is safely
    on disk before the next piece begins. The masks of a piece depend only on the model, the spec
    and the seed. The result is therefore bit-identical after a kill and on any number of devices or
    machines.

    Args:
      reader: the model to hide.
      spec: see `make_spec`.
      out: the output folder, on this machine or in a bucket (gs://, s3://). The folder must be new
        or already belong to this run.
      seed: the seed of the source, in [0, 2^32).
      identity: a text that identifies the model, such as the result of `identity_of`. A run is
        resumed only if `identity` is unchanged.
      shard: a text 'i/n' to compute only every n-th piece, beginning with the i-th; None to compute
        all pieces. All n calls write to the same folder `out`. The call that finds all pieces
        complete writes the ticket.
      progress: a function that is called after each piece with two numbers: the matrix entries that
        this call has finished, and all matrix entries of this call.

    Returns:
      The path of the ticket.

    Raises:
      ValueError: an argument cannot be used.
      CheckpointError: `out` belongs to another run or is in use, or the disk lacks space.
      Unfinished: this shard is complete, but pieces of other shards are missing.
    """
    checks.instance("reader", reader, Reader, "an open file (models.weights.open)")
    checks.instance("spec", spec, Spec, "a spec (hide.make_spec)")
    seed = checks.integer("seed", seed, low=0, high=2**32 - 1)
    index, count = checks.shard(shard)
    config = {"model": identity, "seed": seed, "spec": spec.to_json()}
    folder = _Folder(out, config, shard=shard, pieces="parts", form=storage.Files())
    run = _Run(reader, spec, seed, identity, folder)
    todo = pieces.cut(spec)
    with folder.claim():
        if run.path.exists():
            _Folder(out, config, pieces=None).compare()  # the pieces may have been removed
            ticket.open(run.path, check=True)
            return run.path
        _check_space(run, [piece for piece in todo if not folder.has(piece.name)])
        _compute(run, [piece for i, piece in enumerate(todo) if i % count == index], progress)
        missing = [piece for piece in todo if not folder.has(piece.name)]
        if missing:
            raise Unfinished(
                f"shard {shard} is done; {len(missing)} of {len(todo)} pieces are missing"
            )
        with storage.lock(folder.path, name="lock-join", wait=True):
            if not run.path.exists():
                _join(run, todo)
    return run.path


def clean(out: str | os.PathLike[str]) -> None:
    """Remove the pieces of a run whose ticket is complete.

    Raises:
      Damaged: the ticket is damaged; the pieces are not removed.
    """
    folder = storage.place(out)
    if (folder / NAME).exists() and (folder / "parts").exists():
        ticket.open(folder / NAME, check=True)
        storage.remove(folder / "parts")


def identity_of(model: str | os.PathLike[str]) -> str:
    """Return a SHA-256 of the files that contain a model: its weights and their JSON files.

    In a folder these are all .json and .safetensors files; without the latter, all .bin files. For
    a .npz file the JSON of the same name is included.
    """
    path = Path(model)
    if path.is_dir():
        of = {
            suffix: sorted(path.glob(f"*{suffix}")) for suffix in (".json", ".safetensors", ".bin")
        }
        files = sorted(of[".json"] + (of[".safetensors"] or of[".bin"]))
    else:
        beside = path.with_suffix(".json")
        files = [path, beside] if path.suffix == ".npz" and beside.exists() else [path]
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _compute(run: _Run, mine: list[Piece], progress: Progress | None) -> None:
    matrices, mesh = run.targets, products.mesh()
    total = sum(piece.num_sums for piece in mine)
    done = 0
    for piece in mine:
        if not run.folder.whole(piece.name, piece[1:]):
            start = time.perf_counter()
            arrays, report = pieces.compute(piece, run.spec, run.seed, matrices, mesh)
            report["seconds"] = round(time.perf_counter() - start, 3)
            run.folder.save(piece.name, arrays, report, contents=piece[1:])()
        done += piece.num_sums
        if progress is not None:
            progress(done, total)


def _join(run: _Run, todo: list[Piece]) -> None:
    """Write the masks of all pieces to the ticket's file."""
    by_part: dict[str, list[Piece]] = {part.name: [] for part in run.spec.parts}
    for piece in todo:
        by_part[piece.part.name].append(piece)
    scales: dict[str, list[float]] = {}
    errors: dict[str, dict[str, Any]] = {}
    worst: list[dict[str, Any]] = []
    prints, total = hashlib.sha256(), 0.0
    for name, parts in by_part.items():
        reports = [run.report(piece) for piece in parts]
        # Pieces of earlier versions lack this entry.
        entries = [report["worst_entry"] for report in reports if "worst_entry" in report]
        worst += [{"matrix": name, "block": parts[0].part.block, **entry} for entry in entries]
        by_product = {int(g): s for report in reports for g, s in report["scales"].items()}
        scales[name] = [by_product[g] for g in sorted(by_product)]
        by_product = {int(g): s for report in reports for g, s in report["fingerprints"].items()}
        for g in sorted(by_product):
            prints.update(f"{name} {g} {by_product[g]}\n".encode())
        errors[name] = _errors(reports)
        seconds = round(sum(report["seconds"] for report in reports), 2)
        if parts[0].part.band is None:
            beyond = sum(report["out_of_reach"] for report in reports)
            errors[name] |= {"num_sums": parts[0].part.num_sums, "out_of_reach": beyond}
            errors[name] |= {"seconds": seconds}
        total += seconds
    matrices = run.targets

    def blocks(array: str, name: str) -> Iterable[np.ndarray]:
        return (run.array(array, piece) for piece in by_part[name])

    def kept(part: Part) -> Iterable[np.ndarray]:
        return (matrices.product(part, g) for g in range(part.count))

    tensors = {
        # Compressed, since the masks of a diagonal are nearly all zero.
        part.name: Tensor(
            part.num_bytes, partial(blocks, "bits", part.name), compressed=run.spec.diagonal(part)
        )
        for part in run.spec.parts
    }
    if run.spec.row_scales:
        with_levels = [piece for piece in todo if run.spec.num_levels(piece.part)]
        levels = np.concatenate([run.array("levels", piece) for piece in with_levels])
        packed = source.packed_levels(levels)
        tensors[source.ROWS] = Tensor(packed.size, lambda: (packed,))
    if any(map(run.spec.num_column_levels, run.spec.parts)):
        # All pieces of a product have the same column levels; they are read from the first piece.
        firsts = [
            piece for piece in todo
            if run.spec.num_column_levels(piece.part) and piece.start % piece.part.rows == 0
        ]  # fmt: skip
        columns = np.concatenate([run.array("columns", piece).ravel() for piece in firsts])
        packed_columns = source.packed_levels(columns)
        tensors[source.COLUMNS] = Tensor(packed_columns.size, lambda: (packed_columns,))
    tensors |= {
        source.KEPT + part.name: Tensor(4 * part.num_sums, partial(kept, part))
        for part in run.spec.kept_parts
    }
    whole = Ticket(
        source=SOURCE,
        options={**run.spec.to_json(), "scales": scales},
        seed=run.seed,
        bits={},
        shapes={part.name: part.shape for part in run.spec.parts},
        fingerprint=prints.hexdigest(),
        metadata=_metadata(run, errors, total) | _worst_entry(worst),
        choices={part.name: part.band.bits for part in run.spec.parts if part.band is not None},
    )
    ticket.write(run.path, whole, tensors)


def _errors(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the relative and the largest error of a part from the reports of its pieces."""
    target = sum(report["squared_target"] for report in reports)
    error = sum(report["squared_error"] for report in reports)
    return {
        "relative_error": _short((error / target) ** 0.5 if target else 0.0),
        "largest_error": _short(max(report["largest_error"] for report in reports)),
    }


def _worst_entry(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return metadata about the matrix entry with the largest relative error."""
    if not entries:
        return {}
    worst = max(entries, key=lambda entry: entry["relative_error"])
    sizes = {name: _short(worst[name]) for name in ("relative_error", "relative_size")}
    return {"worst_entry": worst | sizes}


def _short(value: float) -> float:
    """Return a number rounded to four digits, to save space in the ticket's file."""
    return float(f"{value:.4g}")


def _metadata(run: _Run, errors: dict[str, dict[str, Any]], seconds: float) -> dict[str, Any]:
    spec = run.spec
    return {
        "model": run.identity,
        "parts": errors,
        "seconds": round(seconds, 2),
        "num_sums": sum(part.num_sums for part in spec.parts),
        "random_weights": sum(part.num_weights for part in spec.parts),
        "mask_bits": num_bits(spec.parts),
        # The numbers that the ticket contains besides the seed, the settings and the masks.
        "numbers": {
            "scales": sum(part.count for part in spec.parts),
            "row_scales": _num_levels(spec),
            "column_scales": sum(map(spec.num_column_levels, spec.parts)),
            "kept": sum(part.num_sums for part in spec.kept_parts),
        },
        "target_bytes": run.reader.num_bytes,
        "versions": {"jax": jax.__version__},
    }


def _num_levels(spec: Spec) -> int:
    return sum(map(spec.num_levels, spec.parts))


def _check_space(run: _Run, missing: list[Piece]) -> None:
    """Raise an error if the disk lacks space for the missing pieces and the ticket."""
    rows = [((piece.stop - piece.start), piece.part) for piece in missing]
    masks = sum(count * part.num_bytes // (part.count * part.rows) for count, part in rows)
    kept = 4 * sum(part.num_sums for part in run.spec.kept_parts)
    size = masks + num_bits(run.spec.parts) // 8 + kept + 2 * _num_levels(run.spec) + (1 << 20)
    storage.check_room(run.folder.path, size)
