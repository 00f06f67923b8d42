"""Pushing to the Hub: what is pushed has a card, what fails is said in a line with the command that retries it."""

import os
import shlex
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging

from ..markdown import cut
from ..models.critic import CRITIC_FOLDER
from ..version import __version__
from .secrets import without_tokens

logger = logging.get_logger(__name__)

# The first is the error of the HTTP library that huggingface_hub is built on: httpx, or httpx2. What the Hub answers, no
# token and no connection are OSErrors.
_HUB_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], HFValidationError, OSError)
# hf_xet raises errors of Python's own.
_UPLOAD_ERRORS: tuple[type[Exception], ...] = (*_HUB_ERRORS, RuntimeError, ValueError)
MERGED_FOLDER, MERGED_SUFFIX, CURVES_FILE, LOADING_HEADING = "merged", "-merged", "curves.svg", "## How to load it"
_IGNORED = ("_*", f"{PREFIX_CHECKPOINT_DIR}-*", f"{MERGED_FOLDER}/*")
_LONGEST_REASON = 400
_TRAINING_SECTION, _VERSIONS, _CITATIONS = "## Training procedure", "- TRL: ", "Cite TRL as:"

CITATION = f"""Cite rlhf-ext as:

```bibtex
@software{{rlhf_ext,
  title   = {{{{rlhf-ext: RLHF with PPO for the Hugging Face stack}}}},
  license = {{Apache-2.0}},
  version = {{{__version__}}}
}}
```"""


class PushError(RuntimeError):
    """A repository could not be made or written to. The message says why, where everything is, and how to retry."""


class Card(NamedTuple):
    """
    What a model card says of one run, around TRL's sections on the training procedure, the versions and the citations.

    Args:
        metadata (`dict`): For the YAML head, over what TRL writes there.
        sections (`list[str]`): Markdown, before TRL's.
        versions (`dict[str, str]`): Package -> version, beside those that TRL names.
    """

    metadata: dict[str, Any]
    sections: list[str]
    versions: dict[str, str]


