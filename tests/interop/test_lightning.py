"""A policy in a Lightning Trainer: its report in the log, losses for the guard, its state in checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import slipstream as sl
from slipstream.data import Batch, Inputs
from slipstream.errors import ConfigError, NotInstalled
from slipstream.policies import Guard, Importance, Policy, Random

SAMPLES = 2000


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "slipstream.interop.lightning", raising=False)
    with pytest.raises(NotInstalled, match=r"slipstream-rec\[lightning\]"):
        import slipstream.interop.lightning  # noqa: F401
    monkeypatch.delitem(sys.modules, "slipstream.interop.lightning", raising=False)


def loader() -> list[Batch]:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (SAMPLES, 2), generator=random, dtype=torch.int32)
    labels = (ids.sum(1) % 2).float()
    whole = Batch(Inputs(torch.empty(SAMPLES, 0), ids), labels, torch.arange(SAMPLES), torch.ones(SAMPLES))
    return [whole.narrow(first, first + 100) for first in range(0, SAMPLES, 100)]


@pytest.fixture
def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch")


def module_of(lightning: Any, told: bool = True) -> Any:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = sl.convert(nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(8, 1)))

        def training_step(self, batch: Batch) -> dict[str, Tensor]:
            logits = self.model(batch.inputs.ids).squeeze(1)
            losses = functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
            loss = (losses * batch.weights).mean()
            return {"loss": loss, "losses": losses.detach()} if told else {"loss": loss}

        def configure_optimizers(self) -> Any:
            return sl.optim.Adam(self.parameters(), lr=0.05)

    return Module()


def fit(lightning: Any, folder: Path, policy: Policy, epochs: int, told: bool = True, ckpt: Any = None) -> tuple:
    from slipstream.interop.lightning import SkippedLoader, SkipperCallback

    module = module_of(lightning, told)
    skipper = sl.Skipper(module.model, policy, batch_size=100, total_samples=2 * SAMPLES)
    logger = lightning.loggers.CSVLogger(str(folder))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=[SkipperCallback(skipper, log_every=5)],
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=5,
    )
    trainer.fit(module, SkippedLoader(skipper, loader()), ckpt_path=ckpt, weights_only=False)
    return trainer, module, skipper


@pytest.mark.filterwarnings("ignore")
def test_inputs_are_skipped_and_reported(lightning: Any, tmp_path: Path) -> None:
    trainer, _, skipper = fit(lightning, tmp_path, Random(0.5), 1)
    assert skipper.report().share_of_inputs_trained == pytest.approx(0.5, abs=0.05)
    assert trainer.global_step == skipper.steps < 12
    assert trainer.callback_metrics["slipstream/share_of_inputs_trained"] == pytest.approx(
        skipper.share_of_inputs_trained
    )


@pytest.mark.filterwarnings("ignore")
def test_resumed_from_a_checkpoint_it_ends_where_it_would_have(lightning: Any, tmp_path: Path) -> None:
    def policy() -> Policy:
        return Importance(0.5, warmup_samples=200, bits=10)

    _, through, _ = fit(lightning, tmp_path / "a", policy(), 2)
    half, _, _ = fit(lightning, tmp_path / "b", policy(), 1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed, skipper = fit(lightning, tmp_path / "b", policy(), 2, ckpt=str(tmp_path / "half.ckpt"))
    for name, value in through.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert skipper.inputs_seen == 2 * SAMPLES


@pytest.mark.filterwarnings("ignore")
def test_the_guard_hears_the_losses(lightning: Any, tmp_path: Path) -> None:
    _, _, skipper = fit(lightning, tmp_path, Guard(), 1)
    assert skipper.policy.report()
    with pytest.raises(ConfigError, match='"losses"'):
        fit(lightning, tmp_path, Guard(), 1, told=False)
