"""Train convolutional networks by edge-popup in PyTorch, as the paper describes.

Ramanujan et al. (2020), section 3: in the forward pass each layer keeps a fixed share of its
weights, those with the largest |score|. In the backward pass the gradient with respect to a mask
entry is used as the gradient with respect to the |score| of that entry.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from slth_jax import supermask


class Largest(torch.autograd.Function):
    """An autograd function that returns a mask, with a straight-through gradient."""

    @staticmethod
    def forward(ctx, sizes, count):
        """Return the mask, which is 1 at the `count` largest entries of `sizes` and 0 elsewhere."""
        mask = torch.zeros_like(sizes)
        mask.view(-1)[sizes.reshape(-1).topk(count).indices] = 1
        return mask

    @staticmethod
    def backward(ctx, gradient):
        """Return the gradient unchanged."""
        return gradient, None


class EdgePopup:
    """The network of `convolutions.ConvNet` in PyTorch; SGD trains its scores or its weights.

    Args:
      weights: a dict of weights: 'convs.0.kernel' [3, 3, in, out], 'dense.0.kernel' [in, out], ...
      scores: a dict of scores, with the names and shapes of `weights`.
      keep: the fraction of weights that the masks keep; None to train the weights without masks.
      learning_rate: the learning rate of SGD, with momentum 0.9 and weight decay 1e-4.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        scores: Mapping[str, Any],
        *,
        keep: float | None,
        learning_rate: float,
    ):
        self._keep = keep
        self._weights = {name: _tensor(value) for name, value in weights.items()}
        moving = weights if keep is None else scores
        self._moving = {name: _tensor(value).requires_grad_() for name, value in moving.items()}
        self._optimizer = torch.optim.SGD(
            self._moving.values(), learning_rate, momentum=0.9, weight_decay=1e-4
        )

    def masks(self) -> dict[str, np.ndarray]:
        """Return the masks as boolean arrays in the layout of the weights."""
        return {
            name: _array(self._mask(name)).astype(bool) for name in self._moving
        }  # [3, 3, in, out]

    def step(self, batch: tuple[Any, Any]) -> float:
        """Make one training step; return the loss before the step."""
        images = torch.from_numpy(np.asarray(batch[0])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(np.asarray(batch[1]).astype(np.int64))
        self._optimizer.zero_grad()
        loss = F.cross_entropy(self._logits(images), labels)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def _mask(self, name: str) -> torch.Tensor:
        assert self._keep is not None
        scores = self._moving[name]
        return Largest.apply(scores.abs(), supermask.num_kept(scores.numel(), self._keep))

    def _kernel(self, name: str) -> torch.Tensor:
        if self._keep is None:
            return self._moving[name]
        return self._weights[name] * self._mask(name)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(sum(name.startswith("convs") for name in self._weights)):
            x = F.relu(F.conv2d(x, self._kernel(f"convs.{index}.kernel"), padding=1))
            if index % 2:
                x = F.max_pool2d(x, 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for index in range(3):
            x = F.linear(F.relu(x) if index else x, self._kernel(f"dense.{index}.kernel"))
        return x


def on_one_thread(step: Callable[[Any], Any], batch: Any) -> Any:
    """Call `step` on a single thread; on a shared machine several threads slow each other down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return step(batch)
    finally:
        torch.set_num_threads(threads)


def _tensor(array: Any) -> torch.Tensor:
    """Return a kernel in PyTorch's layout, with outputs on the first axis."""
    array = np.asarray(array)
    axes = (3, 2, 0, 1) if array.ndim == 4 else (1, 0)
    return torch.tensor(np.ascontiguousarray(array.transpose(axes)))


def _array(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
