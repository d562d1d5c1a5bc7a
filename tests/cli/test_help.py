"""What ``--help`` names is what there is."""

from __future__ import annotations

import inspect

from slipstream.cli import prepare, train
from slipstream.data.formats import FORMATS
from slipstream.models.configs import MODELS
from slipstream.policies.configs import POLICIES


def test_help_of_train_names_every_policy_and_model() -> None:
    text = inspect.getsource(train)
    assert all(name in text for name in (*POLICIES, *MODELS))


def test_help_of_prepare_names_every_format() -> None:
    assert all(name in prepare.FORMATS for name in FORMATS)
