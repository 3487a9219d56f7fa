"""What holds for all tests."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# The same commit has the same result, on every machine. HYPOTHESIS_PROFILE=default looks for new examples.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# In a shell's background, or under nohup, these are ignored, and so they would be by every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
