"""The reward trainer: what its report card says is what the saved model does."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ext import RewardConfig, RewardTrainer
from rlhf_ext.models.normalization import read_score_normalization
from rlhf_ext.trainer.held_out import completion_lengths
from rlhf_ext.trainer.reward_functions import as_reward_function

NUM_HELD_OUT = 67  # Not a multiple of the batch, so that the last batch is incomplete.


def make_pairs(tokenizer, count: int, seed: int) -> Dataset:
    """Random ids of random lengths after a shared prompt; a marker token is somewhere in the chosen completion."""
    rng = np.random.default_rng(seed)
    marker, *ordinary = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids][:40]
    rows = []
    for _ in range(count):
        prompt, chosen, rejected = (rng.choice(ordinary, rng.integers(3, 9)).tolist() for _ in range(3))
        chosen[rng.integers(len(chosen))] = marker
        # Nothing shared beyond the prompt, so that a completion begins where the two sequences part.
        rejected[0] = next(i for i in ordinary if i != chosen[0])
        rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
    return Dataset.from_list(rows)


def make_config(folder: Path, **settings) -> RewardConfig:
    defaults = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 8, "learning_rate": 3e-3}
    quiet = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [], "disable_tqdm": True}
    return RewardConfig(str(folder), save_strategy="no", seed=0, **{**defaults, **quiet, **settings})


def scores_one_by_one(model: torch.nn.Module, sequences: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        return np.array([model(torch.tensor([ids])).logits.item() for ids in sequences])


def load(path: str | Path) -> torch.nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def held_out(tiny_tokenizer) -> Dataset:
    return make_pairs(tiny_tokenizer, NUM_HELD_OUT, seed=2)


@pytest.fixture(scope="module")
def trained(tiny_tokenizer, tiny_reward_path, held_out, tmp_path_factory) -> RewardTrainer:
    """A trainer that has trained with the defaults of the card, and saved."""
    config = make_config(tmp_path_factory.mktemp("trained"), num_train_epochs=10)
    pairs = make_pairs(tiny_tokenizer, 320, seed=1)
    trainer = RewardTrainer(tiny_reward_path, config, train_dataset=pairs, eval_dataset=held_out)
    trainer.train()
    trainer.save_model()
    return trainer


def test_training_lifts_the_accuracy_on_held_out_pairs(trained, tiny_reward_path, held_out, tmp_path) -> None:
    untrained = RewardTrainer(tiny_reward_path, make_config(tmp_path), train_dataset=held_out, eval_dataset=held_out)
    before = untrained.report_card()
    after = trained.last_report_card
    assert before.num_pairs == after.num_pairs == NUM_HELD_OUT
    assert 0.35 < before.accuracy < 0.65 and before.accuracy_low < 0.5 < before.accuracy_high
    assert after.accuracy > 0.9 and after.margin_mean > 1
    assert after.brier < 0.1 < before.brier


def test_card_of_the_saved_model_equals_scores_taken_one_by_one(trained, held_out) -> None:
    model = load(trained.args.output_dir)
    chosen, rejected = (scores_one_by_one(model, held_out[key]) for key in ("chosen_ids", "rejected_ids"))
    card = trained.last_report_card
    assert card.accuracy == pytest.approx(np.mean(chosen > rejected))
    assert card.margin_mean == pytest.approx(np.mean(chosen - rejected), rel=1e-4)
    pooled = np.concatenate([chosen, rejected])
    assert model.config.score_mean == pytest.approx(pooled.mean(), rel=1e-4)
    assert model.config.score_std == pytest.approx(np.sqrt(pooled.var() * len(pooled) / (len(pooled) - 1)), rel=1e-4)
    assert type(model.config.score_mean) is type(model.config.score_std) is float
    assert read_score_normalization(trained.args.output_dir) == (model.config.score_mean, model.config.score_std)
    assert read_score_normalization(model) == (model.config.score_mean, model.config.score_std)


def test_score_and_length_correlate_as_computed_from_the_ids(trained, held_out) -> None:
    # Each pair shares a random prompt, and the first tokens after it differ, so the completion is what follows.
    model = load(trained.args.output_dir)
    scores, lengths = [], []
    for row in held_out:
        shared = 0
        while row["chosen_ids"][shared] == row["rejected_ids"][shared]:
            shared += 1
        for key in ("chosen_ids", "rejected_ids"):
            scores.extend(scores_one_by_one(model, [row[key]]))
            lengths.append(len(row[key]) - shared)
    expected = np.corrcoef(scores, lengths)[0, 1]
    assert trained.last_report_card.length_pearson == pytest.approx(expected, rel=1e-4)


def test_saving_writes_the_card_as_json_and_into_the_model_card(trained) -> None:
    folder = Path(trained.args.output_dir)
    assert json.loads((folder / "report_card.json").read_text())["accuracy"] == trained.last_report_card.accuracy
    readme = (folder / "README.md").read_text()
    assert readme.count("## Report card") == 1 and trained.last_report_card.to_markdown() in readme
    assert "Model Card for" in readme


def test_an_adapter_keeps_the_numbers_beside_it(tiny_tokenizer, tiny_reward_path, held_out, tmp_path) -> None:
    lora = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    pairs = make_pairs(tiny_tokenizer, 32, seed=1)
    trainer = RewardTrainer(
        tiny_reward_path,
        make_config(tmp_path, max_steps=2),
        train_dataset=pairs,
        eval_dataset=held_out,
        peft_config=lora,
    )
    trainer.train()
    trainer.save_model()
    assert not (tmp_path / "config.json").exists()
    numbers = read_score_normalization(tmp_path)
    base_config = trainer.model.get_base_model().config
    assert numbers == (base_config.score_mean, base_config.score_std) == trainer.last_report_card.normalization
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    scores = scores_one_by_one(model, [row[key] for row in held_out for key in ("chosen_ids", "rejected_ids")])
    assert numbers == (pytest.approx(scores.mean(), rel=1e-4), pytest.approx(scores.std(ddof=1), rel=1e-4))
    assert (tmp_path / "README.md").read_text().count("## Report card") == 1


def test_reference_completions_set_the_normalization(tiny_tokenizer, tiny_reward_path, held_out, tmp_path) -> None:
    rows = [{"prompt": "the cat", "completion": " sat" * n} for n in range(1, 6)]
    trainer = RewardTrainer(
        tiny_reward_path,
        make_config(tmp_path),
        train_dataset=held_out,
        eval_dataset=held_out,
        reference_dataset=Dataset.from_list(rows),
    )
    card = trainer.report_card()
    # The fifth has no partner and is left out; EOS is appended, as TRL does to texts.
    texts = [row["prompt"] + row["completion"] + tiny_tokenizer.eos_token for row in rows[:4]]
    scores = scores_one_by_one(load(tiny_reward_path), [tiny_tokenizer(text)["input_ids"] for text in texts])
    assert card.num_references == 4
    assert card.normalization == (pytest.approx(scores.mean(), rel=1e-4), pytest.approx(scores.std(ddof=1), rel=1e-4))
    assert card.num_pairs == NUM_HELD_OUT


def test_training_removes_the_numbers_of_an_earlier_card(trained, held_out, tmp_path) -> None:
    (tmp_path / "report_card.json").write_text("{}")
    model = load(trained.args.output_dir)
    assert model.config.score_std > 0
    tokenizer = trained.processing_class
    config = make_config(tmp_path, max_steps=1)
    trainer = RewardTrainer(model, config, train_dataset=held_out, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    assert read_score_normalization(tmp_path) is None and read_score_normalization(trainer.model) is None
    assert not (tmp_path / "report_card.json").exists()


def test_constant_scores_are_not_stored_and_the_card_says_so(tiny_reward_path, held_out, tmp_path) -> None:
    model = load(tiny_reward_path)
    torch.nn.init.zeros_(model.score.weight)
    config = make_config(tmp_path)
    trainer = RewardTrainer(model, config, train_dataset=held_out, eval_dataset=held_out)
    card = trainer.report_card()
    trainer.save_model()
    assert (card.accuracy, card.num_ties, card.score_std) == (0.5, NUM_HELD_OUT, 0.0)
    assert not hasattr(model.config, "score_mean") and read_score_normalization(tmp_path) is None
    assert "not stored" in (tmp_path / "README.md").read_text()


def test_card_is_the_same_for_streams_parts_and_batches(tiny_reward_path, held_out, tmp_path) -> None:
    half = {"a": held_out.select(range(30)), "b": held_out.select(range(30, NUM_HELD_OUT))}
    config = make_config(tmp_path, per_device_eval_batch_size=NUM_HELD_OUT)
    trainer = RewardTrainer(tiny_reward_path, config, train_dataset=held_out, eval_dataset=half)
    whole = trainer.report_card(held_out)
    for other in (trainer.report_card(), trainer.report_card(held_out.to_iterable_dataset())):
        assert other.num_pairs == NUM_HELD_OUT and other.accuracy == whole.accuracy
        assert other.normalization == (
            pytest.approx(whole.score_mean, rel=1e-4),
            pytest.approx(whole.score_std, rel=1e-4),
        )
        assert other.length_spearman == pytest.approx(whole.length_spearman, rel=1e-4)


def test_completion_lengths_begin_after_the_prompt(tiny_tokenizer) -> None:
    # Without a prompt: ids 5 6 are shared, so 2 and 3 tokens follow.
    tokens_only = Dataset.from_list([{"chosen_ids": [5, 6, 7, 8], "rejected_ids": [5, 6, 8, 9, 7]}])
    assert completion_lengths(tokens_only, tiny_tokenizer).tolist() == [[2, 3]]
    # With a prompt the completions may begin alike: what follows the prompt's own tokens counts.
    ids = tiny_tokenizer("the cat")["input_ids"]
    row = {"prompt": "the cat", "chosen_ids": [*ids, 9, 9, 7], "rejected_ids": [*ids, 9, 9, 9, 8]}
    assert completion_lengths(Dataset.from_list([row]), tiny_tokenizer).tolist() == [[3, 4]]


def test_conversations_are_scored_and_measured_after_the_generation_prompt(tiny_tokenizer, tiny_reward_path, tmp_path):
    def messages(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    answers = [(" sat", " sat sat"), (" world", " hello"), (" cat", " the cat")]
    rows = [
        {"prompt": messages("user", "hello"), "chosen": messages("assistant", a), "rejected": messages("assistant", b)}
        for a, b in answers
    ]
    pairs = Dataset.from_list(rows)
    trainer = RewardTrainer(tiny_reward_path, make_config(tmp_path), train_dataset=pairs, eval_dataset=pairs)
    card = trainer.report_card()
    prompt = tiny_tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, tokenize=False)
    whole = [
        tiny_tokenizer.apply_chat_template(row["prompt"] + row[key], tokenize=False)
        for row in rows
        for key in ("chosen", "rejected")
    ]
    ids = [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in whole]
    start = len(tiny_tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert completion_lengths(trainer.eval_dataset, tiny_tokenizer).reshape(-1).tolist() == [
        len(i) - start for i in ids
    ]
    assert card.score_mean == pytest.approx(scores_one_by_one(load(tiny_reward_path), ids).mean(), rel=1e-4)


def test_report_card_can_be_switched_off(tiny_reward_path, held_out, tmp_path) -> None:
    config = make_config(tmp_path, max_steps=1, report_card=False)
    trainer = RewardTrainer(tiny_reward_path, config, train_dataset=held_out, eval_dataset=held_out)
    trainer.train()
    assert trainer.last_report_card is None and read_score_normalization(trainer.model) is None


def test_loss_and_evaluation_are_those_of_trl(tiny_reward_path, held_out, tmp_path) -> None:
    losses = []
    for trainer_class in (trl.RewardTrainer, RewardTrainer):
        config = make_config(tmp_path, max_steps=3, logging_steps=1)
        trainer = trainer_class(tiny_reward_path, config, train_dataset=held_out, eval_dataset=held_out)
        trainer.train()
        if trainer_class is RewardTrainer:
            trainer.report_card(held_out.select(range(5)))
        metrics = trainer.evaluate()
        losses.append(
            [
                metrics["eval_loss"],
                metrics["eval_accuracy"],
                *(log.get("loss") for log in trainer.state.log_history[:3]),
            ]
        )
    assert losses[0] == losses[1]


def test_bad_arguments_are_refused_with_the_reason(tiny_reward_path, held_out, tmp_path) -> None:
    config = make_config(tmp_path, max_length=2)
    with pytest.raises(ValueError, match=r"eval_dataset.*max_length = 2"):
        RewardTrainer(tiny_reward_path, config, train_dataset=held_out, eval_dataset=held_out)
    with pytest.raises(TypeError, match=r"rlhf_ext\.RewardConfig"):
        RewardTrainer(tiny_reward_path, trl.RewardConfig(str(tmp_path), use_cpu=True), train_dataset=held_out)
    with pytest.raises(ValueError, match="prompt and completion, or text, or messages; it has answer"):
        bad = Dataset.from_list([{"answer": "a"}])
        RewardTrainer(tiny_reward_path, make_config(tmp_path), train_dataset=held_out, reference_dataset=bad)
    with pytest.raises(ValueError, match="no held-out pairs"):
        RewardTrainer(tiny_reward_path, make_config(tmp_path), train_dataset=held_out).report_card()
    with pytest.raises(ValueError, match="calibration_bins"):
        make_config(tmp_path, calibration_bins=0)


def test_unusable_stored_numbers_are_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"score_mean": 0.5, "score_std": 0.0}))
    with pytest.raises(ValueError, match=r"score_std = 0\.0"):
        read_score_normalization(tmp_path)


def with_padding(tokenizer, token: str | None):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = token
    return tokenizer


@pytest.fixture
def unpadded_path(tiny_reward_path, tiny_tokenizer, tmp_path) -> str:
    """A base model as Llama 3.1 is published: a token to pad with in the vocabulary, and none set."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_reward_path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    with_padding(tiny_tokenizer, None).save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    return str(folder)


