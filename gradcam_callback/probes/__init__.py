"""The fixed images: where they come from, how they are taken out of the batches, and what is known about them."""

from gradcam_callback.probes.given import as_given
from gradcam_callback.probes.images import ImageProbes
from gradcam_callback.probes.probe_set import ProbeSet, fingerprint
from gradcam_callback.probes.source import CaptureContext, FixedCollector, ProbeCollector, ProbeSample, ProbeSource
from gradcam_callback.probes.tensors import TensorProbes
from gradcam_callback.probes.validation import ValidationProbes, as_source

__all__ = [
    "CaptureContext",
    "FixedCollector",
    "ImageProbes",
    "ProbeCollector",
    "ProbeSample",
    "ProbeSet",
    "ProbeSource",
    "TensorProbes",
    "ValidationProbes",
    "as_given",
    "as_source",
    "fingerprint",
]
