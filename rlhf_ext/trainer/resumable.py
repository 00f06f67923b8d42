"""Checkpoints from which a run continues bit for bit."""

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from ..diagnostics import Sample
from ..kl_control import KLController
from .callbacks import DiagnosticsCallback
from .checkpoint import (
    FIXED_SETTINGS,
    STAGING_FOLDER,
    check_beginning,
    check_settings,
    checkpoint_to_resume,
    explained,
    fill_logs,
    is_failed_write,
    load_rollout,
    plain_logs,
    publish,
    read_json,
    rollout_file,
    run_state_file,
    save_json,
    save_rollout,
    write_manifest,
)
from .control import restored_controller, save_controller
from .hub import Card, HubTrainer
from .interruption import SaveOnSigterm
from .levers import Levers
from .model_card import is_chat, loading_code, ppo_card
from .nonfinite import StopOnceSaved
from .out_of_memory import in_phase
from .probe import Probe
from .role_trainer import RoleTrainer


class ResumableTrainer(HubTrainer, RoleTrainer):
    """
    Saves and restores what the parents do not: the KL controller, the current rollout, counters, pending logs, the order
    of the data in later epochs. Checkpoints are complete or absent, and checked before anything is loaded.

    What differs from the parent:

    - `train`: chooses and checks the checkpoint; saves and ends on SIGTERM;
    - `_save_checkpoint`, `_get_output_dir`, `_push_from_checkpoint`: write to a temporary folder, rename, then push;
    - `_get_train_sampler`: keeps the sampler, whose position is restored;
    - `_finalize_training`: loss and seconds are those of the whole run; one that was stopped ends with its best policy.
    """

    kl_controller: KLController | None
    _buffered_inputs: Any
    _probe: Probe | None

    def _init_diagnostics(self) -> None:
        """Watch the run, and with `diagnostics="act"` also keep it going."""
        self.diagnostics = None
        self.ends_with_best = False
        if self.args.diagnostics == "off":
            return
        acts = self.args.diagnostics == "act"
        self.diagnostics = DiagnosticsCallback(self, apply=Levers(self) if acts else None)
        self.add_callback(self.diagnostics)

    def _init_resuming(self, critic: str, model: str) -> None:
        self._critic_kind = critic
        self._begins_with = model
        self._reward_reports: dict[str, dict[str, Any]] = {}
        self._checkpoint: str | None = None
        self._staging: str | None = None
        self._sigterm = SaveOnSigterm(self.accelerator)
        self.add_callback(_RestoreAtBegin(self))
        self.add_callback(self._sigterm)
        self.add_callback(StopOnceSaved(self))

    def _num_rollouts(self) -> int:
        return max(1, self.state.max_steps // self.args.updates_per_rollout)

    @in_phase("update")
    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        r"""
        Trains, and with `resume_from_checkpoint` continues exactly where a checkpoint was saved.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint's folder, or `True` for the newest one in `args.output_dir`.
            trial, ignore_keys_for_eval:
                As in [`~transformers.Trainer.train`].

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: steps, mean loss and metrics of the whole run.

        Raises:
            ValueError: If the checkpoint is damaged, with the name of the file, or cannot be continued by this run.
        """
        self._checkpoint = None
        if resume_from_checkpoint:
            skip = self.args.skip_damaged_checkpoints
            self._checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir, skip)
            check_beginning(self._checkpoint, self._begins_with)
            check_settings(self._checkpoint, self._fixed_settings())
        with self._sigterm.listening():
            return super().train(self._checkpoint, trial, ignore_keys_for_eval)

    def _fixed_settings(self) -> dict[str, Any]:
        plugin = self.accelerator.state.deepspeed_plugin
        sharding = (
            f"zero-{plugin.zero_stage}" if self.is_deepspeed_enabled else "fsdp" if self.is_fsdp_enabled else None
        )
        rows = len(self.train_dataset) if isinstance(self.train_dataset, Dataset) else None
        settings = {name: getattr(self.args, name) for name in FIXED_SETTINGS}
        return {
            "number of processes": self.args.world_size,
            "sharding": sharding,
            "critic": self._critic_kind,
            **settings,
            "rows of the data": rows,
        }

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    # ---- Saving -----------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The upload reads the folder in the background, so it must have its last name.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            self._save_whole(model, trial)
        except Exception as error:
            if is_failed_write(error):
                raise explained(error, self.args.output_dir, self.state.global_step) from error
            raise

    def _save_whole(self, model: nn.Module, trial: Any) -> None:
        run_folder = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging, final = os.path.join(run_folder, STAGING_FOLDER), os.path.join(run_folder, name)
        staged = os.path.join(staging, name)
        if self.args.should_save:
            if os.path.isdir(staging):
                shutil.rmtree(staging)
            os.makedirs(staged)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        if not self.args.save_only_model:
            self._save_run_state(staged)
        if self.diagnostics is not None:
            self.diagnostics.note_quality(staged, self.args, self.state)
        if self.state.best_model_checkpoint == staged:
            self.state.best_model_checkpoint = final
            if self.args.should_save:
                self.state.save_to_json(os.path.join(staged, TRAINER_STATE_NAME))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if not self.args.save_only_model:
                write_manifest(Path(staged), self._fixed_settings(), self._begins_with, run_folder)
            publish(Path(staged), Path(final))
            rotate_checkpoints(
                run_folder, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(final)

    def _save_run_state(self, folder: str) -> None:
        rank = self.args.process_index
        state = {
            "step": self._step,
            "metrics": self._metrics["train"],
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "update_seconds": self._update_seconds,
            "run_seconds": self._seconds_before + time.perf_counter() - self._began,
            "update_is_over": self._update_is_over,
            "steps_left_out": self._steps_left_out,
            "grad_norm": None if self._grad_norm is None else float(self._grad_norm),
            "probe_answers": self._probe.answers if self._probe is not None else [],
            # Of the other processes' tables nothing is ever shown.
            "logs": plain_logs(self._logs) if self.accelerator.is_main_process else None,
        }
        save_json(state, os.path.join(folder, run_state_file(rank)))
        if self._step % self._steps_per_rollout:
            save_rollout(self._buffered_inputs, os.path.join(folder, rollout_file(rank)))
        if self.args.should_save and self.kl_controller is not None:
            save_controller(self.kl_controller, folder)
        if self.diagnostics is not None:
            self.diagnostics.save(folder)

    def _card(self) -> Card:
        return ppo_card(self)

    def _loading_code(self, repository: str) -> str:
        return loading_code(repository, False, is_chat(self), self.args.trust_remote_code)

    # ---- Restoring --------------------------------------------------------------------------------------------------

    def _begin_run(self) -> None:
        """Start counters and logs afresh, whatever an earlier `train` left, or as the checkpoint has them."""
        self._step, self._buffered_inputs = 0, None
        for pending in (self._metrics["train"], self._pending_metrics, self._pending_extra_logs):
            pending.clear()
        self._init_measurements()
        self.update_kl_limit, self.ends_with_best = math.inf, False
        self._seconds_before, self._began = 0.0, time.perf_counter()
        if self._checkpoint is not None:
            self._restore_run_state(self._checkpoint)

    def _restore_run_state(self, folder: str) -> None:
        rank = self.args.process_index
        state = read_json(os.path.join(folder, run_state_file(rank)))
        self._step = state["step"]
        self._metrics["train"].update(state["metrics"])
        self._tr_loss.fill_(state["loss"])
        self._total_loss_scalar = state["total_loss"]
        self._globalstep_last_logged = state["last_logged_step"]
        # The mean loss at the end is that of the whole run.
        self._initial_global_step = 0
        self._update_seconds = state["update_seconds"]
        self._update_is_over, self._steps_left_out = state["update_is_over"], state["steps_left_out"]
        self._grad_norm = state["grad_norm"]
        self._seconds_before = state["run_seconds"]
        if self._probe is not None:
            self._probe.answers = [Sample(*answer) for answer in state.get("probe_answers", [])]
        if state["logs"] is not None:
            fill_logs(self._logs, state["logs"])
        if self._step % self._steps_per_rollout:
            path = os.path.join(folder, rollout_file(rank))
            self._buffered_inputs = load_rollout(path, self.accelerator.device)
        self.kl_controller = restored_controller(self.args, self._num_rollouts(), folder)
        if self.diagnostics is not None:
            self.diagnostics.restore(folder)
            # The main process alone has the state, and every process the limit.
            (self.update_kl_limit,) = broadcast_object_list([self.diagnostics.remediation.update_kl])
        self._restore_sampler()

    def _restore_sampler(self) -> None:
        """Draw the orders of the finished epochs, which all come from one generator."""
        epochs = int(self.state.epoch)
        if isinstance(self.train_dataset, Dataset):
            for _ in range(epochs):
                next(iter(self._train_sampler))
        elif self.state.epoch > 1:
            raise ValueError(
                f"The stream of prompts was read to its end {epochs} times before this checkpoint, and its position "
                "after that is not stored. Resume from a checkpoint of the first pass, or use a `datasets.Dataset`."
            )

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        output = super()._finalize_training(trial, num_train_samples, start_time - self._seconds_before)
        if self.ends_with_best:
            self._load_best_model()
        return output


class _RestoreAtBegin(TrainerCallback):
    """Trainer sets its own counters last thing before this event."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._begin_run()
