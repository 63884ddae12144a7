"""From whatever a model returns to one score a sample, by hand-made outputs."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradcam_callback.engine.targets import (
    ClassTarget,
    check_target,
    choose_targets,
    class_count,
    find_logits,
    own_probabilities,
    predict,
    score,
)

LOGITS = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, -1.0]])
MAPS = torch.zeros(2, 3, 4, 4)
LOSS = torch.tensor(0.5)

Named = namedtuple("Named", "logits aux")
Unnamed = namedtuple("Unnamed", "maps head")


class ModelOutput(OrderedDict[str, Any]):
    """As in transformers: a dict whose items are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Answer:
    logits: Tensor


@dataclass
class Odd:
    head: Tensor


# Finding the logits


@pytest.mark.parametrize(
    "returned",
    [
        LOGITS,
        {"logits": LOGITS},
        {"loss": LOSS, "logits": LOGITS},
        {"hidden": torch.zeros(2, 9), "logits": LOGITS},
        {"maps": MAPS, "whatever": LOGITS},
        {"text": "x", "none": None, 3: LOGITS},
        OrderedDict(out=LOGITS, aux=torch.zeros(2, 3)),
        ModelOutput(loss=LOSS, hidden_states=(MAPS,), logits=LOGITS),
        (LOGITS, MAPS),
        (MAPS, LOGITS),
        (LOSS, LOGITS),
        (torch.zeros(2), LOGITS),
        (LOGITS, torch.zeros(2), torch.zeros(2, 3)),
        {"losses": torch.zeros(2), "maps": MAPS, "head": LOGITS, "classes": LOGITS.long()},
        [LOGITS],
        Named(LOGITS, torch.zeros(2, 3)),
        Unnamed(MAPS, LOGITS),
        Answer(LOGITS),
        Odd(LOGITS),
    ],
    ids=lambda returned: type(returned).__name__,
)
def test_logits_are_found(returned: Any) -> None:
    assert find_logits(returned) is LOGITS


def test_logits_with_one_pixel_are_found_behind_those_without() -> None:
    pixel = LOGITS[:, :, None, None]
    assert torch.equal(find_logits((MAPS, pixel)), LOGITS)
    assert torch.equal(find_logits({"maps": MAPS, "head": pixel}), LOGITS)
    assert find_logits((torch.zeros(2, 9, 1, 1), LOGITS)) is LOGITS


@pytest.mark.parametrize(
    "returned", [(torch.zeros(2, 9), LOGITS), (LOGITS, torch.zeros(2, 9)), {"x": LOGITS, "y": MAPS[:, 0, 0]}]
)
def test_features_and_logits_are_not_told_apart_by_their_place(returned: Any) -> None:
    with pytest.raises(ValueError, match=r"Several things.*shape \(2, \d\), \(2, \d\).*`output`: a key"):
        find_logits(returned)


def test_names_go_before_places() -> None:
    assert find_logits({"embedding": torch.zeros(2, 8), "preds": torch.ones(2, 2), "logits": LOGITS}) is LOGITS


def test_a_name_that_holds_classes_is_no_logits() -> None:
    """A predicted class has no gradient; the probabilities beside it have."""
    assert find_logits({"preds": LOGITS.argmax(1), "probabilities": LOGITS}) is LOGITS
    assert find_logits({"predictions": LOGITS > 0, "y": LOGITS}) is LOGITS


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        ({"a": torch.zeros(2, 3), "b": LOGITS}, "b"),
        ({0: torch.zeros(2, 3), 1: LOGITS}, 1),
        ({"logits": torch.zeros(2, 3), "items": LOGITS}, "items"),
        (ModelOutput(a=torch.zeros(2, 3), b=LOGITS), "b"),
        ((torch.zeros(2, 3), LOGITS), 1),
        ((torch.zeros(2, 3), LOGITS), -1),
        ([LOGITS, torch.zeros(2, 3)], 0),
        (Unnamed(torch.zeros(2, 3), LOGITS), "head"),
        (Unnamed(torch.zeros(2, 3), LOGITS), 1),
        (Odd(LOGITS), "head"),
        (Odd(LOGITS), lambda answer: answer.head),
        ({"a": [{"b": LOGITS}]}, lambda answer: answer["a"][0]["b"]),
    ],
)
def test_output_says_where_they_are(returned: Any, output: Any) -> None:
    assert find_logits(returned, output) is LOGITS


