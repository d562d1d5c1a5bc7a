"""The model against its own past: figures by hand, and a copy that disturbs nothing."""

from __future__ import annotations

import copy
import math
import threading

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.policies.support import TwoTables, make_batch
from torch import nn

from slipstream.errors import ConfigError
from slipstream.policies.skipper import cross_entropies
from slipstream.staleness.own_past import EarlierSelf, Window, scores_of, weighted_auc


@pytest.mark.parametrize("state", [[2, 1.0, 9.0, 1.0], [2, -1.0, 0.0, 1.0], [2.5, 1.0, 0.0, 1.0]])
def test_sums_that_no_measurements_have_are_refused(state: list[float]) -> None:
    with pytest.raises(ConfigError, match="window"):
        Window().load(state)


@pytest.mark.parametrize("difference", [1e20, -1e200, math.inf, math.nan])
def test_what_a_loss_near_0_makes_of_a_difference_stays_a_number(difference: float) -> None:
    window, again = Window(), Window()
    window.add(0.5, difference)
    window.add(0.7, 0.1)
    assert math.isfinite(window.gain.value)
    again.load(window.state())
    assert again.gain == window.gain


def test_sums_without_bounds_of_earlier_versions_say_nothing() -> None:
    window = Window()
    window.load([3, 1.0, math.nan, math.inf])
    assert window.state() == [0, 0.0, 0.0, 0.0]


def test_the_slope_and_its_error_by_hand() -> None:
    window = Window()
    assert window.gain == (0.0, math.inf)
    window.add(1.0, 0.3)
    assert window.gain == (pytest.approx(0.3), math.inf)
    window.add(0.5, 0.1)
    # Slope (0.3 + 0.05) / 1.25 = 0.28; residuals 0.02 and -0.04; their squares 0.002 over one degree of freedom.
    assert window.gain.value == pytest.approx(0.28)
    assert window.gain.error == pytest.approx(math.sqrt(0.002 / 1.25))


def test_logits_come_back_from_losses() -> None:
    logits = torch.tensor([-30.0, -2.0, -1e-3, 0.0, 0.7, 8.0], dtype=torch.float64)
    for label in (0.0, 1.0):
        labels = torch.full_like(logits, label)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        kept = slice(0, 6) if label == 1.0 else slice(1, 6)  # a loss of 1e-13 is one of 1e-12
        np.testing.assert_allclose(scores_of(losses, labels)[kept], logits[kept].numpy(), atol=1e-8)


def test_auc_with_weights_and_ties_is_sklearns() -> None:
    draw = np.random.default_rng(0)
    labels, scores = draw.integers(0, 2, 500).astype(float), draw.integers(0, 20, 500).astype(float)
    weights = draw.random(500) + 0.1
    found = weighted_auc(labels, scores, weights)
    assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12)
    assert weighted_auc(np.ones(3), np.arange(3.0), np.ones(3)) is None


class Noisy(TwoTables):
    """With dropout: draws in every forward pass."""

    def forward(self, inputs):
        return nn.functional.dropout(super().forward(inputs), training=self.training)


def test_the_copy_stays_as_it_was_and_uses_up_no_draws() -> None:
    model, batch = Noisy(), make_batch(0, 16)
    past = EarlierSelf(model, cross_entropies)
    assert not past.taken
    past.take()
    model.eval()
    before = cross_entropies(model, batch)
    with torch.no_grad():
        model.user.weight.mul_(2.0)
    draws = torch.get_rng_state()
    assert torch.equal(past.losses(batch), before)
    model.train()
    past.losses(batch)
    assert torch.equal(torch.get_rng_state(), draws)
    model.eval()
    now = cross_entropies(model, batch)
    other = EarlierSelf(model, cross_entropies)
    other.load_state_dict(past.state_dict())
    assert torch.equal(other.losses(batch), before)
    past.take()
    assert torch.equal(past.losses(batch), now)
    assert past.state_dict()["tensors"][0].data_ptr() != model.user.weight.data_ptr()
    other.load_state_dict({})
    assert not other.taken


def test_a_copy_may_be_of_another_dtype_and_not_of_another_model() -> None:
    model = TwoTables()
    past = EarlierSelf(model, cross_entropies)
    past.take()
    state = past.state_dict()
    other = EarlierSelf(copy.deepcopy(model).bfloat16(), cross_entropies)
    other.load_state_dict(state)
    assert other.taken
    with pytest.raises(ConfigError, match="another model"):
        other.load_state_dict({"tensors": [tensor[:1] for tensor in state["tensors"]]})


class Keeping(TwoTables):
    """Keeps what it computed, for losses of its own."""

    def forward(self, inputs):
        out = super().forward(inputs)
        self.last, self.all, self.by_name = out, [out * 2], {"logits": out * 3}
        return out


def test_a_model_that_keeps_what_it_computed_can_be_copied() -> None:
    model, batch = Keeping(), make_batch(0, 16)
    past = EarlierSelf(model, cross_entropies)
    kept = cross_entropies(model, batch)
    past.take()
    assert torch.equal(past.losses(batch), kept.detach()) and model.last.grad_fn is not None
    past.load_state_dict(past.state_dict())
    (kept + model.last + model.all[0]).sum().backward()
    assert model.user.weight.grad is not None


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.ModuleDict({"deep": TwoTables()})
    model["deep"].lock = threading.Lock()
    past = EarlierSelf(model, cross_entropies)
    with pytest.raises(ConfigError, match="attribute 'lock' of module deep"):
        past.take()
    assert not past.taken
    del model["deep"].lock
    # What the first try has copied by half is not taken for whole.
    model["deep"].deeper = [[model["deep"].user.weight * 2]]
    with pytest.raises(ConfigError, match="attribute 'deeper' of module deep"):
        past.take()
