"""What our card takes from TRL's: a new release must fail here, not in a run. And a base with code of its own."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.utils import generate_model_card

from rlhf_ext import PPOTrainer, merge_adapter
from rlhf_ext.trainer.hub import Card, _complete, is_on_hub

OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own-code"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("template", ["lm_model_card.md", "rm_model_card.md"])
def test_both_cards_of_trl_have_the_places_where_ours_goes(template, tmp_path):
    card = generate_model_card(
        "me/base", "m", "me/m", None, ["ppo"], None, None, "PPO", "@article{x}", template, "Title", "1909.08593"
    )
    card.save(tmp_path / "README.md")
    _complete(str(tmp_path / "README.md"), "m", Card({"pipeline_tag": "p"}, ["First.", "## Second"], {"Ours": "1.2"}))
    written = ModelCard.load(tmp_path / "README.md")
    body = written.text
    assert body.lstrip().startswith("# Model Card for m\n\nFirst.\n\n## Second\n\n## Training procedure")
    assert "- Ours: 1.2\n- TRL: " in body and "Quick start" not in body
    assert body.index("@article{x}") < body.index("@software{rlhf_ext") < body.index("@software{vonwerra2020trl")
    assert (written.data.base_model, written.data.pipeline_tag) == ("me/base", "p")


def test_a_card_that_fails_does_not_cost_the_checkpoint(tiny_policy_path, prompts, ppo_config, monkeypatch):
    def spread(completions, **_):
        return [float(len(set(text))) for text in completions]

    def fails(_):
        raise KeyError("a bug")

    trainer = PPOTrainer(tiny_policy_path, spread, ppo_config(max_steps=1), prompts)
    monkeypatch.setattr(type(trainer), "_card", fails)
    trainer.save_model()
    assert "Quick start" in ModelCard.load(f"{trainer.args.output_dir}/README.md").text


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("me/data", True),
        ("data", True),
        ("/data/x", False),
        ("a/b/c", False),
        ("./x", False),
        (None, False),
        ("", False),
    ],
)
def test_what_can_be_an_id_of_the_hub(name, is_id):
    assert is_on_hub(name) is is_id


def test_a_folder_of_the_name_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    assert not is_on_hub("me")


def test_an_adapter_of_a_base_with_its_own_code_is_merged_where_the_code_is_trusted(
    tiny_policy_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    base = tmp_path / "base"
    shutil.copytree(tiny_policy_path, base)
    (base / "own_code.py").write_text(OWN_CODE)
    config = json.loads((base / "config.json").read_text())
    places = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"}
    (base / "config.json").write_text(json.dumps({**config, "model_type": "own-code", "auto_map": places}))
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path / "adapter")
    with pytest.raises(ValueError, match="trust_remote_code"):
        merge_adapter(str(tmp_path / "adapter"), str(tmp_path / "merged"), trust_remote_code=False)
    merge_adapter(str(tmp_path / "adapter"), str(tmp_path / "merged"), trust_remote_code=True)
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(merged(ids).logits, adapter(ids).logits, rtol=1e-4, atol=1e-4)
