"""Show or check a ticket's file, or export its weights to NumPy or to transformers."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from slth_jax.cli import outcome

_DRAWN = 12  # the largest number of masks in a picture; whole models have hundreds of masks
HELP = "show, verify or export a ticket's file"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print the content")
    show.add_argument("--plot", metavar="OUT.png", help="also draw the masks (PNG, SVG or PDF)")
    verify = actions.add_parser(
        "verify",
        help="check checksums, generate the source again and compare it with the fingerprint",
    )
    export = actions.add_parser(
        "export", help="write source times masks as .npz, or a whole model as a folder"
    )
    for action in (show, verify, export):
        action.add_argument("file", help="NAME.ticket.safetensors")
    verify.add_argument(
        "--target", metavar="X.npz", help="recompute the error against this attention (w_q ... w_o)"
    )
    verify.add_argument(
        "--source",
        metavar="MODULE:FUNCTION",
        help="for a source of your own: FUNCTION(key, **options) draws its weights",
    )
    verify.add_argument(
        "--inputs", metavar="X.npy", help="the sequences [s, t, m] on which the error was measured"
    )
    verify.add_argument(
        "--memory",
        metavar="X.npy",
        help="for cross-attention, the sequences [s, t, n] of keys and values; or an archive "
        "(X.npz) of keys and values",
    )
    export.add_argument(
        "--out", required=True, metavar="X.npz", help="the file to write, or the folder"
    )
    export.add_argument(
        "--to", choices=("huggingface",), help="write a folder that transformers loads"
    )


def run(options: argparse.Namespace) -> None:
    """Run the action."""
    # JAX is imported here: see `command`.
    import jax.numpy as jnp

    from slth_jax import checks, storage, ticket
    from slth_jax.types import AttentionParams

    if options.action == "show":
        opened = ticket.open(options.file)
        outcome.show(ticket.describe(opened))
        if options.plot is not None:
            print(_plot(opened, options.plot))
    elif options.action == "verify":
        target = None
        if options.target is not None:
            arrays = storage.read_numpy(options.target)
            names = AttentionParams._fields
            if not isinstance(arrays, dict) or not set(names) <= arrays.keys():
                raise checks.fail("--target", f"an archive of {', '.join(names)}", options.target)
            target = AttentionParams(*(jnp.asarray(arrays[name]) for name in names))
        inputs = None if options.inputs is None else storage.read_numpy(options.inputs)
        if isinstance(inputs, dict):
            raise checks.fail("--inputs", "one array, NAME.npy", options.inputs)
        memory: Any = None if options.memory is None else storage.read_numpy(options.memory)
        if isinstance(memory, dict):
            if memory.keys() != {"keys", "values"}:
                allowed = "one array, or an archive of keys and values"
                raise checks.fail("--memory", allowed, options.memory)
            memory = memory["keys"], memory["values"]
        sources = None
        if options.source is not None:
            sources = {ticket.read_header(options.file)["source"]: _function(options.source)}
        report = ticket.verify(
            options.file, target=target, inputs=inputs, memory=memory, sources=sources
        )
        outcome.show(f"{options.file}: intact, and its source is generated as recorded")
        if report.error is not None:
            print(f"error {report.error:.6g} against the target, {report.recorded:.6g} recorded")
        print(
            f"{report.num_kept:,} of {report.size:,} connections kept "
            f"({100 * report.num_kept / max(report.size, 1):.1f} %)"
        )
    elif options.to == "huggingface":
        from slth_jax import hide

        hide.to_huggingface(options.file, options.out)
        print(f"{options.out}: the merged network as transformers loads it")
    elif ticket.read_header(options.file)["source"] == "decoder":
        print(_export_model(options.file, options.out))
    else:
        count = ticket.export(ticket.open(options.file, check=True), options.out)
        print(f"{options.out}: {count} arrays")


def _function(place: str) -> Callable[..., Any]:
    """Return the function named by 'module:function'; the working directory is searched too."""
    from slth_jax import checks

    module, _, name = place.partition(":")
    if not module or not name:
        raise checks.fail("--source", "MODULE:FUNCTION", repr(place))
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        allowed = "in a module that can be imported"
        raise checks.fail("--source", allowed, f"{place!r} ({error})") from None
    finally:
        sys.path.remove(os.getcwd())
    if not callable(function):
        raise checks.fail("--source", f"a function of {module}", repr(place))
    return function


def _plot(opened: Any, out: str) -> str:
    """Plot the first masks of a ticket into a file; return one line that describes the picture."""
    from slth_jax import plots, ticket

    names = [name for name, shape in opened.shapes.items() if len(shape) > 1][:_DRAWN]
    plots.save(plots.masks({name: ticket.mask(opened, name) for name in names}), out)
    rest = f" of {len(opened.shapes)}" if len(names) < len(opened.shapes) else ""
    return f"{out}: {len(names)}{rest} masks"


def _export_model(file: str, out: str) -> str:
    """Write the masked weights of a whole model's ticket; return a line that describes them."""
    import dataclasses
    import json

    import numpy as np

    from slth_jax import checks, hide, storage

    if not out.endswith(".npz"):
        raise checks.fail("out", "NAME.npz", repr(out))
    opened = hide.opened(file)
    model = hide.of_ticket(opened)
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in model.load().items()}
    settings = json.dumps(dataclasses.asdict(model.settings))
    arrays["settings"] = np.frombuffer(settings.encode(), np.uint8)
    with storage.writing(out) as archive:
        np.savez(archive, **arrays)
    merged = opened.spec.attention == "merged"
    return (
        f"{out}: the merged network as {len(arrays) - 1} arrays under the names of "
        "slth_jax.models, its settings as JSON in 'settings'."
        + (
            " Its attention heads are as wide as the model, which no Hugging Face layout holds."
            if merged
            else " A folder for transformers: --to huggingface."
        )
    )