@pytest.mark.parametrize(
    ("returned", "output", "words"),
    [
        ({"a": LOGITS}, "b", ["output='b'", "dict with the keys 'a'"]),
        ({"a": LOGITS}, 0, ["output=0", "dict with the keys 'a'"]),
        ((LOGITS,), 1, ["output=1", "tuple of Tensor"]),
        ((LOGITS,), -2, ["output=-2", "tuple of Tensor"]),
        ((LOGITS,), "count", ["output='count'", "tuple of Tensor"]),
        (Odd(LOGITS), "tail", ["output='tail'", "Odd"]),
        (Odd(LOGITS), 0, ["output=0", "Odd"]),
        ({"a": LOGITS}, lambda _: None, ["<lambda>", "dict with the keys 'a'"]),
        (LOGITS, "logits", ["output='logits'", "Tensor"]),
        (None, None, ["NoneType"]),
        ("text", None, ["str"]),
        ((), None, ["tuple of nothing"]),
        ({"a": {"logits": LOGITS}}, None, ["dict with the keys 'a'"]),
        ([MAPS], None, ["list of Tensor"]),
        (np.zeros((2, 3)), None, ["ndarray"]),
    ],
)
def test_what_is_not_there_is_refused_with_what_came(returned: Any, output: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"No logits were found.*`output`: a key, an index, or a function") as caught:
        find_logits(returned, output)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("output", [0, -1, 1, "T", "data"])
def test_a_place_within_a_tensor_is_refused(output: Any) -> None:
    """Item 0 of a tensor is a sample and no output: with as many classes as samples nobody would notice."""
    with pytest.raises(ValueError, match="No logits"):
        find_logits(torch.zeros(3, 3), output)


# Their shape


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((2, 3), (2, 3)), ((2,), (2, 1)), ((2, 1), (2, 1)), ((2, 3, 1), (2, 3)), ((2, 3, 1, 1), (2, 3)), ((1, 1), (1, 1))],
)
def test_logits_come_as_one_row_a_sample(shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    values = torch.arange(math.prod(shape), dtype=torch.float32)
    found = find_logits(values.reshape(shape))
    assert found.shape == rows
    assert torch.equal(found.flatten(), values)


@pytest.mark.parametrize("shape", [(), (2, 3, 4, 4), (2, 7, 3), (2, 3, 1, 4)])
def test_another_shape_is_refused_with_advice(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needed is \(N, classes\).*`output`.*mean\(dim=1\)") as caught:
        find_logits(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_the_advice_for_a_mask_works() -> None:
    assert find_logits({"out": MAPS + 2}, lambda y: y["out"].mean(dim=(2, 3))).tolist() == [[2, 2, 2]] * 2


def test_the_graph_goes_through() -> None:
    logits = torch.zeros(2, 3, 1, 1, requires_grad=True)
    score(find_logits(logits), torch.tensor([0, 2])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.flatten(1).tolist() == [[1, 0, 0], [0, 0, 1]]


# Targets


@pytest.mark.parametrize(
    "target",
    [
        "predicted",
        0,
        7,
        np.int64(3),
        [0, 1],
        (0, 1),
        range(2),
        np.array([0, 1]),
        torch.tensor(1),
        torch.tensor([0, 1]),
        torch.tensor([0, 1], dtype=torch.uint8),
        [torch.tensor(0), torch.tensor(1)],
    ],
    ids=repr,
)
def test_good_targets_pass(target: Any) -> None:
    check_target(target)


@pytest.mark.parametrize(
    "target",
    [
        *(True, False, 1.0, 1.5, math.nan, 1j, None, b"0", {}, {"a": 1}, {0, 1}),
        *([True], [0.0, 1.0], ["predicted"], [None], [[0], [1, 2]], np.array([0.5])),
        *(torch.tensor([1.0]), torch.tensor([True]), torch.tensor([1j]), torch.tensor([])),
    ],
    ids=repr,
)
def test_targets_of_another_type_are_refused_with_what_came(target: Any) -> None:
    with pytest.raises(TypeError, match='"predicted", an int, or one int a sample') as caught:
        check_target(target)
    assert repr(target) in str(caught.value)


@pytest.mark.parametrize("target", ["Predicted", "", "0"])
def test_another_word_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r'no target .*Possible: "predicted"') as caught:
        check_target(target)
    assert repr(target) in str(caught.value)


@pytest.mark.parametrize("target", [-1, [0, -1], torch.tensor([3, -1])], ids=repr)
def test_classes_are_not_counted_from_the_end(target: Any) -> None:
    with pytest.raises(ValueError, match="at least 0; given: -1"):
        check_target(target)


PREDICTIONS = torch.tensor([1, 0])


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        ("predicted", [1, 0]),
        (2, [2, 2]),
        (np.int64(2), [2, 2]),
        (torch.tensor(2), [2, 2]),
        ([0, 2], [0, 2]),
        ((2, 1), [2, 1]),
        (torch.tensor([0, 2], dtype=torch.uint8), [0, 2]),
        (torch.tensor([0, 2], dtype=torch.int32), [0, 2]),
    ],
)
def test_each_sample_has_its_target(target: Any, chosen: list[int]) -> None:
    targets = choose_targets(target, PREDICTIONS, 3)
    assert targets.tolist() == chosen
    assert targets.dtype == torch.int64


@pytest.mark.parametrize("target", [3, [0, 3], torch.tensor([3, 3])], ids=repr)
def test_a_class_that_does_not_exist_is_refused_with_those_that_do(target: Any) -> None:
    with pytest.raises(ValueError, match="class 3 does not exist: the model has 3 classes, 0 to 2"):
        choose_targets(target, PREDICTIONS, 3)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_targets_is_refused_with_both_numbers(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} targets.* 2 samples.*one class a sample"):
        choose_targets(torch.zeros(count, dtype=torch.int64), PREDICTIONS, 3)


@pytest.mark.parametrize("target", [torch.tensor([[0], [1]]), [[0, 1]]], ids=["column", "row"])
def test_targets_of_a_wrong_shape_are_refused_with_their_shape(target: Any) -> None:
    """To say that two were given for two samples would help nobody."""

    def choose() -> Tensor:
        check_target(target)
        return choose_targets(target, PREDICTIONS, 3)

    with pytest.raises((ValueError, TypeError)) as caught:
        choose()
    message = str(caught.value)
    assert str(tuple(torch.as_tensor(target).shape)) in message or "one int a sample" in message


# Predictions, probabilities, scores


def test_predictions_and_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    predictions, probabilities = predict(logits)
    assert predictions.tolist() == [1, 0]
    torch.testing.assert_close(probabilities, torch.tensor([[0.25, 0.75], [0.8, 0.2]]))


def test_a_single_logit_speaks_for_class_one_and_against_class_zero() -> None:
    logits = torch.tensor([[math.log(3)], [-math.log(4)], [0.0]], requires_grad=True)
    predictions, probabilities = predict(logits)
    assert predictions.tolist() == [1, 0, 0]
    torch.testing.assert_close(probabilities, torch.tensor([[0.25, 0.75], [0.8, 0.2], [0.5, 0.5]]))
    assert class_count(logits) == 2
    scores = score(logits, torch.tensor([1, 0, 0]))
    torch.testing.assert_close(scores, torch.tensor([math.log(3), math.log(4), 0.0]))
    scores.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1], [-1], [-1]]


