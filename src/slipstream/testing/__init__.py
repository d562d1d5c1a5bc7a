"""Checks for policies of your own: :func:`check_policy` trains a small model with one and watches it keep the rules."""

from slipstream.testing.check import check_policy

__all__ = ["check_policy"]
