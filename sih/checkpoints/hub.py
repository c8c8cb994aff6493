"""Checkpoints of a Hugging Face Hub repository, one git revision step{N} each, through the official client.

Files go into a private cache of bounded size and are checked against the Hub's hashes before anything reads them.
No label is trusted by itself: see audit.py.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Generator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import constants
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
from huggingface_hub.utils import disable_progress_bars, logging, tqdm

from sih.checkpoints import Checkpoint, Needless, Waiting
from sih.checkpoints.ahead import made_ahead
from sih.checkpoints.audit import Audit, HubFile, Revision, examine
from sih.checkpoints.cache import Cache
from sih.checkpoints.files import Sha256
from sih.checkpoints.known import Known
from sih.checkpoints.retries import METADATA_TIMEOUT, cause_of, client, out_of_reach, retrying
from sih.checkpoints.schedule import revision, step_of
from sih.config import CheckpointsConfig, bytes_of, readable_bytes
from sih.errors import CheckpointError, SihError, first_line

Result = TypeVar("Result")
# audited(revisions read, revisions in all): called while the audit reads.
Audited = Callable[[int, int], None]
_AUDIT_THREADS = 8
_UNREACHED_IN_A_ROW = 3


class _Stopped(Exception):
    """The sweep has left; raised inside a download to end it."""


class HubModel:
    """The revisions step{N} of `repo`, audited.

    Args:
        folder: sih's cache folder; weights go to `folder/hub`, what the audit read to `folder/audits`.
        hashes: where sha256s are remembered, so that no file is read twice.
        audited: called with the audit's progress.
        endpoint: the Hub's address; None for HF_ENDPOINT or the public one.

    Raises:
        SihError: no such repository, gated, unreachable, without steps, or offline without an earlier audit.
    """

    def __init__(
        self,
        repo: str,
        folder: Path,
        options: CheckpointsConfig,
        hashes: Sha256,
        audited: Audited = lambda done, total: None,
        endpoint: str | None = None,
    ) -> None:
        self.repo, self.options, self.hashes = repo, options, hashes
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
        self.audit = self._audit(folder / "audits" / f"{repo.replace('/', '--')}.json", audited)
        self.steps = self.audit.steps
        self.suspect = self.audit.suspect

    @property
    def tokenizer(self) -> str:
        for wanted in self.audit.revisions.values():
            for file in wanted.files:
                if file.name == "tokenizer.json":
                    return file.sha256 or f"git {file.git_sha1}"
        return ""

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

    # The audit: one request for the branches, one for each revision that was not read before.

    def _audit(self, kept: Path, audited: Audited) -> Audit:
        known = Known.read(kept)
        if self.offline:
            if not known.commits:
                raise SihError(
                    f"{self.repo} was never read on this machine and HF_HUB_OFFLINE is set; "
                    "unset it once, or use model=local"
                )
        else:
            known.commits = self._commits()
            try:
                self._read(known, audited)
            finally:
                known.write(kept)  # what was read is not asked for again
        commits = {step: commit for step, commit in known.commits.items() if step is not None}
        revisions = {s: Revision(s, c, known.files[c]) for s, c in sorted(commits.items()) if c in known.files}
        unread = {s: known.refused.get(c, "never read") for s, c in commits.items() if s not in revisions}
        head = known.commits.get(None)
        return examine(self.repo, revisions, Revision(None, head, known.files[head]) if head else None, unread)

    def _read(self, known: Known, audited: Audited) -> None:
        """The files of every commit that was not read before, a few at a time.

        Raises:
            SihError: the Hub does not answer, or main cannot be read, which the last step is compared with.
        """
        unread = [c for c in dict.fromkeys(known.commits.values()) if c not in known.files]
        pool = ThreadPool(_AUDIT_THREADS)  # its threads are daemons: an unanswered request holds up nobody who leaves
        try:
            for done, (commit, files) in enumerate(zip(unread, pool.imap(self._files, unread), strict=True), 1):
                if isinstance(files, str):
                    known.refused[commit] = files
                else:
                    known.files[commit] = files
                audited(done, len(unread))
        except BaseException:
            self._stopped.set()
            raise
        finally:
            pool.terminate()
        if (main := known.commits.get(None)) in known.refused:
            raise SihError(
                f"{self.repo}@main: {known.refused[main]}; the last step is compared with it, so try again later"
            )

    def _commits(self) -> dict[int | None, str]:
        """The commit of each step's branch; None stands for main."""
        try:
            refs = self._asked(lambda: self.api.list_repo_refs(self.repo))
        except (HTTPError, OSError, ValueError) as error:
            raise SihError(_why(self.repo, error)) from None
        found: dict[int | None, str] = {}
        for ref in refs.branches:
            if ref.name == "main":
                found[None] = ref.target_commit
            elif (step := step_of(ref.name)) is not None:
                found[step] = ref.target_commit
        if not found.keys() - {None}:
            raise SihError(f"{self.repo}: no branches named step{{N}}; expected one for each checkpoint")
        return found

    def _files(self, commit: str) -> tuple[HubFile, ...] | str:
        """The files of one commit, or why the Hub refuses this one."""
        try:
            found = self._asked(
                lambda: self.api.model_info(self.repo, revision=commit, files_metadata=True, timeout=METADATA_TIMEOUT)
            )
        except HfHubHTTPError as error:
            return first_line(error)
        except (HTTPError, OSError, ValueError) as error:
            raise SihError(_why(f"{self.repo}@{commit[:12]}", error)) from None
        return tuple(
            HubFile(f.rfilename, int(f.size or 0), f.lfs.sha256 if f.lfs else None, str(f.blob_id))
            for f in found.siblings or []
        )

    def _asked(self, call: Callable[[], Result]) -> Result:
        return retrying(self.options.attempts, self.options.first_wait, self._stopped)(call)

    # Fetching, in the background thread.

    def _check(self, steps: list[int]) -> None:
        """Refuse what cannot work before fetching anything: too small a budget, or files missing while offline."""
        wanted = {step: self.audit.revisions[step] for step in steps if step not in self.audit.unread}
        if self.offline:
            gone = [str(step) for step, r in wanted.items() if not self.cache.has(self.repo, r)]
            if gone:
                raise SihError(
                    f"HF_HUB_OFFLINE is set and the cache lacks {self.repo} at steps "
                    f"{', '.join(gone[:8])}{f' and {len(gone) - 8} more' if len(gone) > 8 else ''}; "
                    "unset it to fetch them, or choose other steps"
                )
        step, largest = max(wanted.items(), key=lambda item: item[1].bytes, default=(0, Revision(None, "", ())))
        if largest.bytes > self.cache.budget:
            raise SihError(
                f"checkpoints.disk_budget={self.options.disk_budget} is less than one checkpoint: "
                f"{self.repo}@{revision(step)} has {readable_bytes(largest.bytes)}. "
                f"With {readable_bytes(2 * largest.bytes)} or more, the next one is fetched ahead"
            )

    def _fetch(self, step: int) -> Checkpoint | CheckpointError:
        name = f"{self.repo}@{revision(step)}"
        if reason := self.audit.unread.get(step):
            return CheckpointError(f"{name}: the Hub does not list its files ({reason}); try again later")
        wanted = self.audit.revisions[step]
        self._there, self._total = 0, wanted.bytes
        try:
            if not wanted.weights:
                raise CheckpointError(
                    f"{name}: no weights in the revision; expected .safetensors or pytorch_model*.bin"
                )
            self.cache.pin(step, wanted.commit)
            self.cache.make_room(self.repo, step, wanted, self._stopped.is_set)
            for file in wanted.wanted:
                path = self._proven(name, wanted.commit, file)
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
            return CheckpointError(_why(name, error))
        self._unreached = 0
        return Checkpoint(step, path.parent, revision(step), wanted.commit)

    def _proven(self, name: str, commit: str, file: HubFile) -> Path:
        """Fetch one file and check it against the Hub's hash; a wrong one is fetched a second time."""
        before = self._there
        for _ in range(2):
            self._there = before
            path = self._download(commit, file)
            self._there = before + file.size
            if self._has_hash(path, file):
                return path
            blob = path.resolve()
            path.unlink()
            blob.unlink()
        self.cache.clear_broken()  # other revisions may link to the same file
        raise CheckpointError(
            f"{name}: {file.name} was fetched twice and does not have the sha256 that the Hub gives; "
            "something on the way changes it, such as a proxy or a broken disk"
        )

    def _has_hash(self, path: Path, file: HubFile) -> bool:
        if path.stat().st_size != file.size:
            return False
        if file.sha256 is not None:
            return self.hashes.of(path) == file.sha256
        git_blob = hashlib.sha1(f"blob {file.size}\0".encode() + path.read_bytes())
        return git_blob.hexdigest() == file.git_sha1

    def _download(self, commit: str, file: HubFile) -> Path:
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
                    self.repo,
                    file.name,
                    revision=commit,
                    cache_dir=self.cache.hub,
                    endpoint=self.api.endpoint,
                    tqdm_class=Counted,
                )
            finally:
                self._fetching = None

        return Path(self._asked(download))


# What the disk says when it is full or may not be written.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def _why(name: str, error: BaseException) -> str:
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
