from __future__ import annotations

import hashlib
import random
from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradcam_callback.probes.sources import (
    ImageProbes,
    ProbeSource,
    TensorProbes,
    ValidationProbes,
    as_source,
    fingerprint,
)
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.datasets import FakeData, VisionDataset
from torchvision.transforms import v2

from gradcam_callback.results import ProbeSet

CLASSES = 3


def as_is(batch: Any, dataloader_idx: int) -> Any:
    return batch


def pixels(index: int) -> Tensor:
    """An image whose pixels tell its index."""
    return torch.full((3, 4, 5), float(index))


def found(probes: ProbeSet) -> list[int]:
    """Which samples the images are, read from their pixels."""
    return [int(image.flatten()[0]) for image in probes.images]


class Numbered(Dataset[Any]):
    """Sample `i` is an image full of `i`, of class `i % 3`."""

    def __init__(self, length: int = 20, start: int = 0) -> None:
        self.length, self.start, self.loaded = length, start, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        self.loaded += 1
        return pixels(index + self.start), (index + self.start) % CLASSES


class Labelled(Numbered):
    """The same, with its labels at hand."""

    classes = ("ant", "bee", "cat")

    @property
    def targets(self) -> list[int]:
        return [(index + self.start) % CLASSES for index in range(self.length)]


class Shaped(Numbered):
    """The same, each sample made by a function of image and label."""

    def __init__(self, shape: Any, length: int = 20) -> None:
        super().__init__(length)
        self.shape = shape

    def __getitem__(self, index: int) -> Any:
        return self.shape(*super().__getitem__(index))


class Noisy(Numbered):
    """A random transform that draws from every generator there is, its own ones among them."""

    def __init__(self, length: int = 20) -> None:
        super().__init__(length)
        self.own = {"python": random.Random(5), "numpy": np.random.default_rng(5), "torch": torch.Generator()}

    def __getitem__(self, index: int) -> Any:
        noise = random.random() + np.random.rand() + self.own["python"].random() + self.own["numpy"].random()
        return torch.rand(3, 4, 5) + torch.rand(1, generator=self.own["torch"]) + noise, index % CLASSES


class Stream(IterableDataset[Any]):
    """Goes on where it stopped, as a data set that reads from a socket would."""

    def __init__(self, length: int = 20) -> None:
        self.length, self.position = length, 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < self.length:
            self.position += 1
            yield pixels(self.position - 1), (self.position - 1) % CLASSES


def global_states() -> list[bytes]:
    """Every global generator, as bytes."""
    state = np.random.get_state(legacy=False)
    numpy_state = state["state"]["key"].tobytes() + repr((state["state"]["pos"], state["has_gauss"])).encode()
    return [repr(random.getstate()).encode(), numpy_state, torch.get_rng_state().numpy().tobytes()]


def own_states(dataset: Noisy) -> list[bytes]:
    own = dataset.own
    return [
        repr(own["python"].getstate()).encode(),
        repr(own["numpy"].bit_generator.state).encode(),
        own["torch"].get_state().numpy().tobytes(),
    ]


def take(dataset: Any, source: ProbeSource | None = None, **settings: Any) -> ProbeSet:
    """Capture from a loader of this data set."""
    return (source or ValidationProbes(n=4)).capture([DataLoader(dataset, **{"batch_size": 6, **settings})], as_is)


class TestChoice:
    def test_first_samples(self) -> None:
        probes = take(Numbered(), ValidationProbes())

        assert found(probes) == list(range(8))
        assert probes.indices == tuple(range(8))
        assert probes.names == tuple(f"#{i}" for i in range(8))
        assert probes.labels is not None
        assert probes.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
        assert probes.notices == ()

    def test_indices_in_the_order_given(self) -> None:
        probes = take(Numbered(), ValidationProbes(indices=[12, 3]))

        assert found(probes) == [12, 3]
        assert probes.names == ("#12", "#3")

    def test_the_shuffling_of_the_loader_does_not_matter(self) -> None:
        assert found(take(Numbered(), shuffle=True)) == [0, 1, 2, 3]

    def test_seed_fixes_a_random_choice(self) -> None:
        first, again, other = (take(Numbered(500), ValidationProbes(n=6, seed=seed)) for seed in (1, 1, 2))

        assert first.indices == again.indices
        assert first.indices != other.indices
        assert first.indices != tuple(range(6))
        assert found(first) == list(first.indices or ())
        assert len(set(found(first))) == 6

    def test_the_indices_of_an_earlier_run_are_taken_again(self) -> None:
        source = ValidationProbes(n=5, seed=3)
        loader = DataLoader(Numbered(500), batch_size=4)
        first = source.capture([loader], as_is)

        again = ValidationProbes(n=2).capture([loader], as_is, indices=first.indices)

        assert again.indices == first.indices
        assert again.fingerprint == first.fingerprint

    def test_second_loader_and_its_number_for_the_transfer(self) -> None:
        seen: list[int] = []
        loaders = [DataLoader(Numbered()), DataLoader(Numbered(start=100))]

        def transfer(batch: Any, dataloader_idx: int) -> Any:
            seen.append(dataloader_idx)
            return batch[0] * 2, batch[1]

        probes = ValidationProbes(n=2, dataloader_idx=1).capture(loaders, transfer)

        assert seen == [1]
        assert found(probes) == [200, 202]

    def test_collate_fn_of_the_loader(self) -> None:
        def collate(samples: list[Any]) -> Any:
            return torch.stack([image + 0.5 for image, _ in samples]), torch.tensor([label for _, label in samples])

        assert take(Numbered(), collate_fn=collate).images[:, 0, 0, 0].tolist() == [0.5, 1.5, 2.5, 3.5]

    def test_fewer_samples_than_asked(self) -> None:
        probes = take(Numbered(5), ValidationProbes(n=9))

        assert found(probes) == [0, 1, 2, 3, 4]
        assert probes.notices == ("9 probes were asked for and there are only 5 samples; all are taken.",)

    def test_batch_sampler(self) -> None:
        dataset = Numbered()
        loader = DataLoader(dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), 3, drop_last=False))

        assert found(ValidationProbes(n=5).capture([loader], as_is)) == [0, 1, 2, 3, 4]

    def test_subset_sampler_keeps_to_its_part(self) -> None:
        sampler = SubsetRandomSampler([15, 11, 17])

        assert found(take(Numbered(), sampler=sampler)) == [15, 11, 17]

    @pytest.mark.parametrize("source", [ValidationProbes(), ValidationProbes(per_class=1), ValidationProbes(seed=1)])
    def test_empty_data_set(self, source: ProbeSource) -> None:
        with pytest.raises(ValueError, match="loader 0 is empty"):
            source.capture([DataLoader(Labelled(0), batch_size=2)], as_is)

    def test_no_loader(self) -> None:
        with pytest.raises(ValueError, match=r"no validation loader.*ImageProbes or TensorProbes"):
            ValidationProbes().capture([], as_is)

    def test_loader_that_does_not_exist(self) -> None:
        with pytest.raises(ValueError, match=r"dataloader_idx=2.*there are 1"):
            ValidationProbes(dataloader_idx=2).capture([DataLoader(Numbered())], as_is)

    def test_index_out_of_range(self) -> None:
        with pytest.raises(ValueError, match=r"\[20, 31\] not in the data set.*20 samples"):
            take(Numbered(20), ValidationProbes(indices=[3, 20, 31]))

    def test_earlier_index_out_of_range(self) -> None:
        with pytest.raises(ValueError, match=r"\[7\] not in the data set.*5 samples"):
            ValidationProbes().capture([DataLoader(Numbered(5))], as_is, indices=[1, 7])

    def test_a_sample_that_vanishes_on_the_way(self) -> None:
        with pytest.raises(ValueError, match="4 samples became 3 images"):
            ValidationProbes(n=4).capture([DataLoader(Numbered())], lambda batch, _: (batch[0][:3], batch[1][:3]))


