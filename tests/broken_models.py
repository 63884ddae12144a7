"""The shelf: small models whose gradient is lost between a layer and the score, and healthy ones that look like them.

Each is written as people write them, and says of itself, by class attributes, what is to be found: see `Shelved`. The
line to blame ends with the comment `# ends here`; a cause without a line has none. Several marked lines are several
cuts, told in this order.
"""

from __future__ import annotations

import functools
import inspect
import io
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import broken_helpers
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from broken_helpers import timed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.transforms.functional import to_pil_image, to_tensor

from gradcam_callback.causes import Cause

MARK = "# ends here"
COMPREHENSION = "<listcomp>" if sys.version_info < (3, 12) else "forward"


class Shelved(nn.Module):
    """A convolution, the layer in question, and a head; in between each model does something of its own.

    Attributes:
        cause: What `diagnose` has to find; None: nothing is wrong.
        layer: The layer in question.
        function: The function that the marked line is in.
        module: The dotted name of the module in whose forward it happens.
        marked_in: Where the marked line is, if not in the class itself: a function or another class.
        probes: Which of the samples of `images()` are concerned; all, unless a model says so.
        causes: All that is told, the first one first; unless a model says so, `cause` once for each marked line.
        rescued: What `Diagnosis.rescued` has to hold, when called with gradients on.
        bridgeable: Whether the cut can be crossed; then `whole` is `forward` without it.
    """

    cause: ClassVar[Cause | None] = None
    layer: ClassVar[str] = "conv"
    function: ClassVar[str] = "forward"
    module: ClassVar[str] = ""
    marked_in: ClassVar[Any] = None
    probes: ClassVar[tuple[int, ...]] = (0, 1)
    causes: ClassVar[tuple[Cause, ...] | None] = None
    rescued: ClassVar[tuple[Cause, ...]] = ()
    bridgeable: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.mid = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def classify(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.conv(images))

    def whole(self, images: Tensor) -> Tensor:
        """What `forward` computes, without the cut."""
        return self.classify(self.conv(images))

    def mend(self) -> None:
        """Take the cut away."""
        self.forward = self.whole  # type: ignore[method-assign]

    @classmethod
    def images(cls) -> Tensor:
        return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))

    @classmethod
    def marked_lines(cls) -> list[tuple[str, int]]:
        """The file and the number of each marked line."""
        return _marked_lines(cls.marked_in or cls)


@functools.cache
def _marked_lines(place: Any) -> list[tuple[str, int]]:
    lines, start = inspect.getsourcelines(inspect.unwrap(place))
    file = str(inspect.getsourcefile(inspect.unwrap(place)))
    return [(file, start + i) for i, line in enumerate(lines) if line.rstrip().endswith(MARK)]


def build(kind: type[Shelved], mended: bool = False) -> Shelved:
    """A model of the shelf, always with the same weights, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind()
    if mended:
        model.mend()
    return model.eval()


class Crossable(Shelved):
    bridgeable = True


# detached


class DetachedInForward(Crossable):
    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).relu()
        maps = maps.detach()  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.conv(images).relu())


class DetachedByData(Crossable):
    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).data  # ends here
        return self.classify(self.mid(maps))

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.mid(self.conv(images)))


class DetachedInPlace(Crossable):
    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        maps.detach_()  # ends here
        return self.classify(maps)


class Stop(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return torch.detach(maps)  # ends here


class DetachedInSequential(Crossable):
    cause, marked_in, module = Cause.DETACHED, Stop, "tail.1"

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Sequential(nn.ReLU(), Stop(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.conv(images))

    def mend(self) -> None:
        self.tail[1] = nn.Identity()


class DetachedInAnotherFile(Crossable):
    cause, marked_in, function = Cause.DETACHED, broken_helpers.detached_pool, "detached_pool"

    def forward(self, images: Tensor) -> Tensor:
        return self.head(broken_helpers.detached_pool(self.conv(images)))


def keep_output(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output.detach()  # ends here


class DetachedInHook(Crossable):
    cause, marked_in, function, module = Cause.DETACHED, keep_output, "keep_output", "conv"

    def __init__(self) -> None:
        super().__init__()
        self.handle = self.conv.register_forward_hook(keep_output)

    def mend(self) -> None:
        self.handle.remove()


def detach_input(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].detach(),)  # ends here


class DetachedInPreHook(Crossable):
    cause, marked_in, function, module = Cause.DETACHED, detach_input, "detach_input", "head"

    def __init__(self) -> None:
        super().__init__()
        self.handle = self.head.register_forward_pre_hook(detach_input)

    def mend(self) -> None:
        self.handle.remove()


class Nest(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, maps: Tensor) -> Tensor:
        return self.inner(maps) + 1


class DetachedInDecorated(Crossable):
    cause, function = Cause.DETACHED, "features"

    @timed
    def features(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return maps.detach()  # ends here

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


class DetachedInLambda(Crossable):
    cause, function = Cause.DETACHED, "<lambda>"

    def __init__(self) -> None:
        super().__init__()
        self.neck = lambda maps: maps.detach()  # ends here

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.neck(self.conv(images)))


class DetachedInComprehension(Crossable):
    cause, function = Cause.DETACHED, COMPREHENSION

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(torch.cat([part.detach() for part in maps.split(2, dim=1)], dim=1))  # ends here


class DetachedOnlyInEval(Crossable):
    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        if not self.training:
            maps = maps.detach()  # ends here
        return self.classify(maps)


class DetachedByMap(Crossable):
    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        features = [self.conv(images)]
        [maps] = map(Tensor.detach, features)  # ends here
        return self.classify(maps)


class DetachedAndMadeALeaf(Crossable):
    """The score has a gradient again, but the layer is behind the cut."""

    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).relu()
        maps = maps.detach().requires_grad_()  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.conv(images).relu())


class DetachedBeforeAnUnregisteredHead(Crossable):
    """The head's weights, in a plain list, require a gradient: the score has one, and the layer none."""

    cause = Cause.DETACHED

    def __init__(self) -> None:
        super().__init__()
        self.heads = [nn.Linear(4, 5)]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).relu()
        pooled = maps.detach().mean((2, 3))  # ends here
        return self.heads[0](pooled)

    def whole(self, images: Tensor) -> Tensor:
        return self.heads[0](self.conv(images).relu().mean((2, 3)))


