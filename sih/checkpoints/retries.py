"""Asking again, with an end: which errors of the Hub pass by themselves, and how long to wait."""

import email.utils
import threading
from datetime import UTC, datetime

from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
)

LONGEST_WAIT = 300.0  # seconds; a server that asks for more is taken as having refused


def passes(error: BaseException) -> bool:
    """Whether asking again may help: 408, 429, 5xx, connections refused, reset or stalled, and short bodies."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or status >= 500
    if isinstance(error, LocalEntryNotFoundError):  # the client's word for: the first request of a file failed
        return error.__cause__ is not None and passes(error.__cause__)
    if isinstance(error, HTTPError):
        return True
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def retry_after(error: BaseException | None) -> float:
    """Seconds that the server asked to wait, 0 when it did not."""
    if isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__
    asked = error.response.headers.get("Retry-After") if isinstance(error, HfHubHTTPError) else None
    if asked is None:
        return 0.0
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def retrying(attempts: int, first_wait: float, stopped: threading.Event) -> Retrying:
    """Calls that fail in passing are made again, after `first_wait` seconds, then twice as long each time."""
    growing = wait_exponential(multiplier=first_wait, max=60)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(growing(state), min(retry_after(error), LONGEST_WAIT))

    return Retrying(
        retry=retry_if_exception(passes),
        wait=wait,
        stop=stop_after_attempt(attempts) | stop_when_event_set(stopped),
        sleep=sleep_using_event(stopped),
        reraise=True,
    )
