"""The error of a training whose numbers left all bounds."""

from netgraft.errors import NetgraftError


class Diverged(NetgraftError):
    """A loss or a gradient that is not finite."""