class HubTrainer(Trainer):
    """
    What TRL's trainers do with the Hub, made safe to fail.

    What differs from the parent:

    - `save_model` writes the model card too, and pushes, where `push_to_hub` asks for it, only once everything is saved;
    - `push_to_hub` and `init_hf_repo` raise [`PushError`], with the command that retries the upload; a push in the
      background that fails is said in a warning, where the parent is silent;
    - `create_model_card` writes the card of the run, see [`Card`]; a dataset or base model that is a local path, which the
      Hub would refuse, is left out of its metadata;
    - `_push_from_checkpoint` also brings the critic up to date.
    """

    _dataset_name: str | None = None

    def _card(self) -> Card:
        raise NotImplementedError

    @property
    def _model_name(self) -> str:
        return (self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name).split("/")[-1]

    @property
    def _repository(self) -> str:
        """Where the model is, or will be, loaded from."""
        return self.hub_model_id or self.args.hub_model_id or str(self.args.output_dir)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, as [`~transformers.Trainer.init_hf_repo`]."""
        if private is not None:
            # transformers before 5.23 takes no such argument; the setting is what it stands for.
            self.args.hub_private_repo = private
        try:
            super().init_hf_repo(token)
        except _HUB_ERRORS as error:
            name = self.args.hub_model_id or self._model_name
            raise PushError(
                f"The repository {name!r} cannot be made on the Hub: {_reason(self, error, token)} Log in with `hf auth "
                "login` or HF_TOKEN (a token with write access), name another hub_model_id, or leave push_to_hub out and "
                "push the saved model later with `hf upload`."
            ) from _cause(self, error, token)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as [`~transformers.Trainer.save_model`] does; called by the user, with the card, and pushed at last."""
        super().save_model(output_dir, _internal_call=True)
        if _internal_call:
            return
        if Path(output_dir or self.args.output_dir) == Path(self.args.output_dir):
            self.create_model_card(model_name=self._model_name)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        dataset_name: str | None = None,
        model_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> Any:
        r"""
        Save, write the card and upload the output folder, as [`~transformers.Trainer.push_to_hub`] does. Checkpoints, a
        merged policy (see [`push`]) and names that begin with `_` stay out.

        Args:
            commit_message, blocking, token, revision, private:
                As in [`~transformers.Trainer.push_to_hub`].
            dataset_name, model_name, tags:
                Of the model card.

        Returns:
            The commit; with `blocking=False` its [`~concurrent.futures.Future`]; nothing on other than the main process.

        Raises:
            PushError: If the upload fails; everything is saved by then.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        # Before anything that needs the network.
        self.save_model(_internal_call=True)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        if not self.is_world_process_zero():
            return None
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        tags += [tag for tag in getattr(self.model, "model_tags", None) or [] if tag not in tags]
        self.create_model_card(model_name, dataset_name, tags)
        self._finish_current_push()
        revision = revision or self.args.hub_revision
        in_background: Any = not blocking
        try:
            pushed: Any = HfApi().upload_folder(
                repo_id=self.hub_model_id,
                folder_path=self.args.output_dir,
                commit_message=commit_message,
                token=token,
                run_as_future=in_background,
                ignore_patterns=list(_IGNORED),
                revision=revision,
            )
        except _UPLOAD_ERRORS as error:
            message = _failed(self, error, str(self.hub_model_id), str(self.args.output_dir), token, revision)
            raise PushError(message) from _cause(self, error, token)
        if isinstance(pushed, Future):
            pushed.add_done_callback(self._look_at_push)
        return pushed

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        before = list(self.push_in_progress.jobs) if getattr(self, "push_in_progress", None) else []
        critic = Path(checkpoint_folder) / CRITIC_FOLDER
        pushes = self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END
        if pushes and critic.is_dir():
            shutil.copytree(critic, Path(self.args.output_dir) / CRITIC_FOLDER, dirs_exist_ok=True)
        super()._push_from_checkpoint(checkpoint_folder)
        jobs = self.push_in_progress.jobs if getattr(self, "push_in_progress", None) else []
        for job in jobs:
            if not any(job is known for known in before):
                job.add_done_callback(self._look_at_push)

    def _look_at_push(self, job: Future) -> None:
        error = None if job.cancelled() else job.exception()
        if error is not None:
            logger.warning(
                f"A push to {self.hub_model_id} in the background failed: {_reason(self, error)} Training goes on and its "
                "checkpoints are on the disk; the next push sends what is missing."
            )

    # ---- Card -------------------------------------------------------------------------------------------------------

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write `README.md` in the output folder: the card of the run, and TRL's sections on procedure and citations.

        Args:
            model_name (`str`, *optional*): Name in the title.
            dataset_name (`str`, *optional*): Dataset on the Hub; remembered for later cards of this run.
            tags (`str` or `list[str]`, *optional*): Further tags.
        """
        self._dataset_name = dataset_name if is_on_hub(dataset_name) else self._dataset_name
        super().create_model_card(model_name or self._model_name, self._dataset_name, tags)
        if self.is_world_process_zero():
            path = os.path.join(self.args.output_dir, "README.md")
            try:
                _complete(path, model_name or self._model_name, self._card())
            except Exception:
                # It is written at every checkpoint too, and must not cost one.
                logger.exception("The model card is TRL's alone: ours failed. Please report this.")


def push(trainer: Any, dataset_name: str | None = None, merged: str | None = None) -> str | None:
    """
    Push at the end of a program, which other processes wait for.

    Args:
        trainer ([`~transformers.Trainer`]): One of ours or of TRL's, whose model is saved.
        dataset_name (`str`, *optional*): What it was trained on; named in the card where it is on the Hub.
        merged (`str`, *optional*):
            Folder of the merged policy, for a repository of its own, with `-merged` after its name: of a subfolder beside
            an adapter, `from_pretrained` would load the adapter's base.

    Returns:
        `str`: what went wrong and how to retry, to end the program with; `None` if nothing did.
    """
    places = [(str(trainer.hub_model_id), str(trainer.args.output_dir))]
    places += [(f"{trainer.hub_model_id}{MERGED_SUFFIX}", merged)] if merged else []
    try:
        trainer.push_to_hub(dataset_name=dataset_name if is_on_hub(dataset_name) else None)
        if merged and trainer.is_world_process_zero():
            del places[0]
            _push_merged(trainer, *places[0])
    except PushError as error:
        return "\n".join([str(error), *(_command(trainer, *place) for place in places[1:])])
    except _HUB_ERRORS as error:
        return _failed(trainer, error, *places[0])
    return None


