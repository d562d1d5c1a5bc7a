"""SGD, Adagrad, row-wise Adagrad, Adam and AdamW over dense parameters and tables together.

Each is torch's optimizer of that name for dense parameters, with the same arguments, and updates only the rows that a
batch touches in tables (see
:data:`slipstream.optim.Untouched` and :data:`slipstream.optim.OnSkip` for what happens to the others).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.kernels.types import Rule, UpdateSettings
from slipstream.optim.row_step import Group, OnSkip, RowStep, Untouched


class SGD(RowStep, torch.optim.SGD):
    """``torch.optim.SGD``; momentum and weight decay of untouched rows wait unless ``untouched="dense"``.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        momentum: Momentum factor; tables then keep a [R, D] buffer.
        untouched: See :data:`Untouched`.
        on_skip: See :data:`OnSkip`.
        kwargs: Everything else that torch's takes.
    """

    row_state = ("momentum_buffer",)
    dense_optimizer = torch.optim.SGD

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        *,
        untouched: Untouched = "lazy",
        on_skip: OnSkip = "freeze",
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr, momentum, **kwargs)
        self._init_rows(untouched, on_skip)

    def _row_state_of(self, group: Group) -> tuple[str, ...]:
        return self.row_state if group["momentum"] else ()

    def _settings(self, group: Group, step: int) -> UpdateSettings:
        return UpdateSettings(
            Rule.SGD, step, float(group["lr"]), beta1=group["momentum"], weight_decay=group["weight_decay"]
        )


class Adagrad(RowStep, torch.optim.Adagrad):
    """``torch.optim.Adagrad`` (Duchi, Hazan, Singer, 2011).

    Without weight decay rows get the same updates as from dense gradients.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        lr_decay: The rate of step t is ``lr / (1 + (t - 1) * lr_decay)``.
        weight_decay: L2 factor.
        initial_accumulator_value: Start of the sums of squares.
        eps: Added to the root of the sum.
        untouched: See :data:`Untouched`.
        on_skip: See :data:`OnSkip` (without meaning here: there is nothing to catch up).
    """

    row_state = ("sum",)
    dense_optimizer = torch.optim.Adagrad

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        untouched: Untouched = "lazy",
        on_skip: OnSkip = "freeze",
    ) -> None:
        for name, value in {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps,
            "initial_accumulator_value": initial_accumulator_value,
        }.items():  # fmt: skip
            if not float(value) >= 0.0:
                raise ConfigError(f"{name}={value!r} must be 0 or more")
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": None, "maximize": False, "differentiable": False, "fused": None,
        }  # fmt: skip
        # torch's __init__ would allocate a sum for every parameter at once, tables of any size included.
        torch.optim.Optimizer.__init__(self, params, defaults)
        self._init_rows(untouched, on_skip)

    def _dense_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and "sum" not in self.state[parameter]:
                    start = group["initial_accumulator_value"]
                    self.state[parameter] |= {"step": torch.tensor(0.0), "sum": torch.full_like(parameter, start)}
        super()._dense_step()

    def _fresh(self, weight: Tensor, group: Group) -> Tensor:
        start = super()._fresh(weight, group)
        return start.fill_(group["initial_accumulator_value"]) if group["initial_accumulator_value"] else start

    def _settings(self, group: Group, step: int) -> UpdateSettings:
        lr = float(group["lr"]) / (1 + (step - 1) * group["lr_decay"])
        return UpdateSettings(Rule.ADAGRAD, step, lr, group["eps"], weight_decay=group["weight_decay"])


class RowwiseAdagrad(Adagrad):
    """Adagrad with one sum a row, of the mean square of its gradient, as FBGEMM's ``EXACT_ROWWISE_ADAGRAD``.

    Dense parameters get ``torch.optim.Adagrad``. State is 4 bytes a row instead of 4 an element. Takes the arguments
    of :class:`Adagrad`.
    """

    row_state = ("row_sum",)
    rowwise = True

    def _settings(self, group: Group, step: int) -> UpdateSettings:
        lr = float(group["lr"]) / (1 + (step - 1) * group["lr_decay"])
        return UpdateSettings(Rule.ROWWISE_ADAGRAD, step, lr, group["eps"], weight_decay=group["weight_decay"])


def _adam_settings(group: Group, step: int, decoupled: bool) -> UpdateSettings:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return UpdateSettings(
        Rule.ADAM, step, float(group["lr"]), group["eps"], beta1, beta2, group["weight_decay"], decoupled
    )


class Adam(RowStep, torch.optim.Adam):
    """``torch.optim.Adam`` (Kingma, Ba, 2015); rows follow ``torch.optim.SparseAdam``.

    That is Adam applied to the touched rows, with one step count for the table.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: Decays of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: L2 factor.
        untouched: See :data:`Untouched`.
        on_skip: See :data:`OnSkip`.
        kwargs: Everything else that torch's takes.
    """

    row_state = ("exp_avg", "exp_avg_sq")
    dense_optimizer = torch.optim.Adam

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        untouched: Untouched = "lazy",
        on_skip: OnSkip = "freeze",
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **kwargs)
        self._init_rows(untouched, on_skip)

    def _settings(self, group: Group, step: int) -> UpdateSettings:
        return _adam_settings(group, step, bool(group.get("decoupled_weight_decay")))


class AdamW(RowStep, torch.optim.AdamW):
    """``torch.optim.AdamW`` (Loshchilov, Hutter, 2019): Adam with decoupled weight decay.

    An untouched row's decay waits unless ``untouched="dense"``. Takes the arguments of :class:`Adam`;
    ``weight_decay`` is 0.01 by default.
    """

    row_state = ("exp_avg", "exp_avg_sq")
    dense_optimizer = torch.optim.AdamW

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        untouched: Untouched = "lazy",
        on_skip: OnSkip = "freeze",
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **kwargs)
        self._init_rows(untouched, on_skip)

    def _settings(self, group: Group, step: int) -> UpdateSettings:
        return _adam_settings(group, step, decoupled=True)
