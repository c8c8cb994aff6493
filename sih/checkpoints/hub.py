"""Checkpoints of a training run on the Hugging Face Hub, one git revision each, through the official client.

Files go into a private cache of bounded size and are checked against the Hub's hashes before anything reads them.
No label is trusted by itself: see audit.py.
"""

import hashlib
import os
import threading
from collections.abc import Generator
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import disable_progress_bars, logging, tqdm

from sih.checkpoints import Checkpoint, Needless, Waiting
from sih.checkpoints.ahead import made_ahead
from sih.checkpoints.audit import HubFile, Revision
from sih.checkpoints.cache import Cache
from sih.checkpoints.files import Sha256
from sih.checkpoints.retries import client, out_of_reach, retrying, why
from sih.checkpoints.revisions import Asking, Audited, HubSeries
from sih.config import CheckpointsConfig, bytes_of, readable_bytes
from sih.errors import CheckpointError, SihError, first_line

_UNREACHED_IN_A_ROW = 3


class _Stopped(Exception):
    """The sweep has left; raised inside a download to end it."""


class HubModel:
    """The revisions of `series`, audited.

    Args:
        folder: sih's cache folder; weights go to `folder/hub`, what the audit read to `folder/audits`.
        hashes: where sha256s are remembered, so that no file is read twice.
        audited: called with the audit's progress.
        endpoint: the Hub's address; None for HF_ENDPOINT or the public one.

    Raises:
        SihError: no such repository, gated, unreachable, without checkpoints, with two of one step, or offline
            without an earlier audit.
    """

    def __init__(
        self,
        series: HubSeries,
        folder: Path,
        options: CheckpointsConfig,
        hashes: Sha256,
        audited: Audited = lambda done, total: None,
        endpoint: str | None = None,
    ) -> None:
        self.options, self.hashes = options, hashes
        self.cache = Cache(folder, bytes_of(options.disk_budget))
        self.offline = constants.is_offline_mode()
        self.api = huggingface_hub.HfApi(endpoint=endpoint)  # which finds the user's token itself
        huggingface_hub.set_client_factory(client)
        if "HF_HUB_DISABLE_XET" not in os.environ:
            constants.HF_HUB_DISABLE_XET = True  # plain HTTP: its failures are known, and it keeps no second cache
        disable_progress_bars()  # the sweep's own bar says what is being fetched,
        logging.set_verbosity_error()  # and the client's retries are not for the user
        self._stopped = threading.Event()
        self._fetching: HubFile | None = None
        self._there, self._total = 0, 0  # bytes of the checkpoint being fetched
        self._unreached = 0  # checkpoints in a row for which the Hub did not answer
        retry = retrying(options.attempts, options.first_wait, self._stopped)
        asking = Asking(series, folder / "audits", self.api, retry, self._stopped)
        self.audit = asking.audit(self.offline, audited)
        self.steps = self.audit.steps
        self.suspect = self.audit.suspect

    @property
    def tokenizer(self) -> str:
        found: list[HubFile] = next((r.tokenizer for r in self.audit.revisions.values() if r.tokenizer), [])
        return " ".join(file.sha256 or f"git {file.git_sha1}" for file in found)

    def stream(
        self, steps: list[int], waiting: Waiting, needless: Needless | None = None
    ) -> Generator[tuple[int, Checkpoint | CheckpointError | None]]:
        """Fetches up to `ahead` checkpoints beyond the one in use; see `Source.stream`."""
        self._check(steps)
        self.cache.clear_broken()
        self._stopped = threading.Event()
        try:
            yield from made_ahead(
                steps,
                lambda step: None if needless is not None and needless(step) else self._fetch(step),
                self.options.ahead,
                self.cache.release,
                self._stopped,
                lambda step: waiting(step, self._there, self._total),
            )
        finally:
            if self._fetching:  # a download that has not noticed yet that it was stopped
                self.cache.forget(self._fetching)
            for step in steps:  # what was fetched ahead and never asked for
                self.cache.release(step)

    def changed(self, step: int, weights_sha256: dict[str, str], weights_files: dict[str, list[int]]) -> str | None:
        if step in self.audit.unread:
            return None
        now = {f.name: f.sha256 for f in self.audit.revisions[step].weights}
        return None if now == weights_sha256 else "the Hub's weights of that revision now have another sha256"

    # Fetching, in the background thread.

    def _check(self, steps: list[int]) -> None:
        """Refuse what cannot work before fetching anything: too small a budget, or files missing while offline."""
        wanted = {step: self.audit.revisions[step] for step in steps if step not in self.audit.unread}
        if self.offline:
            gone = [str(step) for step, r in wanted.items() if not self.cache.has(r)]
            if gone:
                raise SihError(
                    f"HF_HUB_OFFLINE is set and the cache lacks {self.audit.repo} at steps "
                    f"{', '.join(gone[:8])}{f' and {len(gone) - 8} more' if len(gone) > 8 else ''}; "
                    "unset it to fetch them, or choose other steps"
                )
        largest = max(wanted.values(), key=lambda r: r.bytes, default=None)
        if largest is not None and largest.bytes > self.cache.budget:
            raise SihError(
                f"checkpoints.disk_budget={self.options.disk_budget} is less than one checkpoint: "
                f"{largest.repo}@{largest.name} has {readable_bytes(largest.bytes)}. "
                f"With {readable_bytes(2 * largest.bytes)} or more, the next one is fetched ahead"
            )

    def _fetch(self, step: int) -> Checkpoint | CheckpointError:
        if reason := self.audit.unread.get(step):
            return CheckpointError(
                f"{self.audit.repo}: the Hub does not list the files of step {step} ({reason}); try again later"
            )
        wanted = self.audit.revisions[step]
        name = f"{wanted.repo}@{wanted.name}"
        self._there, self._total = 0, wanted.bytes
        try:
            if not wanted.weights:
                raise CheckpointError(
                    f"{name}: no weights in the revision; expected .safetensors or pytorch_model*.bin"
                )
            self.cache.pin(step, wanted.commit)
            self.cache.make_room(step, wanted, self._stopped.is_set)
            for file in wanted.wanted:
                path = self._proven(wanted, file)
        except CheckpointError as error:
            self.cache.release(step)
            return error
        except (HTTPError, OSError) as error:
            self.cache.release(step)
            self._unreached = self._unreached + 1 if out_of_reach(error) else 0
            if self._unreached == _UNREACHED_IN_A_ROW:
                raise SihError(
                    f"the Hub was out of reach for {self._unreached} checkpoints in a row, the last {name} "
                    f"({first_line(error)}); the same command continues from here"
                ) from None
            return CheckpointError(why(name, error))
        self._unreached = 0
        return Checkpoint(step, path.parent, wanted.name, wanted.commit, wanted.repo)

    def _proven(self, wanted: Revision, file: HubFile) -> Path:
        """Fetch one file and check it against the Hub's hash; a wrong one is fetched a second time."""
        before = self._there
        for _ in range(2):
            self._there = before
            path = self._download(wanted, file)
            self._there = before + file.size
            if self._has_hash(path, file):
                return path
            blob = path.resolve()
            path.unlink()
            blob.unlink()
        self.cache.clear_broken()  # other revisions may link to the same file
        raise CheckpointError(
            f"{wanted.repo}@{wanted.name}: {file.name} was fetched twice and does not have the sha256 that the Hub "
            "gives; something on the way changes it, such as a proxy or a broken disk"
        )

    def _has_hash(self, path: Path, file: HubFile) -> bool:
        if path.stat().st_size != file.size:
            return False
        if file.sha256 is not None:
            return self.hashes.of(path) == file.sha256
        git_blob = hashlib.sha1(f"blob {file.size}\0".encode() + path.read_bytes())
        return git_blob.hexdigest() == file.git_sha1

    def _download(self, wanted: Revision, file: HubFile) -> Path:
        before = self._there

        class Counted(tqdm):
            """The client's progress bar: counts here, and ends the download when the sweep has left."""

            def __init__(bar, *args, **kwargs) -> None:
                self._fetching = file  # from here on it is this process that writes it
                super().__init__(*args, **kwargs)

            def update(bar, n: float | None = 1) -> bool | None:
                if self._stopped.is_set():
                    raise _Stopped
                self._there += int(n or 0)
                return super().update(n)

        def download() -> str:
            self._there = before
            try:
                return huggingface_hub.hf_hub_download(
                    wanted.repo,
                    file.name,
                    revision=wanted.commit,
                    cache_dir=self.cache.hub,
                    endpoint=self.api.endpoint,
                    tqdm_class=Counted,
                )
            finally:
                self._fetching = None

        return Path(retrying(self.options.attempts, self.options.first_wait, self._stopped)(download))
