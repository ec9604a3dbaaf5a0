"""Generate the parts of the README and of docs/results.md that contain numbers."""

from typing import Any

from experiments.pages.blocks import g, interval, pick, pm, read, table, wrapped

WEIGHTS = 260_032  # trained weights of stories260K


def _seconds(name: str) -> str:
    return f"{read(name)['seconds']:.0f} s"


def readme_figure_4() -> str:
    """Return the README's paragraph on figure 4."""
    run = read("hidden_dim")
    drawn, trained = run["fit_drawn"], run["fit"]
    other = read("hidden_dim_other_targets")["fit_drawn"]
    return wrapped(
        f"This is figure 4 of the paper, with 100 random sources per width. The wider the random "
        f"layer, the smaller the error of the constructed subnetwork, until only rounding errors "
        f"remain. For {drawn['targets']} "
        f"targets drawn from the theory's distribution the mean error at width n follows "
        f"{drawn['gamma']:.2f} exp(-{drawn['delta']:.3f} n). For {other['targets']} other targets "
        f"from this distribution it follows {other['gamma']:.2f} exp(-{other['delta']:.3f} n). The "
        f"paper's fit is 0.8 exp(-0.06 n). A trained target "
        f"({trained['gamma']:.2f} exp(-{trained['delta']:.3f} n)) is easier to "
        f"approximate: its task can hardly be learned, so training makes its weights small."
    )


def readme_claims() -> str:
    """Return the README's table of statements that the library claims and does not claim."""
    row = pick(read("hide_stories")["rows"], samples=20, attention="factored")
    bits = 8 * row["ticket_bytes"] / WEIGHTS
    rows = [
        (
            "No weight of a constructed ticket was trained.",
            f"That a ticket contains no trained information, or that a ticket is small. "
            f"stories260K ({WEIGHTS:,} "
            f"weights of 32 bits) becomes a file of {row['ticket_bytes'] / 1e6:.2f} MB, which is "
            f"{bits:.0f} bits of masks and scales per trained weight. Each scale is derived from the "
            f"largest entry of a matrix, and for each row 4 bits select one of 16 random rows.",
        ),
        (
            "A ticket approximates its target with high probability; each ticket's error is measured "
            "or bounded.",
            "That a ticket equals its target; that a given ticket has a known probability of success.",
        ),
        (
            "The error of a given ticket is bounded, for every input whose rows have at most a given "
            "norm, or for given inputs only. The bounds include round-off.",
            "That the bounds are always useful: for deep or trained networks the bounds are often "
            "larger than the outputs.",
        ),
        (
            "The measured law: one hidden unit per input coordinate for every bit of precision, on "
            "average over random targets, near the measured shapes.",
            "A law for the worst target, or outside the measured range.",
        ),
        (
            "Learned masks are reproduced bit for bit on one kind of device and one jax release.",
            "The paper's figures 7 and 8 at full size: only small versions were run.",
        ),
    ]
    return table(("claimed", "not claimed"), rows)


