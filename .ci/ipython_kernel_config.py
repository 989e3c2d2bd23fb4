"""Goes to .venv/etc/ipython: two messages of the kernels that papermill starts are of no use to a reader."""

import logging


def _of_use(record):
    "Not the warning that 127.0.0.1 is not encrypted, nor that a stopped kernel can no longer answer."
    error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
    return "eavesdropping" not in record.getMessage() and error != "ZMQError"


logging.getLogger("IPKernelApp").addFilter(_of_use)
