"""Lightning: a policy in a ``Trainer``'s loop, its reports in the log and its state in checkpoints.

Needs ``lightning`` (``pip install 'slipstream-rec[lightning]'``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from slipstream.data.batch import Batch
from slipstream.errors import ConfigError, NotInstalled
from slipstream.policies import Skipper

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer  # pyright: ignore[reportMissingImports]
else:
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise NotInstalled("SkipperCallback", "slipstream-rec[lightning]") from error


class SkippedLoader:
    """What a ``Trainer`` iterates: each iteration is one epoch of the loader's batches, skipped and repacked.

    Args:
        skipper: Decides; make it with the module's model.
        loader: Batches, or whatever the skipper's ``to_batch`` makes batches of.
    """

    def __init__(self, skipper: Skipper, loader: Iterable[Any]) -> None:
        self.skipper, self.loader = skipper, loader

    def __iter__(self) -> Iterator[Batch]:
        return self.skipper(self.loader)


class SkipperCallback(Callback):
    """Logs what was skipped, tells losses to policies that want them, and keeps the policy's state in checkpoints.

    ::

        skipper = Skipper(module.model, Importance(0.5), batch_size=1024)
        trainer = Trainer(callbacks=[SkipperCallback(skipper)])
        trainer.fit(module, SkippedLoader(skipper, loader))

    ``training_step`` multiplies the loss of each sample by ``batch.weights``. For a policy that wants losses
    (``guard``) it returns ``{"loss": loss, "losses": losses}``, those of the samples, not weighted, ``[B]``.

    A checkpoint holds the state after the last epoch that ended: Lightning fetches batches ahead of the step, so in the
    middle of an epoch the skipper is further than the model.

    Args:
        skipper: The skipper of the loader.
        log_every: Steps between two reports in the log; the end of an epoch is always one.
    """

    def __init__(self, skipper: Skipper, log_every: int = 50) -> None:
        if log_every < 1:
            raise ConfigError(f"log_every must be at least 1, not {log_every}")
        self.skipper, self.log_every = skipper, log_every
        self._at_epoch_end: dict[str, Any] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hands losses on, and reports.

        Raises:
            ConfigError: The policy wants losses and ``training_step`` returned none.
        """
        if self.skipper.policy.wants_losses:
            losses = outputs.get("losses") if isinstance(outputs, dict) else None
            if losses is None:
                raise ConfigError(
                    f"policy {self.skipper.policy.name!r} wants the loss of each sample",
                    remedy='let training_step return {"loss": ..., "losses": ...}',
                )
            self.skipper.observe(batch, losses.detach())
        if (batch_idx + 1) % self.log_every == 0:
            self._report(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports, and keeps the state for checkpoints."""
        self._report(pl_module)
        self._at_epoch_end = self.skipper.state_dict()

    def _report(self, pl_module: LightningModule) -> None:
        report = self.skipper.report()
        figures = {
            "slipstream/share_of_inputs_trained": report.share_of_inputs_trained,
            "slipstream/share_of_row_updates_skipped": report.share_of_row_updates_skipped,
        }
        numbers = {name: value for name, value in report.details.items() if isinstance(value, int | float)}
        figures |= {f"slipstream/{name}": float(value) for name, value in numbers.items()}
        pl_module.log_dict(figures, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """The skipper's state after the last epoch that ended."""
        return {} if self._at_epoch_end is None else {"skipper": self._at_epoch_end}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        if "skipper" in state_dict:
            self.skipper.load_state_dict(state_dict["skipper"])
            self._at_epoch_end = state_dict["skipper"]