class DetachedInAttentionOfAllParts(Crossable):
    """Queries, keys and values all come from one detached map."""

    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.conv(images).flatten(2).transpose(1, 2)
        tokens = tokens.detach()  # ends here
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.head(mixed.mean(1))

    def whole(self, images: Tensor) -> Tensor:
        tokens = self.conv(images).flatten(2).transpose(1, 2)
        return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens).mean(1))


class DetachedIntoABuffer(Crossable):
    """The maps are written into memory that was there before."""

    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        memory = torch.zeros(len(images), 4, 8, 8)
        memory[:, :] = maps.detach()  # ends here
        return self.classify(memory)


class DetachedInAWrittenView(Crossable):
    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        memory = torch.zeros(len(images), 4, 8, 8)
        window = memory[:, :, 2:6, 2:6]
        window.copy_(maps[:, :, 2:6, 2:6].detach())  # ends here
        return self.classify(memory)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(F.pad(self.conv(images)[:, :, 2:6, 2:6], (2, 2, 2, 2)))


class DetachedBeforeScriptedCode(Crossable):
    """What a scripted module does is not seen."""

    cause = Cause.DETACHED

    def __init__(self) -> None:
        super().__init__()
        self.tail = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).detach()  # ends here
        return self.classify(self.tail(maps))

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.tail(self.conv(images)))


class NoGradAroundScriptedCode(Crossable):
    """The block is found by crossing it; the operation in it that is lost first is not seen."""

    cause = Cause.NO_GRAD

    def __init__(self) -> None:
        super().__init__()
        self.tail = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).relu()
        with torch.no_grad():
            maps = self.tail(maps)
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.tail(self.conv(images).relu()))


class MadeAParameter(Shelved):
    """No call can be seen that makes the parameter: the cause is known, and the line is not."""

    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).relu()
        return self.classify(nn.Parameter(maps))


# requires_grad_off


class SwitchedOffByAssignment(Crossable):
    cause = Cause.REQUIRES_GRAD_OFF

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        maps.requires_grad = False  # ends here
        return self.classify(maps)


class SwitchedOffByMethod(Crossable):
    cause = Cause.REQUIRES_GRAD_OFF

    def forward(self, images: Tensor) -> Tensor:
        maps = self.mid(self.conv(images))
        return self.classify(maps.requires_grad_(False))  # ends here

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.mid(self.conv(images)))


class SwitchedOffInHook(Crossable):
    cause, function, module = Cause.REQUIRES_GRAD_OFF, "freeze", "mid"

    def __init__(self) -> None:
        super().__init__()

        def freeze(_module: nn.Module, _args: Any, output: Tensor) -> None:
            output.requires_grad = False  # ends here

        self.handle = self.mid.register_forward_hook(freeze)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.mid(self.conv(images)))

    def mend(self) -> None:
        self.handle.remove()


class SwitchedOffOnAView(Crossable):
    """Torch refuses that with gradients on; without, in validation, it does nothing."""

    cause = Cause.REQUIRES_GRAD_OFF

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.conv(images).flatten(2)
        tokens.requires_grad = False  # ends here
        return self.head(tokens.mean(2))


# no_grad


class NoGradBlock(Crossable):
    cause, module = Cause.NO_GRAD, "mid"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.no_grad():
            maps = self.mid(maps)  # ends here
            maps = maps * 2
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.mid(self.conv(images)) * 2)


class Neck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(4, 4, 1)

    @torch.no_grad()
    def forward(self, maps: Tensor) -> Tensor:
        maps = maps.relu()  # ends here
        return self.scale(maps)


class NoGradChild(Crossable):
    cause, marked_in, module = Cause.NO_GRAD, Neck, "neck"

    def __init__(self) -> None:
        super().__init__()
        self.neck = Neck()

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.neck(self.conv(images)))

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.neck.scale(self.conv(images).relu()))


class NoGradInAnotherFile(Crossable):
    cause, marked_in, function = Cause.NO_GRAD, broken_helpers.standardised, "standardised"

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(broken_helpers.standardised(self.conv(images)).relu())

    def whole(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(((maps - maps.mean()) / maps.std()).relu())


class GradEnabledFalse(Crossable):
    cause = Cause.NO_GRAD

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.set_grad_enabled(False):
            maps = F.gelu(maps)  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(F.gelu(self.conv(images)))


class GradEnabledInTraining(Crossable):
    """The feature extractor's tail learns in training; in validation nothing does."""

    cause, module = Cause.NO_GRAD, "mid"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.set_grad_enabled(self.training):
            maps = self.mid(maps).relu()  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.mid(self.conv(images)).relu())


class GradDisabledForGood(Crossable):
    """Nobody switches it on again; the block behind it counts on that."""

    cause = Cause.NO_GRAD

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        torch.set_grad_enabled(False)
        maps = maps.sigmoid()  # ends here
        with torch.no_grad():
            self.seen = maps.mean()
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.conv(images).sigmoid())


class NoGradMethod(Crossable):
    cause, function, module = Cause.NO_GRAD, "neck", "mid"

    @torch.no_grad()
    def neck(self, maps: Tensor) -> Tensor:
        self.peak = maps.shape
        maps = maps.float()
        return self.mid(maps).relu()  # ends here

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.neck(self.conv(images)))

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.mid(self.conv(images)).relu())


