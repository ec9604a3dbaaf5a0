"""Measure edge-popup on the convolutional networks of its paper, in this library and in PyTorch.

    python -m experiments.benchmarks.convolutions --preset full --out experiments/benchmarks/results

Conv-2, Conv-4 and Conv-6 (Ramanujan et al. 2020; shapes of Frankle and Carbin 2019) have pairs of
3x3 convolutions, each pair followed by max-pooling, and three fully connected layers. There are no
biases, and the weights are +-sqrt(2 / fan_in). The benchmark measures the accuracy on
scikit-learn's digits for several shares of kept weights. For every method and share, validation
chooses the learning rate from the same grid. The benchmark also measures the time of a training
step, on digits and on synthetic images with the shape of CIFAR's images. The implementations that
are compared take turns within a measurement. Times are measured with the paper's optimiser, SGD.
Accuracies are measured with Adam, which needs fewer steps.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from experiments import machine
from experiments.benchmarks.edge_popup import paired, table
from slth_jax import edge_popup, initializers, storage
from slth_jax.types import Key

CHANNELS = {
    "conv2": (64, 64),
    "conv4": (64, 64, 128, 128),
    "conv6": (64, 64, 128, 128, 256, 256),
}
RATE, RUNS, KEEP = 0.1, 8, 0.5  # settings of the measurements of time
TRAIN, VALIDATION = slice(0, 1000), slice(1000, 1300)  # the remaining 497 digits are test images


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings of a run; validation chooses one of the learning rates `rates` for Adam."""

    networks: tuple[str, ...] = tuple(CHANNELS)
    width: float = 0.125
    steps: int = 120
    rows: int = 64
    keeps: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    seeds: int = 4
    rounds: int = 5


PRESETS = {
    "quick": Preset(("conv2", "conv4"), 0.0625, steps=40, keeps=(0.1, 0.5, 0.9), seeds=2, rounds=2),
    "full": Preset(),
}


def sgd(learning_rate: float) -> optax.GradientTransformation:
    """Return the paper's optimiser: SGD with constant rate, momentum 0.9 and weight decay 1e-4."""
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(learning_rate, momentum=0.9))


def signed_constant(
    key: Key, shape: tuple[int, ...], dtype: Any, **_: Any
) -> Float[Array, "*shape"]:
    """Draw weights of equal size and random sign, +-sqrt(2 / fan_in), as in the paper."""
    return initializers.signs(key, shape, dtype) * math.sqrt(2 / math.prod(shape[:-1]))


class ConvNet(nnx.Module):
    """A network for images of side `size`; `width` multiplies the channel numbers of `CHANNELS`."""

    def __init__(self, name: str, size: int, channels: int, *, width: float, rngs: nnx.Rngs):
        widths = [max(1, round(width * count)) for count in CHANNELS[name]]
        hidden = max(1, round(width * 256))
        options: dict[str, Any] = {"kernel_init": signed_constant, "use_bias": False, "rngs": rngs}
        inputs = (channels, *widths[:-1])
        self.convs = nnx.List(
            [nnx.Conv(i, o, (3, 3), **options) for i, o in zip(inputs, widths, strict=True)]
        )
        side = size // 2 ** (len(widths) // 2)
        shape = ((side**2 * widths[-1], hidden), (hidden, hidden), (hidden, 10))
        self.dense = nnx.List([nnx.Linear(i, o, **options) for i, o in shape])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n 10"]:
        """Return the logits."""
        for index, conv in enumerate(self.convs):
            x = nnx.relu(conv(x))
            if index % 2:
                n, h, w, c = x.shape  # the gradient of `nnx.max_pool` is slow on a CPU
                x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
        x = x.reshape(len(x), -1)
        for index, layer in enumerate(self.dense):
            x = layer(nnx.relu(x) if index else x)
        return x


Images = tuple[Float[Array | np.ndarray, "n h w c"], Int[Array | np.ndarray, " n"]]


def loss_of(model: nnx.Module, batch: Images) -> Float[Array, ""]:
    """Return the mean cross-entropy."""
    logits = model(batch[0])  # type: ignore[operator]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def measure(model: nnx.Module, batch: Images) -> dict[str, Array]:
    """Return the loss and the accuracy of a model on a batch."""
    right = model(batch[0]).argmax(axis=1) == batch[1]  # type: ignore[operator]
    return {"loss": loss_of(model, batch), "accuracy": right.mean()}


@functools.cache
def digits() -> Images:
    """Return scikit-learn's digits, 1,797 images of 8 x 8."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels.astype(np.int32)


def synthetic(rows: int) -> Images:
    """Return random images with the shape of CIFAR's images, to measure times."""
    draw = np.random.default_rng(0)
    images = draw.normal(size=(rows, 32, 32, 3)).astype(np.float32)
    return images, draw.integers(10, size=rows).astype(np.int32)


