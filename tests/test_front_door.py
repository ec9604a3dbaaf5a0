"""The first things that a newcomer meets: names, help, command and distribution of the package."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import slth_jax
from slth_jax import cli, initializers, ticket

ROOT = Path(__file__).parents[1]


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_reachable_from_a_bare_import():
    code = (
        "import json, slth_jax\n"
        "names = dir(slth_jax)\n"
        "print(json.dumps(names))\n"
        "for name in slth_jax.__all__: getattr(slth_jax, name)\n"
        "print(slth_jax.attention.apply.__name__, slth_jax.sweep.run.__name__)\n"
    )
    names, called = python(code).splitlines()
    on_disk = {
        path.name.removesuffix(".py")
        for path in (ROOT / "slth_jax").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__", "__main__"}
    assert on_disk <= set(json.loads(names)) and on_disk == set(slth_jax.__all__)
    assert called == "apply run"
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        slth_jax.nonsense  # noqa: B018


def test_a_bare_import_takes_nothing_along():
    """So it costs nothing over `import jax`: not even that, and no package of anyone's."""
    code = (
        "import sys; before = set(sys.modules); import slth_jax\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    allowed = {"slth_jax", *sys.stdlib_module_names}
    assert set(eval(python(code))) <= allowed
    assert "'jax'" not in python("import sys, slth_jax.cli.command; print(list(sys.modules))")


def test_help_names_what_a_user_starts_with():
    text = slth_jax.__doc__
    for line in text.splitlines():
        for word in line.replace(",", " ").replace("(", " ").split():
            module, dot, name = word.partition(".")
            if dot and module in slth_jax.__all__:
                assert hasattr(getattr(slth_jax, module), name), word
    for name in ("prune_attention", "attention.apply", "subset_sum.solve", "sweep.run", "verify"):
        assert name in text


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    options = {"num_heads": 1, "d_in": 2, "d_out": 1, "n_k": 4, "n_v": 4}
    weights = initializers.theory_attention(jax.random.key(3, impl=ticket.IMPL), **options)
    masks = jax.tree.map(lambda w: w > 0, weights)
    path = tmp_path_factory.mktemp("tickets") / "one.ticket.safetensors"
    ticket.save(path, ticket.create("theory", options, 3, masks, metadata={"error": 0.25}))
    return path


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_show_verify_and_export(path, tmp_path, capsys):
    status, out, _ = run(capsys, "ticket", "show", path)
    assert status == 0
    for words in (
        "theory, seed 3",
        "n_k        4",
        "w_o",
        "1 x 2 x 4",
        "error  0.25",
        "28, one",
    ):
        assert words in out
    kept = sum(int(mask.sum()) for mask in ticket.masks(ticket.load(path)).values())
    status, out, _ = run(capsys, "ticket", "verify", path)
    assert status == 0 and f"{kept} of 28 connections kept" in out
    status, out, _ = run(capsys, "ticket", "export", path, "--out", tmp_path / "x.npz")
    assert status == 0 and "4 arrays" in out
    expected = ticket.materialize(ticket.load(path))
    with np.load(tmp_path / "x.npz") as arrays:
        assert sorted(arrays.files) == sorted(expected._fields)
        for name, value in expected._asdict().items():
            np.testing.assert_array_equal(arrays[name], value)


def test_the_claimed_error_is_checked_from_files(path, tmp_path, capsys):
    masked = ticket.materialize(ticket.load(path))
    np.savez(tmp_path / "target.npz", **masked._asdict())
    np.save(tmp_path / "x.npy", np.ones((2, 3, 2)))
    against = ("--target", tmp_path / "target.npz", "--inputs", tmp_path / "x.npy")
    status, _, err = run(capsys, "ticket", "verify", path, *against)
    assert status == 2 and "the ticket's error is 0, not 0.25 as recorded" in err


def test_errors_are_one_line_and_status_2(path, tmp_path, capsys):
    damaged = tmp_path / "damaged.ticket.safetensors"
    damaged.write_bytes(path.read_bytes()[:-3])
    for arguments in (
        ("ticket", "verify", tmp_path / "none.ticket.safetensors"),
        ("ticket", "show", damaged),
        ("ticket", "export", path, "--out", tmp_path / "x.txt"),
        ("ticket", "verify", path, "--target", tmp_path / "none.npz"),
    ):
        status, out, err = run(capsys, *arguments)
        assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_the_command_in_a_process_of_its_own(path):
    done = subprocess.run(
        [sys.executable, "-m", "slth_jax", "ticket", "verify", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "") and "connections kept" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "slth_jax"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "ticket" in done.stdout and "--help" in done.stdout


def test_the_wheel_holds_every_file_and_the_command(tmp_path):
    pytest.importorskip("setuptools")
    code = (
        "import os, sys; from setuptools import build_meta\n"
        f"print(build_meta.build_wheel({str(tmp_path)!r}))"
    )
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("slth_jax", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).symlink_to(ROOT / name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=copy)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (commands,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "slth-jax = slth_jax.cli:main" in opened.read(commands).decode()
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "slth_jax").rglob("*.py")}
    assert files | {"slth_jax/py.typed"} <= names
    assert not any(name.startswith(("tests", "experiments")) for name in names)


def test_a_clone_does_not_hide_the_package_from_its_parent_folder(tmp_path):
    """An editable install is a path entry, which Python prefers to a folder without `__init__`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["package-dir"] == {"": "."}
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "slth_jax").symlink_to(ROOT, target_is_directory=True)
    code = f"import sys; sys.path.append({str(ROOT)!r}); import slth_jax; slth_jax.attention.apply"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "parent", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
