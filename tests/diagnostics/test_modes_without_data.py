"""A mode whose data the log lacks abstains; samples stay with a finding."""

import numpy as np
import pytest
import runs
from provoked import LATE, hacked, set_kl
from runs import modes, watch

from rlhf_ext.diagnostics import Diagnostics, Record, Sample, Severity


@pytest.mark.parametrize(
    ("mode", "gone", "lacks"),
    [
        ("M1", ("kl_ref_seq", "kl_ref_tok"), "kl_ref_seq|kl_ref_tok"),
        ("M2", ("dup_frac", "distinct2", "entropy_tok"), "entropy_tok"),
        ("M3", ("score_mean",), "score_mean"),
        ("M4", ("value_loss", "value_clipfrac"), "value_loss"),
        ("M5", ("score_mean",), "score_mean"),
        ("X7", ("explained_var",), "explained_var"),
    ],
)
def test_a_mode_without_its_data_abstains_and_says_what_it_lacks(mode, gone, lacks):
    columns = hacked()
    set_kl(columns, columns["kl_ref_seq"] + 40 * LATE)
    columns["value_loss"] *= np.exp(4 * LATE)
    columns["dup_frac"] += LATE
    columns["explained_var"] -= 2 * LATE
    for name in gone:
        del columns[name]
    diagnostics, events = watch(columns)
    assert lacks in diagnostics.abstentions[mode]
    assert mode not in modes(events, Severity.INFO)
    assert modes(events)


def test_samples_are_kept_with_the_finding():
    diagnostics = Diagnostics(runs.settings())
    samples = tuple(Sample(f"p{i}", f"c{i}", float(i)) for i in range(9))
    (event,) = diagnostics.observe(Record(1, {"policy_loss": float("nan")}, samples=samples))
    assert [sample.score for sample in event.finding.samples] == [8, 7, 6, 0, 1]
