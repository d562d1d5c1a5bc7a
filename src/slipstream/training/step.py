"""One optimizer step: forward, backward, update, and what is done with a batch that is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slipstream.data.batch import Batch, Inputs
from slipstream.data.transfer import Sender
from slipstream.embedding import CachedEmbeddingCollection
from slipstream.models import Recommender
from slipstream.optim import clip_grad_norm_
from slipstream.policies import Skipper
from slipstream.restored import whole_number
from slipstream.training.config import TrainConfig
from slipstream.training.hotline import hotline_step
from slipstream.training.nonfinite import MOST_IN_A_ROW, gradients_are_finite, nonfinite_error
from slipstream.training.position import Stopwatch
from slipstream.training.predicting import autocast
from slipstream.training.ranks import Ranks


class Step:
    """Trains the model on one batch after the other.

    Args:
        config: The resolved configuration.
        model: The model.
        optimizers: Its optimizers.
        skipper: Hands out the batches; its policy hears of their losses if it wants to.
        sender: Brings batches to the device.
        clock: Takes the times of the phases.
        moved: Called when the policy may have changed something by itself.
        ranks: The processes of the training; None: this one alone.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Recommender,
        optimizers: Sequence[torch.optim.Optimizer],
        skipper: Skipper,
        sender: Sender,
        clock: Stopwatch,
        moved: Callable[[], None],
        ranks: Ranks | None = None,
    ) -> None:
        self._config, self._model, self._optimizers = config, model, optimizers
        self._skipper, self._sender, self._clock, self._moved, self._ranks = skipper, sender, clock, moved, ranks
        tables = model.embeddings
        self.cached = tables if isinstance(tables, CachedEmbeddingCollection) else None
        self.waits = sender.device.type == "cpu"
        """Whether each loss is looked at; a GPU is not waited for, its losses are looked at when they are reported."""
        self.left_out = 0
        """Batches left out because their loss or a gradient was not finite."""
        self.left_out_in_a_row = 0

    def __call__(self, batch: Batch, done: int, following: Inputs | None = None) -> float | Tensor | None:
        """Forward, backward and the optimizers' step.

        Args:
            batch: B samples in host memory.
            done: Steps done before.
            following: What the data holds next, whose rows in host memory may be sent for.

        Returns:
            The loss, on a GPU as a tensor that nobody waits for; None if the batch was left out.

        Raises:
            NonFiniteError: The loss or a gradient is not finite, and so the configuration wants it, or too many came
                one after the other.
        """
        if self.cached is not None and self._config.hotline:
            with autocast(self._config.bf16, self._config.device):
                return hotline_step(
                    self._model, self.cached, self._optimizers, batch, following=following, before_step=self._clip
                ).loss.detach()
        if self.cached is not None and following is not None:
            self.cached.look_ahead(following.ids, following.bags)
        self._forget()
        loss = self._alone(batch, done) if self._ranks is None else self._of_all(batch, done, self._ranks)
        if loss is None:
            return None
        self._clip()
        for optimizer in self._optimizers:
            optimizer.step()
        self._clock.lap("update")
        self.left_out_in_a_row = 0
        return loss

    def _alone(self, batch: Batch, done: int) -> float | Tensor | None:
        loss, losses = self._forward(batch)
        value = float(loss.detach()) if self.waits else loss.detach()
        self._clock.lap("forward")
        if isinstance(value, float) and not math.isfinite(value):
            return self._leave_out(batch, f"the loss is {value}", done)
        self._hear(batch, losses)
        loss.backward()
        if self.waits and not gradients_are_finite(self._model):
            return self._leave_out(batch, "a gradient is not finite", done)
        self._clock.lap("backward")
        return value

    def _of_all(self, batch: Batch, done: int, ranks: Ranks) -> float | None:
        """The same on this rank's part of the batch, with the gradients of all."""
        own = ranks.part(batch)
        loss, losses = self._forward(own)
        self._clock.lap("forward")
        share = self._model.terms(own) / max(self._model.terms(batch), 1)
        if share:
            # Summed over the ranks, then divided by their number.
            (loss * (share * ranks.world)).backward()
        value = ranks.mean_dense(self._model, float(loss.detach()) * share if share else 0.0)
        if not math.isfinite(value):
            return self._leave_out(batch, f"the loss is {value}", done)
        self._clock.lap("backward")
        self._hear(batch, losses)
        ranks.exchange(self._model, send_frozen=self._config.optimizer.clip is not None)
        if not gradients_are_finite(self._model):
            return self._leave_out(batch, "a gradient is not finite", done)
        self._clock.lap("backward")
        return value

    def _hear(self, batch: Batch, losses: Tensor | None) -> None:
        """Tells the policy the losses, if it wants them."""
        if losses is not None:
            self._skipper.observe(batch, losses)
            self._moved()
            self._clock.lap("policy")

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The loss and, if the policy wants them, the losses of the samples."""
        sent = self._sender.send(batch)
        with autocast(self._config.bf16, self._config.device):
            if not self._skipper.policy.wants_losses:
                return self._model.loss(sent), None
            losses = self._model.losses(sent)
            return (losses * sent.weights).mean(), losses

    def _clip(self) -> None:
        if self._config.optimizer.clip is not None:
            clip_grad_norm_(self._model.parameters(), self._config.optimizer.clip)

    def _forget(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _leave_out(self, batch: Batch, what: str, done: int) -> None:
        """Stops at a batch that is not finite, or passes over it."""
        self.left_out_in_a_row += 1
        self.left_out += 1
        if self._config.on_nonfinite == "stop" or self.left_out_in_a_row >= MOST_IN_A_ROW:
            with autocast(self._config.bf16, self._config.device):
                raise nonfinite_error(self._model, self._sender.send(batch), what, done)
        self._forget()
        if isinstance(self._model.embeddings, CachedEmbeddingCollection):
            self._model.embeddings.skip_step()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"nonfinite_batches": self.left_out, "nonfinite_in_a_row": self.left_out_in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self.left_out = whole_number(state, "nonfinite_batches")
        self.left_out_in_a_row = whole_number(state, "nonfinite_in_a_row")
