"""The one exception that a user's own input can cause, and the one warning that the library gives."""


class PatchscopesError(ValueError):
    """Something given to the library cannot be used.

    The message says what was given, what was expected and what to do next. Scripts print it in one line
    instead of a traceback.
    """


class PatchscopesWarning(UserWarning):
    """Something that is asked for is done, and there is something to know about how.

    Scripts print it in one line.
    """