class TestPerClass:
    def test_ordered_by_class(self) -> None:
        dataset = Labelled()
        probes = take(dataset, ValidationProbes(per_class=2))

        assert found(probes) == [0, 3, 1, 4, 2, 5]
        assert dataset.loaded == 6, "the labels were at hand, so only the probes should have been loaded"

    def test_n_is_the_most(self) -> None:
        probes = take(Labelled(), ValidationProbes(n=4, per_class=2))

        assert found(probes) == [0, 3, 1, 4]
        assert any("n=4 leaves out 2" in notice for notice in probes.notices)

    def test_seed(self) -> None:
        first, again = (take(Labelled(300), ValidationProbes(per_class=2, seed=7)) for _ in range(2))

        assert first.indices == again.indices
        assert first.indices != (0, 3, 1, 4, 2, 5)
        assert [index % CLASSES for index in first.indices or ()] == [0, 0, 1, 1, 2, 2]

    def test_through_subset_of_random_split_of_concat(self) -> None:
        joined = ConcatDataset([Labelled(9), Labelled(11, start=9)])
        part, _ = random_split(joined, [15, 5], generator=torch.Generator().manual_seed(2))
        dataset = Subset(part, torch.arange(14, -1, -1).tolist())
        probes = take(dataset, ValidationProbes(per_class=2))

        assert [number % CLASSES for number in found(probes)] == [0, 0, 1, 1, 2, 2]
        assert probes.labels is not None
        assert probes.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert probes.class_names == ("ant", "bee", "cat")
        assert sum(leaf.loaded for leaf in joined.datasets) == 6

    def test_scans_when_there_are_no_labels(self) -> None:
        dataset = Numbered(7)
        probes = take(dataset, ValidationProbes(per_class=2))

        assert found(probes) == [0, 3, 1, 4, 2, 5]
        assert any("7 samples were loaded" in notice for notice in probes.notices)

    def test_scan_ends_when_every_class_is_complete(self) -> None:
        dataset = Numbered(5000)
        dataset.classes = ["ant", "bee", "cat"]
        take(dataset, ValidationProbes(per_class=1))

        assert dataset.loaded == 3 + 3

    def test_class_with_too_few_samples(self) -> None:
        probes = take(Labelled(4), ValidationProbes(per_class=2))

        assert found(probes) == [0, 3, 1, 2]
        assert any("fewer samples: 1 has 1, 2 has 1" in notice for notice in probes.notices)

    def test_target_transform_counts(self) -> None:
        dataset = Labelled()
        dataset.target_transform = lambda label: int(label > 0)

        assert found(take(dataset, ValidationProbes(per_class=2))) == [0, 3, 1, 2]

    def test_labels_that_are_no_classes(self) -> None:
        with pytest.raises(ValueError, match=r"sample 0 has no class index.*label_key"):
            take(Shaped(lambda image, label: (image, label + 0.5)), ValidationProbes(per_class=1))


