"""Imported once by the process that decoding processes are forked from; see `diffmavil.data.loader`.

It must outlive a scheduler's SIGTERM to all processes of a job, while the main process saves its work. It ends by
itself when the main process is gone.
"""

import signal
import warnings

import diffmavil.data.dataset

__all__ = ["diffmavil"]

signal.signal(signal.SIGTERM, signal.SIG_IGN)
# The server has imported the main module under its own name, so that workers, which run it as __mp_main__, are quick.
warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package", category=RuntimeWarning)
