"""The fixed images: where they come from, how they are taken out of the batches, and what is known about them."""

from gradcam_callback.probes.probe_set import ProbeSet, fingerprint
from gradcam_callback.probes.source import CaptureContext, FixedCollector, ProbeCollector, ProbeSample, ProbeSource

__all__ = [
    "CaptureContext",
    "FixedCollector",
    "ProbeCollector",
    "ProbeSample",
    "ProbeSet",
    "ProbeSource",
    "fingerprint",
]
