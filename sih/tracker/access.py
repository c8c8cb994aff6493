"""Whether W&B can be reached with a key. Importing W&B takes two seconds, so it is done only where needed."""

import netrc
import os
from typing import TYPE_CHECKING

from sih.config import TrackerConfig
from sih.errors import SihError, first_line

if TYPE_CHECKING:
    import wandb


def check_access(options: TrackerConfig) -> None:
    """Refuse `mode=online` before measuring, when there is no key, or W&B is out of reach or refuses it.

    Raises:
        SihError: in each of these cases.
    """
    if options.mode != "online":
        return
    if not _has_key():
        raise SihError(
            "tracker.mode=online needs a W&B key: run `wandb login` or set WANDB_API_KEY; "
            "or leave it offline and `wandb sync` later"
        )
    import wandb

    try:
        # The default retries for minutes, and so holds up the process when it ends.
        wandb.setup(
            wandb.Settings(
                silent=True,
                x_graphql_retry_max=2,
                x_graphql_retry_wait_max_seconds=1,
                x_graphql_timeout_seconds=options.init_timeout,
            )
        )
        wandb.Api(timeout=options.init_timeout)  # sends the key to the server
    except wandb.errors.Error as error:
        raise SihError(
            f"tracker.mode=online: {host()} could not be reached or refused the key ({first_line(error)}). "
            "Nothing was measured; check the network and `wandb login`, or leave it offline and `wandb sync` later"
        ) from None
    finally:
        wandb.teardown()  # what follows starts its own service, with W&B's own patience


def api(options: TrackerConfig) -> "wandb.Api":
    """W&B's public client, silenced. Raises wandb.errors.Error when the server refuses the key."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    return wandb.Api(timeout=options.init_timeout)


def host() -> str:
    """The address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(host().split("://")[-1].split("/")[0]) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
