"""What the repositories of a series hold, asked of the Hub: one request for the names, one for each new revision."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from tenacity import Retrying

from sih.checkpoints.audit import Audit, HubFile, Revision, examine
from sih.checkpoints.known import Known
from sih.checkpoints.naming import Naming
from sih.checkpoints.retries import METADATA_TIMEOUT, why
from sih.errors import SihError, first_line

# audited(revisions read, revisions in all): called while the audit reads.
Audited = Callable[[int, int], None]
_THREADS = 8


@dataclass(frozen=True)
class HubSeries:
    """One training run on the Hub.

    Args:
        repos: its repositories. A step that several have is taken from the first of them.
        naming: how their branches and tags name the steps.
        main: what the first repository's branch main holds: `last` (the last step), a step, or None when it is not
            compared.
        grid: steps that are known to exist.
    """

    repos: tuple[str, ...]
    naming: Naming
    main: str | int | None = None
    grid: tuple[int, ...] = ()


class Asking:
    """Asks the Hub about a series, and keeps the answers in `folder`, one file for each repository."""

    def __init__(
        self, series: HubSeries, folder: Path, api: huggingface_hub.HfApi, retry: Retrying, stopped: threading.Event
    ) -> None:
        self.series, self.folder, self.api, self.retry, self.stopped = series, folder, api, retry, stopped

    def audit(self, offline: bool, audited: Audited) -> Audit:
        """The audit of all repositories.

        Raises:
            SihError: a repository cannot be read, or was never read and may not be now; or none has a checkpoint.
        """
        series = self.series
        known = {repo: self._known(repo, offline, audited) for repo in series.repos}
        revisions: dict[int, Revision] = {}
        again: dict[int, Revision] = {}
        unread: dict[int, str] = {}
        for repo, of_repo in known.items():
            for step, name in self._steps(repo, of_repo).items():
                commit = of_repo.commits[name]
                if commit not in of_repo.files:
                    unread.setdefault(step, of_repo.refused.get(commit, "never read"))
                    continue
                found = Revision(step, commit, of_repo.files[commit], name, repo)
                (again if step in revisions else revisions)[step] = found
        unread = {step: reason for step, reason in unread.items() if step not in revisions}
        if not revisions and not unread:
            names = [name for of_repo in known.values() for name in of_repo.commits]
            raise SihError(f"{' and '.join(series.repos)}: {series.naming.none_of(names, 'branches and tags')}")
        main = None if isinstance(series.main, int) else self._main(known[series.repos[0]])
        ordered = dict(sorted(revisions.items()))
        return examine(Audit(series.repos, ordered, main, unread, series.grid, again=again), series.main == "last")

    def _main(self, known: Known) -> Revision | None:
        commit = known.commits.get("main")
        return (
            Revision(None, commit, known.files[commit], "main", self.series.repos[0]) if commit in known.files else None
        )

    def _steps(self, repo: str, known: Known) -> dict[int, str]:
        """The branch or tag of each step."""
        found = self.series.naming.by_step(known.commits, repo)
        if isinstance(self.series.main, int) and "main" in known.commits and repo == self.series.repos[0]:
            found.setdefault(self.series.main, "main")
        return found

    def _known(self, repo: str, offline: bool, audited: Audited) -> Known:
        """What is known of a repository, brought up to date unless offline."""
        kept = self.folder / f"{repo.replace('/', '--')}.json"
        known = Known.read(kept)
        if offline:
            if not known.commits:
                raise SihError(
                    f"{repo} was never read on this machine and HF_HUB_OFFLINE is set; unset it once, "
                    "or use model=local"
                )
            return known
        known.commits = self._commits(repo)
        try:
            self._read(repo, known, audited)
        finally:
            known.write(kept)  # what was read is not asked for again
        return known

    def _read(self, repo: str, known: Known, audited: Audited) -> None:
        """The files of every wanted commit that was not read before, a few at a time.

        Raises:
            SihError: the Hub does not answer, or main cannot be read, which the last step is compared with.
        """
        names = [*self._steps(repo, known).values(), *({"main"} & known.commits.keys())]
        unread = [c for c in dict.fromkeys(known.commits[name] for name in names) if c not in known.files]
        pool = ThreadPool(_THREADS)  # its threads are daemons: an unanswered request holds up nobody who leaves
        try:
            files = pool.imap(lambda commit: self._files(repo, commit), unread)
            for done, (commit, found) in enumerate(zip(unread, files, strict=True), 1):
                if isinstance(found, str):
                    known.refused[commit] = found
                else:
                    known.files[commit] = found
                audited(done, len(unread))
        except BaseException:
            self.stopped.set()
            raise
        finally:
            pool.terminate()
        main = known.commits.get("main")
        if main in known.refused and self.series.main == "last" and repo == self.series.repos[0]:
            raise SihError(f"{repo}@main: {known.refused[main]}; the last step is compared with it, so try again later")

    def _commits(self, repo: str) -> dict[str, str]:
        """The commit of each branch and tag; a branch goes before a tag of the same name."""
        try:
            refs = self.retry(lambda: self.api.list_repo_refs(repo))
        except (HTTPError, OSError, ValueError) as error:
            raise SihError(why(repo, error)) from None
        return {ref.name: ref.target_commit for ref in [*refs.tags, *refs.branches]}

    def _files(self, repo: str, commit: str) -> tuple[HubFile, ...] | str:
        """The files of one commit, or why the Hub refuses this one."""
        try:
            found = self.retry(
                lambda: self.api.model_info(repo, revision=commit, files_metadata=True, timeout=METADATA_TIMEOUT)
            )
        except HfHubHTTPError as error:
            return first_line(error)
        except (HTTPError, OSError, ValueError) as error:
            raise SihError(why(f"{repo}@{commit[:12]}", error)) from None
        return tuple(
            HubFile(f.rfilename, int(f.size or 0), f.lfs.sha256 if f.lfs else None, str(f.blob_id))
            for f in found.siblings or []
        )
