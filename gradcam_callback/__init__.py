"""Grad-CAM during validation, as a PyTorch Lightning callback: heatmaps and gradient-null alerts in TensorBoard.

The public names are resolved when they are first used: importing the package imports neither torch nor lightning, so
that TensorBoard, or a shell's completion, can look at it at no cost.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradcam_callback.callback import GradCAMCallback
    from gradcam_callback.causes import Cause
    from gradcam_callback.diagnosis.diagnoser import diagnose
    from gradcam_callback.engine.explain import compute_cam
    from gradcam_callback.errors import GradientNullError, GradientNullWarning
    from gradcam_callback.probes.images import ImageProbes
    from gradcam_callback.probes.probe_set import ProbeSet
    from gradcam_callback.probes.source import CaptureContext, ProbeCollector, ProbeSource
    from gradcam_callback.probes.tensors import TensorProbes
    from gradcam_callback.probes.validation import ValidationProbes
    from gradcam_callback.recording.reading import read_run
    from gradcam_callback.recording.recording import Recording
    from gradcam_callback.reporting.alerts import Alert
    from gradcam_callback.reporting.report import Report
    from gradcam_callback.reporting.sinks.sink import Sink, SinkContext
    from gradcam_callback.results import (
        CAMResult,
        Cut,
        Diagnosis,
        GradientState,
        LayerHealth,
        PathStep,
        SourceLocation,
    )
    from gradcam_callback.watch import GradCAMWatch

__version__ = "0.1.0"

_HOMES = {
    "Alert": "reporting.alerts",
    "CAMResult": "results",
    "CaptureContext": "probes.source",
    "Cause": "causes",
    "Cut": "results",
    "Diagnosis": "results",
    "GradCAMCallback": "callback",
    "GradCAMWatch": "watch",
    "GradientNullError": "errors",
    "GradientNullWarning": "errors",
    "GradientState": "results",
    "ImageProbes": "probes.images",
    "LayerHealth": "results",
    "PathStep": "results",
    "ProbeCollector": "probes.source",
    "ProbeSet": "probes.probe_set",
    "ProbeSource": "probes.source",
    "Recording": "recording.recording",
    "Report": "reporting.report",
    "Sink": "reporting.sinks.sink",
    "SinkContext": "reporting.sinks.sink",
    "SourceLocation": "results",
    "TensorProbes": "probes.tensors",
    "ValidationProbes": "probes.validation",
    "compute_cam": "engine.explain",
    "diagnose": "diagnosis.diagnoser",
    "read_run": "recording.reading",
}

__all__ = [
    "Alert",
    "CAMResult",
    "CaptureContext",
    "Cause",
    "Cut",
    "Diagnosis",
    "GradCAMCallback",
    "GradCAMWatch",
    "GradientNullError",
    "GradientNullWarning",
    "GradientState",
    "ImageProbes",
    "LayerHealth",
    "PathStep",
    "ProbeCollector",
    "ProbeSet",
    "ProbeSource",
    "Recording",
    "Report",
    "Sink",
    "SinkContext",
    "SourceLocation",
    "TensorProbes",
    "ValidationProbes",
    "compute_cam",
    "diagnose",
    "read_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name == "GradCAMCallback":  # each time: the program may have imported another package of Lightning since
        return import_module(f"{__name__}.lightning_api").inherit(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
