"""Results that are still on the device: put together, crossed, judged."""

from __future__ import annotations

import torch
from torch import Tensor

from gradcam_callback import Cause
from gradcam_callback.engine.device_results import DeviceResults, TargetResult, judge
from gradcam_callback.engine.health import Examination, examine, missing
from gradcam_callback.engine.targets import Scores

NAN = torch.nan


def results(weights: tuple[str, ...] = (), **found: Examination) -> DeviceResults:
    count = len(next(iter(found.values())).cam)
    numbers = torch.arange(count)
    result = TargetResult(Scores(numbers + 0.5, numbers + 10, numbers + 20, torch.ones(count, 2)), found)
    return DeviceResults((result, result), (8, 6), weights)


def fine(*values: float) -> Examination:
    maps = torch.tensor(values)[:, None, None].expand(-1, 2, 3)
    return examine(maps[:, None], maps[:, None], maps, torch.ones(len(values)))


def test_parts_are_put_together_in_their_order_with_the_cause_of_any() -> None:
    """In the second part the layer never ran: its maps have one pixel."""
    gone = missing(None, torch.zeros(1, 1), Cause.LAYER_NOT_CALLED, "It never ran.")
    whole = DeviceResults.concat([results(("a",), layer=fine(1.0, 2.0)), results(("a", "b"), layer=gone)])
    assert whole.modified_weights == ("a", "b")
    for result in judge(whole, whole.verdicts):
        assert result.cams["layer"][:, 0, 0].nan_to_num(-1).tolist() == [1, 2, -1]
        assert result.cams["layer"].shape == (3, 2, 3)
        assert result.targets.tolist() == [10, 11, 10]
        assert result.scores.tolist() == [0.5, 1.5, 0.5]
        assert result.predictions.tolist() == [20, 21, 20]
        assert result.probabilities.shape == (3, 2)
        verdict = result.health["layer"]
        assert verdict.state == ("ok", "ok", "none")
        assert (verdict.cause, verdict.detail) == (Cause.LAYER_NOT_CALLED, "It never ran.")
        assert verdict.gradient_norm.nan_to_num(-1)[-1] == -1


def test_across_a_cut_a_map_of_its_own_is_kept() -> None:
    """Where a part of the way is cut, the map across it is another one."""
    own = results(layer=fine(1.0, NAN, 0.0), other=fine(7.0, 7.0, 7.0))
    crossed = own.completed(results(layer=fine(5.0, 6.0, NAN)))
    for result in crossed.by_target:
        first: Tensor = result.cams["layer"][:, 0, 0]
        assert first.nan_to_num(-1).tolist() == [1, 6, -1]
        assert result.cams["other"][:, 0, 0].tolist() == [7, 7, 7]
    assert torch.equal(crossed.verdicts.nan_to_num(-1), own.verdicts.nan_to_num(-1))  # the state stays what it is


def test_layers_of_several_passes_stand_side_by_side() -> None:
    both = DeviceResults.side_by_side([results(a=fine(1.0)), results(("w",), b=fine(2.0)).renamed("c")])
    assert [list(result.cams) for result in both.by_target] == [["a", "c"]] * 2
    assert both.modified_weights == ("w",)
    assert (both.input_size, both.to("cpu").input_size) == ((8, 6), (8, 6))
