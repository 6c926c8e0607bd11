"""A polite kill cleans up as Ctrl-C does."""

import os
import signal

import pytest

from mvl.core.stopping import stoppable


def test_a_polite_kill_unwinds_as_ctrl_c_does():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
