"""The networks that the recipes train."""

from common.models.audiovisual import FUSIONS, AudioVisualNet

__all__ = ["FUSIONS", "AudioVisualNet"]
