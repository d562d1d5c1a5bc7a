"""Saves a training while it runs: when it is time, when it is asked to end, and at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from slipstream.data.store import Store
from slipstream.embedding import tables
from slipstream.errors import ConfigError
from slipstream.training.checkpoint.folder import CheckpointFolder, Info, Loaded
from slipstream.training.checkpoint.touched import Touched
from slipstream.training.config import TrainConfig
from slipstream.training.events import CheckpointSaved, Listener, tell
from slipstream.training.loop import Trainer
from slipstream.training.state import tensors_of_rows
from slipstream.training.termination import NOT_SAVED, SAVED, Termination

MAY_DIFFER = ("data", "cache", "out", "threads", "checkpoint", "on_nonfinite", "max_memory", "report_points")
"""Settings that do not change what a training computes; the data is compared by its fingerprint."""


class Saver:
    """Saves a trainer, and the listeners that can be saved (``state_dict``), at boundaries of the training.

    Times are of the clock that only goes forward: the system's clock may jump.

    Args:
        trainer: The training.
        checkpoints: Where to; None: nowhere, it only looks whether the training is asked to end, or (where several
            ranks train) takes its part in what the first one saves.
        termination: Says so.
    """

    def __init__(self, trainer: Trainer, checkpoints: CheckpointFolder | None, termination: Termination) -> None:
        self._trainer, self._checkpoints, self._termination = trainer, checkpoints, termination
        self._settings = trainer.config.checkpoint
        self._saves = checkpoints is not None
        ranks = self._ranks = trainer.ranks
        self._touched = None
        if checkpoints is not None and _lazy(trainer.config):
            self._touched = Touched(tables(trainer.model), listen=ranks is None)
        if ranks is not None:
            self._saves = trainer.config.out is not None
            ranks.tell = None if self._touched is None else self._touched.mark
            # Clocks differ: the first rank's counts.
            ranks.wishes = lambda: (termination.requested, self._saves and ranks.first and self._time_is_up())
        self._last_time, self._last_step = time.monotonic(), trainer.steps

    def at_boundary(self) -> bool:
        """Saves if it is time; whether it was.

        Raises:
            Interrupted: The training was asked to end, and is saved.
            KeyboardInterrupt: By Ctrl-C.
            OutputError: It cannot be saved.
        """
        if self._ranks is None:
            stop, late = self._termination.requested, self._saves and self._time_is_up()
        else:
            stop, late = self._ranks.agreed()
        if stop:
            self.save()
            if self._ranks is not None:  # who leaves before the first rank has written is missed by it
                self._ranks.broadcast(None)
            out = self._trainer.config.out
            raise self._termination.ended(SAVED.format(out) if self._saves else NOT_SAVED)
        steps = self._settings.steps
        due = late or (steps is not None and self._trainer.steps - self._last_step >= steps)
        if due:
            self.save()
        return due

    def _time_is_up(self) -> bool:
        minutes = self._settings.minutes
        return minutes is not None and time.monotonic() - self._last_time >= 60 * minutes

    def save(self, *, finished: bool = False) -> None:
        """Saves now."""
        if not self._saves:
            return
        if self._checkpoints is None:  # what the first rank is going to write is the state of all
            self._trainer.state_dict()
            self._last_step = self._trainer.steps
            return
        began = time.perf_counter()
        trainer = self._trainer
        if self._touched is not None:
            self._touched.follow(tensors_of_rows(trainer.model, trainer.optimizers))
        info = Info(
            position=asdict(trainer.position),
            config=trainer.config.model_dump(mode="json"),
            data={
                "fingerprint": trainer.store.fingerprint,
                "files": trainer.store.stamps,  # type: ignore[dict-item]
                "earlier": list(trainer.earlier_data),
            },
        )
        state = {"trainer": trainer.state_dict(), "listeners": listeners_state(trainer.listeners)}
        path = self._checkpoints.save(state, info, touched=self._touched, finished=finished)
        size = sum(file.stat().st_size for file in path.iterdir())
        self._last_time, self._last_step = time.monotonic(), trainer.steps
        tell(trainer.listeners, CheckpointSaved(path, trainer.steps, time.perf_counter() - began, size))

    def close(self) -> None:
        """Stops watching the tables."""
        if self._touched is not None:
            self._touched.detach()


def _lazy(config: TrainConfig) -> bool:
    """Whether only rows that a batch looks up can change."""
    return config.checkpoint.incremental and config.engine == "slipstream" and config.optimizer.untouched == "lazy"


def listeners_state(listeners: Sequence[Listener]) -> dict[str, Any]:
    """States of the listeners that can be saved, by the name of their class."""
    found: dict[str, Any] = {}
    for listener in listeners:
        save = getattr(listener, "state_dict", None)
        if callable(save):
            found[type(listener).__name__] = save()
    return found


def load_listeners(listeners: Sequence[Listener], states: Mapping[str, Any]) -> None:
    """Hands each listener its state, if there is one."""
    for listener in listeners:
        load = getattr(listener, "load_state_dict", None)
        state = states.get(type(listener).__name__)
        if callable(load) and state is not None:
            load(state)


def check_same(saved: Mapping[str, Any], config: TrainConfig) -> None:
    """Whether a training may go on under a configuration.

    Args:
        saved: The configuration that the checkpoint was made under.
        config: The one now, resolved.

    Raises:
        ConfigError: A setting differs that changes what is computed; names it.
    """
    now = config.model_dump(mode="json")
    for name in [name for name in {**saved, **now} if name not in MAY_DIFFER]:
        path, before, after = _difference(name, _completed(saved.get(name)), now.get(name))
        if before != after:
            raise ConfigError(
                f"cannot resume: {path} was {before!r}, now it is {after!r}",
                remedy="leave it as it was, or train anew in another run folder",
            )


def check_data(fingerprint: object, store: Store) -> None:
    """Raise ConfigError unless the data set is that of this fingerprint."""
    if fingerprint != store.fingerprint:
        raise ConfigError("cannot resume: the data is not that of the training", remedy="name the same data set")


def _completed(setting: Any) -> Any:
    """A policy's settings with what was the only way before there was a choice."""
    if not isinstance(setting, dict):
        return setting
    old = {"correction": "weights"} if setting.get("name") == "importance" else {}
    return old | {key: _completed(value) for key, value in setting.items()}


def _difference(path: str, before: Any, after: Any) -> tuple[str, Any, Any]:
    """The first setting below ``path`` that differs, with its two values."""
    if isinstance(before, dict) and isinstance(after, dict) and before.get("name") == after.get("name"):
        for key in {**before, **after}:
            if before.get(key) != after.get(key):
                return _difference(f"{path}.{key}", before.get(key), after.get(key))
    return path, before, after


def restore(trainer: Trainer, loaded: Loaded) -> None:
    """Puts a trainer and its listeners where the checkpoint was taken.

    Raises:
        ConfigError: The checkpoint is of another configuration or of other data.
        DataError: The data was changed since.
        CheckpointError: It does not hold the state of such a training.
    """
    check_same(loaded.manifest.config, trainer.config)
    data, store = loaded.manifest.data, trainer.store
    check_data(data.get("fingerprint"), store)
    if data.get("files") != store.stamps:
        type(store).open(store.path, verify=True)  # copied, perhaps, or written to: its checksums tell
    earlier = data.get("earlier", [])
    trainer.earlier_data = [str(fingerprint) for fingerprint in earlier] if isinstance(earlier, list) else []
    trainer.plan()
    with loaded.taken_over():
        trainer.load_state_dict(loaded.state["trainer"])
        load_listeners(trainer.listeners, loaded.state["listeners"])
