"""Handlers that Ray installs are gone afterwards."""

import os
import signal
import threading
from types import FrameType

import pytest

from effnet_ray.runtime import signal_handlers


def replacement(number: int, frame: FrameType | None) -> None:
    """What Ray Tune does with the first Ctrl-C."""


def replace() -> None:
    with signal_handlers.restored(signal.SIGINT):
        signal.signal(signal.SIGINT, replacement)
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_interrupts_again() -> None:
    replace()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_which_has_no_handlers_is_left_alone() -> None:
    done = list[bool]()

    def enter() -> None:
        with signal_handlers.restored(signal.SIGINT):
            done.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
