"""What the latency report says of a process is that process's own."""

import subprocess
import sys

import numpy as np

from wdm_runtime.latency import peak_rss_mib


def test_peak_memory_is_not_the_parents():
    held = np.ones(40_000_000)  # 305 MiB
    code = "from wdm_runtime.latency import peak_rss_mib; print(peak_rss_mib())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert peak_rss_mib() > held.nbytes / 2**20 > 300 > float(done.stdout)
