"""The small world's models: tokenizer, language model of the careless writer, reward models of several qualities."""

import contextlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_ext.models.critic import load_critic_model, save_critic

from .grammar import INTENSIFIERS, VOCABULARY, Request, gold, random_note, random_request

PRETRAINING_STEPS = 1000
CRITIC_STEPS = 1000
BATCH = 64
# Score of the reward function that is sound, over gold: a standard deviation of about 1 before the run.
GOLD_SCALE = 2.0

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class RewardModelKind:
    """
    How the pairs that a reward model learns from are made.

    Args:
        pairs (`int`): Number of pairs.
        noise (`float`): Probability that the label of a pair is a coin's.
        bias (`str`, *optional*): What the annotators also like: `"length"` or `"intensifiers"`.
        epochs (`int`): Passes over the pairs.
    """

    pairs: int
    noise: float
    bias: str | None = None
    epochs: int = 3


# Below about 5000 pairs a model of this size learns nothing, and is no better than a coin.
REWARD_MODELS = {
    "good": RewardModelKind(pairs=6000, noise=0.0),
    "noisy": RewardModelKind(pairs=6000, noise=0.5),
    "wordy": RewardModelKind(pairs=6000, noise=0.1, bias="intensifiers"),
    "long": RewardModelKind(pairs=6000, noise=0.1, bias="length"),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; BOS is put before every text, EOS where a note ends."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *VOCABULARY])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_policy(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of two layers with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
        )
    )


def _batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random, steps: int) -> Iterator[Batch]:
    """Token ids of requests with notes, padded on the right, labels that leave requests and padding out, and scores."""
    for _ in range(steps):
        requests = [random_request(rng, rng.choice((1, 2, 2, 3))) for _ in range(BATCH)]
        notes = [random_note(rng, request) for request in requests]
        texts = [f"{request.prompt} {note} <eos>" for request, note in zip(requests, notes, strict=True)]
        ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        for row, request in enumerate(requests):
            labels[row, : len(request.subjects) + 3] = -100
        yield ids, labels, GOLD_SCALE * torch.tensor([gold(*pair) for pair in zip(requests, notes, strict=True)])


def pretrain(folder: Path) -> None:
    """Write the language model of the careless writer and its tokenizer to `folder`. The same on every call."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_policy(tokenizer)

    def loss_of(ids: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        return model(input_ids=ids, labels=labels, attention_mask=(ids != tokenizer.pad_token_id).long()).loss

    _fit(model, _batches(tokenizer, random.Random(0), PRETRAINING_STEPS), loss_of, PRETRAINING_STEPS, 4e-3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrain_critic(base: Path, reward_model: Path, folder: Path) -> None:
    """
    Write a critic that foresees, at every token of a careless writer's note, the score that the note will get; without it
    the runs would be over before a critic has learned anything. The same on every call.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    # From the language model it takes ten times as long.
    critic = load_critic_model(str(reward_model), dtype=torch.float32)
    trunk, value_head = critic.get_submodule("trunk"), critic.value_head

    def loss_of(ids: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
        mask = (ids != tokenizer.pad_token_id).long()
        states = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        errors = value_head(states[:, :-1]).float() - scores.unsqueeze(1)
        return errors[labels[:, 1:] >= 0].square().mean()

    _fit(critic, _batches(tokenizer, random.Random(1), CRITIC_STEPS), loss_of, CRITIC_STEPS, 1e-3)
    save_critic(critic, str(folder))


def _fit(
    model: nn.Module, batches: Iterator[Batch], loss_of: Callable[..., Tensor], steps: int, learning_rate: float
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for batch in batches:
        optimizer.zero_grad()
        loss_of(*batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _preference(request: Request, note: str, bias: str | None) -> float:
    """What an annotator goes by: the gold score, and what they also like."""
    words = note.split()
    extra = {
        None: 0.0,
        "length": len(words) / 20,
        "intensifiers": 0.4 * sum(word in INTENSIFIERS for word in words),
    }
    return gold(request, note) + extra[bias]


def make_pairs(kind: RewardModelKind, rng: random.Random) -> list[dict[str, str]]:
    """Preference pairs over notes of writers who take more or less care."""
    pairs = []
    for _ in range(kind.pairs):
        request = random_request(rng)
        notes = [random_note(rng, request, rng.uniform(0.2, 1.0)) for _ in range(2)]
        notes.sort(key=lambda note: _preference(request, note, kind.bias), reverse=True)
        if rng.random() < kind.noise:
            rng.shuffle(notes)
        # Text is joined without a space, and words are split at spaces.
        pairs.append({"prompt": f"{request.prompt} ", "chosen": notes[0], "rejected": notes[1]})
    return pairs


def train_reward_model(base: Path, folder: Path, kind: RewardModelKind, seed: int) -> None:
    """Train a reward model of `kind` on pairs of its own seed, and write it to `folder`."""
    from datasets import Dataset

    from rlhf_ext import RewardConfig, RewardTrainer

    rng = random.Random(1000 + seed)
    train, held_out = make_pairs(kind, rng), make_pairs(RewardModelKind(200, 0.0), rng)
    args = RewardConfig(
        output_dir=str(folder),
        per_device_train_batch_size=64,
        per_device_eval_batch_size=200,
        num_train_epochs=kind.epochs,
        learning_rate=2e-3,
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=seed,
    )
    trainer = RewardTrainer(
        str(base),
        args,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.train()
    card = trainer.last_report_card
    trainer.save_model(str(folder))
    (folder / "accuracy.json").write_text(json.dumps({"accuracy": card.accuracy if card else None}))


class ModelCache:
    """
    Models that are made where they are missing.

    Args:
        cache (`Path`): Folder that keeps them.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder `name`, made elsewhere and moved when complete, because several jobs share the cache."""
        folder = self.cache / name
        if not folder.is_dir():
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.cache) as temporary:
                make(Path(temporary) / name)
                with contextlib.suppress(OSError):  # Another job was faster.
                    (Path(temporary) / name).rename(folder)
        return folder


class Models(ModelCache):
    """The models of the small world."""

    @property
    def policy(self) -> Path:
        """Folder of the careless writer."""
        return self._made("policy", pretrain)

    @property
    def critic(self) -> Path:
        """Folder of a critic of the careless writer."""
        base, start = self.policy, self.reward_model("good", 0)
        return self._made("critic", lambda folder: pretrain_critic(base, start, folder))

    def reward_model(self, kind: str, seed: int) -> Path:
        """Folder of a reward model of that kind and seed."""
        base = self.policy
        make = lambda folder: train_reward_model(base, folder, REWARD_MODELS[kind], seed)  # noqa: E731
        return self._made(f"reward-{kind}-{seed}", make)
