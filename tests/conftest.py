"""Puts this directory on the import path, so that every suite can use the modules it shares with others."""

import signal

# A shell starts its background jobs with SIGINT ignored, and children inherit that: no Ctrl-C would reach
# the programs that the tests interrupt, and the tests would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
