"""The error that a user can mend."""


class UserError(Exception):
    """Bad input: one line that names the file or option and says what to do. Commands print it and exit with 2."""
