"""What forward gets of a batch: which entries, by position or by keyword.

Note [What forward gets]

The option `inputs` says it, or the signature of the method and the batch do where they agree:

- A method that needs one argument gets the images. It gets the batch if that is called `batch`, or is said to be a
  mapping; and so does a step, such as `predict_step`, whatever its arguments are called.
- What it needs beside the images are the entries of the batch with these names, beside the images first; in a batch
  without names, the entries in their order, without the last where that is one too many: it is the label.
- What it need not have it gets if the batch has an entry of that very name that is no label.
- `forward(**batch)` gets all entries. `batch_idx` and `dataloader_idx` are 0. What takes any arguments gets the images,
  and a notice says what else there is.

What is left open is refused, before the first training step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin, get_type_hints

from torch import Tensor

from gradcam_callback.engine.batch_rows import entries_of, is_record, leaves
from gradcam_callback.engine.inputs import IMAGE_LIST, IMAGE_NAMES, IMAGES, ModelInputs
from gradcam_callback.errors import BadInputError
from gradcam_callback.probes.batches import LABEL_NAMES, describe_contents, find_entry
from gradcam_callback.probes.probe_set import ProbeSet

Path = int | str
"""Where an entry of the batch is: a key, an attribute or a position, with dots between; "." is all of it."""

InputsOption = Path | Sequence[Path] | Mapping[str, Path] | None

WHOLE_BATCH = "."
_COUNTERS = ("batch_idx", "dataloader_idx")
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")
_SLOTS = (IMAGES, IMAGE_LIST)


@dataclass(frozen=True)
class _Signature:
    """The arguments of a method, without those that count batches.

    Attributes:
        by_position: Names of those that can be given by position.
        needed: Names of those without a default.
        named: Names of all.
        counters: Names of those that count batches.
        takes_any_keyword: Whether there is a `**batch`.
        takes_any_position: Whether there is a `*args`.
        takes_batch: Whether the only thing it needs is the whole batch.
    """

    by_position: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    takes_any_keyword: bool = False
    takes_any_position: bool = True
    takes_batch: bool = False

    @classmethod
    def of(cls, method: Callable[..., Any]) -> _Signature:
        """Of a method; as if it took any argument by position where that cannot be told."""
        try:
            parameters = list(inspect.signature(method).parameters.values())
        except (TypeError, ValueError):
            return cls()
        kinds = inspect.Parameter
        plain = [one for one in parameters if one.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
        is_step = _name(method) in _STEPS and bool(plain)  # Lightning gives them a batch and counters, by position
        counted = plain[1:] if is_step else [one for one in plain if one.name in _COUNTERS]
        counters = tuple(one.name for one in counted)
        plain = [one for one in plain if one.name not in counters]
        needed = [one for one in plain if one.default is one.empty]
        return cls(
            by_position=tuple(one.name for one in plain if one.kind is not kinds.KEYWORD_ONLY),
            needed=tuple(one.name for one in needed),
            named=tuple(one.name for one in plain),
            counters=counters,
            takes_any_keyword=any(one.kind is kinds.VAR_KEYWORD for one in parameters),
            takes_any_position=any(one.kind is kinds.VAR_POSITIONAL for one in parameters),
            takes_batch=is_step or (len(needed) == 1 and (needed[0].name == "batch" or _is_mapping(method, needed[0]))),
        )

    @property
    def takes_all_by_keyword(self) -> bool:
        """Whether it is `forward(**batch)`."""
        return self.takes_any_keyword and not self.named and not self.takes_any_position

    @property
    def image_name(self) -> str | None:
        """The argument that the images are: by its name, else the first that is needed, else the first."""
        usual = (name for name in IMAGE_NAMES if name in (self.needed or self.named))
        return next(usual, None) or next(iter((*self.needed, *self.named)), None)


def check_inputs(option: Any) -> None:
    """Check the option `inputs`.

    Raises:
        ValueError: It is no place in a batch, no list of them and no mapping of arguments to them.
    """
    places = list(option.values()) if isinstance(option, Mapping) else option
    places = places if isinstance(places, (list, tuple)) else [places]
    names = list(option) if isinstance(option, Mapping) else []
    is_place = all(isinstance(place, (int, str)) and not isinstance(place, bool) for place in places)
    if option is None or (places and is_place and all(isinstance(name, str) for name in names)):
        return
    raise BadInputError(
        "`inputs` says which entries of a batch forward gets: a key or a position, with dots to reach further in "
        f"(`view.image`), a list of them, a mapping `{{argument: entry}}`, or '.' for all of it; given: {option!r}."
    )


def needs_batch(method: Callable[..., Any], option: InputsOption) -> bool:
    """Whether more than the images of a batch may be needed to call a method."""
    if option is not None:
        return True
    takes = _Signature.of(method)
    return len(takes.named) > 1 or takes.takes_batch or takes.takes_all_by_keyword or bool(takes.counters)


def keys_given(method: Callable[..., Any], option: InputsOption) -> tuple[Path, ...]:
    """Keys of what a method gets of a batch: what the option says, else the argument that the images are."""
    if option is None:
        name = _Signature.of(method).image_name
        return () if name is None else (name,)
    places = option.values() if isinstance(option, Mapping) else option
    return tuple(place for place in ([places] if isinstance(places, (int, str)) else places) if place != WHOLE_BATCH)


def remark_on(method: Callable[..., Any], option: InputsOption, batch: Any) -> str:
    """What to say where a method takes anything, and a batch has more than images and labels; else "".

    Args:
        method: Of the model.
        option: As the user gave it.
        batch: With a placeholder for the images.
    """
    takes = _Signature.of(method)
    if option is not None or takes.needed or not takes.takes_any_position:
        return ""
    named = _named(batch)
    if named is not None:
        left = [repr(key) for key, value in named.items() if not _is_slot(value) and key not in LABEL_NAMES]
    else:
        entries = list(batch) if isinstance(batch, (tuple, list)) else []
        left = [str(place) for place, value in enumerate(entries[:-1]) if not _is_slot(value)]
    if not left:
        return ""
    return (
        f"`{_name(method)}` takes any arguments, and gets the images of a batch alone, which has {', '.join(left)} "
        "besides; say with `inputs` in the callback what it gets."
    )


def inputs_of(method: Callable[..., Any], option: InputsOption, probes: ProbeSet) -> ModelInputs:
    """What a method gets for the probes. See Note [What forward gets].

    Args:
        method: Of the model, whose signature counts.
        option: As the user gave it; None finds it.
        probes: With their batch, if `needs_batch` says so.

    Raises:
        BadInputError: It cannot be told, or the batch has no such entry.
    """
    takes, slot = _Signature.of(method), IMAGES if probes.sizes is None else IMAGE_LIST
    if probes.batch is None:
        _refuse_without_batch(method, takes, option)
        return ModelInputs(probes.images, *_images_alone(takes, slot), sizes=probes.sizes)
    if option is None:
        args, kwargs = _found(method, takes, probes.batch, slot)
    else:
        args, kwargs = _given(probes.batch, option)
    kwargs |= dict.fromkeys(takes.counters, 0)
    if not any(leaf in _SLOTS for leaf in leaves((args, kwargs)) if not isinstance(leaf, Tensor)):
        raise BadInputError(
            f"Among the inputs of `{_name(method)}` there are not the images that are shown: {option!r}. Name their "
            "entry too, or say with image_key of ValidationProbes which images to show."
        )
    return ModelInputs(probes.images, args, kwargs, sizes=probes.sizes)


def _images_alone(takes: _Signature, slot: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    by_position = takes.by_position or takes.takes_any_position
    if by_position or not (takes.named or takes.takes_any_keyword):
        return (slot,), dict.fromkeys(takes.counters, 0)
    return (), {takes.image_name or "pixel_values": slot, **dict.fromkeys(takes.counters, 0)}


def _given(batch: Any, option: InputsOption) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """As the option says."""

    def entry(place: Path) -> Any:
        return batch if place == WHOLE_BATCH else find_entry(batch, "inputs", [place])

    if isinstance(option, Mapping):
        return (), {name: entry(place) for name, place in option.items()}
    places = [option] if isinstance(option, (int, str)) else option or ()
    return tuple(map(entry, places)), {}


def _found(
    method: Callable[..., Any], takes: _Signature, batch: Any, slot: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """As signature and batch agree."""
    if takes.takes_batch:
        return (batch,), {}
    if takes.takes_any_position and not takes.named:
        return _images_alone(takes, slot)
    holders = _holders(batch)
    mappings = [holder for holder in holders if isinstance(holder, Mapping)]
    if takes.takes_all_by_keyword and mappings:
        return (), dict(mappings[0])
    named = {name: entry for holder in holders for name, entry in (_named(holder) or {}).items()}
    found = _by_name(takes, named, slot)
    if found is None and len(takes.needed) < 2:
        return _images_alone(takes, slot)
    for holder in holders:
        found = found or _by_position(takes, holder, is_inner=holder is not batch)
    if found is None:
        raise _ambiguous(method, takes, batch)
    return found


def _holders(batch: Any) -> list[Any]:
    """The containers that the images stand in, from the batch inwards."""
    for entry in entries_of(batch) or ():
        inner = _holders(entry)
        if inner or _is_slot(entry):
            return [batch, *inner]
    return []


def _named(container: Any) -> dict[Any, Any] | None:
    """The entries of a container by name; None where they have none."""
    if isinstance(container, Mapping):
        return dict(container)
    if hasattr(container, "_fields"):  # a named tuple
        return dict(zip(container._fields, container, strict=True))
    return dict(vars(container)) if is_record(container) else None


def _by_name(takes: _Signature, entries: Mapping[Any, Any], slot: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Entries that have the names of the arguments; None where one that is needed is not among them."""
    image = takes.image_name
    held = {
        name: entries[name] for name in takes.named if name in entries and name != image and name not in LABEL_NAMES
    }
    held |= {name: entries[name] for name in takes.needed if name in entries and name != image}
    if image is None or not set(takes.needed) - {image} <= set(held):
        return None
    return ((slot,), held) if image in takes.by_position[:1] else ((), {image: slot, **held})


