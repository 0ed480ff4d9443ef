"""The bot of ``language.py``, under another name: ``python examples/locale.py`` runs it.

A script hides modules of the standard library that have the name of a file beside it, and others
import `locale`. So whoever imports this file gets the real one; that is all that it is about.
"""

import os
import runpy
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

if __name__ == "__main__":
    runpy.run_path(os.path.join(os.path.dirname(__file__), "language.py"), run_name="__main__")
else:
    spec = PathFinder.find_spec(__name__, [os.path.dirname(os.__file__)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
