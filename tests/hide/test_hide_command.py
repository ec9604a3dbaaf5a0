"""`slth-jax hide` and `slth-jax generate`, as a user types them."""

import json
import struct

import numpy as np
import pytest

from slth_jax import cli


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def tokenizer(path, count):
    """Write a llama2.c tokenizer of `count` pieces: three of its own, letters, pairs of them."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b" ", *(bytes([c]) for c in b"abcdefgh")]
    pieces += [a + b for a in pieces[4:8] for b in pieces[4:8]]
    with open(path, "wb") as file:
        file.write(struct.pack("i", 8))
        for i, piece in enumerate(pieces[:count]):
            file.write(struct.pack("fi", -float(i), len(piece)) + piece)


def test_hide_compare_generate_show_verify_export(models_on_disk, tmp_path, run):
    path, tokens, _ = models_on_disk["plain_llama"]
    np.save(tmp_path / "tokens.npy", tokens)
    tokenizer(tmp_path / "tok.bin", 23)
    out = tmp_path / "out"
    status, printed, err = run(
        "hide", path, "--samples", 12, "--construction", "reach", "--out", out, "--quiet",
        "--attention", "merged",
        "--inputs", tmp_path / "tokens.npy", "--prompt", "abba", "--length", 6,
        "--tokenizer", tmp_path / "tok.bin",
    )  # fmt: skip
    assert status == 0, err
    assert "ticket: random numbers and masks" in printed and "subset sums" in printed
    summary = json.loads((out / "summary.json").read_text())
    for name in (
        "num_sums", "out_of_reach", "random_weights", "seconds", "peak_bytes", "ticket_bytes",
        "target_bytes", "bits_per_weight", "max_logit_difference", "logit_sd", "top1_agreement",
    ):  # fmt: skip
        assert summary[name] >= 0, name
    assert summary["parts"]["0.qk"]["relative_error"] > 0
    with np.load(out / "logits.npz") as logits:
        difference = abs(logits["target"] - logits["ticket"])
        assert logits["target"].shape == (3, 16, 23)
        assert difference.max() == pytest.approx(summary["max_logit_difference"])
    generated = json.loads((out / "generated.json").read_text())
    assert len(generated["target"]) <= 5 + 6 and generated["target"][0] == 1
    file = out / "ticket.safetensors"
    assert summary["ticket_bytes"] == file.stat().st_size
    assert {p.name for p in out.iterdir()} >= {"config.json", "tokenizer.bin"}
    assert not (out / "parts").exists()

    status, text, _ = run("generate", file, "--prompt", "abba", "--length", 6)
    assert status == 0 and text.rstrip("\n") == generated["ticket_text"]
    assert run("ticket", "verify", file)[0] == 0
    assert "bits per trained weight" in run("ticket", "show", file)[1]
    assert "0.qk" in run("ticket", "show", file)[1]
    status, said, _ = run("ticket", "export", file, "--out", tmp_path / "x.npz")
    assert status == 0 and "no Hugging Face layout" in said
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["h.attn.q"].shape == (1, 8, 2 * 2 * 2 * 8)

    data = file.read_bytes()
    file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    for verb in (("generate", file), ("ticket", "export", file, "--out", tmp_path / "y.npz")):
        status, printed, err = run(*verb)
        assert status == 2 and not printed and "checksum of its masks" in err
    assert not (tmp_path / "y.npz").exists()


def test_bad_input_is_one_line(models_on_disk, tmp_path, run):
    path, tokens, _ = models_on_disk["plain_llama"]
    np.save(tmp_path / "far.npy", tokens + 1)
    np.save(tmp_path / "flat.npy", tokens[0])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "cut.bin").write_bytes(b"\0" * 40)
    (tmp_path / "half").mkdir()
    for name in ("config.json", "model.safetensors"):
        data = (path / name).read_bytes()
        (tmp_path / "half" / name).write_bytes(data if name[0] == "c" else data[:-100])
    out = tmp_path / "out"
    for model, more, words in (
        (tmp_path / "none.bin", (), "No such file"),
        (tmp_path / "cut.bin", (), "no llama2.c model"),
        (tmp_path / "half", (), "damaged"),
        (tmp_path / "bert", (), "model_type must be one of 'bert', 'gpt2', 'llama'"),
        (path, ("--inputs", tmp_path / "far.npy"), "tokens must be in [0, 22]"),
        (path, ("--inputs", tmp_path / "flat.npy"), "integers [batch, length]"),
        (path, ("--inputs", tmp_path / "no.npy"), "cannot read"),
        (path, ("--prompt", "a"), "--prompt must be token numbers"),
        (path, ("--samples", 1), "samples must be"),
        (path, ("--keep", "everything"), "keep must be one of"),
        (path, ("--construction", "shift:x"), "construction must be one of"),
    ):
        status, _, err = run("hide", model, "--out", out, *more)
        assert status == 2 and words in err and err.count("\n") == 1, err
    assert not (out / "ticket.safetensors").exists() and not (out / "config.json").exists()
    status, _, err = run("generate", tmp_path / "none.safetensors")
    assert status == 2 and "cannot read" in err