class TestBatches:
    pair = namedtuple("pair", "image label")
    twisted = namedtuple("twisted", "truth photo")

    @pytest.mark.parametrize(
        ("shape", "keys"),
        [
            (lambda x, y: (x, y), {}),
            (lambda x, y: [x, y], {}),
            (lambda x, y: (x, y, {"path": "a.png"}), {}),
            (lambda x, y: {"image": x, "label": y}, {}),
            (lambda x, y: {"photo": x, "truth": y}, {"image_key": "photo", "label_key": "truth"}),
            (lambda x, y: {0: x, 1: y}, {"image_key": 0, "label_key": 1}),
            (lambda x, y: (y, x), {"image_key": 1, "label_key": 0}),
            (lambda x, y: (x, 0.5, y), {"label_key": -1}),
            (pair, {}),
            (lambda x, y: TestBatches.twisted(y, x), {"image_key": "photo", "label_key": "truth"}),
        ],
    )
    def test_kinds(self, shape: Any, keys: dict[str, Any]) -> None:
        probes = take(Shaped(shape), ValidationProbes(n=4, **keys))

        assert found(probes) == [0, 1, 2, 3]
        assert probes.labels is not None
        assert probes.labels.tolist() == [0, 1, 2, 0]
        assert probes.notices == ()

    @pytest.mark.parametrize("slots", [False, True])
    def test_dataclass(self, slots: bool) -> None:
        @dataclass(slots=slots)
        class Batch:
            photo: Tensor
            label: Tensor

        def collate(samples: list[Any]) -> Batch:
            return Batch(torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples]))

        probes = take(Numbered(), ValidationProbes(n=3, image_key="photo"), collate_fn=collate)
        attributes = "none" if slots else "'photo', 'label'"

        assert found(probes) == [0, 1, 2]
        assert probes.labels is not None
        with pytest.raises(ValueError, match="image_key='image'.*Batch, with the attributes " + attributes):
            take(Numbered(), ValidationProbes(n=3), collate_fn=collate)

    @pytest.mark.parametrize("shape", [lambda x, y: x, lambda x, y: (x,), lambda x, y: {"image": x}])
    def test_images_alone(self, shape: Any) -> None:
        probes = take(Shaped(shape))

        assert found(probes) == [0, 1, 2, 3]
        assert probes.labels is None

    def test_labels_under_another_key_are_pointed_at(self) -> None:
        probes = take(Shaped(lambda x, y: {"image": x, "truth": y}))

        assert probes.labels is None
        assert "'image', 'truth'" in probes.notices[0]
        assert "label_key" in probes.notices[0]

    @pytest.mark.parametrize(
        ("shape", "keys", "message"),
        [
            (lambda x, y: {"photo": x, "label": y}, {}, r"image_key='image'.*'photo', 'label'"),
            (lambda x, y: {"image": x, "label": y}, {"label_key": "truth"}, r"label_key='truth'.*'image', 'label'"),
            (lambda x, y: (x, y), {"image_key": 2}, r"image_key=2.*list with 2 entries"),
            (lambda x, y: (x, y), {"image_key": "photo"}, r"image_key='photo'.*by position"),
        ],
    )
    def test_missing_key(self, shape: Any, keys: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            take(Shaped(shape), ValidationProbes(n=2, **keys))

    def test_images_without_a_channel_axis(self) -> None:
        assert take(Shaped(lambda x, y: (x[0], y))).images.shape == (4, 1, 4, 5)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            (lambda x, y: (x.flatten(), y), r"tensor \(4, 60\) of torch.float32"),
            (lambda x, y: (x[None], y), r"tensor \(4, 1, 3, 4, 5\)"),
            (lambda x, y: ("a.png", y), "a.png"),
            (lambda x, y: ((x, x), y), "list"),
        ],
    )
    def test_no_images(self, shape: Any, message: str) -> None:
        with pytest.raises(ValueError, match=f"have to be images.*{message}"):
            take(Shaped(shape))

    @pytest.mark.parametrize(
        "change",
        [
            lambda y: y,
            lambda y: np.int64(y),
            lambda y: torch.tensor(y, dtype=torch.uint8),
            lambda y: torch.tensor([y]),
            lambda y: torch.eye(CLASSES)[y],
            lambda y: torch.eye(CLASSES, dtype=torch.int64)[y],
            lambda y: torch.eye(CLASSES)[y].half() * 0.9 + 0.1 / 3,
        ],
    )
    def test_labels_that_are_classes(self, change: Any) -> None:
        labels = take(Shaped(lambda x, y: (x, change(y)))).labels

        assert labels is not None
        assert labels.dtype == torch.int64
        assert labels.tolist() == [0, 1, 2, 0]

    def test_labels_of_a_single_logit(self) -> None:
        labels = take(Shaped(lambda x, y: (x, torch.tensor([float(y > 0)])))).labels

        assert labels is not None
        assert labels.tolist() == [0, 1, 1, 0]

    @pytest.mark.parametrize(
        "change",
        [
            lambda y: 0.5 + y,
            lambda y: torch.ones(CLASSES),
            lambda y: torch.tensor([3.0, 4.0, 10.0, 12.0]),
            lambda y: torch.zeros(4, 5, dtype=torch.int64),
            lambda y: -1,
            lambda y: "ant",
            lambda y: {"boxes": torch.zeros(2, 4)},
        ],
    )
    def test_labels_that_are_no_classes(self, change: Any) -> None:
        probes = take(Shaped(lambda x, y: (x, change(y))))

        assert probes.labels is None
        assert found(probes) == [0, 1, 2, 3]
        assert "no class indices" in probes.notices[0]


