"""Memory: 20 GB of rows are learned from in a process that never holds 1.5 GB."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import sys
import torch
import freenergy as fe

torch.set_num_threads(1)
# More rows than the buffer holds.
rbm = fe.BernoulliRBM(16, batch_size=100, n_iter=1, updates_per_epoch=900, random_state=0)
rbm.fit(sys.argv[1])
assert rbm.history_["epoch"] == [1]
# The most that was ever resident, mapped files included.
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the peak on Linux")
def test_a_file_of_20_gigabytes_is_learned_from_in_less_than_one_and_a_half(tmp_path):
    path = tmp_path / "x.npy"
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (6_250_000, 800))
    rows[::100_000, :100] = 1.0  # The rest are holes, which take no place on the disk.
    del rows
    assert path.stat().st_size > 20e9
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 1.5e6  # KiB
