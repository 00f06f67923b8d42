"""Wrong models, tokenizers, adapters and rewards."""

import json
import math

import torch
from error_row import Row
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from rlhf_ext import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from rlhf_ext.trainer.reward_errors import RewardFunctionError


def lora(**settings):
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})


def adapter(config):
    return lambda world: world.trainer(peft_config=config)


def cut(content):
    return content[: len(content) // 2]


def no_json(_):
    return b"{"


def encoder(world):
    folder = world.tmp_path / "bert"
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(folder)
    world.trainer(str(folder))


def frozen(world):
    world.trainer(AutoModelForCausalLM.from_pretrained(world.policy).requires_grad_(False))


def saved_adapter(world):
    folder = str(world.tmp_path / "adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(world.policy), lora()).save_pretrained(folder)
    return folder


def other_vocabulary(world):
    config = LlamaConfig.from_pretrained(world.policy, vocab_size=100)
    world.trainer(ref_model=LlamaForCausalLM(config))


def tied(world):
    folder = world.folder(config__json={"tie_word_embeddings": True})
    world.trainer(folder, peft_config=lora(trainable_token_indices=[2]))


def beyond_the_vocabulary(world):
    config = LlamaConfig.from_pretrained(world.policy, vocab_size=100)
    world.trainer(LlamaForCausalLM(config), processing_class=world.tokenizer()).train()


def small_vocabulary(world):
    world.trainer(world.folder(config__json={"vocab_size": 1}))


def scores(make):
    def act(world):
        def judge(completions, **_):
            return make(len(completions))

        world.trainer(reward=judge).train()

    return act


def raises_on_the_third(world):
    third = []

    def judge(prompts, completions, log_metric=None, **_):
        if log_metric is not None and not third:
            log_metric("seen", 1.0)
            third.append(prompts[2])
        return [1 / (prompt != third[0]) for prompt in prompts]

    world.trainer(reward=judge).train()


def raises_in_a_coroutine(world):
    async def judge(prompts, **_):
        return [1 / (not prompt.startswith("Say")) for prompt in prompts]

    world.trainer(reward=judge).train()


def raises_on_a_batch(world):
    def judge(completions, **_):
        return [len({}) / (len(completions) == 1) for _ in completions]

    world.trainer(reward=judge).train()


def takes_no_columns(world):
    world.trainer(reward=lambda completions: [1.0] * len(completions)).train()


def pads_with_eos(world):
    world.trainer(reward=world.reward, reward_processing_classes=world.tokenizer(pad_token="<|im_end|>"))


def infinite_normalization(world):
    world.trainer(reward=world.folder(world.reward, config__json={"score_mean": 0.0, "score_std": 0.0}))


def card(world):
    folder = world.folder(world.reward)
    world.file("copy/report_card.json", json.dumps({"normalization": {"score_mean": math.nan, "score_std": 1.0}}))
    world.trainer(reward=folder)


def to_train(trainer, config):
    def act(world):
        trainer(
            "/nowhere/model",
            config(str(world.tmp_path / "out"), use_cpu=True, bf16=False),
            train_dataset=world.prompts,
        )

    return act


MODELS = [
    Row("model: no such folder for SFT", to_train(SFTTrainer, SFTConfig), OSError,
        ("The model '/nowhere/model' cannot be read", "there is no such folder", "Check the path")),
    Row("model: no such folder for a reward model", to_train(RewardTrainer, RewardConfig), OSError,
        ("The model '/nowhere/model' cannot be read", "there is no such folder", "Check the path")),
    Row("model: none", lambda w: w.trainer(3), TypeError, ("`model` must be a Hub id, a folder", "got 3 (int)")),
    Row("model: no such folder", lambda w: w.trainer("/nowhere/model"), OSError,
        ("The model '/nowhere/model' cannot be read", "there is no such folder", "Check the path")),
    Row("Hub: a model that is not there", lambda w: w.trainer("no-such/model"), OSError,
        ("The model 'no-such/model' cannot be read", "the Hub did not give it", "hf auth login", "hf download")),
    Row("model: no config", lambda w: w.trainer(w.folder(config__json=None)), OSError,
        ("The model ", "/copy' cannot be read", "save_pretrained")),
    Row("model: a config that is no JSON", lambda w: w.trainer(w.folder(config__json=no_json)), OSError,
        ("The model ", "/copy' cannot be read", "not a valid JSON file")),
    Row("model: of an unknown type", lambda w: w.trainer(w.folder(config__json={"model_type": "gpt9"})), OSError,
        ("The model ", "model type `gpt9`")),
    Row("model: an encoder", encoder, ValueError, ("bert' is BertModel", "left to right", "`...ForCausalLM`")),
    Row("model: a classifier", lambda w: w.trainer(w.reward), ValueError, ("LlamaForSequenceClassification", "pass one")),
    Row("model: weights cut off", lambda w: w.trainer(w.folder(model__safetensors=cut)), OSError,
        ("/copy': the file model.safetensors is damaged", "download it again")),
    Row("model: no weights", lambda w: w.trainer(w.folder(model__safetensors=None)), OSError,
        ("/copy' has no weights", "save_pretrained")),
    Row("model: frozen", frozen, ValueError, ("No parameter of the policy requires a gradient", "is_trainable=True"), True),
    Row("reference: an id", lambda w: w.trainer(ref_model=w.policy), TypeError,
        ("`ref_model` must be a PreTrainedModel", "from_pretrained", "leave it out")),
    Row("reference: another vocabulary", other_vocabulary, ValueError,
        ("`ref_model` has a vocabulary of 100 tokens, the policy one of 259", "leave it out")),
    Row("critic: an adapter without one", lambda w: w.trainer(settings={"critic": "adapter"}), ValueError,
        ("critic='adapter'", "the policy has none", "Pass a `peft_config`", "critic='model'")),
    Row("critic: a whole model as a head", lambda w: w.trainer(settings={"critic": "head"}, critic_model=w.reward),
        ValueError, ("critic='head'", "value_head.safetensors", "got critic_model=", "choose critic='model'")),
    Row("critic: not there", lambda w: w.trainer(critic_model="/nowhere/critic"), OSError,
        ("The critic_model '/nowhere/critic' cannot be read", "Check the path")),
    Row("tokenizer: not there", lambda w: w.trainer(w.folder(tokenizer__json=None, tokenizer_config__json=None)), OSError,
        ("The tokenizer of ", "/copy' cannot be read", "tokenizer.save_pretrained", "`processing_class`")),
    Row("tokenizer: a processor", lambda w: w.trainer(processing_class=object()), TypeError,
        ("got a object as `processing_class`", "Pass the tokenizer (`processor.tokenizer`)")),
    Row("tokenizer: no EOS", lambda w: w.trainer(processing_class=w.tokenizer(eos_token=None)), ValueError,
        ("no EOS token", "Set `tokenizer.eos_token`")),
    Row("tokenizer: an EOS that the model has not", small_vocabulary, ValueError,
        ("eos_token '<|im_end|>' has the id 1", "vocabulary has 1 tokens", "resize_token_embeddings")),
    Row("tokenizer: tokens that the model has not", beyond_the_vocabulary, ValueError,
        ("A prompt has the token", "vocabulary has 100 tokens", "pass the model's own"), True),
    Row("adapter: a text", lambda w: w.trainer(peft_config="lora"), TypeError,
        ("`peft_config` must be a PeftConfig", "got 'lora'")),
    Row("adapter: prefix tuning", adapter(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)), ValueError,
        ("PREFIX_TUNING", "Use LoRA")),
    Row("adapter: of another task", adapter(lora(task_type="SEQ_CLS")), ValueError, ("task_type='SEQ_CLS'", "'CAUSAL_LM'")),
    Row("adapter: biases", adapter(lora(bias="lora_only")), ValueError, ("bias='lora_only'", "Use bias='none'")),
    Row("adapter: PiSSA", adapter(lora(init_lora_weights="pissa")), ValueError,
        ("init_lora_weights='pissa'", "Use the default initialisation")),
    Row("adapter: layers replicated", adapter(lora(layer_replication=[[0, 2], [1, 2]])), ValueError,
        ("layer_replication=", "start from that")),
    Row("adapter: tokens of a tied LM head", tied, ValueError, ("trainable_token_indices=[2]", "ties", "Leave it out")),
    Row("adapter: tokens of the LM head", adapter(lora(trainable_token_indices={"lm_head": [2]})), ValueError,
        ("trainable_token_indices={'lm_head': [2]}", "names the LM head", "Leave it out")),
    Row("adapter: one on top of one", lambda w: w.trainer(saved_adapter(w), peft_config=lora()), ValueError,
        ("is a saved adapter", "leave `peft_config`", "merge_adapter("), True),
    Row("adapter: modules that are not there", adapter(lora(target_modules=["nope"])), ValueError,
        ("Target modules {'nope'} not found", "check the target modules"), True),
    Row("reward: nothing", lambda w: w.trainer(reward=[]), ValueError, ("`reward_funcs` is an empty list", "Pass at")),
    Row("reward: a number", lambda w: w.trainer(reward=[len, 3]), TypeError, ("`reward_funcs` holds 3", "nor a function")),
    Row("reward: weights that do not fit", lambda w: w.trainer(reward=[len, len], settings={"reward_weights": [1.0]}),
        ValueError, ("1 reward_weights were passed for 2 reward_funcs ([1.0])", "pass one for each")),
    Row("reward: tokenizers that do not fit", lambda w: w.trainer(reward=[len, len], reward_processing_classes=[None]),
        ValueError, ("1 reward_processing_classes were passed for 2", "pass one for each")),
    Row("reward: no such folder", lambda w: w.trainer(reward="/nowhere/rm"), OSError,
        ("The reward model '/nowhere/rm' cannot be read", "Check the path")),
    Row("Hub: a reward model that is not there", lambda w: w.trainer(reward="no-such/rm"), OSError,
        ("The reward model 'no-such/rm' cannot be read", "hf auth login")),
    Row("reward: a language model", lambda w: w.trainer(reward=w.policy), ValueError,
        ("(LlamaForCausalLM) is not a reward model", "score.weight", "Train one with RewardTrainer"), True),
    Row("reward: three labels", lambda w: w.trainer(reward=w.folder(w.reward, config__json={
        "id2label": {str(i): str(i) for i in range(3)}})), ValueError,
        ("/copy` has 3 labels", "`num_labels=1`")),
    Row("reward: padding is EOS", pads_with_eos, ValueError,
        ("pads with '<|im_end|>'", "one token too early", "set `pad_token`")),
    Row("reward: a spread of zero", infinite_normalization, ValueError,
        ("score_std = 0.0", "score_std positive", "Remove both"), True),
    Row("reward: a report card without numbers", card, ValueError, ("report_card.json", "score_mean = nan"), True),
    Row("scores: one too few", scores(lambda n: [1.0] * (n - 1)), ValueError,
        ("'judge' returned 7 rewards, but 8 were expected",), True),
    Row("scores: none", scores(lambda n: [None] * n), ValueError, ("None or NaN for every completion", "Check"), True),
    Row("scores: NaN", scores(lambda n: [math.nan] * n), ValueError, ("None or NaN for every completion", "Check"), True),
    Row("scores: infinite", scores(lambda n: [math.inf] * n), ValueError, ("infinite score", "finite numbers"), True),
    Row("scores: a text", scores(lambda n: "good"), TypeError, ("'judge' returned 'good'", "a list with one score"), True),
    Row("scores: texts", scores(lambda n: ["1.0"] * n), TypeError, ("'judge' returned '1.0'", "a score is a number"), True),
    Row("scores: a division by zero", raises_on_the_third, RewardFunctionError,
        ("'judge' raised ZeroDivisionError: division by zero (rows_of_models.py:", "on sample 2 of 8", "prompt 'Say ",
         "completion '", "return None for a sample"), True),
    Row("scores: a coroutine that raises", raises_in_a_coroutine, RewardFunctionError,
        ("'judge' raised ZeroDivisionError", "on sample 0 of 8", "prompt 'Say "), True),
    Row("scores: a batch that raises", raises_on_a_batch, RewardFunctionError,
        ("'judge' raised ZeroDivisionError", "a batch of 8 samples, none of which", "Mend the function"), True),
    Row("scores: a function without columns", takes_no_columns, RewardFunctionError,
        ("unexpected keyword argument 'prompts'", "It is called as function(prompts=", "**kwargs"), True),
]  # fmt: skip


def too_much(*_, **__):
    return torch.empty(2**50)


def out_of_memory(world):
    world.trainer(reward=too_much, settings={"optim": "sgd"}).train()


MEMORY = [
    Row("memory: a reward function that takes too much", out_of_memory, torch.OutOfMemoryError,
        ("Out of memory in scoring, at step 1", "you tried to allocate 4503599627370496 bytes", "Lower per_device"), True),
]  # fmt: skip
