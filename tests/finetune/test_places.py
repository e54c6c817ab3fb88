"""The module that puts out what a layer's branch ends in."""

import timm
import torch
import torch.nn.functional as F
import torchvision
from support.runs import settings, with_source, write_nets
from torch import nn

from netgraft.finetune.engine.places import places
from netgraft.finetune.engine.prepare import prepare


class Block(nn.Module):
    """Begins as an identity, hands its input on through a module, and calls one activation twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.last_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.shortcut, self.act = nn.Identity(), nn.ReLU(inplace=True)
        nn.init.zeros_(self.last_norm.weight)

    def forward(self, x):
        return self.act(self.last_norm(self.two(self.act(self.norm(self.one(x))))) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.plain = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.plain(self.blocks(F.relu(self.stem_norm(self.stem(x))))).mean((2, 3)))


LAYERS = ["stem", *(f"blocks.{i}.two" for i in range(3)), "plain"]


def test_blocks_even_where_all_are_identities():
    net = Net().eval()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = places(net, x, LAYERS)
    blocks = {f"blocks.{i}.two": f"blocks.{i}" for i in range(3)}
    assert found == {"stem": "blocks.0.shortcut", "plain": "plain"} | blocks  # what the ReLU gives is handed on there
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert places(Net().train(), x, LAYERS) == found


def test_an_activation_that_is_a_module_of_its_own():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 3))
    assert places(net, torch.randn(2, 1, 8, 8), ["0"]) == {"0": "2"}


def test_networks_that_people_use():
    images = torch.randn(2, 3, 64, 64)
    theirs = torchvision.models.resnet18(weights=None)
    assert places(theirs, images, ["layer1.1.conv2", "layer4.0.conv2"]) == {
        "layer1.1.conv2": "layer1.1",
        "layer4.0.conv2": "layer4.0",
    }
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
    ends = ["blocks.0.attn.proj", "blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]  # no module puts out the sum in the middle
    assert places(vit, images, ends) == {"blocks.0.mlp.fc2": "blocks.0", "blocks.1.mlp.fc2": "blocks.1"}
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2, depths=(1, 1, 1, 1))
    assert places(swin, images, ["layers.0.blocks.0.mlp.fc2"]) == {"layers.0.blocks.0.mlp.fc2": "layers.0.blocks.0"}


def test_a_network_that_cannot_be_copied_is_taken_at_its_word():
    net = Net()
    net.computed = torch.ones(2, requires_grad=True) * 2  # has a graph: deepcopy refuses it
    assert places(net, torch.randn(2, 1, 8, 8), ["stem"]) == {"stem": "stem"}


def test_pairs_are_as_far_along(tmp_path):
    """Without --init and --matcher: the last of each of the target's resolutions follows where the source is then."""
    folder = write_nets(tmp_path)
    run = prepare(with_source(folder, method="at")).run
    assert [pair[:2] for pair in run.pairs] == [("stem_norm", "stem_norm"), ("last", "last")]
    vgg = {"target": "netgraft:vgg11-glyphs", "target_arg": {"num_classes": 10}, "init": None}
    run = prepare(settings(folder, method="at", source="netgraft:resnet20-glyphs", **vgg)).run
    ends = ["features.5", "features.12", "features.19", "features.26"]  # the ReLUs before the poolings
    assert [pair.target for pair in run.pairs] == ends
    assert [pair.source for pair in run.pairs] == ["layer1.2", "layer2.2", "layer3.1", "layer3.2"]
