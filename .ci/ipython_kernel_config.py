"""Goes to .venv/etc/ipython: kernels are started by papermill on this machine and talk to it through 127.0.0.1 only."""

import logging


def _not_about_eavesdropping(record):
    return "eavesdropping" not in record.getMessage()


logging.getLogger("IPKernelApp").addFilter(_not_about_eavesdropping)
