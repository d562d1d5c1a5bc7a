"""Checkpoints: all of a training on disk, so that one that died goes on as if nothing had happened."""

from slipstream.training.checkpoint.folder import CheckpointFolder, DamagedCheckpointWarning
from slipstream.training.checkpoint.manifest import CheckpointManifest

__all__ = ["CheckpointFolder", "CheckpointManifest", "DamagedCheckpointWarning"]
