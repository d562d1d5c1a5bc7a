"""Training: typed configuration, the loop, and the events that progress, metrics and loggers listen to."""

from slipstream.training.config import (
    CheckpointConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    load_config,
    save_config,
)
from slipstream.training.events import (
    CheckpointSaved,
    ChunkScored,
    CompilingKernels,
    EpochDone,
    Event,
    GatesNoted,
    HeldOutScored,
    Listener,
    PolicyMoved,
    RunDone,
    RunStarted,
    StepDone,
)
from slipstream.training.inference import Evaluation, evaluate, predict
from slipstream.training.listeners import JsonlMetrics, Progress, ResultWriter
from slipstream.training.loop import Trainer
from slipstream.training.result import Result
from slipstream.training.run import train

__all__ = [
    "CheckpointConfig",
    "CheckpointSaved",
    "ChunkScored",
    "CompilingKernels",
    "EpochDone",
    "Evaluation",
    "Event",
    "GatesNoted",
    "HeldOutScored",
    "JsonlMetrics",
    "Listener",
    "OptimizerConfig",
    "PolicyMoved",
    "Progress",
    "Result",
    "ResultWriter",
    "RunDone",
    "RunStarted",
    "ScheduleConfig",
    "StepDone",
    "TrainConfig",
    "Trainer",
    "evaluate",
    "load_config",
    "predict",
    "save_config",
    "train",
]
