"""`--dry-run --on MACHINE` of the commands, against the programs that the runs would compile."""

import jax
import pytest
from machines_at_hand import skip_without

from experiments import __main__ as experiments
from experiments.language import comparison, training
from experiments.language.job import Run
from slth_jax import cli, machines, models

ON = "v5e:2x2"


def lines_with(text, words):
    return [line for line in text.splitlines() if words in line]


def test_language_names_the_memory_of_its_training(capsys):
    skip_without(ON)
    options = ["--set", "methods=scaled", "--set", "seeds=4", "--set", "chunk=2"]
    arguments = ["language", "--preset", "tiny", *options, "--dry-run", "--on", ON]
    assert experiments.main(arguments) == 0
    printed = capsys.readouterr().out
    job = comparison.Config(chunk=2).job("tiny")
    runs = [Run("scaled", seed, 1.0, 0.3, 1e-2) for seed in range(4)]
    report = machines.compile_for(ON, lambda devices: training.trace(devices, job, runs))
    (line,) = lines_with(printed, "per chip (")
    assert float(line.split()[0]) == pytest.approx(report.memory / 2**30, abs=0.006)
    assert "100 calls of one program of 2 steps" in printed
    # Runs are independent, but every process reads the losses of all, and masks are found by
    # counting until those of all runs are.
    assert report.collectives.keys() <= {"scalar", "all-reduce"}
    assert report.collectives.get("all-reduce", 0) <= 1
    # Scores, their two moments and the weights of one run, and its batches.
    size = 4 * job.model.num_parameters
    assert 3 * size < report.arguments < 6 * size


def test_hide_names_its_programs(tmp_path, capsys):
    skip_without(ON)
    settings = models.make_settings(
        num_blocks=2, width=16, num_heads=2, vocab_size=32, max_length=8, activation="gelu"
    )
    params = models.initialise(jax.random.key(0), settings, models.Initial(sd=0.2))
    models.weights.save(tmp_path / "model", params, settings)
    arguments = ["hide", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--samples", "8"]
    assert cli.main([*arguments, "--construction", "proof", "--dry-run", "--on", ON]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    programs = lines_with(printed, "calls of one program")
    assert programs and len(lines_with(printed, "per chip (")) == len(programs)
    assert lines_with(printed, f"{len(programs)} programs for {ON}")
    assert "does not fit" not in printed
