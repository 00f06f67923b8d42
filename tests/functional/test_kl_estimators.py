import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ext.functional import KL_ESTIMATORS, k1, k2, k3

LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5]])
REF_LOGPROBS = torch.tensor([[-1.5, -1.0, -0.5]])


def test_estimators_by_hand():
    # d = logprobs - ref = 0.5, -1, 0
    # k2 = 0.125, 0.5, 0
    # k3 = exp(-0.5) - 1 + 0.5 = 0.1065307; exp(1) - 1 - 1 = 0.7182818; 0
    assert k1(LOGPROBS, REF_LOGPROBS).tolist() == [[0.5, -1.0, 0.0]]
    assert k2(LOGPROBS, REF_LOGPROBS).tolist() == [[0.125, 0.5, 0.0]]
    expected = torch.tensor([[0.1065307, 0.7182818, 0.0]])
    torch.testing.assert_close(k3(LOGPROBS, REF_LOGPROBS), expected, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=2, max_size=8))
def test_k1_and_k3_are_unbiased_under_the_policy(weights):
    policy_total, ref_total = (math.fsum(column) for column in zip(*weights, strict=True))
    p = [a / policy_total for a, _ in weights]
    q = [b / ref_total for _, b in weights]
    kl = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    logprobs, ref_logprobs = (torch.tensor([x], dtype=torch.float64).log() for x in (p, q))
    weight = torch.tensor(p, dtype=torch.float64)
    for estimator in (k1, k3):
        assert (estimator(logprobs, ref_logprobs)[0] @ weight).item() == pytest.approx(kl, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k2_and_k3_are_never_negative_and_k1_is_antisymmetric(a, b):
    new, ref = torch.tensor([[a]]), torch.tensor([[b]])
    assert k2(new, ref).item() >= 0
    assert k3(new, ref).item() >= 0
    assert k1(new, ref).item() == -k1(ref, new).item()


def test_k3_keeps_its_digits_next_to_the_reference():
    # k3 = d^2 / 2 - d^3 / 6 + ...; d = 2^-10 is exact in float32: 4.76837e-7 - 1.6e-10 = 4.76682e-7
    d = 2.0**-10
    expected = d**2 / 2 - d**3 / 6 + d**4 / 24
    assert k3(torch.tensor([[d - 1]]), torch.tensor([[-1.0]])).item() == pytest.approx(expected, rel=1e-4)


def test_the_difference_of_bfloat16_is_taken_in_float32():
    # bfloat16 has steps of 1/16 near 10 and 2^-10 near 0.125: 10 - 0.125 - 2^-10 needs 15 bits
    small = 0.125 + 2.0**-10
    estimate = k1(torch.tensor([[-small]], dtype=torch.bfloat16), torch.tensor([[-10.0]], dtype=torch.bfloat16))
    assert estimate.dtype == torch.float32
    assert estimate.item() == 10 - small


def test_the_table_names_every_estimator():
    assert KL_ESTIMATORS == {"k1": k1, "k2": k2, "k3": k3}
