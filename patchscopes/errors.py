"""The one exception that a user's own input can cause."""


class PatchscopesError(ValueError):
    """Something given to the library cannot be used.

    The message says what was given, what was expected and what to do next. Scripts print it in one line
    instead of a traceback.
    """
