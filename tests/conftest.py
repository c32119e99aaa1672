"""What every test shares: one thread, one seed, no network."""

import os

# Read when huggingface_hub and torch are imported; subprocesses of the tests inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread only costs

import pytest
from hypothesis import HealthCheck, settings

# The time of one example says nothing on a shared machine.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seed():
    import torch  # here, as the process that hands out the tests needs none

    torch.manual_seed(0)