class NoGradWithBookkeeping(Crossable):
    """The first line in the block keeps a mean and is harmless; the second is on the way."""

    cause = Cause.NO_GRAD

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(maps.mean((0, 2, 3)), alpha=0.1)
            maps = maps.tanh()  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.conv(images).tanh())


class NoGradAroundAStraightThroughEstimator(Crossable):
    cause = Cause.NO_GRAD

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.no_grad():
            coded = maps.round()  # ends here
            maps = maps + (coded - maps).detach()
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(maps + (maps.round() - maps).detach())


class NoGradAroundAResidual(Crossable):
    cause, module = Cause.NO_GRAD, "mid"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.no_grad():
            more = self.mid(maps)  # ends here
            maps = maps + more
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(maps + self.mid(maps))


class NoGradBackboneAndNoGradNeck(Crossable):
    """The first block holds the layer and does no harm, the second does."""

    cause, module, rescued = Cause.NO_GRAD, "mid", (Cause.NO_GRAD,)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.conv(images)
        with torch.no_grad():
            maps = self.mid(maps)  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.mid(self.conv(images)))


class NoGradInsideTheBackbonesNoGrad(Crossable):
    cause, module, rescued = Cause.NO_GRAD, "mid", (Cause.NO_GRAD,)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.conv(images).relu()
            with torch.no_grad():
                maps = self.mid(maps)  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.mid(self.conv(images).relu()))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps.detach() * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class NoGradAroundACustomFunction(Crossable):
    """The function itself is sound."""

    cause = Cause.NO_GRAD

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.no_grad():
            maps = Double.apply(maps)  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(Double.apply(self.conv(images)))


# inference_mode


class InferenceBlock(Crossable):
    cause, module = Cause.INFERENCE_MODE, "mid"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.inference_mode():
            maps = self.mid(maps)  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.mid(self.conv(images)))


class InferenceUnlessTraining(Crossable):
    cause, function = Cause.INFERENCE_MODE, "pooled"

    def pooled(self, maps: Tensor) -> Tensor:
        with torch.inference_mode(mode=not self.training):
            return torch.mean(maps, dim=(2, 3))  # ends here

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pooled(self.conv(images)))


class InferenceMethod(Crossable):
    cause, function = Cause.INFERENCE_MODE, "neck"

    @torch.inference_mode()
    def neck(self, maps: Tensor) -> Tensor:
        return maps.abs()  # ends here

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.neck(self.conv(images)))

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.conv(images).abs())


# several cuts


class TwoCutsInARow(Crossable):
    cause, causes = Cause.DETACHED, (Cause.DETACHED, Cause.NO_GRAD)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).detach()  # ends here
        with torch.no_grad():
            maps = maps.relu()  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.conv(images).relu())


class ThreeCutsInARow(Crossable):
    cause, causes = Cause.NO_GRAD, (Cause.NO_GRAD, Cause.REQUIRES_GRAD_OFF, Cause.DETACHED)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.no_grad():
            maps = maps.relu()  # ends here
        maps = maps * 2
        maps.requires_grad = False  # ends here
        return self.classify(maps.sqrt().detach())  # ends here

    def whole(self, images: Tensor) -> Tensor:
        return self.classify((self.conv(images).relu() * 2).sqrt())

    def classify(self, maps: Tensor) -> Tensor:
        return self.head((maps + 1).mean((2, 3)))


class TwoBranchesBothCut(Crossable):
    cause = Cause.DETACHED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        mean = maps.mean((2, 3)).detach()  # ends here
        peak = maps.amax((2, 3)).detach()  # ends here
        return self.head(mean + peak)

    def whole(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.head(maps.mean((2, 3)) + maps.amax((2, 3)))


class DetachedThenNumpy(Shelved):
    cause, causes = Cause.DETACHED, (Cause.DETACHED, Cause.LEFT_TORCH)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        kept = maps.detach()  # ends here
        array = kept.relu().numpy()  # ends here
        return self.classify(torch.from_numpy(array * 2))


class DetachedThenRounded(Shelved):
    """Crossing the first cut alone brings a gradient of zeros."""

    cause, causes = Cause.DETACHED, (Cause.DETACHED, Cause.ZERO_GRADIENT)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).detach()  # ends here
        maps = maps.round()  # ends here
        return self.classify(maps)


class TwoArgmaxBranches(Shelved):
    cause = Cause.NON_DIFFERENTIABLE

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        best = maps.argmax(1)  # ends here
        worst = maps.argmin(1)  # ends here
        return self.classify(F.one_hot(best + worst, 8).permute(0, 3, 1, 2)[:, :4].float())


# left_torch


class ThroughNumpy(Shelved):
    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        array = maps.detach().cpu().numpy()  # ends here
        return self.classify(torch.from_numpy(np.maximum(array, 0)))


class ThroughSharedNumpy(Shelved):
    """The array and the tensor made of it share the memory of the maps."""

    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        array = self.conv(images).relu().detach().numpy()  # ends here
        return self.classify(torch.from_numpy(array))


class ThroughAsarray(Shelved):
    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        array = np.asarray(self.conv(images).detach())  # ends here
        return self.classify(torch.as_tensor(array * 2))


class ThroughNumpyUnderNoGrad(Shelved):
    cause, causes = Cause.NO_GRAD, (Cause.NO_GRAD, Cause.LEFT_TORCH)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.no_grad():
            pooled = maps.mean((2, 3))  # ends here
            array = pooled.numpy()  # ends here
        return self.head(torch.tensor(array.round(3)))


