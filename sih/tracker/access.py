"""Whether W&B can be reached with a key; it is imported only where that is asked for, since it takes two seconds."""

import netrc
import os
from typing import TYPE_CHECKING

from sih.config import TrackerConfig
from sih.errors import SihError, first_line

if TYPE_CHECKING:
    import wandb


def check_access(options: TrackerConfig) -> None:
    """Refuse `mode=online` without a key, a network or W&B's consent before anything is measured. Raises SihError."""
    if options.mode != "online":
        return
    if not _has_key():
        raise SihError(
            "tracker.mode=online needs a W&B key: run `wandb login` or set WANDB_API_KEY; "
            "or leave it offline and `wandb sync` later"
        )
    import wandb

    try:
        api(options)  # which shows the key to the server
    except wandb.errors.Error as error:
        raise SihError(
            f"tracker.mode=online: {host()} could not be reached or refused the key ({first_line(error)}). "
            "Nothing was measured; check the network and `wandb login`, or leave it offline and `wandb sync` later"
        ) from None


def api(options: TrackerConfig) -> "wandb.Api":
    """W&B's public client, without its chatter. Raises wandb.errors.Error when the server refuses the key."""
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