PROBABILITIES: dict[str, Any] = {
    "sigmoid": torch.sigmoid,
    "sigmoid and squeeze": lambda x: torch.sigmoid(x.unsqueeze(2)).squeeze(2),
    "sigmoid in half": lambda x: torch.sigmoid(x.half()).float(),
    "clamped": lambda x: torch.sigmoid(x).clamp(1e-6, 1 - 1e-6),
    "view": lambda x: torch.sigmoid(x).view(-1, 1),
    "flatten": lambda x: torch.sigmoid(x)[:, :, None, None].flatten(1),
}


@pytest.mark.parametrize("made", PROBABILITIES.values(), ids=PROBABILITIES)
def test_what_a_sigmoid_made_is_a_probability_already(made: Any) -> None:
    logits = made(torch.tensor([[math.log(1 / 499)], [math.log(3)]], requires_grad=True))
    predictions, probabilities = predict(logits)
    assert predictions.tolist() == [0, 1]
    torch.testing.assert_close(probabilities, torch.tensor([[0.998, 0.002], [0.25, 0.75]]), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(score(logits, torch.tensor([0, 0])), probabilities[:, 0])


def test_what_a_softmax_made_is_a_probability_already() -> None:
    rows = LOGITS.clone().requires_grad_()
    torch.testing.assert_close(predict(rows.softmax(1))[1], LOGITS.softmax(1))
    torch.testing.assert_close(predict(rows.log_softmax(1))[1], LOGITS.softmax(1))
    torch.testing.assert_close(predict(rows.sigmoid())[1], LOGITS.sigmoid())


@pytest.mark.parametrize(
    ("finish", "own"),
    [
        (lambda y: y.softmax(1).detach(), True),
        (lambda y: (y.softmax(1) + (y * 2).softmax(1)) / 2, True),
        (lambda y: y.softmax(1).half(), True),
        (lambda y: y, False),
        (lambda y: y.softmax(1) * 1.01, False),
        (lambda y: y.sigmoid().detach()[:, :1], False),
    ],
    ids=["without a graph", "a mean of two", "half", "logits", "no sum of one", "a single number"],
)
def test_rows_that_sum_to_one_are_probabilities(finish: Any, own: bool) -> None:
    given = finish(LOGITS.clone().requires_grad_())
    assert own_probabilities(given).tolist() == [own, own]
    if given.shape[1] > 1:
        wanted = given.detach().float() if own else given.detach().softmax(1)
        torch.testing.assert_close(predict(given)[1], wanted)


def test_small_logits_are_no_probabilities() -> None:
    """A network that has learnt nothing gives such values, and so does a hyperbolic tangent."""
    for logits in (torch.tensor([[0.2]], requires_grad=True) * 1, torch.tensor([[0.2]], requires_grad=True).tanh()):
        predictions, probabilities = predict(logits)
        assert predictions.tolist() == [1]
        torch.testing.assert_close(probabilities[:, 1], logits.detach().sigmoid()[:, 0])


def test_probabilities_of_a_single_logit_are_exact_at_both_ends() -> None:
    probabilities = predict(torch.tensor([[30.0], [-30.0]]))[1]
    tiny = 1 / (1 + math.exp(30))
    torch.testing.assert_close(probabilities, torch.tensor([[tiny, 1.0], [1.0, tiny]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_are_plain_whatever_the_type_of_the_logits(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype).requires_grad_()
    predictions, probabilities = predict(logits)
    assert predictions.tolist() == [1, 0]
    assert predictions.dtype == torch.int64
    assert probabilities.dtype == torch.float32
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities, LOGITS.softmax(1))


def test_the_highest_logit_is_the_highest_in_double_precision_too() -> None:
    logits = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert predict(logits)[0].tolist() == logits.argmax(1).tolist() == [1]
    assert predict(torch.tensor([[1e-60]], dtype=torch.float64))[0].tolist() == [1]


def test_logits_that_are_not_finite_give_probabilities_that_are_not_either() -> None:
    probabilities = predict(torch.tensor([[math.nan, 0.0], [1.0, 1.0]]))[1]
    assert probabilities[0].isnan().all()
    assert probabilities[1].tolist() == [0.5, 0.5]


def test_scores_are_the_logits_of_the_targets() -> None:
    assert score(LOGITS, torch.tensor([2, 0])).tolist() == [2, 3]
    strided = LOGITS.t().contiguous().t()
    assert score(strided, torch.tensor([1, 2])).tolist() == [4, -1]


@pytest.mark.parametrize(("width", "classes"), [(1, 2), (2, 2), (3, 3), (1000, 1000)])
def test_classes_are_as_many_as_logits_but_two_at_least(width: int, classes: int) -> None:
    assert class_count(torch.zeros(2, width)) == classes


# Tasks


@pytest.mark.parametrize("outputs", [None, 3])
def test_labels_each_for_itself_have_sigmoids(outputs: int | None) -> None:
    scores = ClassTarget("predicted", task="multilabel", outputs=outputs).score(LOGITS)
    assert scores.task == "multilabel"
    assert scores.predictions.tolist() == scores.targets.tolist() == LOGITS.argmax(1).tolist()
    torch.testing.assert_close(scores.probabilities, LOGITS.sigmoid())
    torch.testing.assert_close(scores.values, LOGITS.amax(1))


def test_values_of_a_regression_are_scores_and_no_classes() -> None:
    single = ClassTarget("predicted", task="regression").score(torch.tensor([[-2.0], [3.0]]))
    assert (single.values.tolist(), single.targets.tolist(), single.predictions.tolist()) == ([-2, 3], [0, 0], [0, 0])
    assert single.probabilities.tolist() == [[-2], [3]]
    assert single.task == "regression"
    third = ClassTarget(2, task="regression").score(LOGITS)
    assert torch.equal(third.values, LOGITS[:, 2])
    with pytest.raises(ValueError, match="does not exist"):
        ClassTarget(1, task="regression").score(torch.tensor([[-2.0], [3.0]]))


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_task_for_another_number_of_outputs_is_a_classification(task: Any) -> None:
    scores = ClassTarget("predicted", task=task, outputs=LOGITS.shape[1] + 1).score(LOGITS)
    assert scores.task == "classification"
    torch.testing.assert_close(scores.probabilities, LOGITS.softmax(1))


def test_the_task_stays_with_a_part_of_the_samples() -> None:
    part = ClassTarget([0, 1, 2], task="multilabel", outputs=3).part(slice(1, 3))
    assert (part.classes, part.task, part.outputs) == ([1, 2], "multilabel", 3)
