"""What holds for all suites: programs that tests start find what the tests find, and can be interrupted."""

import os
import signal
import sys

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))

# A shell starts its background jobs with SIGINT ignored, and children inherit that: no Ctrl-C would reach
# the programs that the tests interrupt, and the tests would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