def _push_merged(trainer: Any, repository: str, folder: str) -> None:
    card = ModelCard.load(os.path.join(trainer.args.output_dir, "README.md"))
    before, heading, after = card.text.partition(LOADING_HEADING)
    _, following, rest = after.partition("\n## ")
    card.text = f"{before}{heading}\n\n{trainer._loading_code(repository)}\n{following}{rest}"
    card.data.library_name = "transformers"
    card.save(os.path.join(folder, "README.md"))
    curves = Path(trainer.args.output_dir) / CURVES_FILE
    if curves.is_file():
        shutil.copy(curves, folder)
    api, args = HfApi(token=trainer.args.hub_token), trainer.args
    api.create_repo(repository, private=args.hub_private_repo, exist_ok=True)
    api.upload_folder(
        repo_id=repository, folder_path=folder, commit_message="Merged policy", revision=args.hub_revision
    )


def _failed(
    trainer: Any,
    error: BaseException,
    repository: str,
    folder: str,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    return (
        f"The push to {repository} failed: {_reason(trainer, error, token)} Nothing is lost, the model is saved in "
        f"{folder!r}. Retry with:\n{_command(trainer, repository, folder, revision)}"
    )


def _command(trainer: Any, repository: str, folder: str, revision: str | None = None) -> str:
    command = ["hf", "upload", repository, folder, "."]
    command += [part for pattern in _IGNORED for part in ("--exclude", pattern)]
    # Only where the repository is still to be made; it would be a public one.
    command += ["--private"] if trainer.args.hub_private_repo else []
    revision = revision or trainer.args.hub_revision
    return shlex.join([*command, *(("--revision", revision) if revision else ())])


def _reason(trainer: Any, error: BaseException, token: str | None = None) -> str:
    """The error in a sentence, without tokens."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = cut(without_tokens(text, token, trainer.args.hub_token), _LONGEST_REASON)
    return text if text.endswith(".") else f"{text}."


def _cause(trainer: Any, error: BaseException, token: str | None) -> BaseException | None:
    """The error, for the traceback, unless it quotes a token."""
    return error if without_tokens(str(error), token, trainer.args.hub_token) == str(error) else None


def _complete(path: str, name: str, card: Card) -> None:
    """Put what a run has to say into the card that TRL wrote."""
    written = ModelCard.load(path)
    _, training, rest = written.text.partition(_TRAINING_SECTION)
    versions = "".join(f"- {package}: {version}\n" for package, version in card.versions.items())
    for marker, addition in ((_VERSIONS, versions), (_CITATIONS, f"{CITATION}\n\n")):
        before, found, after = rest.partition(marker)
        if not (training and found):
            raise RuntimeError(f"TRL's model card has no {marker!r}; this release knows the one of TRL 1.16.")
        rest = f"{before}{addition}{found}{after}"
    written.text = "\n\n".join([f"\n# Model Card for {name}", *card.sections, training + rest])
    # `licence` is no field of a card; the value that TRL gives it is a placeholder.
    written.data.__dict__.pop("licence", None)
    if not is_on_hub(written.data.base_model):
        written.data.base_model = None
    for field, value in card.metadata.items():
        setattr(written.data, field, value)
    written.save(path)


def is_on_hub(name: Any) -> bool:
    """Whether it can be the id of a repository: a local path cannot, and the Hub refuses a card that names one."""
    if not isinstance(name, str) or os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
