"""transformers without its own progress bars and reports."""

from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers():
    """Silence transformers' own bars and load reports; the caller checks what they would say."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
