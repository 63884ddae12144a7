"""The layer that "auto" stands for: the last one that returns maps and that the score depends on.

Note [What looks like a map]

Attention, too, returns tensors with four axes, `(N, heads, T, T)` or `(N, heads, T, d)`, and some networks keep their
channels last. None of these is a picture. So a layer is taken at its word only where its kind tells (a convolution, a
pooling), or where its map has the sides of one that such a layer returned in the same pass.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from gradcam_callback.engine import gradients
from gradcam_callback.engine.forward import forward_pass, hooked, prepared, run_without_graph
from gradcam_callback.engine.layers import named_modules
from gradcam_callback.engine.layouts import CHANNELS_FIRST, Layout, is_channels_first
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.errors import BadInputError

log = logging.getLogger(__name__)

_NO_OPTIONS = ReplicaOptions()
# How many layers are tried in one pass, from the last one on. The last one nearly always answers, and several in one
# pass cost the memory of the graph between them.
_FIRST_TRIES = (1, 8)


def choose_layer(
    model: nn.Module, inputs: Tensor, request: CAMRequest | None = None, *, options: ReplicaOptions = _NO_OPTIONS
) -> str:
    """The layer that "auto" stands for.

    It is the last module in forward order whose output has more than one pixel and on which the score depends. Where
    the score depends on none of them (the feature map is detached, say), it is the last: there the question is why.

    Args:
        model: Any module that maps images to logits.
        inputs: `(N, C, H, W)`; one sample is enough.
        request: Its first target, its output and its layout count.
        options: How the replica is made.

    Raises:
        ValueError: No module returns maps of more than one pixel.
    """

    def job(replica: Replica) -> str:
        return find_auto_layer(replica.model, prepared(inputs, replica.model), request or CAMRequest.of())

    return run_in_replica(model, job, options)


def find_auto_layer(model: nn.Module, inputs: Tensor, request: CAMRequest) -> str:
    """As `choose_layer`, within `isolated`."""
    with spatial_layers(model, inputs, request.layout) as seen:
        run_without_graph(model, inputs)
    if not seen:
        raise BadInputError(
            f'"auto" found no layer in {type(model).__name__}: none of its modules returns maps (N, K, h, w) of more '
            "than one pixel. Grad-CAM needs one, such as a convolution; name it in `target_layers`."
        )
    names, target = list(seen), request.targets[0]
    for count in (*_FIRST_TRIES, len(names)):
        candidates = {name: seen[name] for name in names[-count:]}

        def read(returned: Any) -> Any:
            return target.read(returned, request.output, len(inputs))

        with forward_pass(model, inputs, candidates, read, layout=request.layout) as (taken, recordings):
            found = gradients.differentiate(target.score(taken).values, recordings)
        alive = [name for name, pair in found.items() if pair.gradient is not None]
        if alive:
            log.debug('"auto" chose the layer %r.', alive[-1])
            return alive[-1]
    log.debug('"auto" chose the layer %r, though the score depends on no layer that has space.', names[-1])
    return names[-1]


@contextmanager
def spatial_layers(model: nn.Module, inputs: Tensor, layout: Layout = CHANNELS_FIRST) -> Iterator[dict[str, nn.Module]]:
    """Watch a forward pass: which modules return maps of more than one pixel, one for each of the inputs.

    See Note [What looks like a map].

    Yields:
        Name to module, filled while the model runs, in the order in which the modules finish. Where a module's own name
        has a `#` in it, the number of its last call follows, so that it can be told from such a number.
    """
    seen: dict[str, nn.Module] = {}
    passed_over: list[str] = []
    known = _KnownMaps(inputs, layout)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            activation = layout.find_activation(output)
            if activation is None or len(activation) != len(inputs):
                return
            maps = layout.to_maps(activation)
            if maps.shape[2:].numel() > 1 and known.include(module, maps):
                seen.pop(name, None)
                seen[name] = module
                passed_over.clear()
            elif maps.shape[2:].numel() > 1:
                passed_over.append(name)

        return hook

    names = {f"{name}#-1" if "#" in name else name: module for name, module in named_modules(model)}
    with hooked({name: (module, watch(name)) for name, module in names.items()}):
        yield seen
    if seen and passed_over:
        log.warning(
            '"auto" passes over what comes behind %r, from %r on: its outputs have four axes and do not look like maps '
            "(N, K, h, w). Transformers are not supported; another layer can be named in `target_layers`.",
            next(reversed(seen)),
            passed_over[0],
        )


class _KnownMaps:
    """The maps that a pass has returned so far, by their shapes. See Note [What looks like a map]."""

    def __init__(self, inputs: Tensor, layout: Layout) -> None:
        self._layout = layout
        self._image_size: tuple[int, int] = (inputs.shape[2], inputs.shape[3])
        self._shapes: set[tuple[int, ...]] = set()

    def include(self, module: nn.Module, maps: Tensor) -> bool:
        """Whether what a module returned are maps; then they are known from now on."""
        if self._layout.doubt(module, maps, self._image_size):
            return False
        shape = tuple(maps.shape[1:])
        if is_channels_first(module):
            self._shapes.add(shape)
            return True
        if not self._shapes:  # a network of layers of its own kinds: there is nothing to compare with
            return True
        is_plain = type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())
        return shape in self._shapes or (not is_plain and any(_is_pooled(shape, other) for other in self._shapes))


def _is_pooled(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a map has the sides of another one, or both of them smaller by the same factor."""
    (_, h, w), (_, height, width) = shape, other
    return h <= height and w <= width and abs(h / height - w / width) <= 1 / height + 1 / width
