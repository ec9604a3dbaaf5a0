"""Hide all weights of a published sentence encoder or chat model; compare ticket and model.

``python -m experiments.benchmarks.real_models minilm FOLDER`` hides a BERT encoder. The command
compares the sentence embeddings that the encoder and its ticket compute for lines of WikiText-2.
The measures are the cosines of the embeddings and the nearest neighbours of queries.

``python -m experiments.benchmarks.real_models chat FOLDER`` hides a Llama with a chat template. The
command compares the Llama with its ticket: top-1 tokens and perplexity on WikiText-2, and the
answers to ten questions. With ``--kill SECONDS`` the run is killed once by SIGKILL and then
resumed. With ``--bits B`` the masks have B bits per weight, instead of a bit per sample of a subset
sum.

The text is ``$SLTH_DATA/wikitext-2/valid.txt``. Results are written to
``experiments/benchmarks/results``.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import machine
from slth_jax import hide, models

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue? Answer in one sentence.",
    "List three fruits.",
    "Write a short poem about the sea.",
    "What is 7 plus 5?",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "Translate 'good morning' into Spanish.",
    "Explain gravity to a child.",
    "Name two planets.",
)
ANSWER = 48  # the number of tokens of an answer that are compared
SENTENCES, QUERIES = 1000, 100
ROWS, LENGTH = 4, 512  # numbers of sequences of WikiText-2 and of tokens per sequence


def solve(options: argparse.Namespace) -> dict[str, Any]:
    """Run `slth-jax hide` (kill and resume it once if ``--kill`` is given); return a summary."""
    command = [
        sys.executable, "-m", "slth_jax", "hide", options.model, "--out", options.out,
        "--samples", str(options.samples), "--seed", str(options.seed),
    ]  # fmt: skip
    for name in ("construction", "scales", "bits", "states"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    started, killed = time.perf_counter(), None
    if options.kill:
        with subprocess.Popen(command) as process:
            try:
                process.wait(timeout=options.kill)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed = round(time.perf_counter() - started, 1)
    subprocess.run(command, check=True)
    summary = json.loads((Path(options.out) / "summary.json").read_text())
    # The time is the sum over the saved pieces, so it excludes the start of the second process.
    return {
        **{
            name: summary[name]
            for name in (
                "samples", "seed", "construction", "shift_units", "columns", "bands", "attention",
                "shared_embedding", "num_sums", "random_weights", "numbers", "out_of_reach",
                "solve_seconds", "peak_bytes", "ticket_bytes", "target_bytes", "bits_per_weight",
                "versions",
            )
        },
        "seconds": round(time.perf_counter() - started, 1),
        # Processor time of all threads; on a shared machine it is more reliable than wall-clock
        # time.
        "cpu_seconds": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, 1),
        "killed_after": killed,
        "relative_error": relative_error(summary["parts"]),
    }  # fmt: skip


def relative_error(parts: dict[str, Any]) -> dict[str, float]:
    """Return the least, the median and the largest relative error of a ticket's hidden matrices."""
    errors = [part["relative_error"] for part in parts.values()]
    return {"least": min(errors), "median": float(np.median(errors)), "largest": max(errors)}


