"""Errors of the users of recipes, in three parts: what should be, what was found and what to do."""

from importlib import import_module
from types import ModuleType


class RecipeError(Exception):
    """Bad input to a recipe, which the command line prints without a traceback before it exits with status 2.

    Args:
        should: What should be, as a sentence without its full stop, such as "`--option` should be like name=value".
        found: What was found instead.
        fix: What to do.

    Attributes:
        should: As given.
        found: As given; None for an error from another process, whose parts are its whole message.
    """

    def __init__(self, should: str, *, found: str | None = None, fix: str | None = None) -> None:
        self.should, self.found = should, found
        super().__init__(should if found is None or fix is None else explained(should, found, fix))


def explained(should: str, found: str, fix: str) -> str:
    """Return the message of an error, "should. Found ...: fix."; for the parts see `RecipeError`."""
    return f"{should}. Found {found}: {fix}."


def message(error: BaseException) -> str:
    """Return the message alone, without the traceback that a DataLoader worker puts in front of it."""
    text = str(error)
    if text.startswith("Caught "):
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    return text.strip()


def require(module: str) -> ModuleType:
    """Import an optional library.

    Raises:
        RecipeError: If it cannot be imported; the message has the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"The library `{module}` should be installed",
            found=f"that it cannot be imported ({error})",
            fix='run `pip install -e ".[recipes]"` in the folder of the project',
        ) from error
