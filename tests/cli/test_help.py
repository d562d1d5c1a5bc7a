"""What ``--help`` names is what there is."""

from __future__ import annotations

import inspect
from pathlib import Path

from slipstream.cli import prepare, train
from slipstream.data.names import FORMATS
from slipstream.models.configs import MODELS
from slipstream.policies.configs import POLICIES
from slipstream.training import TrainConfig


def test_help_of_train_names_every_policy_and_model() -> None:
    text = inspect.getsource(train)
    assert all(name in text for name in (*POLICIES, *MODELS))


def test_defaults_that_help_names_are_those_of_the_settings() -> None:
    text, settings = inspect.getsource(train), TrainConfig(data=Path("data"))
    optimizer = settings.optimizer
    for name in (settings.model.name, settings.policy.name, optimizer.name, settings.mode, settings.on_nonfinite):
        assert f"{name} (default)" in text
    for said, value in (
        ("Samples in a batch", settings.batch_size),
        ("Passes over the training samples", settings.epochs),
        ("Learning rate of the dense part", optimizer.lr),
        ("Seed of everything drawn", settings.seed),
        ("Minutes between two checkpoints in the run folder", settings.checkpoint.minutes),
    ):
        assert f"{said} ({value:g})" in text
    assert optimizer.embedding_lr is None and settings.threads is None


def test_help_of_prepare_names_every_format() -> None:
    assert all(name in prepare.FORMATS for name in FORMATS)
