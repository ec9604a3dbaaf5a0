"""Hide a trained language model in random numbers.

The command finds masks under which a random network, drawn from a seed and never trained, computes
approximately the same function as the model. If the run was stopped, the same command resumes it.
The ticket is written to DIR/ticket.safetensors.
"""

import argparse
import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slth_jax.cli import devices, memory, outcome, progress, text

if TYPE_CHECKING:
    from slth_jax.storage import Place

HELP = "hide a trained language model in random numbers: a ticket with no trained weight"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "model",
        help="a Hugging Face folder or its name on the Hub, a .gguf, a llama2.c .bin or a "
        "TransformerLens-style .npz",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--samples", type=int, default=20, help="random samples per subset sum (default: 20)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random network (default: 0)"
    )
    parser.add_argument(
        "--construction",
        metavar="RULE",
        help="proof, reach, shift, or shift:R,C (default: shift with the best measured settings)",
    )
    parser.add_argument(
        "--bits",
        metavar="B[,KIND=B]",
        help="mask bits per weight, 1 to 12, by bands instead of subset sums (docs/bits.md); "
        "KIND=B sets a different number of bits for a kind of matrix, such as wte or q, or for one "
        "matrix, such as 3.q",
    )
    parser.add_argument(
        "--states", type=int, default=12, help="log2 of the states of a band's search (default: 12)"
    )
    parser.add_argument(
        "--source-weights",
        choices=("uniform", "sign_uniform", "sign_normal", "signs"),
        default="sign_uniform",
        help="distributions of a band's weights (default: sign_uniform)",
    )
    parser.add_argument(
        "--scales",
        choices=("matrix", "rows", "both"),
        help="matrix: one scale per random matrix; rows: one per row, 4 bits each; both, only with "
        "--bits: one per row and one per column (default: both with --bits, matrix with "
        "--attention merged or --construction, else rows)",
    )
    parser.add_argument(
        "--form",
        choices=("linear", "relu"),
        default="linear",
        help="the function between the two random factors of a linear map (default: linear)",
    )
    parser.add_argument(
        "--keep",
        default="",
        metavar="PART,PART",
        help="parts to copy from the model: embedding, unembedding, attention, layers",
    )
    parser.add_argument(
        "--attention",
        choices=("merged", "factored"),
        help="merged: a product per merged matrix and head; factored: a product per projection "
        "(default: the form with fewer subset sums; factored with --bits)",
    )
    parser.add_argument(
        "--tied",
        choices=("once", "twice"),
        default="once",
        help="whether a tied embedding and the last map are one product or two (default: once)",
    )
    parser.add_argument("--shard", metavar="I/N", help="compute every N-th piece from the I-th on")
    devices.add_distributed(parser)
    parser.add_argument(
        "--inputs", metavar="TOKENS.npy", help="integers [batch, length] to compare logits on"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="a text for target and ticket to continue")
    text.add(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="estimate bytes and time on this machine and stop"
    )
    parser.add_argument(
        "--on",
        metavar="MACHINE",
        help="with --dry-run: compile for v5e:4x4, h100:8, ..., and report memory; needs that "
        "machine's compiler (slth-jax[tpu] or [cuda12]), not the machine",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(options: argparse.Namespace) -> None:
    """Hide the model, then compare it with its ticket."""
    devices.split_cpu(options.devices)
    from slth_jax.distributed import joined

    with joined(options.distributed, outcome.report):
        _hide(options)


def _hide(options: argparse.Namespace) -> None:
    import numpy as np

    from slth_jax import checks, hide, models, storage
    from slth_jax.construction import rules
    from slth_jax.hide import compare

    started = time.perf_counter()
    reader = models.weights.open(options.model)
    spec = hide.make_spec(
        reader,
        samples=options.samples,
        construction=None if options.construction is None else rules.parse(options.construction),
        form=options.form,
        keep=tuple(name for name in options.keep.split(",") if name),
        attention=options.attention,
        tied=options.tied,
        bits=_bands(options),
        scales=options.scales if options.bits is None else None,
    )
    if options.on is not None and not options.dry_run:
        raise checks.fail("--on", "given with --dry-run", options.on)
    if options.dry_run:
        if options.on is None:
            print(_estimated(hide.estimate(reader, spec), reader))
        else:
            print("\n".join(_compiled(options.on, hide.compile_for(options.on, spec))))
        return
    # The inputs are validated before the long computation begins.
    tokens = compare.read_tokens(options.inputs, reader.settings) if options.inputs else None
    writer = None
    if options.prompt is not None or options.chat is not None:
        if not reader.settings.causal:
            raise checks.fail("--prompt", "absent, since an encoder writes no text", "one")
        writer = text.Writer(options, reader.path, reader.settings)
    tokenizer = models.tokens.find(options.tokenizer, reader.path, reader.settings.vocab_size)
    try:
        path = _solve(reader, spec, options)
    except hide.Unfinished as part:
        print(part)
        return
    if path is None:  # only the first process continues
        return
    out = storage.place(options.out)
    opened = hide.opened(path)
    target, ticket = hide.of_target(reader), hide.of_ticket(opened)
    summary = _summary(path, opened, options)
    if tokens is not None:
        ours, theirs = hide.logits(target, tokens), hide.logits(ticket, tokens)
        next_tokens = reader.settings.causal and ours.shape[-1] >= reader.settings.vocab_size
        summary |= hide.measures(ours, theirs, tokens if next_tokens else None)
        if reader.settings.states:
            pooled = [hide.embeddings(model, tokens) for model in (target, ticket)]
            summary["mean_cosine"] = float(np.mean(np.sum(pooled[0] * pooled[1], axis=1)))
        with storage.writing(out / "logits.npz") as file:
            np.savez(file, target=ours, ticket=theirs)
    if writer is not None:
        kind = "prompt" if options.chat is None else "chat"
        texts: dict[str, Any] = {kind: getattr(options, kind), "length": options.length}
        for name, model in (("target", target), ("ticket", ticket)):
            texts[name], texts[f"{name}_text"] = writer.write(model)
        storage.write_json(out / "generated.json", texts)
        summary["equal_tokens"] = hide.equal_tokens(texts["target"], texts["ticket"])
        summary["generated_tokens"] = len(texts["target"])
        _side_by_side(texts["target_text"], texts["ticket_text"])
    if tokenizer is not None:  # copied, so that `generate` and `embed` need only this folder
        models.tokens.copy(tokenizer, out)
    summary["seconds"] = round(time.perf_counter() - started, 2)
    summary["peak_bytes"] = memory.peak_bytes()
    storage.write_json(out / "summary.json", summary)
    hide.clean(out)
    _report(summary, out)


def _estimated(cost: Any, reader: Any) -> str:
    minutes = f"{cost.seconds / 60:.1f} minutes" if cost.seconds > 120 else f"{cost.seconds:.0f} s"
    return (
        f"{cost.num_sums:,} entries in {cost.random_weights:,} random weights; ticket about "
        f"{cost.ticket_bytes / 1e6:.2f} MB (target {reader.num_bytes / 1e6:.2f} MB in float32); "
        f"about {minutes} on this machine, {cost.compile_seconds:.0f} s of it to compile"
    )


def _compiled(on: str, programs: Any) -> Iterator[str]:
    """Yield the lines of a report on the programs that were compiled for the machine `on`."""
    for report, parts, calls in programs:
        yield f"{parts[0]} and {len(parts) - 1} more of its shape: {calls} calls of one program"
        yield from report.lines("use a rule with fewer samples")
    total = sum(program.report.compile_seconds for program in programs)
    yield f"{len(programs)} programs for {on}, compiled in {total:.0f} s in all"


def _solve(reader: Any, spec: Any, options: argparse.Namespace) -> "Place | None":
    """Find the masks and write the ticket; return its path on the first process, elsewhere None."""
    import jax

    from slth_jax import checks, distributed, hide

    index, count = jax.process_index(), jax.process_count()
    if count > 1 and options.shard is not None:
        raise checks.fail("--shard", f"absent in a run of {count} processes", options.shard)
    _log_start(options, index, count)
    solve = functools.partial(
        hide.solve, reader, spec, options.out,
        seed=options.seed, identity=hide.identity_of(reader.path),
    )  # fmt: skip
    title = "subset sums" + (f" of process 0 of {count}" if count > 1 else "")
    with progress.bar(title, options.quiet or index > 0) as update:
        if count == 1:
            return solve(shard=options.shard, progress=update)
        with distributed.alone(), contextlib.suppress(hide.Unfinished):
            solve(shard=f"{index}/{count}", progress=update)
    distributed.wait_for_all()
    if index > 0:
        return None
    with distributed.alone():
        return solve()


def _log_start(options: argparse.Namespace, index: int, count: int) -> None:
    import jax

    from slth_jax import __version__, storage

    if not options.quiet and index == 0:
        versions = {"slth_jax": __version__, "jax": jax.__version__}
        out = storage.place(options.out)
        pieces = sum(1 for _ in (out / "parts").glob("*.safetensors"))
        state = f"{pieces} saved pieces" if pieces else "new"
        progress.log_start("hide", versions, f"{out} ({state})")


def _bands(options: argparse.Namespace) -> Any:
    from slth_jax import checks
    from slth_jax.factored import Bands

    if options.bits is None:
        return None
    most, *pairs = options.bits.split(",")
    others = [pair.partition("=") for pair in pairs]
    if not all(bits.isdigit() for bits in (most, *(bits for *_, bits in others))):
        raise checks.fail("--bits", "B or B,KIND=B", repr(options.bits))
    return Bands(
        int(most),
        options.states,
        options.source_weights,
        options.scales != "matrix",
        options.scales in (None, "both"),
        tuple(sorted((kind, int(bits)) for kind, _, bits in others)),
    )


def _summary(path: Any, opened: Any, options: argparse.Namespace) -> dict[str, Any]:
    metadata, spec = opened.ticket.metadata, opened.spec
    rule, parts = spec.construction, metadata["parts"]
    return {
        "model": Path(options.model).name,
        "samples": spec.samples,
        "finer": dict(spec.finer),
        "seed": opened.ticket.seed,
        "form": spec.form,
        "construction": rule.name,
        "shift_units": rule.search.shift_units,
        "columns": rule.search.columns,
        "keep": list(spec.keep),
        "attention": spec.attention,
        "shared_embedding": spec.shared,
        "bands": None if spec.bands is None else dataclasses.asdict(spec.bands),
        **{name: metadata[name] for name in ("num_sums", "random_weights", "mask_bits", "numbers")},
        "out_of_reach": sum(part.get("out_of_reach", 0) for part in parts.values()),
        "solve_seconds": metadata.get("seconds", sum(p.get("seconds", 0) for p in parts.values())),
        "ticket_bytes": path.stat().st_size,
        "target_bytes": metadata["target_bytes"],  # in float32
        "bits_per_weight": round(8 * path.stat().st_size / (metadata["target_bytes"] / 4), 3),
        "parts": parts,
        "worst_entry": metadata.get("worst_entry"),  # missing in tickets of earlier versions
        "versions": metadata["versions"],
    }


def _side_by_side(left: str, right: str) -> None:
    import textwrap

    width = max(20, min(60, (shutil.get_terminal_size((100, 24)).columns - 3) // 2))
    columns = []
    for title, words in (("target", left), ("ticket: random numbers and masks", right)):
        lines = [line for part in words.split("\n") for line in textwrap.wrap(part, width) or [""]]
        columns.append([title, "-" * width, *lines])
    rows = max(map(len, columns))
    for i in range(rows):
        a, b = (column[i] if i < len(column) else "" for column in columns)
        print(f"{a:<{width}} | {b}")
    print()


def _report(summary: dict[str, Any], out: Any) -> None:
    numbers = summary["numbers"]
    bands, finer = summary["bands"], summary["finer"]
    print(
        f"{summary['num_sums']:,} "
        + (
            f"subset sums of {summary['samples']} samples "
            + (f"(more for {', '.join(finer)}) " if finer else "")
            + f"({summary['out_of_reach']:,} values out of reach)"
            if bands is None
            else f"entries at {bands['bits']} bits"
        )
        + f" in {summary['random_weights']:,} random weights; rule {summary['construction']}, "
        f"{summary['seconds']:.0f} s, {summary['peak_bytes'] / 2**30:.2f} GiB"
    )
    print(
        f"ticket {summary['ticket_bytes'] / 1e6:.2f} MB (target {summary['target_bytes'] / 1e6:.2f}"
        f" MB in float32), {summary['bits_per_weight']:.1f} bits per trained weight; numbers "
        f"beyond seed and masks: {numbers['scales']} scales"
        + (f", {numbers['row_scales']:,} scales of rows of 4 bits" if numbers["row_scales"] else "")
        + (f", {numbers['kept']:,} entries kept of the target" if numbers["kept"] else "")
    )
    if worst := summary["worst_entry"]:
        print(
            f"largest error of an entry: {worst['relative_error']:.2g} of the rms of its matrix "
            f"{worst['matrix']}, at row {worst['row']}, column {worst['column']}"
            + (f" of product {worst['product']}" if worst["product"] else "")
            + f", which is {worst['relative_size']:.3g} rms"
        )
    if "logit_sd" in summary:
        print(
            f"logits: sd {summary['logit_sd']:.3g}, difference rms "
            f"{summary['rms_logit_difference']:.2g}, largest {summary['max_logit_difference']:.2g};"
            f" the same first choice in {summary['top1_agreement']:.2%}"
        )
    if "mean_cosine" in summary:
        print(f"embeddings: mean cosine {summary['mean_cosine']:.6f}")
    if "equal_tokens" in summary:
        same, count = summary["equal_tokens"], summary["generated_tokens"]
        print(f"{same} of {count} tokens of the target's text are the ticket's")
    print(f"files in {out}")
