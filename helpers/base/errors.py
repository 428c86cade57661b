"""The errors that a user can fix: each message names what is wrong, where, and what to do."""


class CourseError(ValueError):
    """Base of all errors that the user, not the programmer, can fix."""


class DataError(CourseError):
    """A data file is missing, malformed or inconsistent; names file, line, field and fix."""


class ModelError(CourseError):
    """A model cannot be loaded, or was made with another profile or other data."""


class SettingError(CourseError):
    """A parameter is unknown, of the wrong type or impossible on this machine."""


class TrainingError(CourseError):
    """Training cannot continue, e.g. the loss is NaN, or a single text does not fit into memory."""


def shorten(value: object, limit: int = 60) -> str:
    """Return `repr(value)`, cut to `limit` characters, for use in an error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
