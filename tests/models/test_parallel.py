"""Models on several devices: DistributedDataParallel, DataParallel and SyncBatchNorm, on CPUs."""

import importlib

import pytest
import torch
from processes import in_two_processes
from torch import nn
from torch.nn import functional as F

import nestedseg

STYLES = {
    "fast": {"norm": "group"},
    "reference": {"norm": None, "upsample": "transpose", "execution": "reference"},
    "timm": {"encoder": "test_convnext", "norm": "group"},
    "named": {"encoder": "test_convnext", "norm": "group",
              "encoder_taps": ("stages.0", "stages.2.blocks.0", "stages.3")},
}


def make(**style):
    torch.manual_seed(0)
    widths = {} if "encoder" in style else {"encoder_channels": (8, 8, 16)}
    return nestedseg.create("unetpp", deep_supervision=True, decoder_channels=(8,) * 5,
                            **widths | style).double().train()


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)


def loss_of(logits):
    """A mean over the batch, so that that of the whole is the mean of those of its halves."""
    return sum(y.square().mean() for y in logits)


def gradients_of(model):
    loss_of(model(images())).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


# -- DistributedDataParallel -----------------------------------------------------------------------


def learn_as_one_of_two(folder):
    """What each of the two processes does; the second begins with other weights."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for style in STYLES:
        model = make(**STYLES[style])
        with torch.no_grad():
            next(model.parameters()).add_(rank)
        parallel = nn.parallel.DistributedDataParallel(model)
        loss_of(parallel(images().chunk(2)[rank])).backward()
        torch.save({name: p.grad for name, p in model.named_parameters()},
                   folder / f"{style}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learnt")
    in_two_processes(learn_as_one_of_two, folder, output=folder / "printed")
    return folder


@pytest.mark.parametrize("style", STYLES)
def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(learnt, style):
    alone = gradients_of(make(**STYLES[style]))
    for rank in range(2):
        assert_close(torch.load(learnt / f"{style}.{rank}"), alone)


# -- DataParallel ----------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_replicas_have_the_gradients_of_the_model_with_the_joined_batch(style, monkeypatch):
    # What DataParallel does on two GPUs, whose copies of the weights are no parameters.
    monkeypatch.setattr(importlib.import_module("torch.nn.parallel.replicate"),
                        "_broadcast_coalesced_reshape",
                        lambda tensors, devices, detach=False: [
                            [tensor.view_as(tensor) for tensor in tensors] for _ in devices])
    model = make(**STYLES[style])
    replicas = nn.parallel.replicate(model, [0, 1])
    halves = [replica(half) for replica, half in zip(replicas, images().chunk(2))]
    loss_of(torch.cat(heads) for heads in zip(*halves)).backward()
    assert_close({name: p.grad for name, p in model.named_parameters()},
                 gradients_of(make(**STYLES[style])))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it needs the weights on a GPU")
def test_data_parallel_without_a_gpu_is_the_model():
    model = make()
    assert all(map(torch.equal, nn.DataParallel(model)(images()), model(images())))


# -- SyncBatchNorm ---------------------------------------------------------------------------------


@pytest.fixture
def synchronised(monkeypatch):
    """The calls of SyncBatchNorm, each of which would be a collective; here of one process."""
    calls = []

    def forward(self, x):
        calls.append(self)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                            self.training, self.momentum, self.eps)

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", forward)
    return calls


@pytest.mark.parametrize("execution", ["fast", "reference"])
def test_a_synchronised_norm_is_computed_once_and_not_in_the_backward_pass(synchronised, execution):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(make(execution=execution))
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    loss = loss_of(model(images()))
    assert len(synchronised) == len({*synchronised}) == len(norms) > 6
    loss.backward()
    assert len(synchronised) == len(norms)
    assert_close({name: p.grad for name, p in model.named_parameters()},
                 gradients_of(make(execution=execution)))
