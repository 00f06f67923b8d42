"""The settings that the page puts first exist, and have the defaults that it says."""

import dataclasses
import re

from doc_pages import ROOT

from rlhf_ext import PPOConfig

ROWS = re.findall(
    r"^\| (`.+?`) \| (.+?) \| ", (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)


def test_settings_of_the_table_have_the_defaults_it_says():
    defaults = {field.name: field.default for field in dataclasses.fields(PPOConfig)}
    compared = 0
    for names, told in ROWS:
        for name, value in zip(re.findall(r"`(\w+)`", names), told.split(", ") * 2, strict=False):
            assert name in defaults
            # What follows from other settings is told in words.
            if re.fullmatch(r"-?[\d.e-]+", value):
                assert float(value) == defaults[name], name
                compared += 1
            elif value == "none":
                assert defaults[name] in (None, "none"), name
                compared += 1
    assert compared > 10


def test_the_defaults_told_in_words_are_those_of_a_config(tmp_path):
    small = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    assert PPOConfig(**small).beta == 0.05
    assert PPOConfig(**small, kl_target=6.0, kl_unit="sequence").beta == "auto"
    assert PPOConfig(**small, gradient_accumulation_steps=4).steps_per_generation == 4
    assert PPOConfig(**small).diagnostics == "advise"
