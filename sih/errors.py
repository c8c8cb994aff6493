"""The one exception that a user can act on."""


class SihError(Exception):
    """What was wrong, what was expected, what to do: printed as it is, without a traceback."""


class CheckpointError(SihError):
    """One checkpoint cannot be measured; the sweep records why and goes on."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
