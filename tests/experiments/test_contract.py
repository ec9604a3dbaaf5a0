"""Every experiment at its smallest: its files, its continuation, its refusals."""

import functools
import json
import types

import jax
import numpy as np
import pytest
from cells import cells

from experiments import options, registry
from experiments.__main__ import main

THEORY = ("epochs=1", "test_sequences=2")
LANGUAGE = ("steps=4", "chunk=2", "warmup=1", "rows=8", "length=16", "eval_rows=8")
SMALLEST = {
    "hidden-dim": (*THEORY, "widths=4,8,12", "targets=1"),
    "input-length": (*THEORY, "widths=8", "lengths=4,8,16", "targets=1"),
    "blocks": ("test_sequences=2", "widths=8,16,24", "max_blocks=2"),
    "bounds": ("rules=proof", "dims=2", "heads=1", "units=4", "depths=1,2"),
    "trained-target": ("attention_units=2,3", "relu_units=4"),
    "width-law": ("shapes=2x1", "units=2,4", "sequences=1", "tokens=2", "constructions=proof"),
    "language": (*LANGUAGE, "models=tiny", "widths=0.5", "methods=ticket,scaled,dense"),
    "weight-scale": (*LANGUAGE, "scales=1,2"),
}
FIGURES = {name: name.replace("-", "_") for name in SMALLEST}
# The column and values that order the rows of trained tickets.
TRAINED = {"language": ("method", ["ticket", "scaled", "dense"]), "weight-scale": ("scale", [1, 2])}

# A plain sweep shows the properties that every experiment must have.
every = pytest.mark.parametrize("name", cells(SMALLEST, fast=("hidden-dim",)))
few = pytest.mark.parametrize("name", cells(SMALLEST, fast=("hidden-dim",)))


@pytest.fixture(scope="module")
def sets_of(tmp_path_factory, text_folder, small_network):
    """Return the options of each experiment, the small data among them."""
    text = (f"data={text_folder}", f"cache={tmp_path_factory.mktemp('cache')}")
    more = {"trained-target": (f"weights={small_network[1][0]}",)}
    more |= {"language": text, "weight-scale": text}
    return {
        name: [word for option in (*sets, *more.get(name, ())) for word in ("--set", option)]
        for name, sets in SMALLEST.items()
    }


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, sets_of):
    """Return a function that runs an experiment once and returns its folder and arguments."""

    @functools.cache
    def run(name):
        out = tmp_path_factory.mktemp("runs") / name
        arguments = [name, "--out", str(out), "--seeds", "2", "--quiet", *sets_of[name]]
        assert main(arguments) == 0
        jax.config.update("jax_enable_x64", False)
        return types.SimpleNamespace(out=out, arguments=arguments)

    return run


@every
def test_it_leaves_everything_behind(name, run_of):
    run = run_of(name)
    left = {path.name for path in run.out.iterdir()}
    figures = {f"{FIGURES[name]}.png", f"{FIGURES[name]}.svg"}
    assert {"config.json", "rows.jsonl", "summary.json", "checkpoints"} | figures <= left
    summary = json.loads((run.out / "summary.json").read_text())
    assert {"rows", "paper", "seconds", "versions", "device", "experiment"} <= summary.keys()
    assert summary["experiment"] == name
    for row in summary["rows"]:
        assert row["count"] == 2 and {"mean", "std"} <= row.keys()
    rows = [json.loads(line) for line in (run.out / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(summary["rows"]) and {row["seed"] for row in rows} == {0, 1}
    config = json.loads((run.out / "config.json").read_text())
    assert config["experiment"] == name and config["options"]["seeds"] == 2
    if name not in TRAINED:
        return
    by, expected = TRAINED[name]
    assert [row[by] for row in summary["rows"]] == expected
    for row in summary["rows"]:
        losses = [entry["loss"] for entry in rows if entry[by] == row[by]]
        assert row["mean"] == pytest.approx(np.mean(losses))
        assert row["std"] == pytest.approx(np.std(losses, ddof=1))
    assert "curves.png" in left
    assert len(list((run.out / "tickets").glob("*.ticket.safetensors"))) == 4
    logs = [path.read_text() for path in (run.out / "logs").iterdir()]
    logged = [line for text in logs for line in text.splitlines()]
    assert {json.loads(line)["step"] for line in logged} == {0, 2, 4}


@every
def test_a_finished_run_says_so_and_computes_nothing(name, run_of, capsys, monkeypatch):
    run = run_of(name)
    monkeypatch.setattr(registry.load(name), "run", None)
    before = {path: path.read_bytes() for path in run.out.rglob("*") if path.is_file()}
    assert main(run.arguments) == 0
    assert "finished before" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in run.out.rglob("*") if path.is_file()}


@few
def test_without_its_summary_it_is_made_again_from_what_was_computed(name, run_of):
    run = run_of(name)
    before = (run.out / "rows.jsonl").read_bytes()
    chunks = {path: path.stat().st_mtime_ns for path in run.out.glob("checkpoints/**/chunks/*")}
    (run.out / "summary.json").unlink()
    assert main(run.arguments) == 0
    assert (run.out / "summary.json").exists()
    assert (run.out / "rows.jsonl").read_bytes() == before
    for path, time in chunks.items():
        assert path.stat().st_mtime_ns == time, f"{path} was computed again"


@every
def test_another_configuration_and_fewer_seeds_are_refused(name, run_of, capsys):
    run = run_of(name)
    before = (run.out / "summary.json").read_bytes()
    assert main([*run.arguments, "--seeds", "1"]) == 2
    assert "holds another run: options.seeds is 2 there and 1 here" in capsys.readouterr().err
    assert main([*run.arguments, "--no-resume"]) == 2
    assert "holds results already" in capsys.readouterr().err
    assert (run.out / "summary.json").read_bytes() == before


@every
def test_bad_options_are_one_line_and_leave_nothing(name, tmp_path, capsys):
    out = tmp_path / "out"
    for option in ("nothing=1", "seeds=0", "seeds=x"):
        assert main([name, "--out", str(out), "--set", option]) == 2
        said = capsys.readouterr()
        assert option.split("=")[0] in said.err and said.err.count("\n") == 1 and not said.out
        assert not (out / "config.json").exists()


@every
def test_every_option_says_what_it_means(name, capsys):
    module = registry.load(name)
    config = module.PRESETS["quick"]
    meanings = options.meanings(type(config))
    assert all(meanings.get(option) for option in vars(config)), meanings
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    notes = registry.EXPERIMENTS[name].presets
    assert notes.keys() == module.PRESETS.keys()
    for word in (*notes, *notes.values(), *(f"{option}=" for option in vars(config))):
        assert word in printed


@few
def test_a_dry_run_states_time_and_memory_here_and_leaves_nothing(name, sets_of, tmp_path, capsys):
    arguments = [name, "--out", str(tmp_path / "out"), "--seeds", "2", *sets_of[name]]
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "on this machine" in printed and "estimate" in printed
    assert " s " in printed or "minutes" in printed
    assert "GiB" in printed or "GB" in printed
    assert not (tmp_path / "out").exists()
