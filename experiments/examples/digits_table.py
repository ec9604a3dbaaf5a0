"""Train masks of a CNN, and controls, on scikit-learn's digits: python digits_table.py

Lion trains masks at keep 0.1, 0.3 and 0.5 with eight seeds. The controls are dense training and
training under random masks. All 56 runs train at once. If a call with the folder `out` is stopped,
the next call with this folder continues the training. The validation digits and the training digits
were written by different people. The learning rate is not tuned.
"""

import jax
import optax
from flax import nnx
from sklearn.datasets import load_digits

from slth_jax.edge_popup import Training, fit

x, y = load_digits(return_X_y=True)


# fmt: off
def cnn(key):
    """Draw a network; the state of its batch norm and dropout is carried from step to step."""
    r = nnx.Rngs(key)
    return nnx.Sequential(
        lambda h: h.reshape(-1, 8, 8, 1) / 16, nnx.Conv(1, 16, (3, 3), rngs=r),
        nnx.BatchNorm(16, rngs=r), nnx.relu, nnx.Conv(16, 32, (3, 3), strides=2, rngs=r), nnx.relu,
        lambda h: h.reshape(-1, 512), nnx.Dropout(0.1, rngs=r), nnx.Linear(512, 10, rngs=r))
# fmt: on


def batch(step):
    """Return the training images of a step, and their labels."""
    rows = jax.random.randint(jax.random.key(step), (64,), 0, 1300)
    return x[rows], y[rows]


def loss(model, rows):
    """Return the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(rows[0]), rows[1]).mean()


def evaluate(model, rows):
    """Return a network's loss and accuracy; `fit` puts the network into evaluation mode."""
    return {"loss": loss(model, rows), "accuracy": (model(rows[0]).argmax(1) == rows[1]).mean()}


def main(steps=300, seeds=8, out=None):
    """Train all runs and return them."""
    plan = Training(steps, optax.lion(1e-3), validation=[(x[1300:], y[1300:])], evaluate=evaluate)
    return fit(jax.random.key(0), cnn, loss, batch, training=plan, keep=[0.1, 0.3, 0.5],
               seeds=seeds, controls=("dense", "random"), out=out)  # fmt: skip


if __name__ == "__main__":
    print(main(out="digits-table"))
