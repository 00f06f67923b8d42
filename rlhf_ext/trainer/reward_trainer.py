"""TRL's reward trainer with a report card on held-out pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, DataCollator, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import TrainOutput

from ..models.scoring import check_reward_tokenizer
from ..report_card import REPORT_CARD_FILE, ReportCard, make_report_card
from ..reward_report import REPORT_PAGE_FILE, RewardReport
from .held_out import completion_lengths, make_report, rankings_of
from .hub import Card, HubTrainer
from .launch import check_saves_weights
from .ranked import WEIGHT, WeightedCollator, expand_rankings, is_ranked, weighted_preference_loss, with_weights
from .repositories import check_trained_model
from .reward_card import reward_card
from .reward_config import RewardConfig

logger = get_logger(__name__)


class RewardTrainer(HubTrainer, trl.RewardTrainer):
    r"""
    [`~trl.RewardTrainer`] that also measures what it trained.

    Loss, data formats and arguments are TRL's. What is added: at the end of `train()`, if there is an `eval_dataset`,
    a report card on its pairs ([`~rlhf_ext.report_card.ReportCard`]), and on demand by [`RewardTrainer.report_card`].
    `save_model` writes it to `report_card.json`, with plots and the most confident mistakes to `reward_report.html`, and
    into the model card (`README.md` in `args.output_dir`); the mean and standard deviation of the scores on reference
    completions go into the model's config as `score_mean` and `score_std`. Training changes the scores, so `train()`
    removes the numbers of an earlier card first.

    Data may hold rankings: a column `completions` with two or more answers, best first. They become pairs
    ([`expand_rankings`]) of which those of one prompt together count as much as those of another.

    What differs from the parent: `compute_loss` weighs the pairs of rankings; `prediction_step` gives the scores as one
    row a pair, (B, 2) with chosen first, where the parent gives (2B, 1), all chosen before all rejected; in that layout
    the truncation of an incomplete last batch cuts off rejected scores. `predict` and `compute_metrics` therefore see
    `predictions` of shape (N, 2).

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As in [`~trl.RewardTrainer`].
        args ([`RewardConfig`], *optional*):
            Settings; defaults to `RewardConfig(output_dir="<model name>-Reward")`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; by default the one saved with the model. Its padding token must not be EOS, see
            [`RewardConfig`]'s `pad_token`: [`~trl.RewardTrainer`] pads with EOS where there is no other, and the score
            is then read at the token before EOS.
        reference_dataset ([`~datasets.Dataset`], *optional*):
            Completions on which `score_mean` and `score_std` are measured, best those of the policy that PPO will
            start from. Columns `prompt` and `completion`, or `text`, or `messages`. By default the chosen and rejected
            completions of the held-out pairs. They are scored two by two; of an odd number the last is left out.
        data_collator, train_dataset, eval_dataset, trainer_args, trainer_kwargs:
            All other arguments of [`~trl.RewardTrainer`].

    Raises:
        `TypeError`: if `args` is not a [`RewardConfig`].
        `ValueError`: before the model is loaded, if the padding token is missing, not in the vocabulary, or EOS. If no
            pair of `eval_dataset`, or no two completions of `reference_dataset`, are within
            `args.max_length`, or a reference has none of the columns above.

    Example:

    ```python
    >>> args = RewardConfig("reward-model")
    >>> trainer = RewardTrainer("Qwen/Qwen2.5-0.5B-Instruct", args, train_dataset=pairs, eval_dataset=held_out)
    >>> trainer.train()
    >>> print(trainer.last_report_card.to_markdown())
    ```
    """

    _tag_names = ("trl", "rlhf-ext", "reward-trainer")
    args: RewardConfig
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: RewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *trainer_args: Any,
        reference_dataset: Dataset | IterableDataset | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        if args is None:
            args = RewardConfig(output_dir=f"{Path(_model_id(model)).name}-Reward")
        if not isinstance(args, RewardConfig):
            raise TypeError(f"args must be a rlhf_ext.RewardConfig, got {type(args).__module__}.{type(args).__name__}")
        check_saves_weights(args)
        check_trained_model(model, args)
        tokenizer = _reward_tokenizer(model, args, processing_class)
        super().__init__(
            model, args, data_collator, train_dataset, eval_dataset, tokenizer, *trainer_args, **trainer_kwargs
        )
        # A chat template cloned from another tokenizer brings its EOS.
        check_reward_tokenizer(tokenizer, _model_id(model))
        self.data_collator: Any = WeightedCollator(self.data_collator)
        for name, dataset in self._named_eval_datasets().items():
            _refuse_empty(dataset, name, args.max_length)
        self.reference_dataset = None if reference_dataset is None else self._reference_pairs(reference_dataset)
        self.last_report: RewardReport | None = None

    @property
    def last_report_card(self) -> ReportCard | None:
        """The card of the last report."""
        return None if self.last_report is None else self.last_report.card

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as [`~transformers.Trainer.train`] does, then make the report card if there is an `eval_dataset`."""
        self.last_report = None
        self._store_normalization(None)
        output = super().train(*args, **kwargs)
        if self.args.report_card and self.eval_dataset is not None:
            self.report_card()
        return output

    def report_card(
        self,
        dataset: Dataset | IterableDataset | None = None,
        reference_dataset: Dataset | IterableDataset | None = None,
    ) -> ReportCard:
        """
        Make the report card now, and keep it: in `last_report_card`, for the next `save_model`, and the two numbers of
        the normalisation in the model's config (they are removed if the scores have no usable spread; the card's notes
        and a warning say so).

        In a distributed run every process has to call it; every process gets the same card.

        Args:
            dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
                Held-out pairs, in any format that training takes. Defaults to the `eval_dataset`; several are pooled.
            reference_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
                Reference completions, see the class. Defaults to those given to the trainer.

        Returns:
            [`~rlhf_ext.report_card.ReportCard`].

        Raises:
            `ValueError`: if there are no pairs to make a card from.
        """
        datasets = self._named_eval_datasets() if dataset is None else {"dataset": self._prepare_held_out(dataset)}
        if not datasets:
            raise ValueError("no held-out pairs: give the trainer an eval_dataset, or report_card() a dataset")
        pairs = [_in_memory(part) for part in datasets.values()]
        for name, part in zip(datasets, pairs, strict=True):
            _refuse_empty(part, name, self.args.max_length)
        references = self.reference_dataset if reference_dataset is None else self._reference_pairs(reference_dataset)
        scores = np.concatenate([self._score(part) for part in pairs])
        lengths = np.concatenate([completion_lengths(part, self.processing_class) for part in pairs])
        card = make_report_card(
            chosen_scores=scores[:, 0],
            rejected_scores=scores[:, 1],
            chosen_lengths=lengths[:, 0],
            rejected_lengths=lengths[:, 1],
            reference_scores=None if references is None else self._score(references).reshape(-1),
            bins=self.args.calibration_bins,
            rankings=rankings_of(pairs),
        )
        for note in card.notes:
            logger.warning(f"Report card: {note}")
        self.last_report = make_report(card, scores, lengths, pairs, self.processing_class)
        self._store_normalization(card.normalization)
        return card

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As the parent; pairs that come from rankings count by their weight."""
        weight = inputs.pop(WEIGHT, None)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if weight is not None:
            chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), 2)
            loss = weighted_preference_loss(
                chosen, rejected, weight, inputs.get("margin"), self.args.center_rewards_coefficient
            )
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        One evaluation step, as in [`~transformers.Trainer.prediction_step`], with one row of scores a pair.

        Args:
            model (`nn.Module`):
                Model to evaluate.
            inputs (`dict[str, Any]`):
                Collated batch of B pairs: 2B sequences, all chosen before all rejected.
            prediction_loss_only (`bool`):
                Whether to return the loss alone.
            ignore_keys (`list[str]`, *optional*):
                Keys of the model's output to leave out.

        Returns:
            `tuple`: loss, scores `(B, 2)` with chosen first (`None` with `prediction_loss_only`), and no labels.
        """
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if outputs is None:
            return loss, None, labels
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return loss, torch.stack(torch.chunk(logits.squeeze(-1), 2), dim=1), labels

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as [`~transformers.Trainer.save_model`] does, with the report card, JSON and page, beside the weights."""
        # Before the parent, which pushes the folder to the Hub at the end if it is asked to.
        if self.args.should_save:
            self._save_report_card(Path(output_dir or self._output_dir))
        super().save_model(output_dir, _internal_call=_internal_call)

    def _card(self) -> Card:
        return reward_card(self)

    @property
    def _output_dir(self) -> Path:
        return Path(str(self.args.output_dir))

    def _save_report_card(self, folder: Path) -> None:
        if self.last_report is None:
            # A card left there by an earlier run is about weights that are overwritten now.
            for name in (REPORT_CARD_FILE, REPORT_PAGE_FILE):
                (folder / name).unlink(missing_ok=True)
            return
        self.last_report.card.save(folder)
        (folder / REPORT_PAGE_FILE).write_text(self.last_report.to_html(self._model_name), encoding="utf-8")

    def _named_eval_datasets(self) -> dict[str, Dataset | IterableDataset]:
        if self.eval_dataset is None:
            return {}
        return self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval_dataset": self.eval_dataset}

    def _prepare_dataset(
        self, dataset: Dataset | IterableDataset, processing_class: Any, args: RewardConfig, dataset_name: str
    ) -> Dataset | IterableDataset:
        if not is_ranked(dataset):
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        pairs = super()._prepare_dataset(expand_rankings(dataset, dataset_name), processing_class, args, dataset_name)
        return with_weights(pairs) if len(pairs) else pairs

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if WEIGHT not in self._signature_columns:
            self._signature_columns.append(WEIGHT)

    def _prepare_held_out(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        return self._prepare_dataset(dataset, self.processing_class, self.args, "held-out")

    def _reference_pairs(self, dataset: Dataset | IterableDataset) -> Dataset:
        """Single completions as rows of two, so that TRL's preparation, collator and loop for pairs can score them."""
        texts = [_whole_text(row) for row in dataset]
        rows = [{"chosen": a, "rejected": b} for a, b in zip(texts[::2], texts[1::2], strict=False)]
        pairs = self._prepare_held_out(Dataset.from_list(rows)) if rows else Dataset.from_list(rows)
        _refuse_empty(pairs, "reference_dataset", self.args.max_length)
        return pairs

    def _score(self, dataset: Dataset) -> NDArray[np.float64]:
        """Scores `(N, 2)` of N pairs in the dataset's order, on all processes."""
        predictions = self.predict(dataset).predictions
        # The parent's compute_loss collects metrics for the next log, which are not about an evaluation here.
        self._metrics["eval"].clear()
        return np.asarray(predictions, dtype=np.float64)

    def _store_normalization(self, normalization: tuple[float, float] | None) -> None:
        config = self.accelerator.unwrap_model(self.model).config
        for name in ("score_mean", "score_std"):
            if hasattr(config, name):
                delattr(config, name)
        if normalization is not None:
            config.score_mean, config.score_std = normalization


