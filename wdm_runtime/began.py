"""When this program began, as far as a package can tell: it is the first module imported.

The operating system's start of the process is not it: a shell that ends in this program, as in
``sh -c "pip install ... && wdm-run ..."``, becomes it, and the process is as old as the shell.
"""

import time

BEGAN_S = time.perf_counter()


def seconds_since_began() -> float:
    """Wall time since the import of `wdm_runtime`, without the interpreter's own start [s]."""
    return time.perf_counter() - BEGAN_S