def figures_4_to_6() -> str:
    """Return the table that compares figures 4 to 6 with the paper."""
    four, five, six = (read(name) for name in ("hidden_dim", "input_length", "blocks"))
    drawn, trained, single = four["fit_drawn"], four["fit"], four["fit_drawn"]["single"]
    widest = max(row["width"] for row in four["rows"])
    last = {
        kind: pick(four["rows"], target=kind, source="theory", width=widest)["mean"]
        for kind in ("drawn", "trained")
    }
    rates = [six["fit"]["blocks"][b]["own_delta"] for b in six["fit"]["blocks"]]
    longest = max(row["length"] for row in five["rows"])
    narrow, wide = sorted({row["width"] for row in five["rows"]})
    rows = [
        (
            f"figure 4, {drawn['targets']} drawn targets: fit of `gamma exp(-delta n)` to the means",
            f"gamma {pm(drawn['gamma'], drawn['gamma_se'])}, delta "
            f"{pm(drawn['delta'], drawn['delta_se'], 3)}",
            "0.8, 0.06",
        ),
        (
            "figure 4, single drawn targets, 10 to 90 %",
            f"gamma {interval(single['gamma']['10 %'], single['gamma']['90 %'])}, delta "
            f"{interval(single['delta']['10 %'], single['delta']['90 %'], 3)}",
            "0.8, 0.06",
        ),
        (
            "figure 4, trained target",
            f"gamma {pm(trained['gamma'], trained['gamma_se'])}, delta "
            f"{pm(trained['delta'], trained['delta_se'], 3)}",
            "0.8, 0.06",
        ),
        (
            f"figure 4, mean error at n = {widest}, drawn / trained",
            f"{g(last['drawn'])} / {g(last['trained'])}",
            "2e-3 by its fit",
        ),
        *(
            (
                f"figure 5, mean error at T = {longest:,}, n = {narrow} / {wide}, {kind}",
                " / ".join(
                    g(pick(five["rows"], target=kind, width=n, length=longest)["mean"])
                    for n in (narrow, wide)
                ),
                "lower for the larger width",
            )
            for kind in ("drawn", "trained")
        ),
        *(
            (
                f"figure 5, slope of the error on log T, {name} (95 %)",
                f"[{g(fit['low'])}, {g(fit['high'])}]",
                "does not diverge",
            )
            for name, fit in five["fit"].items()
        ),
        (
            "figure 6, one rate for 1 to 4 blocks, gamma refitted",
            f"{pm(six['fit']['delta'], six['fit']['delta_se'], 3)}; separate rates "
            f"{min(rates):.3f} to {max(rates):.3f}",
            "one rate serves",
        ),
    ]
    times = ", ".join(
        f"{_seconds(name)} (figure {n})"
        for n, name in ((4, "hidden_dim"), (5, "input_length"), (6, "blocks"))
    )
    note = (
        f"The runs took {times}, on two cores that other programs used too. Numbers after ± are "
        f"standard errors."
    )
    return f"{table(('', 'here', 'paper'), rows)}\n\n{wrapped(note)}"


def figure_4_target() -> str:
    """Return the paragraph on the trained target of figure 4, and on other random targets."""
    target = read("hidden_dim")["target"]
    other = read("hidden_dim_other_targets")["fit_drawn"]
    return wrapped(
        f"The trained target explains {100 * target['explained_variance']:.1f} % of the variance "
        f"of the right answers (its mean squared error is {target['test_loss']:.2f}, and the variance of "
        f"the answers is {target['answer_variance']:.2f}). Training therefore makes the weights of "
        f"this target small: its merged "
        f"value-output matrix has norm {target['w_vo_norm']:.2f}. The fitted curve depends on "
        f"which random targets are drawn: for {other['targets']} other targets it is "
        f"{other['gamma']:.2f} exp(-{other['delta']:.3f} n). The other targets were measured "
        f"first, and the seed of the targets in figure 4 was chosen after their result was known."
    )


def figure_6_note() -> str:
    """Return the paragraph on how far figure 6's points lie from the fitted line."""
    blocks = read("blocks")["fit"]["blocks"]
    residual = max(part["residual"] for part in blocks.values())
    agree = sum(part["agrees"] for part in blocks.values())
    return wrapped(
        f"In figure 6 the common rate was fitted to the transformer with one block. A separate "
        f"rate was fitted to each depth, and {agree - 1} of the {len(blocks) - 1} other depths "
        f"agree with the common rate within Student's 95 % interval. The "
        f"root mean square distance of the logarithms of the errors from a line with the common "
        f"rate is at most {residual:.2f} at every depth. All depths use the same sources and the "
        f"same target, because a shallower transformer consists of the first blocks of the deepest "
        f"transformer."
    )


