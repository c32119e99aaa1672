"""What every test shares: one thread, one seed, no network."""

import os

# Read when huggingface_hub is imported; subprocesses of the tests inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # tiny tensors: a second thread only costs

# The time of one example says nothing on a shared machine.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