def _model_id(model: str | PreTrainedModel | PeftModel) -> str:
    return model if isinstance(model, str) else str(getattr(model.config, "_name_or_path", ""))


def _reward_tokenizer(
    model: str | PreTrainedModel | PeftModel, args: RewardConfig, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The tokenizer with the tokens that `args` names, refused if its padding would hide EOS."""
    name = _model_id(model)
    if tokenizer is None:
        if not name:
            raise ValueError(
                "The model has no path to load a tokenizer from: pass the tokenizer as `processing_class`."
            )
        revision = (args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)
    for setting in ("eos_token", "pad_token"):
        token = getattr(args, setting)
        if token is not None and token not in tokenizer.get_vocab():
            raise ValueError(
                f"{setting}={token!r} is not in the vocabulary of the tokenizer of `{name}`. Name one of its tokens; "
                f"these were added for special use: {', '.join(list(tokenizer.get_added_vocab())[:10])}."
            )
        if token is not None:
            setattr(tokenizer, setting, token)
    template = args.chat_template_path
    if template is None or template.endswith((".jinja", ".j2")):
        check_reward_tokenizer(tokenizer, name)
    return tokenizer


def _whole_text(row: dict[str, Any]) -> str | list[dict[str, str]]:
    if "prompt" in row and "completion" in row:
        return row["prompt"] + row["completion"]
    for column in ("text", "messages"):
        if column in row:
            return row[column]
    raise ValueError(
        "reference_dataset must have the columns prompt and completion, or text, or messages; it has "
        f"{', '.join(sorted(row))}"
    )


def _in_memory(dataset: Dataset | IterableDataset) -> Dataset:
    """A stream as a dataset with a length and a fixed order, which the held-out scores and lengths share."""
    return Dataset.from_list(list(dataset)) if isinstance(dataset, IterableDataset) else dataset


def _refuse_empty(dataset: Dataset | IterableDataset, name: str, max_length: int | None) -> None:
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(
            f"nothing is left of {name}: it is empty, or every row is longer than max_length = {max_length} tokens "
            "(prompt included); raise max_length or give other data"
        )
