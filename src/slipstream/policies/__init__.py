"""Decisions about what to skip, one file each, and the :class:`Skipper` that carries them out.

A policy reads signals and says how likely each input is kept, or sets the rows' gates; it never touches a kernel.
"""

from slipstream.policies.base import Policy, Progress
from slipstream.policies.combine import Combine
from slipstream.policies.configs import CombineConfig, PartConfig, PolicyConfig, build_policy
from slipstream.policies.guard import Guard, GuardConfig
from slipstream.policies.importance import Importance, ImportanceConfig
from slipstream.policies.none import NoneConfig, NoSkipping
from slipstream.policies.order import Order, OrderConfig
from slipstream.policies.psse import PSSE, PsseConfig
from slipstream.policies.random import Random, RandomConfig
from slipstream.policies.row_importance import RowImportance, RowImportanceConfig
from slipstream.policies.saturation import Saturation, SaturationConfig
from slipstream.policies.skipper import Skipper, SkipReport
from slipstream.policies.slipstream import Slipstream, SlipstreamConfig
from slipstream.policies.subsampling import Subsampling, SubsamplingConfig

__all__ = [
    "PSSE",
    "Combine",
    "CombineConfig",
    "Guard",
    "GuardConfig",
    "Importance",
    "ImportanceConfig",
    "NoSkipping",
    "NoneConfig",
    "Order",
    "OrderConfig",
    "PartConfig",
    "Policy",
    "PolicyConfig",
    "Progress",
    "PsseConfig",
    "Random",
    "RandomConfig",
    "RowImportance",
    "RowImportanceConfig",
    "Saturation",
    "SaturationConfig",
    "SkipReport",
    "Skipper",
    "Slipstream",
    "SlipstreamConfig",
    "Subsampling",
    "SubsamplingConfig",
    "build_policy",
]