class TestStreams:
    def test_first_samples_of_the_first_batches(self) -> None:
        probes = take(Stream(), ValidationProbes(n=8), batch_size=3)

        assert found(probes) == list(range(8))
        assert probes.labels is not None
        assert probes.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
        assert probes.indices is None
        assert probes.names[7] == "#7"

    def test_position_does_not_move(self) -> None:
        dataset = Stream()
        probes = take(dataset, ValidationProbes(n=8), batch_size=3)

        assert probes.notices == ()
        assert dataset.position == 0

    def test_persistent_workers_do_not_move(self) -> None:
        loader = DataLoader(Stream(6), batch_size=2, num_workers=1, persistent_workers=True)
        seen = iter(loader)
        first = next(seen)[0]

        probes = ValidationProbes(n=3).capture([loader], as_is)
        rest = [int(image.flatten()[0]) for images, _ in seen for image in images]

        assert found(probes) == [0, 1, 2]
        assert [int(image.flatten()[0]) for image in first] + rest == [0, 1, 2, 3, 4, 5]

    def test_data_set_that_cannot_be_copied(self) -> None:
        dataset = Stream()
        dataset.socket = (number for number in ())

        probes = take(dataset, ValidationProbes(n=4), batch_size=2)

        assert found(probes) == [0, 1, 2, 3]
        assert "Stream cannot be copied" in probes.notices[0]

    def test_ready_batches_from_the_data_set(self) -> None:
        class Batches(Numbered):
            def __getitem__(self, index: int) -> Any:
                return torch.stack([pixels(2 * index), pixels(2 * index + 1)]), torch.tensor([0, 1])

        probes = take(Batches(), ValidationProbes(n=3), batch_size=None)

        assert found(probes) == [0, 1, 2]
        assert probes.indices is None

    def test_ready_batches_from_the_sampler(self) -> None:
        class Table(Dataset[Any]):
            def __getitem__(self, indices: list[int]) -> Any:
                return torch.stack([pixels(index) for index in indices]), torch.tensor(indices) % CLASSES

        sampler = BatchSampler(SequentialSampler(range(10)), 4, drop_last=False)

        assert found(take(Table(), ValidationProbes(n=5), batch_size=None, sampler=sampler)) == [0, 1, 2, 3, 4]

    def test_data_set_without_a_length(self) -> None:
        class Endless(Dataset[Any]):
            def __getitem__(self, index: int) -> Any:
                return pixels(index), 0

        assert found(take(Endless(), ValidationProbes(n=3), batch_size=2, sampler=range(4, 9))) == [4, 5, 6]

    def test_any_iterable_of_batches(self) -> None:
        batches = [(torch.stack([pixels(2 * i), pixels(2 * i + 1)]), torch.tensor([0, 1])) for i in range(3)]

        assert found(ValidationProbes(n=3).capture([batches], as_is)) == [0, 1, 2]  # type: ignore[list-item]

    def test_no_more_is_read_than_needed(self) -> None:
        class Endless:
            read = 0

            def __iter__(self) -> Iterator[Tensor]:
                while True:
                    self.read += 1
                    yield torch.zeros(2, 3, 4, 5)

        endless = Endless()
        ValidationProbes(n=4).capture([endless], as_is)  # type: ignore[list-item]

        assert endless.read == 2

    def test_iterator_is_not_used_up(self) -> None:
        batches = iter([(torch.stack([pixels(i)]), torch.tensor([0])) for i in range(3)])

        class Once:
            def __init__(self) -> None:
                self.left = [pixels(i)[None] for i in range(3)]

            def __iter__(self) -> Once:
                return self

            def __next__(self) -> Tensor:
                if not self.left:
                    raise StopIteration
                return self.left.pop(0)

        once = Once()
        assert found(ValidationProbes(n=2).capture([once], as_is)) == [0, 1]  # type: ignore[list-item]
        assert len(once.left) == 3

        generator = (batch for batch in batches)
        with pytest.raises(ValueError, match=r"generator.*only once and cannot be copied"):
            ValidationProbes(n=2).capture([generator], as_is)  # type: ignore[list-item]
        assert len(list(generator)) == 3

    def test_not_iterable(self) -> None:
        with pytest.raises(ValueError, match="cannot be iterated over"):
            ValidationProbes().capture([7], as_is)  # type: ignore[list-item]

    def test_fewer_samples_than_asked(self) -> None:
        probes = take(Stream(5), ValidationProbes(n=8), batch_size=3, drop_last=True)

        assert found(probes) == [0, 1, 2, 3, 4]
        assert "only 5 samples" in probes.notices[0]

    def test_empty(self) -> None:
        with pytest.raises(ValueError, match="loader 0 is empty"):
            take(Stream(0))

    @pytest.mark.parametrize(("option", "value"), [("indices", [1, 2]), ("per_class", 1)])
    def test_samples_cannot_be_chosen(self, option: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"{option}.*only be read in order.*Use n"):
            take(Stream(), ValidationProbes(**{option: value}))

    def test_images_that_differ_in_size(self) -> None:
        batches = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 5, 5)]
        with pytest.raises(ValueError, match=r"differ in size.*\(3, 4, 4\), \(3, 5, 5\)"):
            ValidationProbes(n=2).capture([batches], as_is)  # type: ignore[list-item]


