"""When a policy of rows decides: first after a warm-up, then every so many steps."""

from __future__ import annotations

from slipstream.errors import ConfigError

WARM_UP = 500
"""Steps before the first decision where nothing else is set."""
WARM_UP_SHARE = 0.1
"""Share of a training's steps that a warm-up takes at most where none is set."""


class Cadence:
    """The steps at which a policy decides.

    Attributes:
        warmup_steps: Steps before the first decision.

    Args:
        name: The policy's, for errors.
        warmup_steps: As set; None: 500, or a tenth of the training where that is known and less.
        every: Steps between two decisions.
    """

    def __init__(self, name: str, warmup_steps: int | None, every: int) -> None:
        self._name, self._set, self._every = name, warmup_steps, every
        self.warmup_steps = WARM_UP if warmup_steps is None else warmup_steps

    def fit(self, batches: int) -> None:
        """Fits a warm-up that was not set to a training of so many batches.

        Raises:
            ConfigError: The training ends before the first decision; says the range that is allowed.
        """
        if self._set is None:
            self.warmup_steps = min(WARM_UP, max(1, int(WARM_UP_SHARE * batches)))
        if max(self.warmup_steps, 1) >= batches:
            what = f"policy {self._name!r}: warmup_steps={self.warmup_steps} leaves no decision in a training"
            fewer = f"set policy.warmup_steps in [0, {batches - 2}], a tenth of the batches say, or use smaller batches"
            remedy = fewer if batches > 1 else "use more samples or a smaller batch_size"
            raise ConfigError(f"{what} of {batches} batches", remedy=remedy)

    def is_due(self, step: int) -> bool:
        """Whether the policy decides before this step, counted from 0; never before the first."""
        since = step - max(self.warmup_steps, 1)
        return since >= 0 and since % self._every == 0