class NumpyAfterLogging(Shelved):
    """Of the many numbers that leave, only the last ones come back."""

    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        self.history = [float(part.mean()) for part in maps.flatten(0, 1)]
        self.peak = maps.max().item()
        assert bool((maps.abs() < 1e6).all()), "diverged"
        pooled = maps.mean((2, 3))
        return self.head(torch.from_numpy(pooled.detach().numpy().clip(-1, 1)))  # ends here


class ThroughLists(Shelved):
    cause, function = Cause.LEFT_TORCH, COMPREHENSION

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.conv(images).mean((2, 3))
        return self.head(torch.tensor([row.tolist() for row in pooled]))  # ends here


class ThroughItems(Shelved):
    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.conv(images).mean((2, 3))
        copied = torch.zeros(pooled.shape)
        for row in range(pooled.shape[0]):
            for column in range(pooled.shape[1]):
                copied[row, column] = pooled[row, column].item()  # ends here
        return self.head(copied)


class ThroughPython(Shelved):
    """The number scales a constant: it is the only thing the score has of the maps."""

    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        scale = math.sqrt(maps.pow(2).sum().item())  # ends here
        return self.head(torch.ones(len(images), 4)) * scale


class ThroughATensorAsNumber(Shelved):
    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        steps = torch.linspace(0, maps.mean(), 4)  # ends here
        return self.head(steps.expand(len(images), -1))


class ThroughPictures(Shelved):
    cause, causes = Cause.NON_DIFFERENTIABLE, (Cause.NON_DIFFERENTIABLE, Cause.LEFT_TORCH)
    marked_in, function = broken_helpers.through_pictures, "through_pictures"

    def forward(self, images: Tensor) -> Tensor:
        pictures = broken_helpers.through_pictures(self.conv(images))
        return self.head(F.pad(pictures.mean((2, 3)), (0, 1)))


class ThroughPicturesOfTorchvision(Shelved):
    """The cast and the way through NumPy are in the library, in several lines; to the user it is one."""

    cause, function = Cause.LEFT_TORCH, COMPREHENSION

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)[:, :3].sigmoid()
        pictures = [to_pil_image(channels).resize((4, 4)) for channels in maps]  # ends here
        resized = torch.stack([to_tensor(picture) for picture in pictures])
        return self.head(F.pad(resized.mean((2, 3)), (0, 1)))


class CopiedWithTensor(Shelved):
    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.tensor(self.conv(images))  # ends here
        return self.classify(maps)


class CopiedOneByOne(Shelved):
    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        scores = self.classify(self.conv(images))
        return torch.stack([torch.tensor(list(row)) for row in scores])  # ends here

    function = COMPREHENSION


class ThroughAFile(Shelved):
    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        file = io.BytesIO()
        torch.save(self.conv(images).detach(), file)  # ends here
        file.seek(0)
        return self.classify(torch.load(file))


class ThroughDlpack(Shelved):
    cause = Cause.LEFT_TORCH

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.from_dlpack(self.conv(images).detach())  # ends here
        return self.classify(maps)


# non_differentiable


class ArgmaxThenOneHot(Shelved):
    cause = Cause.NON_DIFFERENTIABLE

    def forward(self, images: Tensor) -> Tensor:
        best = self.conv(images).argmax(dim=1)  # ends here
        return self.classify(F.one_hot(best, 4).permute(0, 3, 1, 2).float())


class TopIndices(Shelved):
    cause = Cause.NON_DIFFERENTIABLE

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.conv(images).mean((2, 3))
        _, indices = pooled.topk(2)  # ends here
        return self.head.weight.t()[indices].sum(1)


class Comparison(Shelved):
    cause = Cause.NON_DIFFERENTIABLE

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        mask = maps > 0  # ends here
        return self.classify(mask.float())


class IntegerCast(Shelved):
    cause = Cause.NON_DIFFERENTIABLE

    def forward(self, images: Tensor) -> Tensor:
        levels = (self.conv(images) * 16).int()  # ends here
        return self.classify(levels / 16)


class EmbeddingLookup(Shelved):
    cause = Cause.NON_DIFFERENTIABLE

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        codes = self.conv(images).mean(1).abs().clamp(0, 7).long()  # ends here
        return self.head(self.table(codes).mean((1, 2)))


class NearestCode(Shelved):
    """Vector quantisation whose author forgot the straight-through estimator."""

    cause = Cause.NON_DIFFERENTIABLE

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(6, 4))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).permute(0, 2, 3, 1)
        distances = torch.cdist(maps.flatten(0, 2), self.codes)
        nearest = distances.argmin(1)  # ends here
        return self.head(self.codes[nearest].view(maps.shape).mean((1, 2)))


class Sampled(Shelved):
    cause = Cause.NON_DIFFERENTIABLE

    def forward(self, images: Tensor) -> Tensor:
        weights = self.conv(images).mean((2, 3)).softmax(1)
        drawn = torch.multinomial(weights, 2)  # ends here
        return self.head(F.one_hot(drawn, 4).sum(1).float())


class WrittenWithOut(Shelved):
    """Torch refuses `out=` with gradients on; without, in validation, it works."""

    cause = Cause.NON_DIFFERENTIABLE

    def forward(self, images: Tensor) -> Tensor:
        pooled = torch.empty(0)
        torch.mean(self.conv(images), dim=(2, 3), out=pooled)  # ends here
        return self.head(pooled)


# custom_function