def accuracy(name: str, preset: Preset) -> list[dict[str, Any]]:
    """Train and test a network; return test accuracies per method and share of kept weights."""
    x, y = digits()

    def batch(step: int) -> Images:
        rows = np.random.default_rng(step).integers(0, TRAIN.stop, preset.rows)
        return x[rows], y[rows]

    def adam(learning_rate: Any) -> optax.GradientTransformation:
        decay = optax.cosine_decay_schedule(1.0, preset.steps)
        return optax.adam(lambda step: learning_rate * decay(step))

    fits = edge_popup.fit(
        jax.random.key(0),
        lambda key: ConvNet(name, 8, 1, width=preset.width, rngs=nnx.Rngs(key)),
        loss_of,
        batch,
        keep=list(preset.keeps),
        seeds=preset.seeds,
        controls=("dense", "random"),
        training=edge_popup.Training(
            preset.steps,
            optax.inject_hyperparams(adam)(learning_rate=0.0),
            sweep={"learning_rate": preset.rates},
            validation=[(x[VALIDATION], y[VALIDATION])],
            evaluate=measure,
            evaluate_every=max(1, preset.steps // 4),
        ),
    )
    groups: dict[tuple[str, Any], dict[float, list[edge_popup.Fit]]] = {}
    for fit in fits:
        rates = groups.setdefault((fit.setting.method, fit.setting.keep), {})
        rates.setdefault(fit.setting.hyperparameters["learning_rate"], []).append(fit)
    test = x[VALIDATION.stop :], y[VALIDATION.stop :]
    measured = nnx.jit(measure)
    rows = []
    for (method, keep), rates in groups.items():
        best = max(rates, key=lambda r: np.mean([fit.row["accuracy"] for fit in rates[r]]))
        values = [float(measured(fit.ticket, test)["accuracy"]) for fit in rates[best]]
        rows.append(
            {"network": name, "method": method, "keep": keep, "learning_rate": best}
            | interval(values)
        )
    return rows


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean of `values` and half the width of the mean's 95 % interval (Student's t)."""
    from scipy import stats

    error = np.std(values, ddof=1) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * error)
    return {"accuracy": float(np.mean(values)), "half": half, "values": list(values)}


def speed(name: str, preset: Preset, batch: Images) -> list[dict[str, Any]]:
    """Time every implementation of a training step; return a dict of times and ratios for each."""
    size, channels = batch[0].shape[1], batch[0].shape[3]
    model = ConvNet(name, size, channels, width=preset.width, rngs=nnx.Rngs(0))
    weights = named(model)
    alone, lifted = (stepper(model, runs, together=1) for runs in (1, RUNS))
    ways: dict[str, Callable[[Any], Any]] = {
        "ours": alone,
        "ours, dense": stepper(model, 1, together=1, dense=True),
        f"ours, {RUNS} runs in one call": lifted,
        f"ours, {RUNS} runs one after another": lambda rows: [alone(rows) for _ in range(RUNS)],
    }
    if size == 8:  # with larger images this takes minutes
        ways[f"ours, {RUNS} runs under one vmap"] = stepper(model, RUNS, together=None)
    try:
        from experiments.benchmarks import convolutions_torch
    except ModuleNotFoundError:
        pass
    else:
        scores = edge_popup.init_scores(
            jax.random.key(1), weights, edge_popup.VARIANTS["ramanujan"]
        )
        popup, dense = (
            convolutions_torch.EdgePopup(weights, scores, keep=keep, learning_rate=RATE).step
            for keep in (KEEP, None)
        )
        one_thread = functools.partial(convolutions_torch.on_one_thread, popup)
        ways["PyTorch"] = popup
        ways["PyTorch, one thread"] = one_thread
        ways["PyTorch, one thread, dense"] = functools.partial(
            convolutions_torch.on_one_thread, dense
        )
        ways[f"PyTorch, one thread, {RUNS} runs one after another"] = lambda rows: [
            one_thread(rows) for _ in range(RUNS)
        ]
    rows = []
    single = {way: call for way, call in ways.items() if str(RUNS) not in way}
    several = {way: call for way, call in ways.items() if str(RUNS) in way}
    for base, chosen in (("ours", single), (f"ours, {RUNS} runs in one call", several)):
        seconds = paired(chosen, batch, preset.rounds)  # type: ignore[arg-type]
        count = 1 if base == "ours" else RUNS
        rows += [
            {
                "network": name,
                "images": size,
                "step": row["step"],
                "steps_per_second": row["tokens_per_second"],
                **{k: v for k, v in row.items() if k not in ("step", "tokens_per_second")},
            }
            for row in table(seconds, base, count)
        ]
    return rows


def named(model: nnx.Module) -> dict[str, Float[Array, "..."]]:
    """Return the kernels as a dict whose keys are their paths, such as 'convs.0.kernel'."""
    return {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def loss_of_arrays(model: nnx.Module) -> Callable[[Any, Images], Float[Array, ""]]:
    """Return a function that computes the loss from a dict of kernels (see `named`) and a batch."""
    graph, params = nnx.split(model, nnx.Param)
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(params)}

    def loss(arrays: dict[str, Array], batch: Images) -> Float[Array, ""]:
        state = nnx.from_flat_state([(path, arrays[name]) for name, path in paths.items()])
        return loss_of(nnx.merge(graph, state), batch)

    return loss


def stepper(
    model: nnx.Module, runs: int, *, together: int | None, dense: bool = False
) -> Callable[[Images], None]:
    """Return a function that makes an SGD step in each of `runs` runs and waits for the results."""
    variant, optimizer, weights = edge_popup.VARIANTS["ramanujan"], sgd(RATE), named(model)
    task = edge_popup.Task(loss_of_arrays(model), optimizer, variant)
    program = edge_popup.Program(task, runs, keep=KEEP, shared=True, together=together)
    keys = jax.random.split(jax.random.key(1), runs)
    if dense:
        states = [edge_popup.start({}, edge_popup.Trainable({}, weights), optimizer)] * runs
    else:
        states = [
            edge_popup.start(
                weights,
                edge_popup.Trainable(edge_popup.init_scores(key, weights, variant), {}),
                optimizer,
            )
            for key in keys
        ]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    keeps = jnp.full(runs, KEEP)

    def call(batch: Images) -> None:
        nonlocal state
        stretch = jax.tree.map(lambda leaf: leaf[None], batch)
        state, _ = program.advance(keys, state, stretch, keeps, None)
        jax.block_until_ready(state)

    return call


def picture(rows: Sequence[dict[str, Any]], networks: Sequence[str]) -> Any:
    """Plot the accuracy against the share of kept weights, with one panel for each network."""
    from experiments import plots

    drawn, panels = plots.several(len(networks), 2.6 * len(networks), 3.4, shared=True)
    for axes, name in zip(panels, networks, strict=True):
        for color, method in enumerate(("edge-popup", "random", "dense")):
            chosen = [r for r in rows if r["network"] == name and r["method"] == method]
            mean = np.array([row["accuracy"] for row in chosen])
            half = np.array([row["half"] for row in chosen])
            if method == "dense":
                axes.axhspan(*(mean + half * [[-1], [1]]).ravel(), color=plots.COLORS[5], alpha=0.3)
                axes.axhline(mean[0], color=plots.COLORS[5], label="dense, trained")
                continue
            label = "random mask, trained" if method == "random" else method
            keeps = [row["keep"] for row in chosen]
            axes.errorbar(
                keeps, mean, half, color=plots.COLORS[color], marker="o", capsize=3, label=label
            )
        axes.set(title=name.replace("conv", "Conv-"), xlabel="share of weights kept")
    panels[0].set_ylabel("test accuracy on digits")
    panels[0].legend()
    return drawn


def main() -> None:
    """Run the benchmark, print the results, and write them as JSON and as a figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--part", choices=("all", "speed"), default="all", help="'speed' keeps the "
                        "accuracies that OUT has")  # fmt: skip
    parser.add_argument("--out", default="experiments/benchmarks/results")
    options = parser.parse_args()
    preset, out = PRESETS[options.preset], storage.make_folder(options.out)
    begun = time.perf_counter()
    x, y = digits()
    batches = [(x[:128], y[:128]), synthetic(128)]
    path = out / "convolutions.json"
    if options.part == "speed":
        result = storage.read_json(path)
    else:
        rows = [row for name in preset.networks for row in accuracy(name, preset)]
        result = {"preset": dataclasses.asdict(preset), "accuracy": rows}
        result |= {"seconds": time.perf_counter() - begun, "load_average": os.getloadavg()[0]}
        result |= machine.report()
    load = os.getloadavg()[0]
    times = [row for n in preset.networks for batch in batches for row in speed(n, preset, batch)]
    result |= {"speed": times, "speed_machine": {"load_average": load, **machine.report()}}
    print(json.dumps(result, indent=1))
    storage.write_json(path, result)
    from experiments import plots

    plots.save(picture(result["accuracy"], preset.networks), out / "convolutions.png")


if __name__ == "__main__":
    main()
