"""Policy, reference, critic and reward model on one base: the same numbers as models of their own, and no copy."""

import copy

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    get_peft_model,
)
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ext import PPOTrainer
from rlhf_ext.models.roles import AdapterSwitch
from rlhf_ext.models.scoring import load_reward_model
from rlhf_ext.rollout import Sequences


def lora(**overrides):
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False}
    return LoraConfig(**{**settings, **overrides})


def code_points(completions, **_):
    return [sum(map(ord, text)) / 500 for text in completions]


@pytest.fixture
def reward_adapter_path(tmp_path, tiny_policy_path, tiny_tokenizer):
    """A reward model saved as an adapter of the policy's base, with other modules and another rank than the policy's."""
    torch.manual_seed(5)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_policy_path, num_labels=1)
    config = LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], task_type="SEQ_CLS", modules_to_save=["score"],
        init_lora_weights=False,
    )  # fmt: skip
    folder = str(tmp_path / "reward-adapter")
    get_peft_model(base, config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def four_roles(tiny_policy_path, reward_adapter_path, prompts, ppo_config):
    """A function that makes a trainer with all roles on one base, whose critic does not start at zero."""

    def make(reward_funcs=reward_adapter_path, peft_config=None, model=tiny_policy_path, **settings):
        args = ppo_config(**{"beta": 0.1, "disable_dropout": True, **settings})
        trainer = PPOTrainer(model, reward_funcs, args, prompts, peft_config=peft_config or lora())
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            trainer.critic.value_head.linear.weight.normal_(generator=generator)
            for name, parameter in trainer.model.named_parameters():
                if ".lora_B.critic." in name:
                    parameter.normal_(std=0.1, generator=generator)
        return trainer

    return make


def batch(tokenizer):
    return Sequences.from_lists([[5, 6, 7], [8]], [[9, 10, 11], [12, 13]], tokenizer.pad_token_id)


def rows(sequences):
    """Token ids of each row without padding, and the length of its completion."""
    for b in range(len(sequences.prompt_ids)):
        answer = sequences.completion_ids[b][sequences.completion_mask[b]]
        yield torch.cat([sequences.prompt_ids[b][sequences.prompt_mask[b]], answer])[None], len(answer)


def logprobs(model, ids, n):
    logp = model(input_ids=ids).logits[0].log_softmax(-1)
    return logp[torch.arange(ids.size(1) - 1), ids[0, 1:]][-n:]


def test_each_role_is_the_model_of_its_own_with_the_same_weights(
    four_roles, tiny_policy_path, tiny_tokenizer, reward_adapter_path, tmp_path
):
    trainer = four_roles()
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    trainer.model.eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path).eval()
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_policy_path), tmp_path / "out").eval()
    trunk = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    trunk = PeftModel.from_pretrained(trunk, tmp_path / "out" / "critic").eval()
    head = trainer.critic.value_head.linear
    judge = load_reward_model(reward_adapter_path).eval()
    sequences = batch(tiny_tokenizer)
    outputs = trainer._forward(trainer.model, sequences)
    reference = trainer._reference_logprobs(sequences)
    texts = [(ids[0, :-n].tolist(), ids[0, -n:].tolist()) for ids, n in rows(sequences)]
    (scorer,) = trainer.reward_funcs
    scores = [scorer._forward([p + c]).item() for p, c in texts]
    together = scorer._forward([p + c for p, c in texts])
    with torch.no_grad():
        for b, (ids, n) in enumerate(rows(sequences)):
            states = trunk(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -n - 1 : -1]
            expected = {
                "policy": (outputs.logprobs[b, :n], logprobs(policy, ids, n)),
                "reference": (reference[b, :n], logprobs(base, ids, n)),
                "critic": (outputs.values[b, :n], (states @ head.weight[0]) + head.bias),
                "reward": (torch.tensor(scores[b]), judge(input_ids=ids).logits[0, 0]),
                "reward in a batch": (together[b], judge(input_ids=ids).logits[0, 0]),
            }
            for role, (found, own) in expected.items():
                torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5, msg=lambda m, role=role: f"{role}: {m}")
    # They are different models, or the comparison would say nothing.
    assert (outputs.logprobs - reference).abs().max() > 1e-3


