"""What every test shares: one thread, one seed, no network."""

import os
import subprocess
import sys

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


@pytest.fixture
def in_two_processes():
    """Runs what follows ``accelerate launch`` in two processes, and gives what they print."""
    # On CPUs accelerate launches them as it does on two GPUs; they talk through gloo.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines",
              "1", "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", "0"]

    def run(*command: str) -> str:
        return subprocess.run([*launch, *command], check=True, timeout=120, text=True,
                              stdout=subprocess.PIPE,
                              env=os.environ | {"ACCELERATE_USE_CPU": "true"}).stdout

    return run
