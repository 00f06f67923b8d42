"""What is done fast gives what the plain way gives."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer
from trl.trainer.utils import add_fused_lm_head

from rlhf_ext import PPOTrainer
from rlhf_ext.models import cpu_head, products
from rlhf_ext.models.cpu_head import TokenLogProbs
from rlhf_ext.models.fused_head import at_labels
from rlhf_ext.models.merging import merged
from rlhf_ext.trainer import generation
from rlhf_ext.trainer.forward import by_length, group_by_length
from rlhf_ext.trainer.generation import Sampler, _GrowingLayer, draw
from tiny import tiny_config

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14], [15, 16], [17, 18, 19, 20], [21, 22], [23], [24, 25, 26], [27]]
LENGTH = 24


@pytest.fixture
def llama(tiny_tokenizer):
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tiny_tokenizer, initializer_range=0.4)).eval()


@pytest.fixture
def gpt2(tiny_tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4,
        bos_token_id=None, eos_token_id=tiny_tokenizer.eos_token_id, pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def scores_at(completions, **_):
    return [sum(map(ord, text)) / 500 for text in completions]


def lora(**overrides):
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False}
    return LoraConfig(**{**settings, **overrides})


def padded(tokenizer, prompts=PROMPTS):
    width = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts])
    return {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long()}


def settings(tokenizer, stops, temperature=1.0):
    return GenerationConfig(
        max_new_tokens=LENGTH, do_sample=True, top_k=0, top_p=1.0, temperature=temperature, eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def first_end(row, stops):
    return next((t + 1 for t, token in enumerate(row.tolist()) if token in stops), len(row))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("prompts", [PROMPTS, [[i, 9] for i in range(5, 13)]], ids=["uneven", "even"])
def test_sampled_tokens_have_the_logprobs_and_values_of_a_forward_call(
    kind, temperature, prompts, tiny_tokenizer, request
):
    """Each row alone and whole, without cache, padding or other rows."""
    model = request.getfixturevalue(kind)
    head = torch.nn.Sequential(torch.nn.Linear(32, 1), torch.nn.Flatten(0))
    sampler = Sampler(head, temperature)
    stops = list(range(30, 45))
    torch.manual_seed(1)
    with sampler.sampling(model), torch.no_grad():
        out = model.generate(
            **padded(tiny_tokenizer, prompts), generation_config=settings(tiny_tokenizer, stops, temperature)
        )
    assert "generate" not in vars(model)
    completions = out[:, max(map(len, prompts)) :]
    lengths = [first_end(row, stops) for row in completions]
    assert len(set(lengths)) > 1 and max(lengths) == completions.size(1)
    for b, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        assert (completions[b, length:] == tiny_tokenizer.pad_token_id).all()
        ids = torch.tensor([prompt + completions[b, :length].tolist()])
        with torch.no_grad():
            outputs = model(ids, output_hidden_states=True)
            expected = (outputs.logits[0] / temperature).log_softmax(-1)
            values = head(outputs.hidden_states[-1][0])
        places = torch.arange(len(prompt) - 1, ids.size(1) - 1)
        logprobs = expected[places, ids[0, places + 1]]
        torch.testing.assert_close(sampler.outputs.logprobs[b, :length], logprobs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sampler.outputs.values[b, :length], values[places], rtol=1e-4, atol=1e-5)
        assert not sampler.outputs.logprobs[b, length:].any()


def test_what_the_sampler_cannot_do_transformers_does(llama, tiny_tokenizer):
    sampler = Sampler(None)
    config = settings(tiny_tokenizer, [1])
    config.top_k = 5
    expected = []
    for context in (None, sampler):
        torch.manual_seed(3)
        if context is None:
            expected = llama.generate(**padded(tiny_tokenizer), generation_config=config)
        else:
            with sampler.sampling(llama):
                found = llama.generate(**padded(tiny_tokenizer), generation_config=config)
    assert torch.equal(found, expected) and sampler.outputs is None


def test_another_temperature_than_the_one_that_is_trained_on_is_scored_anew(tiny_policy_path, prompts, ppo_config):
    args = ppo_config(generation_kwargs={"temperature": 1.5}, allow_mismatched_sampling=True, critic="head")
    trainer = PPOTrainer(tiny_policy_path, scores_at, args, prompts)
    trainer.model.train()
    sequences = trainer._sample([prompts[i] for i in range(8)]).sequences
    found, expected = (trainer._policy_outputs(sequences).logprobs for _ in range(2))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("block", [2, 256])
def test_draws_have_the_frequencies_of_the_distribution(block, monkeypatch):
    """30000 draws of 5 words, one of which cannot be drawn; five standard errors."""
    monkeypatch.setattr(generation, "BLOCK", block)
    logits = torch.tensor([1.0, 0.0, -torch.inf, 2.0, -1.0])
    torch.manual_seed(0)
    tokens, logprobs = draw(logits.expand(30000, 5))
    probabilities = logits.softmax(0)
    found = torch.bincount(tokens, minlength=5) / 30000
    error = (probabilities * (1 - probabilities) / 30000).sqrt()
    assert found[2] == 0 and ((found - probabilities).abs() <= 5 * error).all()
    torch.testing.assert_close(logprobs, logits.log_softmax(0)[tokens])


def test_a_share_of_zero_falls_on_the_first_weight_that_is_not_zero():
    place, share = generation._invert(torch.tensor([[0.0, 0.5, 1.0]]), torch.zeros(1, 1))
    assert place.item() == 1 and share.item() == 0


def test_a_growing_layer_holds_what_a_list_of_states_holds():
    torch.manual_seed(0)
    first = [torch.randn(2, 3, width, 4) for width in (5, 2)]
    layers = []
    for states in first:
        layer = DynamicLayer()
        layer.update(states, 2 * states)
        layers.append(layer)
    layer = _GrowingLayer.of(layers, 3)
    expected = torch.cat([first[0], torch.nn.functional.pad(first[1], (0, 0, 3, 0))])
    keep = torch.tensor([3, 0, 1])
    for _ in range(2 * _GrowingLayer.ROOM + 3):
        new = torch.randn(len(expected), 3, 1, 4)
        keys, values = layer.update(new, 2 * new)
        expected = torch.cat([expected, new], dim=2)
        if len(expected) > 3:
            layer.batch_select_indices(keep)
            expected = expected[keep]
            keys, values = layer.keys, layer.values
    assert torch.equal(keys, expected) and torch.equal(values, 2 * expected)
    assert layer.get_seq_length() == expected.size(2)


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_model_computes_the_same_and_is_the_same_to_the_bit_afterwards(tied, tiny_tokenizer):
    torch.manual_seed(0)
    base = LlamaForCausalLM(tiny_config(tiny_tokenizer, tie_word_embeddings=tied))
    model = get_peft_model(base, lora(target_modules=["q_proj", "down_proj", "lm_head"])).eval()
    before = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    ids = torch.randint(3, 200, (3, 9))
    with torch.no_grad():
        expected = model(ids).logits
        with pytest.raises(KeyError), merged(model):
            found = model(ids).logits
            weight = base.model.layers[0].self_attn.q_proj.base_layer.weight
            assert not torch.equal(
                weight, before["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"][2]
            )
            assert (base.lm_head.merged_adapters == []) == tied
            raise KeyError
        again = model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, expected)
    for name, parameter in model.named_parameters():
        same, pointer, values = before[name]
        assert parameter is same and parameter.data_ptr() == pointer and torch.equal(parameter, values)


def test_dora_is_not_merged(llama):
    model = get_peft_model(llama, lora(use_dora=True))
    with merged(model):
        assert not any(getattr(module, "merged", False) for module in model.modules())


@pytest.mark.parametrize("some", [True, False])
def test_the_head_at_labels_gives_what_the_whole_head_gives_and_the_same_gradients(some, llama, tiny_tokenizer):
    torch.manual_seed(1)
    ids = torch.randint(3, 200, (3, 9))
    labels = torch.where(torch.rand(ids.shape) < 0.5, ids.roll(-1, 1), -100) if some else torch.full_like(ids, -100)
    reference = copy.deepcopy(llama)
    states = []
    add_fused_lm_head(llama, temperature=0.7, outputs=("log_probs", "entropy"))
    outputs = at_labels(llama, llama.forward)(ids, shift_labels=labels, fused_lm_head=True, states=states)
    whole = reference(ids, output_hidden_states=True)
    logp = (whole.logits / 0.7).log_softmax(-1)
    scored = labels != -100
    expected = logp.gather(2, labels.clamp(min=0)[..., None]).squeeze(2) * scored
    entropy = -(logp.exp() * logp).sum(-1) * scored
    torch.testing.assert_close(outputs.log_probs, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.entropy, entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[0], whole.hidden_states[-1], rtol=1e-4, atol=1e-5)
    (outputs.log_probs.sin().sum() + outputs.entropy.sum()).backward()
    (expected.sin().sum() + entropy.sum()).backward()
    for (name, found), wanted in zip(llama.named_parameters(), reference.parameters(), strict=True):
        if some or found.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.fixture
def onednn(monkeypatch):
    """As on a processor where it is faster, for products of any size."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(products, "is_faster_here", lambda: True)
    monkeypatch.setattr(products, "FEWEST_ROWS", 1)
    monkeypatch.setattr(products, "NARROWEST", 1)
    calls = []
    plain = products._by_onednn
    monkeypatch.setattr(products, "_by_onednn", lambda *args: calls.append(1) or plain(*args))
    return calls


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_products_by_onednn_have_the_values_and_gradients_of_torchs_own(bias, trained, onednn):
    """The second derivative too, which a reward function of the user's may take."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(12, 20, bias=bias).requires_grad_(trained)
    own = copy.deepcopy(layer)
    products.use_in(own)
    again = copy.deepcopy(own)
    results = []
    for module in (layer, own, again):
        inputs = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
        outputs = module(inputs)
        (first,) = torch.autograd.grad(outputs.pow(3).sum(), inputs, create_graph=True)
        (outputs.sin().sum() + first.pow(2).sum()).backward()
        results.append([outputs, first, inputs.grad, *(p.grad for p in module.parameters() if trained)])
    assert len(onednn) >= 6 and again.forward.__self__ is again
    for found in results[1:]:
        for x, y in zip(found, results[0], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_products_that_onednn_would_round_or_cannot_do_are_torchs_own(onednn):
    x, w = torch.randn(4, 6), torch.randn(5, 6)
    torch.set_float32_matmul_precision("high")
    try:
        products.linear(x, w)
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        products.linear(x, w)
    products.linear(x.double(), w.double())
    assert not onednn
    products.linear(x, w)
    assert onednn


def test_merged_weights_are_packed_and_gone_afterwards(onednn, tiny_tokenizer):
    model = get_peft_model(LlamaForCausalLM(tiny_config(tiny_tokenizer)), lora()).eval()
    ids = torch.randint(3, 200, (3, 9))
    with torch.no_grad():
        expected = model(ids).logits
        products.use_in(model)
        before = {name: p.clone() for name, p in model.named_parameters()}
        with merged(model):
            layer = model.base_model.model.model.layers[0].mlp.down_proj.base_layer
            assert layer.packed.is_mkldnn
            found = model(ids).logits
        again = model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)
    assert not any("packed" in vars(module) for module in model.modules())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_weights_are_merged_whatever_the_default_type_is(onednn, llama):
    model = get_peft_model(llama, lora())
    products.use_in(model)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), merged(model):
            assert sum("packed" in vars(module) for module in model.modules()) == 14
    finally:
        torch.set_default_dtype(torch.float32)


def slow_head(hidden, weight, targets, scale):
    """Log-probabilities and entropies from all logits, in float64."""
    logp = (scale * hidden.double() @ weight.double().T).log_softmax(-1)
    return logp[torch.arange(len(targets)), targets], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("trains_weight", [False, True])
@pytest.mark.parametrize("asks", ["logprobs", "entropies", "both"])
@pytest.mark.parametrize("scale", [1.0, 1.6])
def test_the_head_on_a_cpu_gives_what_all_logits_give_and_the_same_gradients(trains_weight, asks, scale, monkeypatch):
    """Tiles smaller than either side; logits up to 60, which float32 has no exponentials of without the running maximum."""
    monkeypatch.setattr(cpu_head, "TILE_WORDS", 7)
    monkeypatch.setattr(cpu_head, "TILE_TOKENS", 4)
    torch.manual_seed(0)
    hidden, weight = 4 * torch.randn(10, 6), 4 * torch.randn(31, 6)
    targets, factors = torch.randint(0, 31, (10,)), torch.randn(2, 10)
    leaves = [(hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains_weight)) for _ in range(2)]
    results = [
        head(*pair, targets, scale) for head, pair in zip((TokenLogProbs.apply, slow_head), leaves, strict=True)
    ]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    asked = {"logprobs": [0], "entropies": [1], "both": [0, 1]}[asks]
    for outputs in results:
        sum((factors[i] * outputs[i]).sum() for i in asked).backward()
    for found, expected in zip(*leaves, strict=True):
        assert (found.grad is None) == (expected.grad is None)
        if found.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-3)


def test_with_a_frozen_weight_the_backward_pass_makes_no_logits(monkeypatch):
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4)
    logprobs, _ = TokenLogProbs.apply(hidden, weight, torch.tensor([0, 5, 8]), 1.0)
    monkeypatch.setattr(cpu_head, "_to_logits", None)
    logprobs.sum().backward()
    assert hidden.grad.any()


def test_rows_are_exchanged_within_an_optimizer_step_only():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (4, 2), generator=generator)
    mask = torch.arange(30) < lengths.view(-1, 1)
    rows = {"prompt_mask": mask, "completion_mask": mask, "ids": torch.arange(8)}
    batches = [{name: column[i : i + 2] for name, column in rows.items()} for i in range(0, 8, 2)]
    assert group_by_length(batches, 1) is batches
    grouped = group_by_length(batches, 2)
    found = [batch["ids"].tolist() for batch in grouped]
    assert [sorted(found[0] + found[1]), sorted(found[2] + found[3])] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for step in (grouped[:2], grouped[2:]):
        ordered = torch.cat([batch["completion_mask"].sum(1) for batch in step])
        assert (ordered.diff() >= 0).all()
    assert by_length(rows).tolist() == sorted(range(8), key=lambda i: lengths.view(-1)[i])


@pytest.mark.parametrize("adapter", [None, lora()], ids=["full", "lora"])
def test_outputs_that_the_sampler_knows_are_those_of_the_forward_call(
    adapter, tiny_policy_path, prompts, ppo_config, monkeypatch
):
    trainer = PPOTrainer(tiny_policy_path, scores_at, ppo_config(critic="head"), prompts, peft_config=adapter)
    torch.nn.init.normal_(trainer.critic.value_head.linear.weight)
    trainer.model.train()
    samples = trainer._sample([prompts[i] for i in range(8)])
    known, sequences = trainer._sampler.outputs, samples.sequences
    found = trainer._policy_outputs(sequences)
    assert found is known and trainer._sampler.outputs is None
    expected = trainer._policy_outputs(sequences)
    mask = sequences.completion_mask
    torch.testing.assert_close(found.logprobs[mask], expected.logprobs[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.values[mask], expected.values[mask], rtol=1e-4, atol=1e-5)
    # Not of as many tokens; and in a shorter format the sampler's numbers are not those of a forward call.
    trainer._sampler.outputs = known
    assert trainer._sampler.take(int(mask.sum()) - 1) is None and trainer._sampler.outputs is None
    trainer._sampler.outputs = known
    monkeypatch.setattr(trainer, "_compute_dtype", lambda: torch.bfloat16)
    assert trainer._policy_outputs(sequences) is not known and trainer._sampler.outputs is None


@pytest.mark.parametrize(("critic", "adapter"), [("model", None), ("adapter", lora())], ids=["model", "adapter"])
def test_a_critic_of_its_own_is_asked_for_the_values_alone(critic, adapter, tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, scores_at, ppo_config(critic=critic), prompts, peft_config=adapter)
    torch.nn.init.normal_(trainer.critic.value_head.linear.weight)
    for name, parameter in trainer.model.named_parameters():
        if ".lora_B.critic." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trainer.model.train()
    sequences = trainer._sample([prompts[i] for i in range(8)]).sequences
    assert trainer._sampler.outputs.values is None
    found, expected = trainer._policy_outputs(sequences), trainer._policy_outputs(sequences)
    mask = sequences.completion_mask
    torch.testing.assert_close(found.logprobs[mask], expected.logprobs[mask], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.values, expected.values) and found.values[mask].std() > 0
