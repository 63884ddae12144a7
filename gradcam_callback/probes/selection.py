"""Which of the samples that pass are kept.

Each sample has a place in one order, which depends on its own position and class alone, and the first ones are kept. A
random choice keeps those with the smallest of random numbers, one a position. So the choice of several processes can be
merged, and is the same for any number of them.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Sequence

from gradcam_callback.probes.source import ProbeSample

_MASK = 2**64 - 1


def random_key(seed: int, position: int) -> int:
    """A number of 64 bits that depends on seed and position alone (SplitMix64); it moves no generator."""
    return _mixed(_mixed(seed) + (position + 1) * 0x9E3779B97F4A7C15)


def _mixed(bits: int) -> int:
    bits &= _MASK
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & _MASK
    return bits ^ bits >> 31


class Selection:
    """The samples that are kept so far: no more of them than the final choice could need.

    Args:
        limit: How many at most; None: as many as the other options give.
        per_class: How many of each class at most; None: the class does not count.
        seed: Takes random ones by this seed; None takes the first ones.
        positions: These positions, in this order; the other options are None.
        classes: How many classes there are, if it is known.
    """

    def __init__(
        self,
        limit: int | None = None,
        per_class: int | None = None,
        seed: int | None = None,
        positions: Sequence[int] | None = None,
        classes: int | None = None,
    ) -> None:
        self.limit, self.per_class, self.classes = limit, per_class, classes
        self._seed = seed
        self._places = None if positions is None else {position: place for place, position in enumerate(positions)}
        self._order: list[tuple[int, int, int]] = []  # class, key, position; sorted
        self._samples: dict[int, ProbeSample] = {}

    def wants(self, position: int, label: int = 0) -> bool:
        """Whether this sample belongs to the choice among those that passed until now."""
        if position in self._samples:
            return False
        if self._places is not None:
            return position in self._places
        entry = self._entry(position, label)
        if self.per_class is not None and self._count(label) == self.per_class:
            return entry < self._order[bisect_left(self._order, (label + 1,)) - 1]
        return self._has_space or entry < self._order[-1]

    def keep(self, sample: ProbeSample, label: int = 0) -> None:
        """Keep a sample that is wanted, and drop the one whose place it takes."""
        insort(self._order, self._entry(sample.position, label))
        self._samples[sample.position] = sample
        if self.per_class is not None and self._count(label) > self.per_class:
            del self._samples[self._order.pop(bisect_left(self._order, (label + 1,)) - 1)[2]]
        elif self.limit is not None and len(self._order) > self.limit:
            del self._samples[self._order.pop()[2]]

    def is_settled(self, next_position: int) -> bool:
        """Whether no sample from this position on can be wanted, if positions only grow."""
        if self._places is not None:
            return next_position > max(self._places)
        if self._seed is not None:
            return False
        if self.per_class is None:
            return self.limit is not None and next_position >= self.limit
        # With the limit reached, only a class below the last one that is kept could still push that one out.
        needed = self.classes if self._has_space else self._order[-1][0]
        return needed is not None and all(self._count(label) == self.per_class for label in range(needed))

    def chosen(self) -> list[ProbeSample]:
        """The samples: in the order of the positions that were given, else by class, then by position."""
        ordered = self._order if self._places is not None else sorted(self._order, key=lambda entry: entry[::2])
        return [self._samples[position] for _, _, position in ordered]

    def missing(self) -> tuple[int, ...]:
        """The positions that were given and did not pass."""
        return tuple(position for position in self._places or () if position not in self._samples)

    def shortage(self) -> str:
        """What to say where fewer samples passed than were asked for; of an empty validation, ""."""
        count, labels = len(self._order), {label for label, _, _ in self._order}
        of_classes = None if self.per_class is None else self.per_class * (self.classes or len(labels))
        wanted = min(self.limit or sys.maxsize, of_classes or sys.maxsize)
        if self._places is not None or not 0 < count < wanted:
            return ""
        return f"{wanted} probes were asked for and only {count} such samples passed; all are taken."

    @property
    def _has_space(self) -> bool:
        return self.limit is None or len(self._order) < self.limit

    def _entry(self, position: int, label: int) -> tuple[int, int, int]:
        if self._places is not None:
            return 0, self._places[position], position
        return label, position if self._seed is None else random_key(self._seed, position), position

    def _count(self, label: int) -> int:
        return bisect_left(self._order, (label + 1,)) - bisect_left(self._order, (label,))
