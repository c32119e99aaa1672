"""Optional dependencies: imported where they are used, with an error that names the extra."""

import importlib
from types import ModuleType


def require(module: str, extra: str = "train") -> ModuleType:
    """Import ``module``, which the optional extra ``extra`` installs.

    Raises:
        ImportError: the module is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"this needs {error.name!r}, which comes with the extra {extra!r}: "
                          f'pip install "nestedseg[{extra}]"') from error