class Forgetful(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        halved = maps / 2
        return halved + 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


class FunctionReturnsNone(Shelved):
    cause = Cause.CUSTOM_FUNCTION

    def forward(self, images: Tensor) -> Tensor:
        maps = Forgetful.apply(self.conv(images))  # ends here
        return self.classify(maps)


class Marked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        doubled = maps * 2
        ctx.mark_non_differentiable(doubled)
        return doubled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


marked = Marked.apply


class FunctionMarksItsOutput(Shelved):
    cause = Cause.CUSTOM_FUNCTION

    def forward(self, images: Tensor) -> Tensor:
        maps = marked(self.conv(images))  # ends here
        return self.classify(maps)


class InTwoParts(torch.autograd.Function):
    @staticmethod
    def forward(maps: Tensor, slope: float) -> Tensor:
        with torch.no_grad():
            return torch.where(maps > 0, maps, maps * slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        return None, None


class Activation(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return InTwoParts.apply(maps, 0.1)  # ends here


class FunctionWithAContextOfItsOwn(Shelved):
    cause, marked_in, module = Cause.CUSTOM_FUNCTION, Activation, "activate"

    def __init__(self) -> None:
        super().__init__()
        self.activate = Activation()

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.activate(self.conv(images)))


class WithoutBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps.relu() + 1


class FunctionWithoutBackward(Shelved):
    cause = Cause.CUSTOM_FUNCTION

    def forward(self, images: Tensor) -> Tensor:
        maps = self.mid(self.conv(images))
        maps = WithoutBackward.apply(maps)  # ends here
        return self.classify(maps)


class WrongShape(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class FunctionReturnsAWrongShape(Shelved):
    cause = Cause.CUSTOM_FUNCTION

    def forward(self, images: Tensor) -> Tensor:
        return self.head(WrongShape.apply(self.conv(images)))  # ends here


class ByNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(maps.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


class FunctionByNumpyReturnsNone(Shelved):
    cause = Cause.CUSTOM_FUNCTION

    def forward(self, images: Tensor) -> Tensor:
        maps = ByNumpy.apply(self.conv(images))  # ends here
        return self.classify(maps)


class FunctionMadeInForward(Shelved):
    cause = Cause.CUSTOM_FUNCTION

    def forward(self, images: Tensor) -> Tensor:
        class Local(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, maps: Tensor) -> Tensor:
                return maps + 1

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> None:
                return None

        maps = Local.apply(self.conv(images).relu())  # ends here
        return self.classify(maps)


class PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps.view_as(maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


class FunctionReturnsItsInput(Shelved):
    cause = Cause.CUSTOM_FUNCTION

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).relu()
        maps = PassThrough.apply(maps)  # ends here
        return self.classify(maps)


class RaisesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return ctx.slope * gradient


class FunctionFailsInBackward(Shelved):
    cause = Cause.CUSTOM_FUNCTION

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(RaisesInBackward.apply(maps))  # ends here


# inplace_modified


class ScaledAfterSigmoid(Shelved):
    cause = Cause.INPLACE_MODIFIED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).sigmoid()
        maps *= 2  # ends here
        return self.classify(maps)


class ZeroedAfterSoftmax(Shelved):
    cause = Cause.INPLACE_MODIFIED

    def forward(self, images: Tensor) -> Tensor:
        maps = F.softmax(self.conv(images), dim=1)
        maps[:, 0] = 0  # ends here
        return self.classify(maps)


class BrightenedInAnotherFile(Shelved):
    cause, marked_in, function = Cause.INPLACE_MODIFIED, broken_helpers.brightened, "brightened"

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(broken_helpers.brightened(self.conv(images).relu()))


class FactorChangedLater(Shelved):
    cause = Cause.INPLACE_MODIFIED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        gate = maps.mean(1, keepdim=True)
        gated = maps * gate
        gate.add_(1)  # ends here
        return self.classify(gated)


class ChangedPartByPart(Shelved):
    """Torch forbids it with gradients on; without, in validation, it works."""

    cause, function = Cause.INPLACE_MODIFIED, "forward"

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.conv(images).unbind(0)
        first.mul_(2)  # ends here
        return self.classify(torch.stack([first, second]))


class ChangedThroughAView(Shelved):
    """The first in-place operation changes what something beside the path saved: it does no harm."""

    cause = Cause.INPLACE_MODIFIED

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        beside = maps.exp()
        self.entropy = beside.log().sum()
        beside.mul_(2)
        maps = maps.tanh()
        corner = maps[:, :, 0, 0]
        corner.zero_()  # ends here
        return self.classify(maps)


# layer_not_called, hook_bypassed, not_on_path, unsupported_output: no line


class NeverCalled(Shelved):
    cause, layer = Cause.LAYER_NOT_CALLED, "mid"


class CalledInTrainingOnly(Shelved):
    cause, layer = Cause.LAYER_NOT_CALLED, "mid"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        if self.training:
            maps = self.mid(maps)
        return self.classify(maps)


class WeightsUsedWithoutTheLayer(Shelved):
    cause = Cause.LAYER_NOT_CALLED

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(F.conv2d(images, self.conv.weight, self.conv.bias, padding=1))


class ScriptedChild(Shelved):
    cause, layer = Cause.HOOK_BYPASSED, "body.0"

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.body(images))


class TracedChild(Shelved):
    cause, layer = Cause.HOOK_BYPASSED, "body.0"

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), torch.zeros(1, 3, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.body(images))


class ForwardCalledDirectly(Shelved):
    cause, module = Cause.HOOK_BYPASSED, ""

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.conv.forward(images))  # ends here


class AuxiliaryBranch(Shelved):
    cause, layer = Cause.NOT_ON_PATH, "mid"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        self.auxiliary = self.mid(maps).mean().item()
        return self.classify(maps)


