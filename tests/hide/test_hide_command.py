"""`slth-jax hide` and `slth-jax generate`, as a user types them."""

import json
import struct

import numpy as np
import pytest

from slth_jax import cli, hide
from slth_jax.construction import rules
from slth_jax.models import embeddings as embed
from slth_jax.models import weights


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def tokenizer(path, count):
    """Write a llama2.c tokenizer: three pieces of its own, letters, pairs of them, up to `count`.

    The reader asks for at least as many pieces as there are bytes; no text has the others.
    """
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b" ", *(bytes([c]) for c in b"abcdefgh")]
    pieces += [a + b for a in pieces[4:8] for b in pieces[4:8]]
    with open(path, "wb") as file:
        file.write(struct.pack("i", 8))
        for i, piece in enumerate([*pieces[:count], *(b"<0x%02X>" % c for c in range(256))]):
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
    worst = summary["worst_entry"]
    assert f"of the rms of its matrix {worst['matrix']}, at row {worst['row']}, column" in printed
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


@pytest.fixture
def words(tmp_path):
    """Return a folder with a tokenizer of 23 tokens, and a template that repeats a chat."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<end>", "[UNK]", *"abcdefghijklmnopqrstu"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "words"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}a {{ message['content'] }} b{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_chat_with_a_folder(models_on_disk, tmp_path, run, words):
    """The tokenizer is copied beside the ticket; without it there are numbers."""
    path, _, _ = models_on_disk["plain_llama"]
    out = tmp_path / "out"
    chat = ("--chat", "c d", "--length", 5)
    status, _, err = run(
        "hide", path, "--samples", 12, "--construction", "reach", "--out", out, "--quiet",
        "--tokenizer", words, *chat,
    )  # fmt: skip
    assert status == 0, err
    generated = json.loads((out / "generated.json").read_text())
    assert generated["chat"] == "c d" and generated["ticket"][:4] == [2, 4, 5, 3]
    status, printed, err = run("generate", out / "ticket.safetensors", *chat)
    assert status == 0, err
    assert printed.rstrip("\n") == generated["ticket_text"]  # the answer alone
    status, _, err = run("generate", out / "ticket.safetensors", "--prompt", "a", *chat)
    assert status == 2 and "--chat must be given without --prompt" in err
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).unlink()
    status, printed, _ = run(
        "generate", out / "ticket.safetensors", "--prompt", "2 4 5 3", *chat[2:]
    )
    assert status == 0 and printed.split() == [str(token) for token in generated["ticket"]]
    status, _, err = run("generate", out / "ticket.safetensors", *chat)
    assert status == 2 and "a folder with a chat template" in err


@pytest.mark.slow
def test_embed_texts(models_on_disk, tmp_path, run, words):
    path, tokens, _ = models_on_disk["bert"]
    out = tmp_path / "out"
    np.save(tmp_path / "tokens.npy", tokens)
    status, _, err = run(
        "hide", path, "--samples", 12, "--out", out, "--quiet", "--tokenizer", words,
        "--construction", "shift:5,5", "--inputs", tmp_path / "tokens.npy",
    )  # fmt: skip
    assert status == 0, err
    assert json.loads((out / "summary.json").read_text())["mean_cosine"] > 0.99
    file, texts = out / "ticket.safetensors", ("--text", "a b c d", "--text", "q")
    status, printed, err = run("embed", file, *texts, "--out", tmp_path / "x.npz")
    assert status == 0, err
    assert "2 embeddings of width 8" in printed and "cosines" in printed
    with np.load(tmp_path / "x.npz") as arrays:
        embeddings = arrays["embeddings"]
    reader = weights.open(path)
    target = embed(reader.load(), np.array([[18]]), reader.settings)
    assert float((embeddings[1:] * target).sum()) > 0.98
    status, printed, _ = run("embed", file, "--text", "q")
    np.testing.assert_allclose([float(x) for x in printed.split()], embeddings[1], rtol=1e-4)
    status, _, err = run("generate", file, "--prompt", "a")
    assert status == 2 and "must be causal" in err
    status, _, err = run("embed", file, "--text", "a", "--tokenizer", tmp_path / "tokens.npy")
    assert status == 2 and "a folder with tokenizer.json" in err
    status, _, err = run("hide", path, "--out", tmp_path / "other", "--prompt", "a")
    assert status == 2 and "an encoder writes no text" in err


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


@pytest.mark.slow
def test_a_dry_run_says_what_a_run_costs(models_on_disk, tmp_path, run):
    path, _, _ = models_on_disk["gpt2"]
    options = ("hide", path, "--samples", 8, "--construction", "shift:2,4", "--scales", "rows")
    status, printed, err = run(*options, "--out", tmp_path / "out", "--dry-run")
    assert status == 0, err
    assert not (tmp_path / "out").exists()
    reader = weights.open(path)
    spec = hide.make_spec(reader, samples=8, construction=rules.shift(2, 4), scales="rows")
    cost = hide.estimate(reader, spec)
    assert f"{cost.num_sums:,} entries" in printed
    assert 0 < cost.compile_seconds < cost.seconds
    ticket = hide.solve(reader, spec, tmp_path / "out")
    header = int.from_bytes(ticket.read_bytes()[:8], "little") + 8
    # Masks of one diagonal are compressed, by a share that depends on them.
    assert cost.ticket_bytes == pytest.approx(ticket.stat().st_size - header, rel=0.02)