def _by_position(takes: _Signature, container: Any, *, is_inner: bool) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Entries in their order, without the label behind them; None where they do not fit the arguments.

    What stands in a container within the batch has its label outside of it.
    """
    entries = list(container) if isinstance(container, (tuple, list)) else []
    is_label = takes.needed[-1] in LABEL_NAMES
    if len(entries) == len(takes.needed) + 1 and not is_label and not is_inner:
        entries = entries[:-1]
    elif len(entries) != len(takes.needed) or not (is_inner or is_label or _is_image(entries[-1])):
        return None
    if set(takes.needed) <= set(takes.by_position):
        return tuple(entries), {}
    return (), dict(zip(takes.needed, entries, strict=True))


def _is_slot(value: Any) -> bool:
    return not isinstance(value, Tensor) and value in _SLOTS


def _is_image(value: Any) -> bool:
    return _is_slot(value) or (isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point())


def _ambiguous(method: Callable[..., Any], takes: _Signature, batch: Any) -> BadInputError:
    example = ", ".join(f"{name}: ..." for name in takes.needed)
    return BadInputError(
        f"`{_name(method)}` needs {', '.join(map(repr, takes.needed))}, and which entries of the batch these are is "
        f"not known: {describe_contents(batch)}. Say it with `inputs` in the callback: `inputs: {{{example}}}`, with "
        "the key or the position of an entry each."
    )


def _refuse_without_batch(method: Callable[..., Any], takes: _Signature, option: InputsOption) -> None:
    if option is None and len(takes.needed) < 2 and not takes.takes_batch:
        return
    raise BadInputError(
        f"`{_name(method)}` gets more than images, and these probes are images alone. Take them out of the validation, "
        "with `probes: 8` or ValidationProbes."
    )


def _is_mapping(method: Callable[..., Any], parameter: inspect.Parameter) -> bool:
    """Whether an argument is said to be a mapping."""
    try:
        kind = get_type_hints(inspect.unwrap(method)).get(parameter.name, None)
    except Exception:  # names that cannot be resolved, of the user's
        return False
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _name(method: Callable[..., Any]) -> str:
    return getattr(method, "__name__", "forward")