class CachedFeature(Shelved):
    cause = Cause.NOT_ON_PATH

    def __init__(self) -> None:
        super().__init__()
        self.cache = torch.randn(2, 4, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        fresh = self.conv(images)
        assert torch.isfinite(fresh).all(), "diverged"
        return self.classify(self.cache)


class OnlyItsShape(Shelved):
    cause = Cause.NOT_ON_PATH

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(torch.ones_like(maps) * maps.shape[1] + torch.zeros(1).to(maps))


class ClassTokenOnly(Shelved):
    """The tokens of the layer are beside the class token, and nothing mixes them any more."""

    cause = Cause.NOT_ON_PATH

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1)
        return self.head(F.layer_norm(tokens, (4,))[:, 0])


class OverwrittenFeature(Shelved):
    cause = Cause.ZERO_GRADIENT

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        maps[:] = 1.0  # ends here
        return self.classify(maps)


class VectorLayer(Shelved):
    cause, layer = Cause.UNSUPPORTED_OUTPUT, "head"


class IntegerLayer(Shelved):
    cause, layer = Cause.UNSUPPORTED_OUTPUT, "codes"

    def __init__(self) -> None:
        super().__init__()
        self.codes = Quantised()

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.codes(self.conv(images)).float())


class Quantised(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return (maps * 8).to(torch.int64)


# zero_gradient


class ZeroHead(Shelved):
    cause, module = Cause.ZERO_GRADIENT, "head"

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.head(maps.mean((2, 3)))  # ends here


class ClampedInAnotherFile(Shelved):
    cause, marked_in, function = Cause.ZERO_GRADIENT, broken_helpers.clipped, "clipped"

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(broken_helpers.clipped(self.conv(images)))


class DeadReLU(Shelved):
    cause, module = Cause.ZERO_GRADIENT, "act"

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        nn.init.constant_(self.mid.bias, -100.0)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.mid(self.conv(images))
        maps = self.act(maps)  # ends here
        return self.classify(maps)


class DeadReLUOverAView(Shelved):
    cause = Cause.ZERO_GRADIENT

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images) - 100
        maps.view(-1).relu_()  # ends here
        return self.classify(maps)


class DeadReLUBeforeAnInnocentWrite(Shelved):
    """A part of the maps is written over later; what matters had died before."""

    cause = Cause.ZERO_GRADIENT

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.conv(images) - 100)  # ends here
        scaled = self.mid(maps)
        scaled[:, 0, 0, 0].fill_(1.0)
        return self.classify(scaled)


class DeadReLUInACheckpoint(Shelved):
    """Its tail is recomputed in backward, which is no reason to blame the checkpoint."""

    cause = Cause.ZERO_GRADIENT

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.conv(images) - 100)  # ends here
        return checkpoint(self.classify, maps, use_reentrant=True)


class SaturatedSoftmax(Shelved):
    cause = Cause.ZERO_GRADIENT

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classify(self.conv(images)) * 1e6
        return logits.softmax(dim=1)  # ends here


class SoftmaxOverOneClass(Shelved):
    cause = Cause.ZERO_GRADIENT

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return F.softmax(self.classify(self.conv(images)), dim=1)  # ends here


class Rounded(Shelved):
    cause = Cause.ZERO_GRADIENT

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.round(self.conv(images) * 8) / 8  # ends here
        return self.classify(maps)


class Signed(Shelved):
    cause, function = Cause.ZERO_GRADIENT, "binary"

    @staticmethod
    def binary(maps: Tensor) -> Tensor:
        return maps.sign()  # ends here

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.binary(self.conv(images)))


class RoundedValuesAndDetachedWeights(Crossable):
    """Two branches: on one the values are rounded, on the other the weights are detached: either would do."""

    cause, causes = Cause.ZERO_GRADIENT, (Cause.ZERO_GRADIENT, Cause.DETACHED)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        values = maps.floor()  # ends here
        weights = maps.softmax(1).detach()  # ends here
        return self.classify(values * weights)

    def whole(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(maps.floor() * maps.softmax(1))


class MultipliedByZero(Shelved):
    cause = Cause.ZERO_GRADIENT

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(maps * self.gate)  # ends here


class ClassesMasked(Shelved):
    """Every class is masked with minus infinity, so the predicted one is, too."""

    cause = Cause.ZERO_GRADIENT

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classify(self.conv(images))
        return logits.masked_fill(torch.ones(5, dtype=torch.bool), -torch.inf)  # ends here


class Underflowing(Shelved):
    """Too small for half precision, however it is scaled; there is no line that does it."""

    cause = Cause.ZERO_GRADIENT

    def __init__(self) -> None:
        super().__init__()
        self.half()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images.half())
        small = maps.mean((2, 3)) * 2**-14
        return self.head(small * 2**-14)


class ZeroedByATensorHook(Crossable):
    """The gradient is made zero on its way back."""

    cause, function = Cause.ZERO_GRADIENT, "forward"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).relu()
        if maps.requires_grad:
            maps.register_hook(lambda gradient: gradient * 0)  # ends here
        return self.classify(maps)

    def whole(self, images: Tensor) -> Tensor:
        return self.classify(self.conv(images).relu())


# non_finite


class LogOfNegative(Shelved):
    cause, marked_in, function = Cause.NON_FINITE, broken_helpers.log_of, "log_of"

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(broken_helpers.log_of(-self.conv(images).abs()))


class RootOfZero(Shelved):
    """Forward is finite; only backward divides by zero."""

    cause = Cause.NON_FINITE

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        maps = torch.sqrt(maps * 0)  # ends here
        return self.classify(maps)


class ChosenTooLate(Shelved):
    """`where` does not keep the gradient of the other branch from being NaN."""

    cause = Cause.NON_FINITE

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        roots = maps.sqrt()  # ends here
        return self.classify(torch.where(maps > 0, roots, 0.0))


class DivisionByZero(Shelved):
    cause = Cause.NON_FINITE

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        maps = maps / (maps.amax((2, 3), keepdim=True) * 0)  # ends here
        return self.classify(maps)


