"""Where the thing is that a probe is of: from boxes and masks, out of the batches, the labels or a file.

Axes: `N` probes, `H W` the image in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from gradcam_callback.errors import BadInputError
from gradcam_callback.measures import Array, Regions
from gradcam_callback.probes.batches import find_entry, kind_of
from gradcam_callback.probes.probe_set import ProbeSet

RegionsOption = str | int | Mapping[str, str] | Sequence[Any] | None
"""Where the regions are: "labels", an entry of the batch, `{file: PATH}`, or a box or a mask for each probe."""

LABELS = "labels"
_POSSIBLE = (
    "Possible: 'labels', where these are boxes or masks; the entry of a batch with a box or a mask for each image, by "
    "its key or position; {file: boxes.json}; or a list with a box or a mask for each probe."
)


def check_regions(option: Any) -> None:
    """Check the option `regions`, before there are any probes.

    Raises:
        ValueError: It is nothing that regions are found by.
    """
    is_file = isinstance(option, Mapping) and set(option) == {"file"}
    is_entry = isinstance(option, (str, int)) and not isinstance(option, bool)
    if is_file and not Path(option["file"]).is_file():
        raise BadInputError(f"`regions` names the file {option['file']!r}, which there is not. {_POSSIBLE}")
    if option is None or is_file or is_entry or isinstance(option, (list, tuple, Tensor)):
        return
    raise BadInputError(f"`regions` says where the thing is in each image; given: {option!r}. {_POSSIBLE}")


def needs_batch(option: RegionsOption) -> bool:
    """Whether the regions are an entry of the batch."""
    return isinstance(option, (str, int)) and option != LABELS


def check_entry(option: RegionsOption, probes: ProbeSet) -> None:
    """Check that the regions are where the option says, in some probes of a validation.

    Raises:
        BadInputError: They are not, or are no boxes and no masks.
    """
    if option == LABELS or needs_batch(option):
        find_regions(option, probes)


def find_regions(option: RegionsOption, probes: ProbeSet) -> Regions | None:
    """The regions of the probes; None where none were asked for.

    Raises:
        BadInputError: They are not where the option says, or are no boxes and no masks.
    """
    if option is None:
        return None
    sizes = probes.sizes or [probes.image_space] * len(probes)
    given = _given(option, probes)
    if len(given) != len(probes):
        raise BadInputError(f"`regions` gives {len(given)} regions for {len(probes)} probes. {_POSSIBLE}")
    return Regions(
        tuple(_mask(one, tuple(size), name) for one, size, name in zip(given, sizes, probes.names, strict=True))
    )


def _given(option: RegionsOption, probes: ProbeSet) -> Sequence[Any]:
    """What stands for the region of each probe."""
    if isinstance(option, Mapping):
        return _of_file(Path(option["file"]), probes)
    if option == LABELS:
        if probes.boxes is not None:
            return [boxes for boxes, _ in probes.boxes]
        if probes.masks is not None:
            return list(probes.masks > 0)
        raise BadInputError(f"`regions: labels` needs labels that are boxes or masks, and these are none. {_POSSIBLE}")
    if isinstance(option, (str, int)):
        entry = find_entry(probes.batch, "regions", [option])
        if isinstance(entry, Mapping):
            entry = next((entry[key] for key in ("boxes", "masks") if key in entry), entry)
        if not isinstance(entry, (Tensor, list, tuple)):
            raise BadInputError(f"`regions` is {option!r}, and that is {kind_of(entry)}. {_POSSIBLE}")
        return list(entry)
    assert option is not None
    return list(option)


def _of_file(path: Path, probes: ProbeSet) -> Sequence[Any]:
    """Boxes of a JSON file: a list in the order of the probes, or by their names."""
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"`regions` cannot be read from {path}: {type(error).__name__}: {error}.") from error
    if isinstance(held, Mapping):
        missing = [name for name in probes.names if name not in held]
        if len(missing) == len(probes):
            raise BadInputError(
                f"{path} has no region for any probe. The probes are {', '.join(probes.names[:8])}; the file has "
                f"{', '.join(list(held)[:8])}."
            )
        return [held.get(name) for name in probes.names]
    return held if isinstance(held, list) else [held]


def _mask(given: Any, size: tuple[int, ...], name: str) -> Array | None:
    """The mask of one probe, of the size of its image; None where it has no region."""
    if isinstance(given, Mapping):
        given = next((given[key] for key in ("boxes", "box", "masks", "mask") if key in given), None)
    if given is None:
        return None
    try:
        values = torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(1)
    given_as = getattr(given, "format", None)  # of torchvision's boxes
    if given_as is not None and values.shape[-1:] == (4,):
        values = box_convert(values.as_subclass(Tensor), str(getattr(given_as, "value", given_as)).lower(), "xyxy")
    if len(size) == 2 and values.shape == size[1:] and values.shape != (4,):  # of a signal, the same in its channels
        values = values.expand(size)
    if values.shape[-len(size) :] == size and values.ndim in (len(size), len(size) + 1):
        mask: Array = (values != 0).reshape(-1, *size).any(dim=0).numpy()
        return mask if mask.any() else None
    if len(size) == 2 and values.shape[-1:] == (4,) and values.ndim in (1, 2):
        return _of_boxes(values.reshape(-1, 4).double().numpy(), size)
    if values.numel() == 0 and values.ndim <= 2:
        return None
    raise BadInputError(
        f"The region of probe {name} is a box (left, top, right, bottom in pixels), several of them, or a mask of the "
        f"size of the image, {size}; given: {kind_of(given)}."
    )


def _of_boxes(boxes: Array, size: tuple[int, ...]) -> Array | None:
    """The pixels whose middle lies in one of the boxes; None where there are none."""
    rows, columns = (np.arange(side) + 0.5 for side in size)
    mask = np.zeros(size, bool)
    for left, top, right, bottom in boxes:
        mask |= ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    return mask if mask.any() else None
