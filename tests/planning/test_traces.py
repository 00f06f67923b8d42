"""Traces on tensors without storage, against the same passes on real tensors."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rlhf_ext.models.merging import merged
from rlhf_ext.planning import formulas
from rlhf_ext.planning.architecture import Architecture
from rlhf_ext.planning.plan import _merged_bytes
from rlhf_ext.planning.trace import LiveBytes, trace_forward, trace_generation, trace_update
from rlhf_ext.trainer.forward import cpu_head
from tiny import tiny_config

BATCH, LENGTH = 3, 24
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0)


def real_model(config, adapter):
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    return get_peft_model(model, adapter) if adapter else model


def real_inputs(length=LENGTH):
    ids = torch.randint(3, 200, (BATCH, length))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def trunk_of(model, adapter):
    return (model.get_base_model() if adapter else model).base_model


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_an_update_is_traced_to_the_byte(adapter, checkpointing, tiny_tokenizer):
    config = tiny_config(tiny_tokenizer)
    model = real_model(config, adapter).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        if adapter:
            model.enable_input_require_grads()
    inputs = real_inputs()
    live = LiveBytes([*model.parameters(), *model.buffers()])
    handles = live.watch_gradients(model)
    with live:
        output = trunk_of(model, adapter)(**inputs, use_cache=False).last_hidden_state
        saved, forward = live.live, live.peak
        live.peak = live.live
        output.backward(torch.empty_like(output))
    for handle in handles:
        handle.remove()
    found = trace_update(Architecture(config, "lm", torch.float32, adapter), BATCH, LENGTH, None, checkpointing, False)
    assert (found.saved, found.forward) == (saved, forward)
    assert found.backward + found.gradients_at_peak == live.peak
    assert found.gradients_at_peak == live.gradients_at_peak


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_what_is_saved_is_what_autograd_packs(adapter, tiny_tokenizer):
    config = tiny_config(tiny_tokenizer)
    model = real_model(config, adapter).train()
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    packed = {}

    def pack(tensor):
        packed[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    inputs = real_inputs()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = trunk_of(model, adapter)(**inputs, use_cache=False).last_hidden_state
    packed[output.untyped_storage().data_ptr()] = output.untyped_storage()
    given = {t.untyped_storage().data_ptr() for t in inputs.values()}
    size = sum(s.nbytes() for pointer, s in packed.items() if pointer not in weights | given)
    found = trace_update(Architecture(config, "lm", torch.float32, adapter), BATCH, LENGTH, None, False, False)
    assert found.saved == size


def test_a_forward_pass_without_gradients_is_traced(tiny_tokenizer):
    config = tiny_config(tiny_tokenizer)
    model = real_model(config, None).eval()
    live = LiveBytes([*model.parameters(), *model.buffers()])
    inputs = real_inputs()
    with torch.no_grad(), live:
        model.base_model(**inputs, use_cache=False)
    found = trace_forward(Architecture(config, "lm", torch.float32), BATCH, LENGTH, None)
    assert found == live.peak


def test_the_cache_is_two_tensors_per_layer(tiny_tokenizer):
    config = tiny_config(tiny_tokenizer)
    found = trace_generation(Architecture(config, "lm", torch.float32), BATCH, 10, 6, None)
    # keys and values, layers, sequences, tokens, heads of keys, width of a head, float32
    assert found.cache == 2 * 2 * BATCH * 16 * 2 * 8 * 4
    assert found.prefill > found.cache * 10 // 16


def test_the_fused_head_takes_what_the_formulas_say(tiny_tokenizer):
    config = tiny_config(tiny_tokenizer, vocab_size=40_000, num_hidden_layers=1)
    model = real_model(config, None)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    architecture = Architecture(config, "lm", torch.float32)
    states = torch.randn(BATCH, LENGTH, config.hidden_size, requires_grad=True)
    model.model.forward = lambda **_: type("Output", (), {"last_hidden_state": states})()
    labels = torch.randint(0, 40_000, (BATCH, LENGTH))
    tokens = BATCH * (LENGTH - 1)
    live = LiveBytes([*model.parameters(), states])
    with live, cpu_head(states.device):
        outputs = model(input_ids=labels, labels=labels, fused_lm_head=True)
        forward, kept = live.peak, live.live
        live.peak = live.live
        (outputs.log_probs.sum() + 0.0 * outputs.entropy.sum()).backward()
    planned = formulas.lm_head_forward_bytes(tokens, architecture, torch.float32, on_gpu=False)
    assert planned == pytest.approx(forward, rel=1e-3)
    saved = formulas.lm_head_saved_bytes(tokens, architecture, torch.float32)
    planned = saved + formulas.lm_head_backward_bytes(tokens, architecture, torch.float32, on_gpu=False)
    planned += formulas.lm_head_gradient_bytes(architecture)
    assert planned == pytest.approx(live.peak, rel=1e-3)
    assert saved == pytest.approx(kept, rel=0.5)


def test_merged_weights_are_the_layers_that_merging_copies(tiny_tokenizer):
    config, adapter = tiny_config(tiny_tokenizer), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    model = real_model(config, adapter)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    with merged(model):
        copied = sum(p.nbytes for name, p in model.named_parameters() if p.data_ptr() != before[name])
    assert copied == 2 * (32 * 32 + 32 * 64) * 4
    assert _merged_bytes(Architecture(config, "lm", torch.float32, adapter)) == copied
    assert _merged_bytes(Architecture(config, "lm", torch.float32, adapter, quantization="4bit")) == 0
    assert _merged_bytes(Architecture(config, "lm", torch.float32)) == 0
