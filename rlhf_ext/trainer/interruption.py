"""Saving when the process is asked to end."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveOnSigterm(TrainerCallback):
    """
    On SIGTERM finishes the optimizer step, saves a checkpoint and ends the process with exit code 143.

    Transformers' `enable_jit_checkpoint` is not used: it saves between the backward pass and the optimizer step, which
    cannot be continued exactly, each process by its own clock, and then lets the program go on as if training were done.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Tells all processes when one of them was asked to end.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received = False
        self.stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM while training; afterwards it does again what it did before."""
        self.received = self.stopping = False
        # Python hands signals to the main thread alone, and lets no other thread ask for them.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._receive)
        try:
            yield
        finally:
            # None: the handler was not set from Python.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)

    def _receive(self, signum: int, frame: Any) -> None:
        self.received = True
        if self.accelerator.is_main_process:
            # `print` may be what was interrupted, and cannot be entered twice.
            os.write(2, b"\nAsked to end: saving a checkpoint after this optimizer step.\n")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Agree with the other processes on the step to stop after."""
        if self.received:
            self.received = False
            self.accelerator.set_trigger()
        self.stopping |= self.accelerator.check_trigger()
        control.should_save |= self.stopping
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """End the process once the checkpoint is complete."""
        if not self.stopping:
            return control
        if self.accelerator.is_main_process:
            how = (
                "With save_only_model=True that is the model alone, from which no run can be resumed."
                if args.save_only_model
                else "To go on, run the same again with resume_from_checkpoint=True (on the command line: "
                "--resume_from_checkpoint true)."
            )
            print(f"\nSaved step {state.global_step} in {args.output_dir}. {how}", file=sys.stderr, flush=True)
        self.accelerator.wait_for_everyone()
        raise SystemExit(128 + signal.SIGTERM)