def trained_target() -> str:
    """Return the table of tickets of a published network, for the rules 'proof' and 'fitted'."""
    proof, fitted = read("trained_target"), read("trained_fitted")
    rows = []
    for name, run in (("proof", proof), ("fitted", fitted)):
        for part in ("attention", "attention+relu"):
            chosen = [row for row in run["rows"] if row["part"] == part and row["units"] <= 16]
            for row in sorted(chosen, key=lambda row: row["units"]):
                rows.append(
                    (
                        name, part.replace("+relu", " and ReLU layers"), row["units"],
                        f"{row['accuracy']:.4f}", g(row["mean"]), g(row["bound"]), g(row["bound_on"]) if "bound_on" in row else "",
                    )
                )  # fmt: skip
    names = (
        "rule", "pruned", "units per input", "accuracy", "largest error of a row",
        "bound, all inputs", "bound, these inputs",
    )  # fmt: skip
    best = min(fitted["rows"], key=lambda row: row["relative_on"])
    last = max((r for r in fitted["rows"] if r["part"] == "attention"), key=lambda r: r["units"])
    note = (
        f"Tokens have norm {proof['target']['alpha']:.1f} and the merged value-output matrices "
        f"have norm {proof['target']['w_vo_norm']:.1f}, so the bounds for all inputs are far above "
        f"the errors. If only attention is pruned, by the rule `fitted` with {last['units']} units "
        f"per input coordinate, the largest error of an output row is {g(last['mean'])}. At every "
        f"width the guaranteed error is too large to prove that an answer is right, because it "
        f"contains the worst case of float32's round-off, which grows with the width. The ratio of "
        f"the bound for the given inputs to the norm of an output row is smallest at "
        f"{best['units']} units per input coordinate, where it is {best['relative_on']:.2f} "
        f"(`experiments/benchmarks/results/trained_fitted.json`)."
    )
    return f"{table(names, rows)}\n\n{wrapped(note)}"


def hidden_stories() -> str:
    """Return the table that compares stories260K with its tickets.

    The table has a row for each number of samples and a column for each rule.
    """
    result = read("hide_stories")["rows"]
    kinds = [
        *[(rule, "linear", "merged") for rule in ("proof", "reach", "shift")],
        ("shift", "relu", "merged"),
        ("shift", "linear", "factored"),
    ]
    rows = []
    for samples in sorted({row["samples"] for row in result}):
        cells = []
        for rule, form, attention in kinds:
            row = pick(result, samples=samples, rule=rule, form=form, attention=attention)
            cells.append(
                f"{100 * row['top1_agreement']:.2f} % / {g(row['rms_logit_difference'])} / "
                f"{row['equal_texts']}"
            )
        merged, default = (
            pick(result, samples=samples, rule="shift", form="linear", attention=attention)
            for attention in ("merged", "factored")
        )
        size = " / ".join(f"{row['ticket_bytes'] / 1e6:.2f}" for row in (merged, default))
        rows.append((samples, *cells, f"{size} MB"))
    names = (
        "samples", "proof", "reach", "shift units", "shift units, ReLU form",
        "shift units, projections, scales of rows (default)",
        "ticket (shift units, merged / default)",
    )  # fmt: skip
    return table(names, rows)


def hidden_notes() -> str:
    """Return the paragraph on hidden models: stories260K, GPT-2 small and smaller networks."""
    best = pick(read("hide_stories")["rows"], samples=20, attention="factored")
    small = read("hide_gpt2_small")
    add, induction, brackets = read("hide_published")["rows"]
    bits = 8 * best["ticket_bytes"] / WEIGHTS
    return wrapped(
        f"With 20 samples and the default options, `hide` solves {best['num_sums'] / 1e6:.1f} "
        f"million subset sums. The ticket's perplexity is {best['ticket_perplexity']:.5f} (target "
        f"{best['target_perplexity']:.5f}), and the ticket has {bits:.0f} bits per trained weight. "
        f"GPT-2 small with random initialisation (124 million weights) was hidden with "
        f"{small['samples']} samples and the options `--construction shift:4,4 --attention merged "
        f"--tied twice`. The run solved {small['num_sums'] / 1e6:.0f} million subset sums over "
        f"{small['random_weights'] / 1e9:.1f} billion random weights. The run was killed once; "
        f"after it was resumed, it took {small['seconds'] / 60:.0f} minutes and "
        f"{small['peak_bytes'] / 2**30:.1f} GiB of memory. The ticket has "
        f"{small['ticket_bytes'] / 1e6:.0f} MB, and the model's float32 file has "
        f"{small['target_bytes'] / 1e6:.0f} MB. The mean difference between the logits of ticket "
        f"and target is {100 * small['mean_logit_difference'] / small['logit_sd']:.1f} % of the "
        f"logits' standard deviation "
        f"(`experiments/benchmarks/results/hide_gpt2_small.json`). Small published networks were hidden "
        f"with {add['samples']} samples (`experiments/benchmarks/hide_published.py`). Ticket "
        f"and network give the same answer to {_agree(add)} questions for the network that adds "
        f"modulo 113, at {_agree(induction)} positions for an attention-only network with two "
        f"layers, and to {_agree(brackets)} inputs for a bracket classifier (with LayerNorm and "
        f"biases)."
    )


