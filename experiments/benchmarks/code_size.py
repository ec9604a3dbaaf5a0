"""Count the library's lines of code, and list the files whose code runs in a first call.

    python -m experiments.benchmarks.code_size

The command prints the number of lines of code (without docstrings and blank lines), the number of
lines with a comment, and the largest number of parameters that a function has (without `self`,
`cls`, ``*args``, ``**kwargs``). For a first call of `prune_attention`, and of `slth-jax hide`, the
command also prints every file that contains a function which runs during the call. A first call
includes JAX's tracing. Code at the top level of a module does not count as a function.
"""

import ast
import contextlib
import io
import struct
import sys
import tempfile
import threading
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def size(root: Path) -> str:
    """Count lines, comments and parameters in the files below `root`; return a line of text."""
    code, comments, total, files, most = 0, 0, 0, 0, (0, "")
    for path in sorted(root.rglob("*.py")):
        text = path.read_text()
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            comments += token.type == tokenize.COMMENT
            if token.type not in NO_CODE and token.string:
                lines |= set(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            if isinstance(node, ast.FunctionDef):
                given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                count = sum(part.arg not in ("self", "cls") for part in given)
                most = max(most, (count, f"{path.relative_to(root)}:{node.name}"))
        code, total, files = code + len(lines), total + text.count("\n"), files + 1
    share = f"{comments} with a comment ({comments / total:.1%} of {total} lines)"
    return f"{files} files, {code} lines of code, {share}, most parameters {most}"


def walk(call: Callable[[], object], root: Path) -> list[str]:
    """Run `call`; return the files below `root` whose functions were called, in any thread."""
    reached = set()

    def profile(frame, event, _):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(root)) and frame.f_code.co_flags & 0x02:
            reached.add(str(Path(name).relative_to(root)))  # 0x02 (CO_NEWLOCALS): a function

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return sorted(reached)


def write_model(path: Path) -> None:
    """Write a llama2.c checkpoint of one layer: width 8, 2 heads, 16 tokens, context 8."""
    count = 16 * 8 + 4 * 64 + 3 * 64 + 3 * 8 + 2 * 8 * 2
    weights = np.random.default_rng(0).normal(size=count).astype("<f4")
    path.write_bytes(struct.pack("<7i", 8, 8, 1, 2, 2, 16, 8) + weights.tobytes())


def main() -> None:
    """Print the counts."""
    import jax

    import slth_jax
    from slth_jax import cli, construction, initializers

    root = Path(slth_jax.__path__[0])
    print(f"slth_jax: {size(root)}")
    draw = initializers.theory_attention
    shape: dict[str, Any] = {"num_heads": 1, "d_in": 2, "d_out": 2}
    target, source = (draw(jax.random.key(n), n_k=n, n_v=n, **shape) for n in (2, 16))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        write_model(Path(folder) / "model.bin")
        arguments = ["hide", f"{folder}/model.bin", "--out", f"{folder}/out", "--samples", "4"]
        calls = {
            "prune_attention": lambda: construction.prune_attention(source, target),
            "slth-jax hide": lambda: cli.main([*arguments, "--quiet"]),
        }
        walks = {name: walk(call, root) for name, call in calls.items()}
    for name, files in walks.items():
        print(f"{name}: {len(files)} files: {', '.join(files)}")


if __name__ == "__main__":
    main()