class DivisionAfterAMask(Shelved):
    """Minus infinity under a softmax is how attention is masked, and not to blame."""

    cause = Cause.NON_FINITE

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).flatten(2)
        mask = torch.zeros(64, dtype=torch.bool)
        mask[::2] = True
        attention = maps.masked_fill(mask, -torch.inf).softmax(-1)
        pooled = (attention * maps).sum(-1)
        pooled = pooled / (len(images) - images.shape[0])  # ends here
        return self.head(pooled)


class BrokenWeights(Shelved):
    cause, module = Cause.NON_FINITE, "mid"

    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.mid.weight, torch.nan)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(self.mid(maps))  # ends here


class BrokenBeforeTheLayer(Shelved):
    cause, layer, module = Cause.NON_FINITE, "mid", "norm"

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.running_var, torch.nan)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.conv(images))  # ends here
        return self.classify(self.mid(maps))


class BrokenImages(Shelved):
    cause = Cause.NON_FINITE
    probes = (1,)

    @classmethod
    def images(cls) -> Tensor:
        images = super().images()
        images[1, 0, 2, 2] = torch.nan
        return images


class OverflowInHalf(Shelved):
    cause = Cause.NON_FINITE

    def __init__(self) -> None:
        super().__init__()
        self.half()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images.half()).relu() + 1
        energy = (maps * 1000) ** 2  # ends here
        return self.head(energy.mean((2, 3)))


# forward_failed


class RaisesInAnotherFile(Shelved):
    cause, marked_in, function = Cause.FORWARD_FAILED, broken_helpers.checked, "checked"

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(broken_helpers.checked(self.conv(images)))


class RaisesInLibrary(Shelved):
    cause, module = Cause.FORWARD_FAILED, "head"

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.head(maps.flatten(1))  # ends here


class Picky(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        sizes = {16: 4}
        return maps * sizes[maps.shape[-1]]  # ends here


class RaisesInChild(Shelved):
    cause, marked_in, module = Cause.FORWARD_FAILED, Picky, "body.inner"

    def __init__(self) -> None:
        super().__init__()
        self.body = Nest(Picky())

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.body(self.conv(images)))


# only some of the samples


class SomeDetachedByWhere(Crossable):
    cause, probes = Cause.DETACHED, (0,)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        teacher = torch.arange(len(images)).view(-1, 1, 1, 1) == 0
        maps = torch.where(teacher, maps.detach(), maps)  # ends here
        return self.classify(maps)


class SomeRoutedPastTheGraph(Crossable):
    """Easy samples take the frozen way, two cuts in a row."""

    cause, probes, causes = Cause.NO_GRAD, (1,), (Cause.NO_GRAD, Cause.DETACHED)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        hard, easy = torch.tensor([0]), torch.tensor([1])
        pooled = torch.zeros(len(images), 4)
        pooled[hard] = maps[hard].mean((2, 3))
        with torch.no_grad():
            frozen = maps[easy].relu()  # ends here
        pooled[easy] = frozen.mean((2, 3)).detach()  # ends here
        return self.head(pooled)

    def whole(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.head(torch.stack([maps[0].mean((1, 2)), maps[1].relu().mean((1, 2))]))


class SomeDetachedBesideAStraightThroughEstimator(Crossable):
    """Crossing the estimator's `detach` as well would take the gradient away."""

    cause, probes = Cause.DETACHED, (1,)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        coded = maps + (maps.round() - maps).detach()
        rows = [coded[0], coded[1].detach()]  # ends here
        return self.classify(torch.stack(rows))

    def whole(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(maps + (maps.round() - maps).detach())


class SomeMixedWithDetached(Crossable):
    cause, probes = Cause.DETACHED, (1,)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        keep = torch.tensor([1.0, 0.0]).view(-1, 1, 1, 1)
        maps = maps * keep + maps.detach() * (1 - keep)  # ends here
        return self.classify(maps)


class SomeThroughLists(Shelved):
    cause, probes = Cause.LEFT_TORCH, (1,)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.conv(images).mean((2, 3))
        self.history = pooled.tolist()
        rows = torch.zeros(len(images), 4)
        rows[0] = pooled[0]
        rows[1] = torch.tensor(pooled[1].tolist())  # ends here
        return self.head(rows)


class SomeQuantised(Shelved):
    cause, probes = Cause.NON_DIFFERENTIABLE, (0,)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        hard = F.one_hot(maps.argmax(1), 4).permute(0, 3, 1, 2).float()  # ends here
        chosen = torch.tensor([True, False]).view(-1, 1, 1, 1)
        return self.classify(torch.where(chosen, hard, maps))


class SomeMultipliedByZero(Shelved):
    cause, probes = Cause.ZERO_GRADIENT, (0,)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        keep = torch.tensor([0.0, 1.0]).view(-1, 1, 1, 1)
        return self.classify(maps * keep)  # ends here


class SomeDeadInAnotherLayout(Shelved):
    """Samples are the second axis where it happens."""

    cause, probes = Cause.ZERO_GRADIENT, (1,)

    def forward(self, images: Tensor) -> Tensor:
        shift = torch.tensor([0.0, -100.0]).view(1, -1, 1)
        tokens = self.conv(images).flatten(2).permute(2, 0, 1)
        tokens = F.relu(tokens + shift)  # ends here
        return self.head(tokens.permute(1, 0, 2).mean(1))


class SomeSkipTheLayer(Shelved):
    """The second sample leaves by an early exit, before the layer."""

    cause, layer, probes = Cause.NOT_ON_PATH, "mid", (1,)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        late = self.classify(self.mid(maps)[:1])
        return torch.cat([late, self.classify(maps[1:])])


# The three programs that this package grew out of.


class FrozenResNet(Shelved):
    """Healthy: the replica runs with gradients on."""

    layer, rescued = "layer4[-1].conv2", (Cause.FROZEN, Cause.NO_GRAD)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        network = torchvision.models.resnet18(weights=None, num_classes=5)
        for parameter in network.parameters():
            parameter.requires_grad = False
        network.eval()
        for name, child in network.named_children():
            setattr(self, name, child)
        self.network = [network]

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network[0](images)

    @classmethod
    def images(cls) -> Tensor:
        return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))


