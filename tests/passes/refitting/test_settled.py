"""What is as it should be is found, with all that stands before it, and nothing else."""

import copy

import torch
from support.refit_nets import Plain, Residual, Separable, images, layers, made, vit

from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.settled import find_settled
from netgraft.trace.replay import Replay


def settled(source, target, moved=None):
    replays = [Replay(net, images(4)) for net in (source, target)]
    graphs = [replay.graph for replay in replays]
    names = [(layer.name, layer.name) for layer in graphs[0].kernels() if layer.name in graphs[1].layers]
    pairs = layers(*graphs, names)
    moved = set(graphs[1].layers) if moved is None else moved
    channels = OutputChannels(*graphs, pairs, None)
    sources, targets = ([each.beside(images(8)[part]) for part in (slice(0, 4), slice(4, 8))] for each in replays)
    return find_settled(sources, targets, pairs, channels, moved, torch.Generator())


def test_all_of_a_copy():
    for build in (Plain, Residual, Separable, vit):
        net = made(build)
        names = {layer.name for layer in Replay(net, images(2)).graph.layers.values()}
        assert settled(net, copy.deepcopy(net)) == names


def test_layers_up_to_the_first_that_differs():
    source = made(Plain)
    target = copy.deepcopy(source)
    target.convs[1].weight.mul_(-1)
    assert settled(source, target) == {"convs.0", "norms.0"}
    target.convs[1].weight.mul_(-1)
    target.norms[2].running_mean.add_(0.1)
    assert settled(source, target) == {"convs.0", "norms.0", "convs.1", "norms.1"}


def test_a_size_that_differs_is_not_exact():
    source = made(Plain)
    target = copy.deepcopy(source)
    target.norms[0].weight.mul_(1.03)
    assert settled(source, target) == set()


def test_what_stands_before_something_exact_is_left_as_well():
    """A branch that adds nothing is new, and may stay so."""
    source = made(Residual)
    target = copy.deepcopy(source)
    for net in (source, target):
        net.blocks[0].bn2.weight.zero_()
        net.blocks[0].bn2.bias.zero_()
    target.blocks[0].conv1.weight.mul_(-1)
    found = settled(source, target)
    assert {"blocks.0.conv1", "blocks.0.bn1", "blocks.1.conv2", "head"} <= found


class Last(Plain):
    """A norm at the end that no kernel but the head reads."""

    def __init__(self, classes=5):
        super().__init__()
        self.last, self.head = torch.nn.BatchNorm1d(12), torch.nn.Linear(12, classes)

    def forward(self, x):
        for conv in self.convs:
            x = conv(x).relu()
        return self.head(self.last(x.mean((2, 3)) * 2))


def test_a_norm_behind_exact_layers_if_it_came_from_the_source():
    source, target = made(Last), made(lambda: Last(7))
    for key, tensor in source.state_dict().items():
        if not key.startswith("head"):
            target.state_dict()[key].copy_(tensor)
    target.last.running_mean.add_(0.5)
    assert "last" in settled(source, target)
    assert "head" not in settled(source, target)
    assert "last" not in settled(source, target, moved={"convs.0", "convs.1", "convs.2"})


def test_of_wider_layers_the_channels_that_follow_count():
    source, target = made(Plain), made(lambda: Plain((12, 12, 12)), seed=4)
    with torch.no_grad():
        for name, tensor in source.state_dict().items():
            own = target.state_dict()[name]
            if name.startswith("convs.1.weight"):
                own.zero_()
                own[:, : tensor.shape[1]] = tensor
            elif own.shape == tensor.shape:
                own.copy_(tensor)
            else:
                own[: len(tensor)] = tensor
    assert {"convs.0", "norms.0", "convs.2", "head"} <= settled(source, target)
