"""How much of the machine this process claims beside others: CPU and disk.

Source: Linux's setpriority(2) and ioprio_set(2). Both count for one thread, and for
threads and processes that it starts afterwards; libraries may have started some before.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform

from pgrecall.errors import SettingsError

# ioprio_set has no function in the C library. Source: the kernel's tables of system calls.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "ppc64le": 273, "s390x": 282, "riscv64": 30}
_WHO_PROCESS = 1
_CLASS_SHIFT = 13
_BEST_EFFORT, _IDLE = 2, 3
_LOWEST_LEVEL = 7
_IO = {"low": _BEST_EFFORT << _CLASS_SHIFT | _LOWEST_LEVEL, "idle": _IDLE << _CLASS_SHIFT}


def lower_priority(nice: int, io: str) -> None:
    """Give way to others; it cannot be taken back.

    ``nice``: 0 to 19, what the process has is not raised. ``io``: ``normal`` leaves it as it is,
    ``low`` is the last of the normal class, ``idle`` only what nobody else wants (as far as the
    disk's scheduler heeds it). Raises SettingsError.
    """
    if nice:
        for thread in _threads():
            # One that has ended since it was listed claims nothing.
            with contextlib.suppress(ProcessLookupError):
                if nice > os.getpriority(os.PRIO_PROCESS, thread):
                    os.setpriority(os.PRIO_PROCESS, thread, nice)
    if io != "normal":
        _lower_io(io)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _lower_io(io: str) -> None:
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        raise SettingsError(
            f"the priority of disk accesses cannot be set on {platform.machine()}",
            hint="set io_priority to normal, or start pgrecall by ionice",
        )
    library = ctypes.CDLL(None, use_errno=True)
    for thread in _threads():
        if library.syscall(number, _WHO_PROCESS, thread, _IO[io]) == 0:
            continue
        if ctypes.get_errno() != errno.ESRCH:
            raise SettingsError(
                f"the priority of disk accesses cannot be set: {os.strerror(ctypes.get_errno())}",
                hint="set io_priority to normal",
            )
