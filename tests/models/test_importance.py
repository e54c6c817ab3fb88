"""Channels chosen by their weights, all the way through a transfer."""

import timm
import torch
from safetensors.torch import load_file, save_file

from netgraft.files.checkpoint import read_provenance
from netgraft.models.side import Side
from netgraft.plan import Plan
from netgraft.planning import TransferRequest, make_plan
from netgraft.transfer import transfer


def test_a_transfer_keeps_the_channels_of_large_weights(tmp_path):
    """The stem of a narrower ResNet gets the rows of the source's stem with the largest weights."""
    source = timm.create_model("resnet10t", num_classes=3).state_dict()
    key = "conv1.0.weight"
    loud = torch.tensor([1, 5, 6, 11, 13, 17, 20, 22])
    source[key][loud] *= 100
    save_file(source, tmp_path / "source.safetensors")
    target = tmp_path / "narrow.py"
    target.write_text(
        "import timm\n"
        "input_size = (3, 64, 64)\n"
        "def build():\n"
        "    return timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=3,\n"
        "        stem_width=8, stem_type='deep_tiered', avg_down=True, channels=(64, 128, 256, 512))\n"
    )
    sides = (
        Side("resnet10t", "source", {"num_classes": 3}, (3, 64, 64), tmp_path / "source.safetensors"),
        Side(str(target), "target"),
    )
    options = {"shrink": "importance"}
    dry = make_plan(TransferRequest(*sides, recipe="grow", options=options)).plan
    assert any("chosen by their weights" in warning for warning in dry.warnings)
    output = tmp_path / "init.safetensors"
    written = transfer(TransferRequest(*sides, output, recipe="grow", options=options, receipt=False)).plan
    assert not any("chosen by their weights" in warning for warning in written.warnings)
    narrow = load_file(output)[key]
    rows = narrow.shape[0]
    assert rows < source[key].shape[0]
    norms = source[key].flatten(1).norm(dim=1)
    kept = [i for i in range(len(norms)) if any(torch.equal(source[key][i], row) for row in narrow)]
    assert len(kept) == rows
    assert set(kept) <= set(loud.tolist()) or set(loud.tolist()) <= set(kept)
    assert Plan.from_json(read_provenance(output)["plan"]).options["shrink"] == "importance"
