"""The command line as a user meets it: lists, extras that are missing, and one line a mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import folder, machine, measure, options, registry
from experiments.__main__ import main
from experiments.paper import hidden_dim
from slth_jax import storage

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "widths=4,8", "--seeds", "2", "--set", "epochs=1", "--quiet"]

# Runs command lines in a Python without the packages of the extra `experiments`.
WITHOUT_EXTRAS = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('matplotlib', 'tiktoken', 'datasets'):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Blocker())
from experiments.__main__ import main
for line in json.loads(sys.argv[1]):
    try:
        status = main(line)
    except SystemExit as stopped:
        status = stopped.code
    print('status', status)
"""


def without_extras(*lines):
    """Return the statuses of command lines, and all that was printed."""
    command = [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^status (\d)$", done.stdout, re.MULTILINE), done


@pytest.mark.slow
def test_names_help_and_estimates_need_no_extra(tmp_path):
    helps = [[name, "--help"] for name in registry.EXPERIMENTS]
    estimate = ["hidden-dim", "--out", str(tmp_path / "out"), *SMALL, "--dry-run"]
    statuses, done = without_extras(["list"], *helps, estimate)
    assert set(statuses) == {"0"} and not done.stderr, done.stderr
    names, *helped, estimated = done.stdout.split("status 0\n")[:-1]
    assert [line.split()[0] for line in names.splitlines()] == list(registry.EXPERIMENTS)
    for name, printed in zip(registry.EXPERIMENTS, helped, strict=True):
        assert f"\n{name}: " in printed and "presets (--preset NAME" in printed
    assert "on this machine" in estimated


def test_a_run_says_how_to_get_its_extra(tmp_path):
    statuses, done = without_extras(["hidden-dim", "--out", str(tmp_path / "out")])
    assert statuses == ["2"]
    assert done.stderr == (
        'error: hidden-dim needs matplotlib: pip install "slth-jax[experiments]"\n'
    )
    assert not (tmp_path / "out").exists()


MISTAKES = [
    (["nothing"], r"experiment must be one of 'hidden-dim'"),
    (["hidden-dim", "--preset", "huge"], "preset must be one of 'quick', 'paper'"),
    (["hidden-dim", "--set", "wide=4"], "option must be one of 'seeds', 'widths'"),
    (["hidden-dim", "--set", "widths=four"], "option widths must be of type int, got 'four'"),
    (["hidden-dim", "--set", "widths"], "--set must be of the form option=value, got 'widths'"),
    (["hidden-dim", "--seeds", "0"], "seeds must be an integer >= 1, got 0"),
    (["hidden-dim", "--devices", "0"], "--devices must be an integer >= 1, got 0"),
    (["hidden-dim", "--set", "widths=1,8"], "widths must be an integer >= 2, got 1"),
    (["hidden-dim", "--set", "sources=gauss"], "sources must be one of 'theory', 'xavier'"),
    (["hidden-dim", "--set", "construction=best"], "construction must be one of 'proof', 'reach'"),
    (["trained-target", "--weights", "none.npz"], "weights must be a NumPy archive (.npz)"),
    (["hidden-dim", "--out", "/proc/results"], "cannot make the folder /proc/results"),
    (["hidden-dim", "--out", __file__], "--out must be a folder, got a file"),
    (["hidden-dim", "--out", str(Path(__file__).parent)], "is not a run's folder"),
]


@pytest.mark.parametrize("arguments, message", MISTAKES)
def test_mistakes_get_one_line_and_leave_nothing(arguments, message, tmp_path, capsys):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    assert main([*arguments, *out, "--quiet"]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_result_refuses_nothing_later(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def fails(*_):
        raise ValueError("the trial fails")

    with monkeypatch.context() as patched:
        patched.setattr(hidden_dim, "make_trial", lambda *_: fails)
        assert main(["hidden-dim", "--out", str(out), *SMALL]) == 2
    assert not (out / "config.json").exists()
    assert main(["hidden-dim", "--out", str(out), *SMALL, "--set", "length=5"]) == 0
    assert json.loads((out / "config.json").read_text())["options"]["length"] == 5


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    config = options.configure(registry.load("hidden-dim").PRESETS, "quick", {}, None)
    with (
        folder.open(str(tmp_path / "run"), "hidden-dim", config),
        pytest.raises(storage.Locked, match="in use"),
        folder.open(str(tmp_path / "run"), "hidden-dim", config),
    ):
        pass


def test_a_sweep_of_an_experiment_has_plain_values_where_it_asks(tmp_path):
    def trial(key, hparams):
        shape = (hparams["length"],)  # a traced value is no shape
        return {"error": jax.random.uniform(key, shape).mean() * hparams["scale"]}

    config = options.configure(registry.load("hidden-dim").PRESETS, "quick", {}, 2)
    grid = {"length": (2, 3), "scale": (0.5, 1.0)}
    planned = folder.Sweep("trials", trial, grid, padded=(), static=("length",))
    with folder.open(str(tmp_path / "run"), "hidden-dim", config, quiet=True) as run:
        rows = run.sweep(planned).rows
    assert len(rows) == 8 and {row["length"] for row in rows} == {2, 3}


def test_rows_are_averaged_by_setting():
    rows = [
        {"width": 4, "seed": 0, "error": 1.0, "hits": 1, "bound": 9.0},
        {"width": 4, "seed": 1, "error": 3.0, "hits": 2},
        {"width": 8, "seed": 0, "error": float("nan"), "hits": 3},
    ]
    four, eight = measure.summarize(
        rows, ("width",), hits=("hits", sum), bound=("bound", measure.first)
    )
    assert four == {
        "width": 4, "mean": 2.0, "std": pytest.approx(2**0.5), "median": 2.0, "count": 2,
        "low": pytest.approx(1.2), "high": pytest.approx(2.8), "hits": 3, "bound": 9.0,
    }  # fmt: skip
    assert eight["not_finite"] == 1 and eight["count"] == 1 and "bound" not in eight


def test_paired_differences_are_those_of_the_t_test():
    rng = np.random.default_rng(3)
    loss = rng.normal(size=(2, 7)) + np.array([[0.0], [0.5]])
    rows = [
        {"scale": scale, "seed": seed, "loss": loss[index, seed]}
        for index, scale in enumerate((1.0, 2.0))
        for seed in range(7 if scale == 1.0 else 6)  # a seed without partner is left out
    ]
    comparison = measure.paired(rows, "scale", 2.0, 1.0)
    difference = loss[1, :6] - loss[0, :6]
    half = 2.570582 * difference.std(ddof=1) / np.sqrt(6)  # Student's t, 5 degrees, 97.5 %
    assert comparison["count"] == 6
    assert comparison["below"] == (difference < 0).sum()
    assert comparison["difference"] == pytest.approx(difference.mean())
    assert comparison["low"] == pytest.approx(difference.mean() - half, rel=1e-5)
    assert comparison["high"] == pytest.approx(difference.mean() + half, rel=1e-5)


def run_command(*arguments, stdout=subprocess.PIPE, **environment):
    """Run a command line in a process of its own; return it finished."""
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, **environment},
    )


def test_a_standard_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = run_command("list", stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the standard output: No space left on device\n"
    closed = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m experiments list >&-"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert closed.returncode == 0 and not closed.stderr


def test_help_names_statuses_and_variables_on_any_terminal():
    done = run_command("--help", PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0 and not done.stderr
    for words in ("143", "preempted", "75", "SLTH_TRACEBACK", "JAX_NUM_CPU_DEVICES", "--config"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("pod", "distributed must be 'on', 'off', 'auto' or 'HOST:PORT,I/N' with 0 <= I < N"),
        ("host:80,2/2", "got 'host:80,2/2'"),
        ("host,0/2", "got 'host,0/2'"),
    ],
)
def test_processes_that_cannot_be_joined_are_one_line(how, words, tmp_path, capsys):
    line = ["hidden-dim", "--out", str(tmp_path / "out"), *SMALL, "--distributed", how]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Return the folder of a finished run."""
    out = tmp_path_factory.mktemp("small") / "run"
    assert main(["hidden-dim", "--out", str(out), *SMALL]) == 0
    return out


@pytest.mark.slow
def test_a_run_is_repeated_from_its_configuration(small_run, tmp_path, capsys):
    again, config = tmp_path / "again", str(small_run / "config.json")
    assert main(["--config", config, "--out", str(again), "--quiet"]) == 0
    assert (again / "rows.jsonl").read_bytes() == (small_run / "rows.jsonl").read_bytes()
    capsys.readouterr()
    for line, words in (
        (["blocks", "--config", config], "NAME must be that of --config, 'hidden-dim'"),
        (["--config", str(small_run / "summary.json"), "--set", "x=1"], "option must be one of"),
        (["--config", str(small_run / "rows.jsonl")], "is damaged: not JSON"),
        (["--config", str(tmp_path / "none")], "cannot read"),
        ([], "NAME must be an experiment"),
    ):
        assert main(line) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        if "x=1" not in line:
            assert words in said


def test_changed_results_of_a_finished_run_are_noticed(
    small_run, tmp_path, capsys, caplog, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # the report is written to the working directory
    run = shutil.copytree(small_run, tmp_path / "run")
    rows = run / "rows.jsonl"
    good = rows.read_bytes()
    rows.write_bytes(good.replace(b"0", b"1", 1))
    assert main(["report", str(run)]) == 2
    assert "rows.jsonl is damaged: its checksum does not match" in capsys.readouterr().err
    assert main(["hidden-dim", "--out", str(run), *SMALL]) == 0  # from the checkpoints
    assert rows.read_bytes() == good and "written again from the checkpoints" in caplog.text
    assert main(["report", str(run)]) == 0


@pytest.mark.slow
def test_without_a_terminal_progress_is_lines_with_the_time(tmp_path):
    done = run_command("hidden-dim", "--out", str(tmp_path / "run"), *SMALL[:-1])
    assert done.returncode == 0, done.stderr
    first, *more = done.stderr.splitlines()
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    assert re.match(stamp + r"hidden-dim: slth_jax .*process 0 of 1 on .*\(new\)$", first)
    assert all(re.match(stamp, line) for line in more) and "of 4" in more[-1]


@pytest.mark.slow
def test_the_number_of_shards_is_said_once(tmp_path, capsys):
    line = ["hidden-dim", "--out", str(tmp_path / "run"), *SMALL]
    assert main([*line, "--shard", "1"]) == 2
    assert "no shard has recorded n" in capsys.readouterr().err
    assert main([*line, "--shard", "1/2"]) == 0
    assert "shard 1/2 is done" in capsys.readouterr().out
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main([*line, "--shard", "0"]) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_an_estimate_runs_one_sweep_of_each_kind():
    """A further sweep of a kind adds time by its work, and is not compiled."""
    traced = []

    def planned(name, **options):
        def trial(key, hparams):
            traced.append(name)
            return {"error": jax.random.uniform(key) * hparams["width"]}

        return folder.Sweep(name, trial, grid={"width": (2, 3)}, padded=(), **options)

    sweeps = [planned("small", kind="a"), planned("large", kind="a", work=4.0), planned("other")]
    text = machine.cost(sweeps, seeds=2)
    assert set(traced) == {"large", "other"}
    assert re.search(r"large: 4 trials at .* ms, compiling .* s; 1 more by their work\n", text)
    assert re.search(r"other: 4 trials at .* ms, compiling .* s\n  about ", text)
