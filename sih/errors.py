"""The one exception that a user can act on."""


class SihError(Exception):
    """What was wrong, what was expected, what to do: printed as it is, without a traceback."""


class CheckpointError(SihError):
    """One checkpoint cannot be measured; the sweep records why and goes on."""