def gradients(trainer, sequences, checkpointing):
    trainer.model.zero_grad()
    trainer.model.train()
    if checkpointing:
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        trainer.model.enable_input_require_grads()
    outputs = trainer._forward(trainer.model, sequences)
    mask = sequences.completion_mask
    weights = torch.linspace(0.5, 1.5, mask.numel()).view(mask.shape)
    ((outputs.logprobs * weights + outputs.values * weights.flip(0) + outputs.entropies) * mask).sum().backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    if checkpointing:
        trainer.model.gradient_checkpointing_disable()
    return found


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("asked", [{"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("critic", ["adapter", "head", "model"])
def test_checkpointing_changes_no_gradient_of_any_role(critic, asked, four_roles, tiny_tokenizer):
    trainer = four_roles(critic=critic)
    sequences = batch(tiny_tokenizer)
    plain = gradients(trainer, sequences, None)
    checkpointed = gradients(trainer, sequences, asked)
    assert {"default", "critic"} <= {part for name in plain for part in name.split(".")}
    assert set(plain) == set(checkpointed) == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("critic", ["adapter", "head", "model"])
def test_training_moves_policy_and_critic_and_nothing_else(critic, four_roles):
    trainer = four_roles(critic=critic)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == trainable
    assert moved <= trainable
    of_policy = {name for name in trainable if ".default." in name}
    assert of_policy and of_policy <= moved
    of_critic = set(trainable - of_policy)
    assert len(of_critic - moved) == 0 and all("critic" in name for name in of_critic)


def test_four_roles_take_the_bytes_of_base_adapters_and_heads(four_roles, tiny_policy_path):
    trainer = four_roles()
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    hidden, layers, inner, kv = 32, 2, 64, 16

    def adapter(rank, shapes):
        return layers * sum(rank * (i + o) for i, o in shapes)

    linear = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)]  # q, k, v, o
    linear += [(hidden, inner), (hidden, inner), (inner, hidden)]  # gate, up, down
    expected = sum(p.numel() for p in base.parameters())
    expected += 2 * adapter(4, linear)  # policy and critic
    expected += adapter(2, [(hidden, hidden), (inner, hidden)])  # reward: q, down
    expected += hidden + 1 + hidden  # value head with a bias, score head without
    tensors = {p.data_ptr(): p for p in trainer.model.parameters()}
    assert sum(p.numel() for p in tensors.values()) == expected
    assert trainer.ref_model is None and not isinstance(trainer.reward_funcs[0].model, nn.Module)


def test_an_exception_inside_a_role_restores_the_one_before(four_roles, tiny_tokenizer):
    trainer = four_roles()
    sequences = batch(tiny_tokenizer)
    trainer.model.eval()
    before = trainer._forward(trainer.model, sequences)
    switch = AdapterSwitch(trainer.model)
    with pytest.raises(ZeroDivisionError), switch("critic"), switch(None):
        1 / 0  # noqa: B018
    after = trainer._forward(trainer.model, sequences)
    assert torch.equal(before.logprobs, after.logprobs) and torch.equal(before.values, after.values)
    # A forward that fails in the critic's role: the embedding refuses the token.
    bad = Sequences.from_lists([[5]], [[10**6]], 0)
    with pytest.raises(IndexError):
        trainer._forward(trainer.model, bad)
    assert torch.equal(before.logprobs, trainer._forward(trainer.model, sequences).logprobs)


@pytest.mark.parametrize(
    "config",
    [
        lora(use_dora=True),
        lora(use_rslora=True, modules_to_save=["embed_tokens"]),
        IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_weights=False),
        LoKrConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_weights=False),
        OFTConfig(task_type="CAUSAL_LM", r=0, oft_block_size=4, target_modules=["q_proj"]),
    ],
    ids=["dora", "lora with modules_to_save", "ia3", "loha", "lokr", "oft"],
)
def test_other_adapters_play_policy_reference_and_critic(config, four_roles, tiny_policy_path, tiny_tokenizer):
    trainer = four_roles(reward_funcs=code_points, peft_config=copy.deepcopy(config), learning_rate=1e-2)
    trainer.train()
    rollouts = [row for row in trainer.state.log_history if "objective/score" in row]
    assert rollouts[-1]["policy/first_pass_deviation"] < 1e-4
    trainer.model.eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path).eval()
    sequences = batch(tiny_tokenizer)
    reference = trainer._reference_logprobs(sequences)
    with torch.no_grad():
        for b, (ids, n) in enumerate(rows(sequences)):
            torch.testing.assert_close(reference[b, :n], logprobs(base, ids, n), rtol=1e-4, atol=1e-5)
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any(".critic" in name and "value_head" not in name for name in names)
