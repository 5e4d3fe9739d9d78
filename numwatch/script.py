"""What a function in a user's file makes: a model for `numwatch reproduce`."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numwatch.errors import NumwatchError, near
from numwatch.shadow import reason


def made_by(script: str) -> Any:
    """Returns what a function of the user's makes.

    Args:
        script: `my_model.py:make_model`, a file and a function in it that takes no arguments. The
            file is run as `python my_model.py` would find its imports.

    Raises:
        NumwatchError: There is no such file or function, or it raises.
    """
    path, separator, name = script.rpartition(":")
    file = Path(path)
    if not separator or not file.is_file():
        raise NumwatchError(
            f"--script names a file and a function in it, my_model.py:make_model; got {script!r}"
        )
    spec = importlib.util.spec_from_file_location(f"numwatch_script_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise NumwatchError(f"--script names a Python file; got {script!r}")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.absolute()))  # as `python my_model.py` does
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        return _function(module, name, path)()
    except NumwatchError:
        raise
    except (Exception, SystemExit) as error:
        raise NumwatchError(f"{script} does not make a model: {reason(error)}") from error
    finally:
        sys.path.remove(str(file.parent.absolute()))


def _function(module: Any, name: str, path: str) -> Callable[[], Any]:
    found: Callable[[], Any] | None = getattr(module, name, None)
    if not callable(found):
        functions = [known for known, value in vars(module).items() if callable(value)]
        raise NumwatchError(f"{path} has no function {name!r}{near(name, functions)}")
    return found
