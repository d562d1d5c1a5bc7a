"""RecBole's own trainer on converted tables, with a policy in front of it."""

from typing import Any

from recbole.data.interaction import Interaction

import slipstream as sl
from slipstream.data import Columns


def accelerate(trainer: Any, untouched: Any = "lazy") -> None:
    """``trainer.fit(...)`` then runs as before, faster."""
    sl.convert(trainer.model)
    trainer.optimizer = sl.optim.Adam(trainer.model.parameters(), lr=trainer.learning_rate, untouched=untouched)


def train(trainer: Any, train_data: Any, ids: list[str], policy: Any, batch_size: int, epoch: int = 0) -> Any:
    """One epoch in which the policy may skip samples, by the trainer's own step.

    Its losses take no weights: for policies that keep all samples with one probability (``random``), and of rows.
    """
    skipper = sl.Skipper(trainer.model, policy, batch_size=batch_size, to_batch=Columns(ids))
    trainer._train_epoch((Interaction(batch.carried) for batch in skipper(train_data)), epoch)
    return skipper.report()
