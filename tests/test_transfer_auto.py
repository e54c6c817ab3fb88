"""The default recipe, end to end: what it takes, why, and what the ledger says of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import run

from netgraft.errors import NothingToTransfer
from netgraft.files.checkpoint import read_provenance
from netgraft.models.embedded.catalogue import weights_path
from netgraft.plan import Plan
from netgraft.transfer import Side, make_plan, transfer

SOURCE = Side("netgraft:resnet20-glyphs", "source")
NET = """
import torch
from torch import nn

class Net(nn.Module):
    input_size = (1, 16, 16)

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.norm_two = nn.BatchNorm2d(12)
        {more}
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.norm(self.one(x)).relu()
        x = self.norm_two(self.two(x)).relu()
        {then}
        return self.head(x.mean((2, 3)))
"""


def write(folder, more="pass", then="pass"):
    (folder / "net.py").write_text(NET.format(more=more, then=then))
    return Side("./net.py", "target")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_distils_within_the_budget(folder):
    target = write(folder)
    file = folder / "init.safetensors"
    planned = transfer(SOURCE, target, file, options={"budget": 0.2}, receipt=False)
    assert planned.plan.recipe == "distil"
    assert planned.plan.options["steps"] in (100, 300, 600)
    assert "estimated" in planned.plan.chosen
    told = read_provenance(file)
    plan = Plan.from_json(told["plan"])
    assert {plan.fates[key] for key in ("one.weight", "norm.running_mean", "two.weight")} == {"distilled"}
    assert {plan.fates[key] for key in ("head.weight", "head.bias")} == {"kept"}
    assert [report["name"] for report in told["passes"]] == ["refit", "distil", "rescale"]
    again = folder / "again.safetensors"
    transfer(SOURCE, target, again, options={"budget": 0.2}, receipt=False)
    assert file.read_bytes() == again.read_bytes()
    torch.manual_seed(0)
    shown = run("show", "init.safetensors")
    assert shown.exit_code == 0
    assert "agrees with the source on" in shown.stdout
    checked = json.loads(run("verify", "init.safetensors", "--target", "./net.py", "--format", "json").stdout)
    assert checked["passed"]


def test_less_time_means_less(folder):
    target = write(folder)
    for budget, recipe in ((0.05, "refit"), (0.0001, "graft")):
        planned = transfer(
            SOURCE, target, folder / "init.safetensors", options={"budget": budget}, force=True, receipt=False
        )
        assert planned.plan.recipe == recipe
        assert "--budget" in planned.plan.chosen


@pytest.mark.parametrize(("budget", "recipe"), [(1, "refit"), (5, "distil"), (0.1, "graft")])
def test_large_images_cost_no_more_than_those_that_fit(budget, recipe):
    """At 224x224 the passes take fewer images, and the estimate knows that: a refit takes about half a minute."""
    sides = Side("resnet18", "source", random=True), Side("mobilenetv3_small_100", "target")
    assert make_plan(*sides, options={"budget": budget}, device="cpu").plan.recipe == recipe


NETS = Path(__file__).parent / "benchmarks" / "transfer_quality" / "nets.py"
VIT = Side(f"{NETS}:vit_wide", "target")


@pytest.mark.parametrize(("budget", "options"), [(60, {"steps": 2400, "lr": 1e-3}), (5, {"lr": 1e-3})])
def test_a_transformer_is_distilled_with_patience(budget, options):
    plan = make_plan(SOURCE, VIT, options={"budget": budget}, device="cpu").plan
    assert plan.recipe == "distil"
    assert [each.name for each in plan.passes] == ["neighbours", "refit", "distil", "rescale"]
    assert options.items() <= plan.passes[2].options.items()


def test_a_transformer_is_refitted_where_there_is_no_time_to_distil():
    plan = make_plan(SOURCE, VIT, options={"budget": 0.3}, device="cpu").plan
    assert plan.recipe == "refit"
    assert [each.name for each in plan.passes] == ["neighbours", "refit", "rescale"]
    fates = {key: plan.fates[key] for key in ("pos_embed", "blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.weight")}
    assert list(fates.values()) == ["set", "set", "refitted"]  # coordinates and what reads them; values


def test_weights_of_convolutions_are_of_no_use_to_a_transformer():
    """Without the time to run anything there is nothing to give, and the message says what would help."""
    with pytest.raises(NothingToTransfer) as refusal:
        make_plan(SOURCE, VIT, options={"budget": 0.001}, device="cpu")
    assert "--budget" in str(refusal.value)


@pytest.mark.parametrize(("budget", "passes"), [(60, ["refit", "distil", "rescale"]), (0.2, ["refit", "rescale"])])
def test_between_transformers_grafted_weights_are_refitted_where_they_stand(budget, passes):
    source = Side(f"{NETS}:vit_deep", "source", random=True)
    plan = make_plan(source, VIT, options={"budget": budget}, device="cpu").plan
    assert [each.name for each in plan.passes] == passes
    assert plan.passes[0].options["pairs"] == "plan"


def test_growth_computes_the_same_at_a_scale_that_lasts(folder):
    target = Side(f"{NETS}:ResNet26", "target", {"num_classes": 26})
    planned = transfer(SOURCE, target, folder / "init.safetensors", receipt=False)
    assert (planned.plan.recipe, [each.name for each in planned.plan.passes]) == ("grow", ["rescale"])
    grown = planned.target.build().eval()
    grown.load_state_dict(load_file(folder / "init.safetensors"))
    source = planned.source.build().eval()
    source.load_state_dict(load_file(weights_path("resnet20-glyphs")))
    x = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(grown(x), source(x), rtol=1e-3, atol=1e-3)
    kernel = grown.layer1[0].conv1.weight.detach()
    assert float(kernel.norm()) == pytest.approx(2 * (2 / (24 * 9)) ** 0.5 * kernel.numel() ** 0.5, rel=1e-4)


def test_one_architecture_is_copied(folder):
    planned = transfer(SOURCE, Side("netgraft:resnet20-glyphs", "target"), folder / "init.safetensors", receipt=False)
    assert (planned.plan.recipe, planned.plan.passes) == ("graft", ())
    assert "copied" in planned.plan.chosen


def test_a_network_that_cannot_be_stopped_between_operations(folder):
    """Its answer changes from call to call: no refit can be trusted, weights can."""
    target = write(folder, then="x = x + 0.1 * torch.rand(12, 8, 8)")
    file = folder / "init.safetensors"
    planned = transfer(SOURCE, target, file, options={"budget": 0.2}, receipt=False)
    assert planned.plan.recipe == "graft"
    assert "only weights can be used" in planned.plan.chosen
    assert load_file(file)["one.weight"].isfinite().all()


def test_images_of_the_users_own_and_single_layers(folder):
    from PIL import Image

    write(folder)
    images = folder / "images"
    images.mkdir()
    rng = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = (torch.rand(20, 20, generator=rng) * 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(images / f"{i}.png")
    result = run(
        *("transfer", "netgraft:resnet20-glyphs", "./net.py", "--recipe", "refit", "--images", "images"),
        *("--skip", "two", "--set", "refit_images=12", "-o", "init.safetensors", "--no-receipt"),
    )
    assert result.exit_code == 0, result.stderr
    plan = Plan.from_json(read_provenance(folder / "init.safetensors")["plan"])
    assert plan.options["generator"] == "images"
    assert plan.fates["two.weight"] == "kept"
    assert plan.fates["one.weight"] == "refitted"


def test_an_option_that_the_recipe_lacks(folder):
    write(folder)
    result = run("plan", "netgraft:resnet20-glyphs", "./net.py", "--recipe", "hmt", "--images", "strokes")
    assert result.exit_code == 2
    assert "has no option --images" in result.stderr
    assert "--recipe auto" in result.stderr