class TestNoTrace:
    @pytest.mark.parametrize("settings", [{}, {"num_workers": 2, "persistent_workers": True}])
    def test_generators_stay_and_the_bits_repeat(self, settings: dict[str, Any]) -> None:
        dataset, generator = Noisy(), torch.Generator().manual_seed(1)
        loader = DataLoader(dataset, batch_size=4, shuffle=True, generator=generator, **settings)
        if settings:
            next(iter(loader))  # the workers run, and are in the middle of an epoch

        prints = []
        for round_ in range(2):
            torch.manual_seed(round_), random.seed(round_), np.random.seed(round_)
            before = global_states() + own_states(dataset) + [generator.get_state().numpy().tobytes()]
            prints.append(ValidationProbes(n=3).capture([loader], as_is).fingerprint)
            assert global_states() + own_states(dataset) + [generator.get_state().numpy().tobytes()] == before

        assert prints[0] == prints[1]

    def test_an_earlier_choice_gives_the_same_bits_although_it_needs_no_scan(self) -> None:
        loader = DataLoader(Noisy(), batch_size=4)
        source = ValidationProbes(per_class=2)
        first = source.capture([loader], as_is)
        again = source.capture([loader], as_is, indices=first.indices)

        assert "samples were loaded" in first.notices[0]
        assert again.notices == ()
        assert again.fingerprint == first.fingerprint

    def test_seed_reaches_the_random_transforms(self) -> None:
        prints = {take(Noisy(3), ValidationProbes(n=3, seed=seed)).fingerprint for seed in (0, 1, 2)}

        assert len(prints) == 3

    def test_sampler_of_ready_batches_stays(self) -> None:
        generator = torch.Generator().manual_seed(1)
        images = torch.stack([pixels(index) for index in range(12)])
        sampler = torch.utils.data.RandomSampler(range(12), generator=generator)
        loader = DataLoader(TensorDataset(images), batch_size=None, sampler=BatchSampler(sampler, 4, drop_last=False))
        before = [*global_states(), generator.get_state().numpy().tobytes()]
        first, again = (ValidationProbes(n=3).capture([loader], as_is) for _ in range(2))

        assert [*global_states(), generator.get_state().numpy().tobytes()] == before
        assert first.fingerprint == again.fingerprint

    def test_stream(self) -> None:
        class NoisyStream(Noisy, IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                return (self[index] for index in range(20))

        dataset = NoisyStream()
        before = global_states() + own_states(dataset)
        first, again = (take(dataset) for _ in range(2))

        assert global_states() + own_states(dataset) == before
        assert first.fingerprint == again.fingerprint

    def test_generators_stay_when_the_data_set_raises(self) -> None:
        class Broken(Noisy):
            def __getitem__(self, index: int) -> Any:
                super().__getitem__(index)
                raise RuntimeError("disk on fire")

        dataset = Broken()
        before = global_states() + own_states(dataset)
        with pytest.raises(RuntimeError, match="disk on fire"):
            take(dataset)

        assert global_states() + own_states(dataset) == before

    def test_random_transform_of_files(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "a.png")
        source = ImageProbes(tmp_path, transform=v2.Compose([v2.PILToTensor(), lambda x: x + torch.rand(x.shape)]))
        before = global_states()
        prints = {source.capture([], as_is).fingerprint for _ in range(2)}

        assert len(prints) == 1
        assert global_states() == before

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_images_are_free_of_the_context(self, context: Any) -> None:
        with context():
            from_data = take(Numbered())
            from_tensor = TensorProbes(torch.zeros(1, 3, 4, 4)).capture([], as_is)

        for probes in (from_data, from_tensor):
            assert not probes.images.is_inference()
            probes.images.requires_grad_()

    def test_images_have_memory_of_their_own(self) -> None:
        kept = torch.zeros(9, 3, 4, 5, requires_grad=True).to(memory_format=torch.channels_last)
        probes = ValidationProbes(n=4).capture([[(kept, torch.zeros(9))]], as_is)  # type: ignore[list-item]
        with torch.no_grad():
            kept.fill_(7)

        assert not probes.images.any()
        assert not probes.images.requires_grad
        assert probes.images.is_contiguous()
        assert probes.images.untyped_storage().nbytes() == 4 * 3 * 4 * 5 * 4

    def test_plain_tensors_only(self) -> None:
        probes = take(
            Shaped(lambda x, y: (tv_tensors.Image(x), y)),
            collate_fn=lambda s: tv_tensors.Image(s[0][0][None]),
            batch_size=1,
            source=ValidationProbes(n=1),
        )

        assert type(probes.images) is Tensor

    @pytest.mark.gpu
    def test_on_the_device(self) -> None:
        def transfer(batch: Any, dataloader_idx: int) -> Any:
            images, labels = (part.cuda() for part in batch)
            return images + torch.rand_like(images), labels

        torch.rand(1, device="cuda")
        before = torch.cuda.get_rng_state().numpy().tobytes()
        first, again = (ValidationProbes(n=4).capture([DataLoader(Numbered())], transfer) for _ in range(2))

        assert torch.cuda.get_rng_state().numpy().tobytes() == before
        assert first.images.is_cuda
        assert first.labels is not None
        assert first.labels.device.type == "cpu"
        assert first.fingerprint == again.fingerprint == fingerprint(first.images.cpu(), first.labels)


MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


class Photos(VisionDataset):
    """PIL images, with torchvision's own handling of transforms."""

    classes: Sequence[Any] = ["ant", "bee"]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        image: Any = Image.new("RGB", (5, 4), (index, 0, 0))
        return self.transforms(image, index % 2) if self.transforms else (image, index % 2)


class Wrapper(Dataset[Any]):
    """What people write to give a subset a transform of its own."""

    def __init__(self, data: Any, transform: Any = None) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        image, label = self.data[index]
        return (self.transform(image) if self.transform else image), label


def first_version(mean: Any = MEAN, std: Any = STD) -> Any:
    return v1.Compose([v1.ToTensor(), v1.Normalize(mean, std)])


def second_version(mean: Any = MEAN, std: Any = STD) -> Any:
    return v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


class TestDataSet:
    @pytest.mark.parametrize(
        "transform",
        [
            first_version(),
            second_version(),
            v1.Compose([v1.ToTensor(), v1.Compose([v1.Normalize(MEAN, STD)])]),
            v1.Compose([v1.ToTensor(), nn.Sequential(v2.Normalize(MEAN, STD))]),
            v1.Compose([v1.ToTensor(), v2.Normalize((0.9,) * 3, (0.9,) * 3), v2.Normalize(MEAN, STD)]),
            v1.Compose([v1.ToTensor(), v1.Normalize(torch.tensor(MEAN), np.array(STD))]),
        ],
    )
    def test_mean_and_std(self, transform: Any) -> None:
        probes = take(Photos(transform=transform))

        assert probes.mean == pytest.approx(MEAN)
        assert probes.std == pytest.approx(STD)

    @pytest.mark.parametrize(
        "dataset",
        [
            Photos(transforms=second_version()),
            Subset(Photos(transform=first_version()), [3, 1, 2, 4]),
            random_split(ConcatDataset([Photos(transform=second_version())] * 2), [5, 7])[0],
            Wrapper(Subset(Photos(), range(5)), first_version()),
            Wrapper(Wrapper(Photos(transform=first_version()))),
            Wrapper(Photos(transform=first_version((0.9,) * 3, (0.9,) * 3)), v1.Normalize(MEAN, STD)),
        ],
    )
    def test_mean_std_and_names_through_wrappers(self, dataset: Any) -> None:
        probes = take(dataset)

        assert probes.mean == MEAN
        assert probes.std == STD
        assert probes.class_names == ("ant", "bee")

    def test_real_torchvision_data_set(self) -> None:
        probes = take(FakeData(12, (3, 6, 6), 4, transform=second_version()), ValidationProbes(per_class=1))

        assert probes.mean == MEAN
        assert probes.class_names is None
        assert probes.labels is not None
        assert probes.labels.tolist() == sorted(set(probes.labels.tolist()))

    def test_one_number_stands_for_every_channel(self) -> None:
        assert take(Photos(transform=first_version((0.5,), (0.25,)))).mean == (0.5, 0.5, 0.5)

    @pytest.mark.parametrize("transform", [v1.ToTensor(), v1.Compose([v1.ToTensor(), v1.GaussianBlur(3)])])
    def test_no_normalisation(self, transform: Any) -> None:
        probes = take(Photos(transform=transform))

        assert probes.mean is None
        assert probes.std is None

    def test_numbers_of_a_noise_are_no_normalisation(self) -> None:
        class AddNoise:
            mean, std = 0.0, 1.0

            def __call__(self, image: Tensor) -> Tensor:
                return image + self.mean

        assert take(Photos(transform=v1.Compose([v1.ToTensor(), AddNoise()]))).mean is None

    def test_number_of_channels_that_does_not_fit(self) -> None:
        gray = Shaped(lambda x, y: (x[:1], y))
        gray.transform = v1.Normalize(MEAN, STD)

        assert take(gray).mean is None

    def test_synonyms_and_categories(self) -> None:
        dataset = Numbered()
        dataset.categories = [("tench", "Tinca tinca"), "goldfish"]

        assert take(Subset(dataset, range(9))).class_names == ("tench", "goldfish")

    def test_pixels_called_data_are_no_data_set(self) -> None:
        dataset = Numbered()
        dataset.data = torch.zeros(20, 4, 5)

        assert take(dataset).class_names is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, 6 wide and 4 high, whose red tells their number; a text, a hidden file, a folder."""
    for number in (10, 2, 1):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"cat {number}.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "inner").mkdir()
    return tmp_path


class TestImageProbes:
    def test_folder_in_natural_order(self, folder: Path) -> None:
        probes = ImageProbes(str(folder), labels=[0, 1, 0]).capture([], as_is)

        assert probes.names == ("cat 1.PNG", "cat 2.PNG", "cat 10.PNG")
        assert probes.images.shape == (3, 3, 4, 6)
        assert torch.equal(probes.images[:, 0, 0, 0], torch.tensor([1, 2, 10]) / 255)
        assert probes.labels is not None
        assert probes.labels.tolist() == [0, 1, 0]
        assert probes.indices is None
        assert "no transform was given" in probes.notices[0]

    def test_list_keeps_its_order(self, folder: Path) -> None:
        probes = ImageProbes([folder / "cat 10.PNG", str(folder / "cat 2.PNG")]).capture([], as_is)

        assert probes.names == ("cat 10.PNG", "cat 2.PNG")

    def test_names_that_would_be_the_same(self, folder: Path) -> None:
        for name in ("a", "b"):
            (folder / name).mkdir()
            Image.new("RGB", (6, 4)).save(folder / name / "x.png")
        probes = ImageProbes([folder / "a/x.png", folder / "b/x.png"]).capture([], as_is)

        assert probes.names == ("a/x.png", "b/x.png")

    def test_upright_and_rgb(self, tmp_path: Path) -> None:
        image = Image.new("L", (6, 4), 0)
        image.putpixel((0, 0), 255)
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side: to be turned by 90 degrees clockwise
        image.save(tmp_path / "a.png", exif=exif)

        image = ImageProbes(tmp_path / "a.png").capture([], as_is).images[0]

        assert image.shape == (3, 6, 4)
        assert image[:, 0, 3].tolist() == [1, 1, 1], "the upper left corner has moved to the upper right"
        assert image.sum() == 3

    def test_own_transform(self, folder: Path) -> None:
        probes = ImageProbes(folder, transform=second_version()).capture([], as_is)

        expected = (torch.tensor([1.0, 2.0, 10.0]) / 255 - MEAN[0]) / STD[0]
        torch.testing.assert_close(probes.images[:, 0, 0, 0], expected)
        assert (probes.mean, probes.std) == (MEAN, STD)
        assert probes.notices == ()

    def test_borrowed_transform(self, folder: Path) -> None:
        dataset = Wrapper(Photos(transform=v1.ToTensor()), v1.Normalize(MEAN, STD))
        probes = ImageProbes(folder).capture([DataLoader(dataset)], as_is)

        assert torch.equal(probes.images, ImageProbes(folder, first_version()).capture([], as_is).images)
        assert (probes.mean, probes.std) == (MEAN, STD)
        assert probes.class_names == ("ant", "bee")
        assert probes.notices == ()

    def test_transfer_is_not_applied(self, folder: Path) -> None:
        def transfer(batch: Any, dataloader_idx: int) -> Any:
            raise AssertionError

        ImageProbes(folder).capture([], transfer)

    def test_sizes_that_differ(self, folder: Path) -> None:
        Image.new("RGB", (7, 7)).save(folder / "dog.png")
        with pytest.raises(ValueError, match=r"cat 1.PNG \(3, 4, 6\).*dog.png \(3, 7, 7\).*resize"):
            ImageProbes(folder).capture([], as_is)

    def test_missing_file(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"no file or folder .*dog\.png"):
            ImageProbes([folder / "cat 1.PNG", folder / "dog.png"])

    def test_folder_without_images(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"no file in .*inner matches.*\.png"):
            ImageProbes(folder / "inner")

    def test_no_image(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"notes\.txt is no image"):
            ImageProbes(folder / "notes.txt")

    def test_truncated_image(self, folder: Path) -> None:
        whole = folder / "noise.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
        (folder / "half.png").write_bytes(whole.read_bytes()[:3000])
        with pytest.raises(ValueError, match=r"half\.png is no image that can be read"):
            ImageProbes(folder / "half.png").capture([], as_is)

    def test_nothing_given(self) -> None:
        with pytest.raises(ValueError, match="list is empty"):
            ImageProbes([])

    def test_given_twice(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"more than once: .*cat 1\.PNG"):
            ImageProbes([folder, folder / "cat 1.PNG"])

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            ([0, 1], ValueError, "3 files and 2 labels"),
            ([0, 1, -1], ValueError, r"labels\[2\].*at least 0, got -1"),
            ([0, 1, True], TypeError, r"labels\[2\].*True"),
            ("012", TypeError, "list of class indices"),
        ],
    )
    def test_wrong_labels(self, folder: Path, labels: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            ImageProbes(folder, labels=labels)

    def test_transform_that_is_none(self, folder: Path) -> None:
        with pytest.raises(TypeError, match="transform: expected a function"):
            ImageProbes(folder, transform="resize")  # type: ignore[arg-type]

    def test_transform_that_fails(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"failed on .*cat 1\.PNG \(ZeroDivisionError"):
            ImageProbes(folder, transform=lambda image: 1 / 0).capture([], as_is)

    def test_transform_that_makes_no_tensor(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"expected a tensor \(C, H, W\).*cat 1\.PNG"):
            ImageProbes(folder, transform=v1.Resize((4, 4))).capture([], as_is)

    def test_gray_transform_without_channel(self, folder: Path) -> None:
        gray = v1.Compose([v1.Grayscale(), v1.ToTensor(), lambda image: image[0]])

        assert ImageProbes(folder, transform=gray).capture([], as_is).images.shape == (3, 1, 4, 6)


class TestTensorProbes:
    def test_images_labels_names(self) -> None:
        images = torch.rand(2, 3, 4, 4, requires_grad=True)
        source = TensorProbes(images, labels=torch.tensor([4, 1]), names=["left", "right"])
        expected = images.detach().clone()
        with torch.no_grad():
            images.zero_()
        probes = source.capture([DataLoader(Photos(transform=first_version()))], as_is)

        assert torch.equal(probes.images, expected)
        assert not probes.images.requires_grad
        assert probes.labels is not None
        assert probes.labels.tolist() == [4, 1]
        assert probes.names == ("left", "right")
        assert probes.class_names == ("ant", "bee")

    def test_normalisation_is_taken_from_the_data_set_unless_these_are_bytes(self) -> None:
        loaders = [DataLoader(Photos(transform=first_version()))]
        images = torch.zeros(1, 3, 4, 4)

        assert TensorProbes(images).capture(loaders, as_is).mean == MEAN
        assert TensorProbes(images.byte()).capture(loaders, as_is).mean is None

    def test_captures_do_not_share_memory(self) -> None:
        source = TensorProbes(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
        source.capture([], as_is).images.fill_(9)

        probes = source.capture([], as_is)
        assert not probes.images.any()
        assert probes.names == ("#0",)
        assert probes.labels is None

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"images": torch.zeros(3, 4, 4)}, ValueError, r"expected a tensor \(N, C, H, W\).*\(3, 4, 4\)"),
            ({"images": torch.zeros(0, 3, 4, 4)}, ValueError, "at least one image"),
            ({"images": [1, 2]}, ValueError, "expected a tensor"),
            (
                {"images": torch.zeros(2, 3, 4, 4, dtype=torch.int64)},
                ValueError,
                "floating point or uint8, got .*int64",
            ),
            ({"labels": [1]}, ValueError, "2 images and 1 labels"),
            ({"labels": torch.tensor([0.5, 1.5])}, TypeError, r"labels\[0\].*0\.5"),
            ({"names": ["a"]}, ValueError, "2 images and 1 names"),
        ],
    )
    def test_bad_input(self, settings: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            TensorProbes(**{"images": torch.zeros(2, 3, 4, 4), **settings})


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"n": 0}, ValueError, "n: .*at least 1, got 0"),
            ({"n": -3}, ValueError, "n: .*got -3"),
            ({"n": True}, TypeError, "n: .*True"),
            ({"n": 2.0}, TypeError, "n: .*2.0"),
            ({"n": 2, "indices": [1]}, ValueError, "Leave out n, per_class and seed"),
            ({"seed": 2, "indices": [1]}, ValueError, "Leave out n, per_class and seed"),
            ({"per_class": 2, "indices": [1]}, ValueError, "Leave out n, per_class and seed"),
            ({"indices": []}, ValueError, "list is empty"),
            ({"indices": 3}, TypeError, "expected a list"),
            ({"indices": "12"}, TypeError, "expected a list"),
            ({"indices": [1, -1]}, ValueError, r"indices\[1\].*at least 0, got -1"),
            ({"indices": [True]}, TypeError, r"indices\[0\].*True"),
            ({"indices": [4, 2, 4]}, ValueError, r"more than once: \[4\]"),
            ({"per_class": 0}, ValueError, "per_class: .*got 0"),
            ({"dataloader_idx": -1}, ValueError, "dataloader_idx: .*got -1"),
            ({"seed": -1}, ValueError, "seed: .*got -1"),
            ({"seed": 2**32}, ValueError, "seed: .*2\\*\\*32"),
            ({"image_key": True}, TypeError, "image_key"),
            ({"label_key": 1.5}, TypeError, "label_key"),
        ],
    )
    def test_bad_options(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            ValidationProbes(**options)

    def test_numpy_numbers(self) -> None:
        source = ValidationProbes(n=np.int64(3))

        assert source.n == 3
        assert type(source.n) is int

    def test_short_forms(self) -> None:
        source = TensorProbes(torch.zeros(1, 3, 4, 4))

        assert as_source(source) is source
        assert as_source(5).describe() == ValidationProbes(n=5).describe()
        assert as_source([4, 2]).describe() == ValidationProbes(indices=(4, 2)).describe()
        assert as_source(range(3)).describe() == ValidationProbes(indices=[0, 1, 2]).describe()

    @pytest.mark.parametrize("probes", [True, "photos", None, 1.5, torch.zeros(1, 3, 4, 4)])
    def test_no_short_form(self, probes: Any) -> None:
        with pytest.raises(TypeError, match=r"a number, a list of indices or a probe source.*ImageProbes"):
            as_source(probes)

    def test_short_form_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="at least 1, got 0"):
            as_source(0)


class TestDescribe:
    def test_says_what_was_configured(self) -> None:
        assert ValidationProbes(n=3, seed=1).describe() == (
            "ValidationProbes(n=3, indices=None, per_class=None, dataloader_idx=0, seed=1, "
            "image_key='image', label_key='label')"
        )

    def test_changes_with_the_tensor(self) -> None:
        zeros, again, ones = (
            TensorProbes(make(1, 3, 4, 4)).describe() for make in (torch.zeros, torch.zeros, torch.ones)
        )

        assert zeros == again
        assert zeros != ones

    def test_has_no_addresses(self, folder: Path) -> None:
        def make() -> str:
            return ImageProbes(folder, transform=lambda image: image).describe()

        assert make() == make()
        assert " at 0x" not in make()
        assert str(folder) in make()


class TestFingerprint:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
    def test_every_dtype_and_layout(self, dtype: torch.dtype) -> None:
        images = torch.arange(96).reshape(2, 3, 4, 4).to(dtype)

        assert fingerprint(images, None) == fingerprint(images.to(memory_format=torch.channels_last), None)
        assert fingerprint(images, None) != fingerprint(images.flip(0), None)

    def test_is_the_sha_of_what_it_says(self) -> None:
        images, labels = torch.rand(2, 3, 4, 4), torch.tensor([5, 6])
        text = b"(2, 3, 4, 4) torch.float32" + images.numpy().tobytes() + b"(2,) torch.int64" + labels.numpy().tobytes()

        assert fingerprint(images, labels) == hashlib.sha256(text).hexdigest()

    def test_shape_dtype_and_labels_count(self) -> None:
        images = torch.zeros(2, 3, 4, 4)
        variants = [
            fingerprint(images, None),
            fingerprint(images.reshape(2, 3, 2, 8), None),
            fingerprint(images.view(torch.int32), None),
            fingerprint(images, torch.tensor([0, 1])),
            fingerprint(images, torch.tensor([1, 0])),
        ]

        assert len(set(variants)) == len(variants)

    def test_probe_set_carries_it(self) -> None:
        probes = take(Numbered())

        assert probes.fingerprint == fingerprint(probes.images, probes.labels)


# The oldest supported jsonargparse has only the name that the newest one deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestYaml:
    @pytest.fixture
    def parser(self) -> ArgumentParser:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--probes", type=int | Sequence[int] | ProbeSource, default=8)
        return parser

    def build(self, parser: ArgumentParser, probes: Any) -> Any:
        return parser.instantiate_classes(parser.parse_object({"probes": probes})).probes

    def test_short_forms(self, parser: ArgumentParser) -> None:
        assert self.build(parser, 4) == 4
        assert list(self.build(parser, [4, 2])) == [4, 2]

    def test_validation_probes(self, parser: ArgumentParser) -> None:
        options = {"n": 8, "per_class": 1, "image_key": 0, "label_key": "truth"}
        source = self.build(parser, {"class_path": "gradcam_callback.ValidationProbes", "init_args": options})

        assert isinstance(source, ValidationProbes)
        assert {name: getattr(source, name) for name in options} == options

    def test_image_probes(self, parser: ArgumentParser, folder: Path) -> None:
        normalise = {"class_path": "torchvision.transforms.v2.Normalize", "init_args": {"mean": MEAN, "std": STD}}
        steps = [{"class_path": "torchvision.transforms.v2.ToImage"}, normalise]
        transform = {"class_path": "torchvision.transforms.v2.Compose", "init_args": {"transforms": steps}}
        for files in (str(folder), [str(folder / "cat 1.PNG"), str(folder / "cat 2.PNG")]):
            options = {"files": files, "transform": transform}
            source = self.build(parser, {"class_path": "gradcam_callback.ImageProbes", "init_args": options})

            assert isinstance(source, ImageProbes)
            assert isinstance(source.transform, v2.Compose)
            assert len(source.files) == (1 if isinstance(files, str) else 2)

    def test_unknown_key(self, parser: ArgumentParser) -> None:
        with pytest.raises(ArgumentError, match="per_clas"):
            self.build(parser, {"class_path": "gradcam_callback.ValidationProbes", "init_args": {"per_clas": 1}})

    def test_wrong_type(self, parser: ArgumentParser) -> None:
        with pytest.raises(ArgumentError, match="eight"):
            self.build(parser, {"class_path": "gradcam_callback.ValidationProbes", "init_args": {"n": "eight"}})