def minilm(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the sentence embeddings that a BERT encoder and its ticket compute."""
    reader = models.weights.open(options.model)
    sentences = models.tokens.Sentences(Path(reader.path), reader.settings.max_length)
    texts = [line.strip() for line in wikitext() if len(line.split()) > 5][:SENTENCES]
    tokens, kept = sentences.batch(texts)
    embeddings = [
        hide.embeddings(
            model, tokens, kept=kept, pooling=sentences.pooling, normalise=sentences.normalise
        ).astype(np.float64)
        for model in (hide.of_target(reader), hide.of_ticket(ticket(options)))
    ]
    target, ours = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in embeddings)
    cosines = np.sum(target * ours, axis=1)
    nearest = [neighbours(rows) for rows in (target, ours)]
    return {
        "sentences": len(texts),
        "mean_cosine": float(cosines.mean()),
        "least_cosine": float(cosines.min()),
        "queries": QUERIES,
        "equal_nearest": int(np.sum(nearest[0] == nearest[1])),
        "nearest_in_first_five": int(np.sum(nearest[0][:, None] == first_five(ours))),
    }


def neighbours(rows: np.ndarray) -> np.ndarray:
    """Return, for each query, the index of the nearest other sentence."""
    return first_five(rows)[:, 0]


def first_five(rows: np.ndarray) -> np.ndarray:
    """Return, for each query, the indices of the five nearest other sentences."""
    cosines = rows[:QUERIES] @ rows.T
    cosines[np.arange(QUERIES), np.arange(QUERIES)] = -np.inf
    return np.argsort(-cosines, axis=1, kind="stable")[:, :5]


def chat(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the logits, the perplexity and the answers of a chat model and its ticket."""
    reader = models.weights.open(options.model)
    tokenizer = models.tokens.open_tokenizer(options.tokenizer or reader.path)
    assert isinstance(tokenizer, models.tokens.FolderTokenizer)
    text = "".join(wikitext())[:40_000]
    tokens = np.asarray(tokenizer.encode(text)[: ROWS * LENGTH]).reshape(ROWS, LENGTH)
    target, ours = hide.of_target(reader), hide.of_ticket(ticket(options))
    measured = hide.measures(hide.logits(target, tokens), hide.logits(ours, tokens), tokens)
    answers: list[dict[str, Any]] = []
    both = [model.load() for model in (target, ours)]
    for question in QUESTIONS[: options.questions]:
        prompt = tokenizer.chat(question)
        first, second = (
            models.generate(params, model.settings, prompt, ANSWER, stop=tokenizer.stop)
            for params, model in zip(both, (target, ours), strict=True)
        )
        equal = hide.equal_tokens(first, second) - len(prompt)
        answers.append(
            {
                "question": question,
                "equal_tokens": equal,
                "equal": first == second,
                "target": tokenizer.decode(first[len(prompt) :]),
                "ticket": tokenizer.decode(second[len(prompt) :]),
            }
        )
        print(json.dumps(answers[-1], indent=1), flush=True)
    return measured | {
        "tokens": tokens.size,
        "equal_answers": sum(answer["equal"] for answer in answers),
        "answers": answers,
    }


def ticket(options: argparse.Namespace) -> Path:
    """Return the path of the ticket file that `solve` writes."""
    return Path(options.out) / "ticket.safetensors"


def wikitext() -> list[str]:
    """Return the lines of WikiText-2's validation text."""
    path = Path(os.environ["SLTH_DATA"]) / "wikitext-2" / "valid.txt"
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


MODELS = {"minilm": minilm, "chat": chat}


def main() -> None:
    """Hide the model, compare target and ticket, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=MODELS)
    parser.add_argument("model", help="a folder of the model, or a .gguf")
    parser.add_argument("--tokenizer", help="a folder with the tokenizer of a .gguf")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--construction", help="a rule that replaces the default rule")
    parser.add_argument("--scales", help="see `slth-jax hide --scales`")
    parser.add_argument("--bits", help="mask bits per weight, see `slth-jax hide --bits`")
    parser.add_argument(
        "--states", type=int, help="with --bits: log2 of the number of states in the search"
    )
    parser.add_argument(
        "--questions",
        type=int,
        default=len(QUESTIONS),
        help="the number of questions that a chat model answers",
    )
    parser.add_argument(
        "--kill", type=float, help="kill the run after this many seconds, then resume"
    )
    parser.add_argument("--out", help="folder of the run (default: results/KIND)")
    parser.add_argument("--note", default="", help="a remark on the machine, such as 'shared'")
    options = parser.parse_args()
    options.out = options.out or f"results/{options.kind}"
    result = {"command": " ".join(sys.argv[1:]), **machine.report(), "note": options.note}
    result |= {"hide": solve(options), "compare": MODELS[options.kind](options)}
    variant = "_bits" if options.bits else f"_{options.scales}" if options.scales else ""
    path = Path(__file__).with_name("results") / f"real_{options.kind}{variant}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({name: result[name] for name in ("hide", "compare")}, indent=1))


if __name__ == "__main__":
    main()
