"""`hide --distributed` on two processes against `hide` on one."""

import json

import numpy as np
import pytest
from processes import finish, start

from slth_jax import ticket


@pytest.mark.slow
def test_two_processes_write_the_ticket_of_one(models_on_disk, tmp_path):
    path, tokens, _ = models_on_disk["plain_llama"]
    np.save(tmp_path / "tokens.npy", tokens)
    bits = []
    for count in (1, 2):
        out = tmp_path / f"{count}"

        def arguments(index, port, count=count, out=out):
            words = ["-m", "slth_jax", "hide", path, "--samples", 8, "--out", out]
            words += ["--inputs", tmp_path / "tokens.npy", "--devices", 1]
            return words + ["--distributed", f"localhost:{port},{index}/{count}"] * (count > 1)

        statuses, texts = finish(start(arguments, count, devices=1), 280)
        assert statuses == [0] * count, texts
        assert "subset sums of 8 samples" in texts[0][0]
        first, *lines = texts[0][1].splitlines()
        assert f"process 0 of {count} on" in first and "(new)" in first
        assert any("subset sums" in line for line in lines)
        for printed, error in texts[1:]:  # the first process alone reports
            assert "ticket" not in printed and "subset sums" not in error
        summary = json.loads((out / "summary.json").read_text())
        assert summary["top1_agreement"] >= 0 and not (out / "parts").exists()
        bits.append(ticket.load(out / "ticket.safetensors").bits)
    assert bits[0].keys() == bits[1].keys()
    for name in bits[0]:
        np.testing.assert_array_equal(bits[0][name], bits[1][name])


def test_a_shard_of_several_processes_is_refused(models_on_disk, tmp_path, monkeypatch, capsys):
    import jax

    from slth_jax import cli

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    path, *_ = models_on_disk["plain_llama"]
    arguments = ["hide", str(path), "--out", str(tmp_path / "out"), "--shard", "0/2"]
    assert cli.main(arguments) == 2
    line = "error: --shard must be absent in a run of 2 processes, got 0/2"
    assert capsys.readouterr().err.splitlines()[-1] == line
