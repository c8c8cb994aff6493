"""The Hub's errors: which are temporary and how long to wait, and what the others mean."""

import email.utils
import errno
import json
import threading
from datetime import UTC, datetime

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status, parse_ratelimit_headers
from huggingface_hub.utils._http import default_client_factory  # it has no public name
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
)

from sih.errors import first_line

LONGEST_WAIT = 300.0  # seconds; a server that asks for a longer wait counts as refusing
METADATA_TIMEOUT = 20.0  # seconds without an answer to a small request
_ATTEMPTS_AT_THE_CLIENTS = 2  # for requests that the client itself has already repeated


def client() -> httpx2.Client:
    """The Hub client's own session, with a timeout, and with 429 and 5xx left to our retries.

    Without this it waits for ever on small requests, and on some it sleeps as long as a server says, five times over.
    """
    session = default_client_factory()
    session.timeout = httpx2.Timeout(METADATA_TIMEOUT)
    session.event_hooks = {**session.event_hooks, "response": [_refused_at_once]}
    return session


def _refused_at_once(response: httpx2.Response) -> None:
    if response.status_code == 429 or response.status_code >= 500:
        response.read()
        hf_raise_for_status(response)


def cause_of(error: BaseException) -> BaseException:
    """The original error: the client hides the failure of a file's first request behind an error of its own."""
    return error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error


def passes(error: BaseException) -> bool:
    """Whether asking again may help: 408, 429, 5xx, connections refused, reset or stalled, and short bodies."""
    error = cause_of(error)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return (status in (408, 429) or status >= 500) and retry_after(error) <= LONGEST_WAIT
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HTTPError | json.JSONDecodeError):
        return True
    # Another thread's failure made the client close the session that all share.
    closed = isinstance(error, RuntimeError) and "closed" in str(error)
    return closed or (isinstance(error, OSError) and "Consistency check failed" in str(error))


def out_of_reach(error: BaseException) -> bool:
    """Whether nobody answered at all."""
    error = cause_of(error)
    return isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError | OfflineModeIsEnabled)


def retry_after(error: BaseException) -> float:
    """Seconds that the server asked to wait, 0 when it did not."""
    error = cause_of(error)
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    asked = error.response.headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    if asked:
        try:
            return max(0.0, (email.utils.parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            return 0.0
    limit = parse_ratelimit_headers(error.response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0


def retrying(attempts: int, first_wait: float, stopped: threading.Event) -> Retrying:
    """Repeat calls that fail temporarily: after `first_wait` seconds, then after twice as long each time."""
    growing = wait_exponential(multiplier=first_wait, max=60)

    def error_of(state: RetryCallState) -> BaseException:
        error = state.outcome.exception() if state.outcome else None
        assert error is not None  # asked only after a failure
        return error

    def wait(state: RetryCallState) -> float:
        return max(growing(state), retry_after(error_of(state)))

    def repeated(state: RetryCallState) -> bool:
        error = error_of(state)
        return error is not cause_of(error) and out_of_reach(error) and state.attempt_number >= _ATTEMPTS_AT_THE_CLIENTS

    given_up = stop_after_attempt(attempts) | stop_when_event_set(stopped)
    return Retrying(
        retry=retry_if_exception(passes),
        wait=wait,
        stop=lambda state: given_up(state) or repeated(state),
        sleep=sleep_using_event(stopped),
        reraise=True,
    )


# What the disk says when it is full or may not be written.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def why(name: str, error: BaseException) -> str:
    """What the client's error means, and what to do about it."""
    error = cause_of(error)
    first = first_line(error)
    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError, so it comes first
        return f"{name} is gated: accept its terms on the Hub, then `hf auth login` or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"{name}: no such repository on the Hub, or a private one; for a private one, `hf auth login`"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{name}: the Hub requires a valid token; `hf auth login` or set HF_TOKEN ({first})"

    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return f"{name}: not in the cache, and HF_HUB_OFFLINE is set; unset it to fetch"
    if isinstance(error, EntryNotFoundError | RevisionNotFoundError):
        return f"{name}: {first}"
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{name}: cannot be written to this disk ({first}); free room, or set SIH_CACHE to a larger disk"
    return f"{name}: the Hub cannot be reached or refused ({first}); try again, or use model=local"
