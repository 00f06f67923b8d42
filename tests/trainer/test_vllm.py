"""The engine of `use_vllm`, faked: vLLM needs a GPU, but what is sent to it and what comes back can be seen without."""

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM
from trl.generation.vllm_generation import VLLMGeneration

from rlhf_ext import PPOTrainer
from rlhf_ext.trainer.vllm import sync_policy_only


def code_points(completions, **_):
    return [sum(map(ord, text)) / 500 for text in completions]


class Engine:
    """Answers as vLLM would: token ids, and log-probabilities by a copy of the policy that `sync` renews."""

    def __init__(self, trainer, noise=0.0):
        self.trainer, self.noise, self.calls = trainer, noise, 0
        self.logprobs = None
        self._iter_named_params = lambda: iter(())
        self.sync_weights()

    def sync_weights(self):
        policy = self.trainer.model
        with torch.no_grad():
            # A new model: a copy's forward would be bound to the original.
            self.model = LlamaForCausalLM(policy.config).eval()
            self.model.load_state_dict({n: p for n, p in policy.state_dict().items() if "critic" not in n})
            for parameter in self.model.parameters():
                parameter.add_(self.noise * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))

    def generate(self, prompts, images, num_generations, profiler=None):
        self.calls += 1
        # As vLLM's server does: of each prompt once, and as many answers.
        prompts = [prompt for prompt in prompts[::num_generations] for _ in range(num_generations)]
        completions = [[10 + self.calls % 7 + i % 5, 12, 13][: 2 + i % 2] for i in range(len(prompts))]
        reported = []
        for prompt, answer in zip(prompts, completions, strict=True):
            ids = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                logp = self.model(input_ids=ids).logits[0].log_softmax(-1)
            chosen = logp[torch.arange(ids.size(1) - 1), ids[0, 1:]][-len(answer) :]
            reported.append([[value] for value in chosen.tolist()])
        return prompts, completions, reported if self.logprobs is not None else None, None


def with_engine(trainer, noise=0.0):
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.vllm_generation = Engine(trainer, noise)
    return trainer.vllm_generation


def test_a_run_with_the_same_weights_passes_and_is_checked_after_each_sync(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(beta=0.1, max_steps=8), prompts)
    engine = with_engine(trainer)
    trainer.train()
    assert engine.calls == 4  # two rollouts, each with a sync and so with a probe


def test_an_evaluation_with_fewer_answers_per_prompt_is_checked_too(tiny_policy_path, prompts, ppo_config):
    args = ppo_config(beta=0.1, num_generations=2, num_generations_eval=1, max_steps=8, per_device_eval_batch_size=4)
    trainer = PPOTrainer(tiny_policy_path, code_points, args, prompts, eval_dataset=prompts.select(range(4)))
    engine = with_engine(trainer)
    trainer.train()
    calls = engine.calls
    assert trainer.evaluate()["eval_objective/score"] > 0
    assert engine.calls == calls + 2  # the weights are new, so with a probe


def test_other_weights_stop_the_run_with_both_numbers(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(beta=0.1), prompts)
    with_engine(trainer, noise=0.2)
    with pytest.raises(RuntimeError, match=r"gives -\d+\.\d+ nats per token where the policy gives -\d+\.\d+"):
        trainer.train()


@pytest.mark.parametrize("critic", ["adapter", "head", "model"])
def test_only_the_policy_is_sent(critic, tiny_policy_path, prompts, ppo_config):
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if critic == "adapter" else None
    trainer = PPOTrainer(
        tiny_policy_path, code_points, ppo_config(beta=0.1, critic=critic), prompts, peft_config=peft_config
    )
    plain = {name for name, _ in trainer.ref_model.named_parameters()} if trainer.ref_model else None
    engine = object.__new__(VLLMGeneration)
    engine.model, engine._dist, engine.accelerator = trainer.model, trainer._dist, trainer.accelerator
    names = {name for name, _ in engine._iter_named_params()}
    sync_policy_only(engine)
    sent = {name for name, _ in engine._iter_named_params()}
    assert set(names - sent) == {name for name in names if name.startswith("critic.")}
    assert names - sent
    if plain is not None:
        assert sent == plain
    with torch.no_grad():  # merging and unmerging the policy's adapter for the sync left the roles in place
        assert trainer._forward(trainer.model, _sequences(trainer)).values.isfinite().all()


def _sequences(trainer):
    from rlhf_ext.rollout import Sequences

    return Sequences.from_lists([[5, 6]], [[7, 8]], trainer._tokenizer.pad_token_id)