def _agree(row: dict[str, Any]) -> str:
    return f"{100 * row['agreement']:.2f} % of {row['answers']:,}"


def weight_scale() -> str:
    """Return the table with the results of a small version of figure 8."""
    run = read("weight_scale_quick")
    differences = {row["scale"]: row for row in run["paired"]}
    rows = []
    for row in run["rows"]:
        pair = differences.get(row["scale"])
        rows.append(
            (
                f"{row['scale']:g}",
                f"{row['mean']:.3f}",
                "" if pair is None
                else f"{pair['difference']:.3f} {interval(pair['low'], pair['high'], 3)}",
                "" if pair is None else f"{pair['below']} of {pair['count']}",
            )
        )  # fmt: skip
    names = ("scale", "validation loss", "difference to scale 1 (95 %)", "seeds below scale 1")
    seeds, minutes = run["rows"][0]["count"], run["seconds"] / 60
    note = (
        f"Each scale was trained with {seeds} seeds, in {minutes:.0f} minutes in total. A model that "
        f"always predicts the frequencies of the bytes has the loss {run['unigram_entropy']:.2f}."
    )
    return f"{table(names, rows)}\n\n{wrapped(note)}"


def language() -> str:
    """Return the table with the results of a small version of figure 7."""
    run = read("language_quick")
    rows = []
    for width in sorted({row["width_multiplier"] for row in run["rows"]}):
        means = {
            row["method"]: row["mean"] for row in run["rows"] if row["width_multiplier"] == width
        }
        cells = [f"{means[method]:.3f}" for method in ("dense", "ticket", "scaled")]
        for reference in ("ticket", "dense"):
            pair = pick(run["paired"], width_multiplier=width, method="scaled", reference=reference)
            cells.append(f"{pair['difference']:.3f} {interval(pair['low'], pair['high'], 3)}")
        rows.append((f"{32 * width:g}", *cells))
    names = ("width", "trained", "ticket", "scaled ticket", "scaled - ticket", "scaled - trained")
    seeds, minutes = run["rows"][0]["count"], run["seconds"] / 60
    note = f"Each model was trained with {seeds} seeds, in {minutes:.0f} minutes in total."
    return f"{table(names, rows)}\n\n{note}"


def edge_popup_step() -> str:
    """Return the paragraph on the time of a training step with masks, compared with other steps."""
    step = {row["step"]: row["ours_over_this"] for row in read("edge_popup_step")["rows"]}
    return wrapped(
        f"`experiments/benchmarks/edge_popup.py` measures steps of a model with 5.3 million parameters. "
        f"This library's step with masks takes {step['ours, dense']:.2f} times the time of its "
        f"dense step (the same step without masks), {step['PyTorch, sort per layer']:.2f} times "
        f"the time of a PyTorch step with one sort per layer, as in published code, and "
        f"{step['JAX, sort']:.2f} times the time of the same JAX program with a sort. PyTorch's "
        f"dense step is the fastest: this library's step with masks takes "
        f"{step['PyTorch, dense']:.2f} times the time of that step."
    )