@pytest.fixture
def no_model_is_loaded(monkeypatch) -> None:
    def refuse(*_, **__):
        pytest.fail("a model was loaded before the padding was checked")

    monkeypatch.setattr(trl.trainer.reward_trainer, "create_model_from_path", refuse)


@pytest.mark.parametrize("token", [None, "<|im_end|>"], ids=["missing", "eos"])
def test_padding_that_hides_eos_is_refused_before_the_model_is_loaded(
    token, unpadded_path, tiny_tokenizer, held_out, tmp_path, no_model_is_loaded
) -> None:
    tokenizer = with_padding(tiny_tokenizer, token)
    message = r"(?s)one token too early.*set `pad_token` in RewardConfig or the recipe"
    with pytest.raises(ValueError, match=message):
        RewardTrainer(unpadded_path, make_config(tmp_path), train_dataset=held_out, processing_class=tokenizer)
    tokenizer.save_pretrained(unpadded_path)
    with pytest.raises(ValueError, match=message):
        RewardTrainer(unpadded_path, make_config(tmp_path), train_dataset=held_out)
    with pytest.raises(ValueError, match=message):
        RewardTrainer(unpadded_path, make_config(tmp_path, pad_token="<|im_end|>"), train_dataset=held_out)


def test_tokens_that_are_not_in_the_vocabulary_are_refused(unpadded_path, held_out, tmp_path, no_model_is_loaded):
    for setting in ("pad_token", "eos_token"):
        with pytest.raises(ValueError, match=rf"{setting}='<nothing>' is not in the vocabulary.*<\|im_start\|>"):
            RewardTrainer(unpadded_path, make_config(tmp_path, **{setting: "<nothing>"}), train_dataset=held_out)


