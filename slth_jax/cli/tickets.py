"""Look at a ticket's file, check it, or write its weights as NumPy arrays."""

import argparse
from typing import Any

_DRAWN = 12  # masks in a picture: whole models have hundreds, read one at a time
HELP = "show, verify or export a ticket's file"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print what is inside")
    show.add_argument("--plot", metavar="OUT.png", help="also draw the masks (PNG, SVG or PDF)")
    verify = actions.add_parser(
        "verify",
        help="check checksums, generate the source again and compare it with the fingerprint",
    )
    export = actions.add_parser("export", help="write source times masks as .npz")
    for action in (show, verify, export):
        action.add_argument("file", help="NAME.ticket.safetensors")
    verify.add_argument(
        "--target", metavar="X.npz", help="recompute the error against this attention (w_q ... w_o)"
    )
    verify.add_argument("--inputs", metavar="X.npy", help="the sequences [s, t, m] it is of")
    export.add_argument("--out", required=True, metavar="X.npz", help="the file to write")


def run(options: argparse.Namespace) -> None:
    """Do what the command line says."""
    # JAX is imported here: see `command`.
    from slth_jax import ticket
    from slth_jax.types import AttentionParams

    if options.action == "show":
        opened = ticket.open(options.file)
        print(ticket.describe(opened))
        if options.plot is not None:
            print(_plot(opened, options.plot))
    elif options.action == "verify":
        target = None
        if options.target is not None:
            arrays = _read(options.target)
            target = AttentionParams(*(arrays[name] for name in AttentionParams._fields))
        inputs = None if options.inputs is None else _read(options.inputs)
        report = ticket.verify(options.file, target=target, inputs=inputs)
        print(f"{options.file}: whole, and its source is generated as recorded")
        if report.error is not None:
            print(f"error {report.error:.6g} against the target, as recorded")
        print(
            f"{report.num_kept:,} of {report.size:,} connections kept "
            f"({100 * report.num_kept / max(report.size, 1):.1f} %)"
        )
    elif ticket.read_header(options.file)["source"] == "decoder":
        print(_export_model(options.file, options.out))
    else:
        count = ticket.export(ticket.open(options.file), options.out)
        print(f"{options.out}: {count} arrays")


def _plot(opened: Any, out: str) -> str:
    """Draw the first masks of a ticket; return what is to be said of the picture."""
    from slth_jax import plots, ticket

    names = [name for name, shape in opened.shapes.items() if len(shape) > 1][:_DRAWN]
    plots.save(plots.masks({name: ticket.mask(opened, name) for name in names}), out)
    rest = f" of {len(opened.shapes)}" if len(names) < len(opened.shapes) else ""
    return f"{out}: {len(names)}{rest} masks"


def _export_model(file: str, out: str) -> str:
    """Write the merged network of a whole model's ticket; return what is to be said of it."""
    import dataclasses
    import json

    import numpy as np

    from slth_jax import checks, hide, storage

    if not out.endswith(".npz"):
        raise checks.fail("out", "NAME.npz", repr(out))
    model = hide.of_ticket(file)
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in model.load().items()}
    settings = json.dumps(dataclasses.asdict(model.settings))
    arrays["settings"] = np.frombuffer(settings.encode(), np.uint8)
    with storage.writing(out) as opened:
        np.savez(opened, **arrays)
    return (
        f"{out}: the merged network as {len(arrays) - 1} arrays under the names of "
        "slth_jax.models, its settings as JSON in 'settings'. Its attention heads are as wide as "
        "the model, which no Hugging Face layout holds."
    )


def _read(path: str) -> Any:
    """Return the arrays of a NumPy file.

    Raises:
      ValueError: it is missing, or not such a file.
    """
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
