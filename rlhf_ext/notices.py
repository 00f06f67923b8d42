"""Notices of other packages that would be printed with every command and say nothing of use."""

import logging

_BITSANDBYTES = "bitsandbytes.backends.cpu.ops"
_NO_KERNELS = "Failed to load CPU gemm_4bit_forward from kernels-community: %s"


def hide_missing_kernels() -> None:
    """
    Keep bitsandbytes from saying, in every process and wherever it or peft is imported, that the package `kernels` is not
    installed: a faster product of 4-bit weights on some CPUs, which nobody asked for. Kernels that are installed and fail
    to load are still said.
    """
    logging.getLogger(_BITSANDBYTES).addFilter(_says_more)


def _says_more(record: logging.LogRecord) -> bool:
    error = record.args[0] if isinstance(record.args, tuple) and record.args else None
    is_missing = isinstance(error, ModuleNotFoundError) and error.name == "kernels"
    return not (is_missing and str(record.msg).startswith(_NO_KERNELS))
