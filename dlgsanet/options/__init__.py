"""Option files: reading, checking as a whole, completing as BasicSR's parts expect them."""

from dlgsanet.options.read import add_arguments, read_options

__all__ = ["add_arguments", "read_options"]