def subset_sums() -> str:
    """Return the table of microseconds per subset sum, for every solver."""
    result = read("subset_sum")
    solvers = (
        ("slth_jax", "slth_jax, one device"), ("slth_jax, sharded", "sharded, a device per core"),
        ("C two-pointer", "C loop"), ("Gurobi", "Gurobi 13.0"), ("HiGHS", "HiGHS (SciPy 1.17)"),
        ("CP-SAT", "CP-SAT 9.15"),
    )  # fmt: skip
    rows = []
    for n in (16, 20, 24):
        cells = []
        for solver, _ in solvers:
            row = pick(result["rows"], solver=solver, n=n)
            micro = 1e6 * row["seconds"]
            text = g(micro, 3) if micro >= 1000 else f"{micro:.1f}"
            ratio = f" ({row['of_loop']:.2f})" if solver.startswith("slth_jax") else ""
            cells.append(text + ratio)
        rows.append((n, *cells))
    ours = pick(result["rows"], solver="slth_jax", n=20)["seconds"]
    times = {
        name: pick(result["rows"], solver=name, n=20)["seconds"] / ours
        for name in ("Gurobi", "HiGHS")
    }
    published, million = result["published"], result["million"]
    note = (
        f"At n = 20 samples slth_jax is {g(times['Gurobi'])} times faster than Gurobi and "
        f"{g(times['HiGHS'])} times faster than HiGHS, and its error is not larger on any of the "
        f"five instances that all solvers solved. [Pensia et al. "
        f"(2020)](bibliography.md#pensia) report {published['published_seconds']:,} s on "
        f"{published['published_cores']} cores for {published['what']}; slth_jax takes "
        f"{published['seconds']:.1f} s for a problem of the same size. The peak "
        f"memory for a million instances with n = {million['n']} samples is {million['peak_gib']:.1f} GiB."
    )
    return f"{table(('n', *(label for _, label in solvers)), rows)}\n\n{wrapped(note)}"


def sweeps() -> str:
    """Return the paragraph on the time of sweeps compared with loops, their memory, and kills."""
    result = read("sweep")
    kills = [report for report in read("kills")["reports"] if report["work"] == "sweep"]
    killed, in_saves = (sum(report[n] for report in kills) for n in ("kills", "kills_in_a_save"))
    medians, trials = result["medians"], result["pairs"][0]["trials"]
    scale = {row["trials"]: row for row in result["scale"]}
    most = max(row["peak_mib"] for row in scale.values())
    same = [pair["trials_with_equal_masks"] for pair in result["pairs"]]
    return wrapped(
        f"`python -m experiments.benchmarks.sweep pair` runs {trials:,} trials of figure 4 (100 seeds, 12 "
        f"widths) twice: as a sweep with one device per core, and as a loop over single jitted "
        f"trials. The loop compiles one program per width. The sweep is "
        f"{medians['ratio_with_compilation']:.1f} times faster with "
        f"compilation ({medians['batched']['total']:.1f} s against "
        f"{medians['one_by_one']['total']:.0f} s) and {medians['ratio_without']:.1f} times faster without "
        f"compilation ({medians['batched']['run']:.2f} s against {medians['one_by_one']['run']:.1f} s); "
        f"these are medians of {len(result['pairs'])} pairs. In {min(same)} of {trials:,} trials "
        f"sweep and loop found equal masks. Masks may differ because the loop and the sweep "
        f"compile different programs. Equal bits are guaranteed for two sweeps with any numbers "
        f"of devices, chunks and processes, but not for a sweep and a loop. 100,000 trials that are saved to disk take "
        f"{scale[100_000]['seconds']:.0f} s. The peak memory is at most {most:.0f} MiB, from 1,000 "
        f"to 100,000 trials. Sweeps were killed {killed} times, {in_saves} of them in the middle "
        f"of a save. After the killed sweeps were resumed, their results and masks were equal, bit "
        f"for bit, to the results and masks of an undisturbed sweep ([kills](trust.md#kills))."
    )