class FrozenResNetDetached(FrozenResNet):
    cause, function, module = Cause.DETACHED, "save_features", "layer4.1.conv2"
    bridgeable = True

    def __init__(self) -> None:
        super().__init__()
        self.features: dict[str, Tensor] = {}

        def save_features(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            self.features["layer4"] = output.detach()  # ends here
            return self.features["layer4"]

        self.handle = self.layer4[-1].conv2.register_forward_hook(save_features)

    def mend(self) -> None:
        self.handle.remove()


class FrozenResNetSwitchedOff(FrozenResNet):
    cause, function, module = Cause.REQUIRES_GRAD_OFF, "freeze_activation", "layer4.1.conv2"
    bridgeable = True

    def __init__(self) -> None:
        super().__init__()

        def freeze_activation(_module: nn.Module, _args: Any, output: Tensor) -> None:
            output.requires_grad = False  # ends here

        self.handle = self.layer4[-1].conv2.register_forward_hook(freeze_activation)

    def mend(self) -> None:
        self.handle.remove()


# Healthy look-alikes.


class Bookkeeping(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        self.last = maps.detach().cpu().numpy()
        self.norms = [part.detach().norm().item() for part in maps]
        return self.classify(maps)


class RunningStatistic(Shelved):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.no_grad():
            self.mean.lerp_(maps.mean((0, 2, 3)), 0.1)
        return self.classify(maps)


class StraightThrough(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.classify(maps + (maps.round() - maps).detach())


class StraightThroughSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.sign(maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class StraightThroughFunction(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        return self.classify(StraightThroughSign.apply(self.conv(images)))


class DetachedAttention(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        attention = maps.mean(1, keepdim=True).softmax(-1).detach()
        return self.classify(maps * attention)


class FrozenLayers(Shelved):
    rescued = (Cause.FROZEN,)

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.requires_grad = False


class BackboneWithoutGrad(Shelved):
    rescued = (Cause.NO_GRAD,)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.mid(self.conv(images))
        return self.classify(maps)


class BackboneInInference(Shelved):
    layer, rescued = "mid", (Cause.INFERENCE_MODE,)

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            maps = self.mid(self.conv(images))
        return self.classify(maps)


class DecoratedBackbone(Shelved):
    layer, rescued = "neck", (Cause.NO_GRAD,)

    def __init__(self) -> None:
        super().__init__()
        self.neck = Neck()

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.neck(self.conv(images)))


class BackboneInInferenceGoesOn(Shelved):
    """Behind the layer, the block goes on: in real inference mode nothing there could ever carry a gradient."""

    rescued = (Cause.INFERENCE_MODE,)

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            maps = self.mid(self.conv(images))
        return self.classify(maps)


class CheckpointedTail(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(self.classify, self.conv(images), use_reentrant=False)


class ReentrantCheckpointedTail(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(self.classify, self.conv(images), use_reentrant=True)


class ReentrantCheckpointAroundTheLayer(Shelved):
    """Torch itself does not go back into such a block, unless its input requires a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        maps = checkpoint(lambda x: self.conv(x).relu(), images, use_reentrant=True)
        return self.classify(maps)


class CheckpointAroundTheLayer(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        maps = checkpoint(lambda x: self.conv(x).relu(), images, use_reentrant=False)
        return self.classify(maps)


class MaskedValues(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        maps = torch.where(maps > maps.mean(), maps, maps * 0.1)
        best = maps.mean((2, 3)).argmax(1)
        self.winner = int(best[0])
        return self.classify(maps * (maps > -1).float())


class GatheredValues(Shelved):
    """Indices have no gradient, what they point at has."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).flatten(2)
        places = maps.abs().topk(5, dim=2).indices
        return self.head(maps.gather(2, places).mean(2))


class InPlaceOperations(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        maps.mul_(2).clamp_(min=-50)
        maps += 1
        maps[:, :, 0, 0] = 0
        return self.classify(F.leaky_relu(maps, 0.1, inplace=True))


class SharedLayer(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        first = self.conv(images)
        second = self.conv(images.flip(-1))
        return self.classify(first.detach() + second)


class CompiledTail(Shelved):
    def __init__(self) -> None:
        super().__init__()
        self.tail: Callable[[Tensor], Tensor] = torch.compile(self.mid, backend="eager")

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.tail(self.conv(images)))


class LiveBesideCut(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        with torch.no_grad():
            context = self.mid(maps)
        return self.classify(maps) + self.classify(context)


class MaskedAttention(Shelved):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).flatten(2)
        attention = maps.masked_fill(maps < 0, -1e9).softmax(-1)
        return self.head((attention * maps).sum(-1))


class SmallInHalf(Shelved):
    """Without scaling, this gradient is zero in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.half()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images.half())
        return self.head(maps.mean((2, 3)) * 2**-16)


class ScriptedTail(Shelved):
    def __init__(self) -> None:
        super().__init__()
        self.tail = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.tail(self.conv(images)))


def shelf(module: ModuleType | None = None) -> list[type[Shelved]]:
    """All models, in the order in which they are written."""
    found = vars(module or sys.modules[__name__]).values()
    kinds = (kind for kind in found if isinstance(kind, type) and issubclass(kind, Shelved))
    return [kind for kind in kinds if kind not in (Shelved, Crossable)]
