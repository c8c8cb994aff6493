"""Checkpoints of a Hugging Face Hub repository: one git revision step{N} each, through the real client."""

import os
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from sih.checkpoints import Checkpoint
from sih.checkpoints.schedule import revision, step_of
from sih.errors import CheckpointError, SihError

_CONFIG_AND_TOKENIZER = ["config.json", "tokenizer.json"]


class HubModel:
    """The revisions step{N} of `repo`, fetched one at a time into `cache`."""

    def __init__(self, repo: str, cache: Path) -> None:
        self.repo, self.cache = repo, cache
        # An empty token would be an illegal header.
        self.api = huggingface_hub.HfApi(token=os.environ.get("HF_TOKEN") or None)
        try:
            refs = self.api.list_repo_refs(repo)
        except GatedRepoError:
            raise SihError(
                f"{repo} is gated: accept its terms on the Hub, then `hf auth login` or set HF_TOKEN"
            ) from None
        except RepositoryNotFoundError:
            raise SihError(
                f"{repo}: no such repository on the Hub, or a private one; `hf auth login` if it is"
            ) from None
        except (HTTPError, OfflineModeIsEnabled, OSError) as error:
            raise SihError(_unreachable(repo, error)) from None
        self.commits = {s: ref.target_commit for ref in refs.branches if (s := step_of(ref.name)) is not None}
        self.steps = sorted(self.commits)
        if not self.steps:
            raise SihError(f"{repo}: no branches named step{{N}}; expected one for each checkpoint")

    def open(self, step: int) -> Checkpoint:
        disable_progress_bars()  # the sweep's own bar says what is being fetched
        commit = self.commits[step]
        name = f"{self.repo}@{revision(step)}"
        try:
            files = self.api.list_repo_files(self.repo, revision=commit)
            weights = [f for f in files if f.endswith(".safetensors") or f.endswith(".safetensors.index.json")]
            weights = weights or [
                f for f in files if f.startswith("pytorch_model") and f.endswith((".bin", ".bin.index.json"))
            ]
            if not weights:
                raise CheckpointError(
                    f"{name}: the revision has no weights; expected .safetensors or pytorch_model*.bin"
                )
            folder = huggingface_hub.snapshot_download(
                self.repo,
                revision=commit,
                cache_dir=self.cache,
                allow_patterns=[*weights, *_CONFIG_AND_TOKENIZER],
                token=self.api.token,
            )
        except (RevisionNotFoundError, EntryNotFoundError) as error:
            raise CheckpointError(f"{name}: {_first_line(error)}") from None
        except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            raise CheckpointError(_unreachable(name, error)) from None
        return Checkpoint(step, Path(folder), revision(step), commit)


def _unreachable(name: str, error: Exception) -> str:
    return f"{name}: the Hub cannot be reached or refused ({_first_line(error)}); try again, or use model=local"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
