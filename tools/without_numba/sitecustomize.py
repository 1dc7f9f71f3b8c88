"""A Python that has this folder on its PYTHONPATH is one without Numba, and so are the processes it starts.

`make coverage` runs the data plane's tests there: all of it works, and is tested, where nothing can be
compiled. Python imports a module of this name at its start by itself.
"""

import sys

for name in ("numba", "llvmlite"):
    sys.modules[name] = None  # type: ignore[assignment]
