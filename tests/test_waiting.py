"""How OpenMP's threads wait: some spins before they sleep, unless the environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PRINTS = "import os, sparsemask; print([os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')])"


@pytest.mark.parametrize(
    "given, expected",
    [
        # PASSIVE alone puts threads to sleep at once: small networks then take twice the time on two threads.
        ({}, ["PASSIVE", "10000"]),
        ({"GOMP_SPINCOUNT": "7"}, ["PASSIVE", "7"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, ["PASSIVE", None]),
    ],
)
def test_threads_spin_before_they_sleep(given, expected):
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | given
    done = subprocess.run([sys.executable, "-c", PRINTS], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)
