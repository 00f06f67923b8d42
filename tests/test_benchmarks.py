"""What the benchmarks compute from what they measure, by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.learning import WINDOW, gold_at
from benchmarks.speed.floor import Shapes, operations
from benchmarks.speed.growth import exponent
from benchmarks.speed.tables import floor_rows, ratio_rows


def test_operations_of_a_model_that_is_counted_by_hand():
    """One layer of 2 to 3, a head of 2 to 5, attention 2 wide; 3 prompt and 2 answer tokens, the last fed once."""
    lora = Shapes(linears=[(2, 3)], head=(2, 5), attention=2, rank=1)
    attended = 5**2 / 2 * 4 * 2
    trunk, adapter = 4 * 2 * 6 + attended, 4 * 2 * 5
    found = operations(lora, [3], [2], epochs=2, critic="head")
    assert found["generate"] == 4 * 2 * 6 + attended + 2 * 20
    assert found["score"] == 3 * trunk + 2 * 6 + 2 * 2 * 20 + 2 * adapter
    assert found["update"] == 2 * (trunk + adapter + 4 * 2 * 6 + 2 * attended + 2 * adapter + 2 * 20 * 2)
    adapter_critic = operations(lora, [3], [2], epochs=2, critic="adapter")
    assert adapter_critic["score"] - found["score"] == trunk + adapter
    full = operations(Shapes([(2, 3)], (2, 5), 2, rank=0), [3], [2], epochs=1, critic="model")
    assert full["update"] == 2 * (trunk + 2 * 4 * 2 * 6 + 2 * attended) + 3 * 20 * 2


def test_the_exponent_of_a_power():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0)


def row(seconds, peak, tokens):
    phases = {"generate": seconds, "score": seconds, "update": 2 * seconds}
    return {
        "cpu": phases, "wall": phases, "peak_bytes": {"score": peak, "update": 1}, "prompt_lengths": [3],
        "completion_lengths": [tokens],
    }  # fmt: skip


def test_ratios_are_taken_pair_by_pair_and_floors_with_the_rate_of_the_pair():
    shapes = {"linears": [(2, 3)], "head": (2, 5), "attention": 2, "rank": 1}
    result = {
        "workload": {"name": "a", "lora": 1, "epochs": 2}, "shapes": shapes,
        "rates": [{"generate": 100.0, "score": 10.0, "update": 10.0}] * 3,
        "sides": {
            "ours": [row(1, 2, 2), row(2, 2, 2), row(9, 2, 2)],
            "trl-1.12": [row(2, 8, 2), row(8, 4, 2), row(10, 2, 5)],
        },
    }  # fmt: skip
    (ratios,) = ratio_rows(result)
    # By token: the last pair's other side has 8 of prompt and answer, ours 5.
    assert (
        "| 0.50 (0.25 to 0.90) | 0.50 (0.25 to 1.44) | 0.50 (0.25 to 0.90) | 0.50 (0.25 to 1.00) | 1.00 | 3" in ratios
    )
    needed = operations(Shapes(**shapes), [3], [2], 2, "head")["generate"]
    (floor,) = floor_rows(result)
    assert f"| torch.mm | {200 / needed:.2f} ({100 / needed:.2f} to {900 / needed:.2f}) |" in floor
    own = [{phase: 2 * rate for phase, rate in rates.items()} for rates in result["rates"]]
    floors = floor_rows(result | {"own_rates": own})
    assert floors[0] == floor and f"| own | {400 / needed:.2f} (" in floors[1]


def test_gold_at_a_matched_kl_is_read_between_moving_means():
    points = [{"kl": float(i), "gold": 2.0 * i} for i in range(12)]
    assert gold_at(points, 4.5) == pytest.approx(9.0)
    assert gold_at(points, 50.0) is None and len(points) > WINDOW
