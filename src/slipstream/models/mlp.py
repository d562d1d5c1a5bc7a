"""An MLP whose float32 training on the CPU is one autograd node over oneDNN's products with ReLU fused in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class MLP(nn.Sequential):
    """Linear layers, or none, with ReLU between them, and after the last one if it is there.

    In float32 on the CPU, outside of ``torch.compile`` and autocast, forward and backward go through :class:`_Layers`;
    everywhere else the modules run one by one. Values differ by rounding alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[B, in]`` to ``[B, out]``."""
        linear = [module for module in self if isinstance(module, nn.Linear)]
        if not linear or not _fits(input, linear) or _watched(self):
            return super().forward(input)
        parameters = [tensor for layer in linear for tensor in (layer.weight, layer.bias)]
        return _Layers.apply(input, isinstance(self[-1], nn.ReLU), *parameters)


def _fits(input: Tensor, linear: list[nn.Linear]) -> bool:
    return (
        not torch.compiler.is_compiling()
        and input.device.type == "cpu"
        and input.dim() == 2
        and input.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and all(layer.bias is not None and layer.weight.dtype == torch.float32 for layer in linear)
    )


def _watched(modules: nn.Sequential) -> bool:
    """Whether a single module has hooks, or is a subclass that may compute something else: then it must be called."""
    return any(
        type(module) not in (nn.Linear, nn.ReLU)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """``activation(x weightᵀ + bias)`` by oneDNN, which on some machines is faster than the BLAS behind torch.mm."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")


class _Layers(torch.autograd.Function):
    """All layers at once: the gradients between them are nobody else's, so ReLU's backward writes in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, last_relu: bool, *parameters: Tensor) -> Tensor:
        outputs = [x]
        count = len(parameters) // 2
        for layer in range(count):
            activation = "relu" if layer + 1 < count or last_relu else "none"
            outputs.append(_product(outputs[-1], parameters[2 * layer], parameters[2 * layer + 1], activation))
        ctx.last_relu = last_relu
        ctx.save_for_backward(*outputs, *parameters[::2])
        return outputs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        count = len(ctx.saved_tensors) // 2
        outputs, weights = ctx.saved_tensors[: count + 1], ctx.saved_tensors[count + 1 :]
        (grad,) = gradients
        of_parameters: list[Tensor | None] = []
        for layer in reversed(range(count)):
            if layer + 1 < count:
                torch.ops.aten.threshold_backward.grad_input(grad, outputs[layer + 1], 0.0, grad_input=grad)
            elif ctx.last_relu:
                grad = torch.ops.aten.threshold_backward(grad, outputs[layer + 1], 0.0)
            wanted = ctx.needs_input_grad[2 + 2 * layer], ctx.needs_input_grad[3 + 2 * layer]
            of_parameters.append(grad.sum(0) if wanted[1] else None)
            of_parameters.append(grad.t() @ outputs[layer] if wanted[0] else None)
            if layer or ctx.needs_input_grad[0]:
                grad = _product(grad, weights[layer].t(), None, "none")
        of_input = grad if ctx.needs_input_grad[0] else None
        return of_input, None, *reversed(of_parameters)
