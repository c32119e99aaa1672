"""Optional dependencies: imported where they are used, with an error that says how to install them.

Also the one place that says how the library is installed.
"""

import importlib
from types import ModuleType


def install_command(extra: str | None = None) -> str:
    """The shell command that installs the library, with an optional ``extra``.

    It is run in a clone of the repository. Once releases are on a package index, this is the
    function to change: error messages, model cards and the tests of the pages use it.
    """
    return f'pip install ".[{extra}]"' if extra else "pip install ."


def require(module: str, extra: str = "train") -> ModuleType:
    """Import ``module``, which the optional extra ``extra`` installs.

    Raises:
        ImportError: the module is not installed; the message gives the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name!r} is not installed; it comes with the extra {extra!r}: in "
                          f"a clone of the nestedseg repository, run {install_command(extra)}"
                          ) from error