def test_a_model_without_a_path_needs_a_tokenizer(tiny_reward_path, held_out, tmp_path) -> None:
    model = load(tiny_reward_path)
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match="pass the tokenizer as `processing_class`"):
        RewardTrainer(model, make_config(tmp_path), train_dataset=held_out)


def test_the_padding_token_of_the_settings_is_saved_and_the_score_is_read_at_eos(
    unpadded_path, tiny_tokenizer, ppo_config, tmp_path
) -> None:
    texts = Dataset.from_list([{"chosen": f"good {'a' * i}", "rejected": f"bad {i}"} for i in range(8)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
        config = make_config(tmp_path / "out", max_steps=1, pad_token="<pad>")
        trainer = RewardTrainer(unpadded_path, config, train_dataset=texts, eval_dataset=texts)
    trainer.train()
    trainer.save_model()
    folder = str(tmp_path / "out")
    saved = AutoTokenizer.from_pretrained(folder)
    assert (saved.pad_token, saved.eos_token) == ("<pad>", "<|im_end|>")
    # PPO takes the model as it was saved, and reads what the score head says at EOS.
    score = as_reward_function(folder, None, tiny_tokenizer, ppo_config())
    completions = ["b", "ccc"]
    ids = [[*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id] for text in completions]
    scores = score(["a a", "a"], completions, ids)
    model = load(folder)
    for prompt, tokens, found in zip(["a a", "a"], ids, scores, strict=True):
        with torch.no_grad():
            hidden = model.model(torch.tensor([tiny_tokenizer(prompt)["input_ids"] + tokens])).last_hidden_state
            assert found == pytest.approx(model.score(hidden[0, -1]).item(), rel=1e-4)


def test_eos_of_a_cloned_chat_template_is_checked_too(tiny_reward_path, tiny_tokenizer, held_out, tmp_path) -> None:
    source = copy.deepcopy(tiny_tokenizer)
    source.eos_token = "<pad>"
    source.save_pretrained(tmp_path / "source")
    config = make_config(tmp_path, chat_template_path=str(tmp_path / "source"))
    with pytest.raises(ValueError, match="one token too early"):
        RewardTrainer(tiny_reward_path, config, train_dataset=held_out)
