"""One optimizer step of PPOTrainer against plain torch written from the equations."""

import copy
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from rlhf_ext import PPOTrainer

BETA, EPSILON, LAM, VF, ENT, VALUE_CLIP, LR = 0.3, 0.1, 0.9, 0.5, 0.02, 0.2, 0.05


def count_a(completions, **_):
    return [text.count("a") + 0.1 * len(text) for text in completions]


def make_trainer(policy_path, prompts, make_config, **overrides):
    settings = {
        "beta": BETA,
        "epsilon": EPSILON,
        "lam": LAM,
        "vf_coef": VF,
        "entropy_coef": ENT,
        "value_clip_range": VALUE_CLIP,
        "optim": "sgd",
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "weight_decay": 0.0,
        "num_iterations": 1,
        "critic": "head",
        "steps_per_generation": 1,
        "per_device_train_batch_size": 8,
        "max_steps": 2,
    }
    policy = LlamaForCausalLM.from_pretrained(policy_path)
    # The copy that the trainer keeps as reference must differ from the policy, or the KL would be zero.
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    args = make_config(**{**settings, **overrides})
    tokenizer_path = policy_path
    from transformers import AutoTokenizer

    trainer = PPOTrainer(
        policy,
        count_a,
        args,
        prompts,
        processing_class=AutoTokenizer.from_pretrained(tokenizer_path),
        ref_model=reference,
    )
    return trainer, policy, reference


def token_outputs(model, head, ids, mask, length):
    """Log-probabilities, entropies and values at the last `length` tokens; `head` is (weight, bias) or None."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = model.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    logp = torch.log_softmax(model.lm_head(hidden), dim=-1)[:, :-1]
    chosen = logp.gather(2, ids[:, 1:, None])[..., 0][:, -length:]
    entropy = -(logp.exp() * logp).sum(-1)[:, -length:]
    values = None if head is None else (hidden[:, :-1] @ head[0] + head[1])[:, -length:]
    return chosen, entropy, values


def step_by_hand(policy, reference, head, rollout, scores):
    """Parameters after one SGD step, from L = policy + VF * value - ENT * entropy, everything in loops over rows."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    completion_mask = rollout["completion_mask"]
    mask = torch.cat([rollout["prompt_mask"], completion_mask], 1).long()
    length = completion_mask.size(1)
    with torch.no_grad():
        old, _, old_values = token_outputs(policy, head, ids, mask, length)
        ref, _, _ = token_outputs(reference, None, ids, mask, length)
    advantages, returns = torch.zeros_like(old), torch.zeros_like(old)
    for b in range(len(ids)):
        n = int(completion_mask[b].sum())
        rewards = [0.0] * n
        rewards[-1] = float(scores[b]) - BETA * float((old[b, :n] - ref[b, :n]).sum())
        values = [*old_values[b, :n].tolist(), 0.0]
        deltas = [rewards[t] + values[t + 1] - values[t] for t in range(n)]
        for t in range(n):
            advantages[b, t] = sum(LAM**k * deltas[t + k] for k in range(n - t))
            returns[b, t] = advantages[b, t] + values[t]
    real = advantages[completion_mask]
    mean = real.mean()
    std = math.sqrt(float(((real - mean) ** 2).mean()))
    new, entropy, values = token_outputs(policy, head, ids, mask, length)
    total, count = 0.0, int(completion_mask.sum())
    for b in range(len(ids)):
        for t in range(int(completion_mask[b].sum())):
            advantage = (advantages[b, t] - mean) / std
            ratio = torch.exp(new[b, t] - old[b, t])
            gain = torch.min(ratio * advantage, ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantage)
            near = old_values[b, t] + (values[b, t] - old_values[b, t]).clamp(-VALUE_CLIP, VALUE_CLIP)
            error = torch.max((values[b, t] - returns[b, t]) ** 2, (near - returns[b, t]) ** 2)
            total = total - gain + VF * 0.5 * error - ENT * entropy[b, t]
    (total / count).backward()
    with torch.no_grad():
        return {name: p - LR * p.grad for name, p in policy.named_parameters() if p.grad is not None}, [
            h - LR * h.grad for h in head
        ]


def test_two_steps_equal_plain_torch(tiny_policy_path, prompts, ppo_config):
    trainer, *_ = make_trainer(tiny_policy_path, prompts, ppo_config)
    with torch.no_grad():
        trainer.critic.value_head.linear.weight.normal_(generator=torch.Generator().manual_seed(3))
    steps = []

    def remember(*_):
        inputs = trainer._buffered_inputs[0]
        before = {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}
        steps.append((before, {k: v.clone() for k, v in inputs.items()}))

    original = trainer._compute_loss
    trainer._compute_loss = lambda *a, **k: (remember(), original(*a, **k))[1]
    trainer.train()
    after = [*(before for before, _ in steps[1:]), dict(trainer.model.state_dict())]
    for (before, rollout), result in zip(steps, after, strict=True):
        plain = LlamaForCausalLM.from_pretrained(tiny_policy_path)
        plain.load_state_dict({k: v for k, v in before.items() if not k.startswith("critic")})
        head = [
            before["critic.value_head.linear.weight"][0].requires_grad_(),
            before["critic.value_head.linear.bias"].requires_grad_(),
        ]
        texts = [
            trainer.processing_class.decode(ids[mask], skip_special_tokens=True)
            for ids, mask in zip(rollout["completion_ids"], rollout["completion_mask"], strict=True)
        ]
        clean = LlamaForCausalLM.from_pretrained(tiny_policy_path)
        with torch.no_grad():
            for parameter in clean.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        expected, expected_head = step_by_hand(plain, clean, head, rollout, count_a(texts))
        moved = 0.0
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-5)
            moved = max(moved, float((before[name] - value).abs().max()))
        torch.testing.assert_close(
            result["critic.value_head.linear.weight"][0], expected_head[0], rtol=1e-5, atol=1e-5
        )
        assert moved > 1e-3  # the step is large against the tolerance


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_gradient_accumulation_changes_nothing(micro, tiny_policy_path, prompts, ppo_config):
    results = []
    for size, accumulation in ((8, 1), (micro, 8 // micro)):
        trainer, _, _ = make_trainer(
            tiny_policy_path,
            prompts,
            ppo_config,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
            max_steps=1,
        )
        trainer.train()
        results.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-6, atol=1e-6)
