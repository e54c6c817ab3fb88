"""The default recipe, end to end: what it takes, why, and what the ledger says of it."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import run

from netgraft.cli.interruption import OnInterrupt, asked_to_end
from netgraft.errors import NothingToTransfer
from netgraft.files.checkpoint import read_provenance
from netgraft.models.embedded.catalogue import weights_path
from netgraft.models.side import Side
from netgraft.plan import Plan
from netgraft.planning import TransferRequest, make_plan
from netgraft.transfer import transfer

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
    planned = transfer(TransferRequest(SOURCE, target, file, options={"budget": 0.2}, receipt=False))
    assert planned.plan.recipe == "distil"
    assert planned.plan.options["steps"] in (100, 300, 600)
    assert "estimated" in planned.plan.chosen
    told = read_provenance(file)
    plan = Plan.from_json(told["plan"])
    assert {plan.fates[key] for key in ("one.weight", "norm.running_mean", "two.weight")} == {"distilled"}
    assert {plan.fates[key] for key in ("head.weight", "head.bias")} == {"kept"}
    assert [report["name"] for report in told["passes"]] == ["refit", "distil", "rescale"]
    again = folder / "again.safetensors"
    transfer(TransferRequest(SOURCE, target, again, options={"budget": 0.2}, receipt=False))
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
        file = folder / "init.safetensors"
        request = TransferRequest(SOURCE, target, file, options={"budget": budget}, force=True, receipt=False)
        expected = make_plan(request).choice
        assert (expected.name, expected.expected) == (recipe, True)
        assert "--budget" in expected.why
        transfer(request)
        tried = [row["recipe"] for row in read_provenance(file)["candidates"]]
        assert tried == [
            "almost-equal",
            "grow",
            *dict.fromkeys(("graft", recipe)),
        ]  # nothing that the budget does not allow


@pytest.mark.parametrize(("budget", "recipe"), [(1, "refit"), (5, "distil"), (0.1, "graft")])
def test_large_images_cost_no_more_than_those_that_fit(budget, recipe):
    """At 224x224 the passes take fewer images, and the estimate knows that: a refit takes about half a minute."""
    sides = Side("resnet18", "source", random=True), Side("mobilenetv3_small_100", "target")
    assert make_plan(TransferRequest(*sides, options={"budget": budget}, device="cpu")).plan.recipe == recipe


NETS = Path(__file__).parent / "benchmarks" / "transfer_quality" / "nets.py"
VIT = Side(f"{NETS}:vit_wide", "target")


@pytest.mark.parametrize(("budget", "options"), [(60, {"steps": 2400, "lr": 1e-3}), (5, {"lr": 1e-3})])
def test_a_transformer_is_distilled_with_patience(budget, options):
    plan = make_plan(TransferRequest(SOURCE, VIT, options={"budget": budget}, device="cpu")).plan
    assert plan.recipe == "distil"
    assert [each.name for each in plan.passes] == ["neighbours", "refit", "distil", "rescale"]
    assert options.items() <= plan.passes[2].options.items()


def test_a_transformer_is_refitted_where_there_is_no_time_to_distil():
    plan = make_plan(TransferRequest(SOURCE, VIT, options={"budget": 0.3}, device="cpu")).plan
    assert plan.recipe == "refit"
    assert [each.name for each in plan.passes] == ["neighbours", "refit", "rescale"]
    fates = {key: plan.fates[key] for key in ("pos_embed", "blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.weight")}
    assert list(fates.values()) == ["set", "set", "refitted"]  # coordinates and what reads them; values


def test_weights_of_convolutions_are_of_no_use_to_a_transformer():
    """Without the time to run anything there is nothing to give, and the message says what would help."""
    with pytest.raises(NothingToTransfer) as refusal:
        make_plan(TransferRequest(SOURCE, VIT, options={"budget": 0.001}, device="cpu"))
    assert "--budget" in str(refusal.value)


@pytest.mark.parametrize(("budget", "passes"), [(60, ["refit", "distil", "rescale"]), (0.2, ["refit", "rescale"])])
def test_between_transformers_grafted_weights_are_refitted_where_they_stand(budget, passes):
    source = Side(f"{NETS}:vit_deep", "source", random=True)
    plan = make_plan(TransferRequest(source, VIT, options={"budget": budget}, device="cpu")).plan
    assert [each.name for each in plan.passes] == passes
    assert plan.passes[0].options["pairs"] == "plan"


def test_growth_computes_the_same_at_a_scale_that_lasts(folder):
    target = Side(f"{NETS}:ResNet26", "target", {"num_classes": 26})
    planned = transfer(TransferRequest(SOURCE, target, folder / "init.safetensors", receipt=False))
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
    planned = transfer(
        TransferRequest(SOURCE, Side("netgraft:resnet20-glyphs", "target"), folder / "init.safetensors", receipt=False)
    )
    assert (planned.plan.recipe, planned.plan.passes) == ("graft", ())
    assert "copied" in planned.plan.chosen


PADDED = """
import torch
from torch import nn

class _Same(nn.Module):
    def __init__(self, before, after, stride=1):
        super().__init__()
        self.pad, self.convolution = nn.ZeroPad2d(1), nn.Conv2d(before, after, 3, stride, bias=False)
        self.statistics, self.act = nn.BatchNorm2d(after), nn.ReLU6()

    def forward(self, x):
        return self.act(self.statistics(self.convolution(self.pad(x))))

class Net(nn.Module):
    input_size = (1, 16, 16)

    def __init__(self):
        super().__init__()
        self.classes = nn.Linear(12, 5)
        self.blocks = nn.Sequential(_Same(1, 8), _Same(8, 12, 2))

    def forward(self, x):
        return self.classes(self.blocks(x).mean((2, 3)))
"""


def lively(model):
    """The state_dict of a network whose norms do something, as after training."""
    rng = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(value.shape, generator=rng) + 0.5 if value.dim() == 1 else value
        for key, value in model.state_dict().items()
    }


def relative_error(planned, source_file, target_file):
    source, target = planned.source.build().eval(), planned.target.build().eval()
    source.load_state_dict(load_file(source_file))
    target.load_state_dict(load_file(target_file))
    x = torch.randn(4, *planned.target.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float((source(x) - target(x)).norm() / source(x).norm())


@pytest.mark.parametrize("options", [{}, {"keep_head": True}, {"budget": 60}])
def test_one_network_written_twice_is_copied_exactly(folder, options):
    """Other names, another order, padding as a module and a clamp for an activation."""
    (folder / "padded.py").write_text(PADDED)
    (folder / "net.py").write_text(NET.format(more="pass", then="pass").replace(".relu()", ".clamp(0, 6)"))
    source, target = Side("./padded.py", "source", random=True), Side("./net.py", "target")
    weights = lively(make_plan(TransferRequest(source, target)).source.build())
    save_file(weights, "w.safetensors")
    source = Side("./padded.py", "source", weights=folder / "w.safetensors")
    planned = transfer(TransferRequest(source, target, folder / "init.safetensors", options=options, receipt=False))
    assert (planned.plan.recipe, planned.plan.passes) == ("translate", ())
    assert planned.plan.chosen == "source and target are one network: running both proved it"
    assert relative_error(planned, "w.safetensors", "init.safetensors") <= 1e-5


def test_a_deeper_network_that_contains_the_source_keeps_its_head_exactly(folder):
    sides = [
        Side(name, "source", input_size=(3, 64, 64)) for name in ("tf_efficientnet_lite0", "tf_efficientnet_lite1")
    ]
    source, target = replace(sides[0], random=True), replace(sides[1], role="target")
    save_file(lively(source.load().build()), "w.safetensors")
    source = replace(sides[0], weights=folder / "w.safetensors")
    options = {"keep_head": True}
    planned = transfer(TransferRequest(source, target, folder / "init.safetensors", options=options, receipt=False))
    assert (planned.plan.recipe, planned.plan.passes, planned.plan.kept) == ("grow", (), ())
    assert relative_error(planned, "w.safetensors", "init.safetensors") <= 1e-5


CHANGED = """
import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models import resnet18

def changed(classes=1000, **layers):
    net = resnet18(num_classes=classes)
    for name, layer in layers.items():
        setattr(net, name, layer)
    return net

def no_head(): return changed(fc=nn.Identity())
def mlp_head(): return changed(fc=nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)))
def other_stem(): return changed(conv1=nn.Conv2d(3, 64, 3, 1, 1, bias=False), maxpool=nn.Identity())
def trunk(): return nn.Sequential(*list(resnet18().children())[:-1])

def silu():
    net = resnet18()
    for module in net.modules():
        if hasattr(module, "relu"):
            module.relu = nn.SiLU()
    return net

class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = resnet18()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, x):
        return self.net(x - self.mean)

class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.one, self.two = no_head(), nn.Linear(512, 10), nn.Linear(512, 4)

    def forward(self, x):
        return self.one(self.net(x)), self.two(self.net(x))

class Decoded(nn.Module):
    stages = 4

    def __init__(self):
        super().__init__()
        self.encoder = resnet18()
        del self.encoder.fc
        for stage in range(self.stages, 4):
            delattr(self.encoder, f"layer{stage + 1}")
        self.decoder = nn.Conv2d(64 * 2 ** (self.stages - 1) + 64, 5, 3, padding=1)

    def forward(self, x):
        net = self.encoder
        first = x = net.relu(net.bn1(net.conv1(x)))
        for stage in range(self.stages):
            x = getattr(net, f"layer{stage + 1}")(net.maxpool(x) if stage == 0 else x)
        return self.decoder(torch.cat([interpolate(x, first.shape[2:]), first], 1))

class Shorter(Decoded):
    stages = 3
"""
SMALL = (3, 64, 64)


@pytest.mark.parametrize("keep_head", [False, True])
@pytest.mark.parametrize(
    ("name", "copied", "of"),
    [
        ("no_head", 120, 120),
        ("mlp_head", 120, 120),
        ("other_stem", 119, 120),
        ("trunk", 120, 120),
        ("silu", 120, 120),
        ("Normalised", 120, 120),
        ("TwoHeads", 120, 120),
        ("Decoded", 120, 120),
        ("Shorter", 90, 90),
    ],
)
def test_one_changed_thing_does_not_turn_the_copy_off(folder, name, copied, of, keep_head):
    (folder / "changed.py").write_text(CHANGED)
    source = Side("torchvision:resnet18", "source", input_size=SMALL, random=True)
    target = Side(f"./changed.py:{name}", "target", input_size=SMALL)
    options = {"keep_head": keep_head, "translate": False}  # some have the form of the source, and compute otherwise
    plan = make_plan(TransferRequest(source, target, options=options, device="cpu")).plan
    assert plan.chosen.startswith(f"{copied} of the {of} tensors that the source has for the target are copied")
    assert (plan.recipe in ("grow", "almost-equal", "same-names"), plan.passes) == (True, ())
    plain = {move.source_key: move.key for move in plan.moves if not move.steps}
    assert len(plain.keys() - {"fc.weight", "fc.bias"}) == copied
    assert all(plan.fates[key] == "exact" for key in plain.values())


@pytest.mark.parametrize(
    ("source", "target", "args", "recipe"),
    [
        ("resnet18", "resnet18", {"in_chans": 12}, "grow"),
        ("torchvision:mobilenet_v2", "mobilenetv2_100", {}, "translate"),
        ("resnet18", "resnet18", {"features_only": True}, "almost-equal"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224", {"init_values": 0.1}, "translate"),
    ],
)
def test_options_and_implementations_of_the_catalogues(source, target, args, recipe):
    size = None if "vit" in source else SMALL
    inputs = (args["in_chans"], *SMALL[1:]) if "in_chans" in args else size
    sides = Side(source, "source", input_size=size, random=True), Side(target, "target", args, inputs)
    plan = make_plan(TransferRequest(*sides, device="cpu")).plan
    assert (plan.recipe, plan.passes) == (recipe, ())


def test_layers_left_out_in_between_are_no_copy():
    """All of resnet18's tensors have namesakes in resnet34, but what stood between those is gone."""
    sides = (Side(f"torchvision:{name}", role) for name, role in (("resnet34", "source"), ("resnet18", "target")))
    sides = [replace(side, input_size=SMALL, random=side.role == "source") for side in sides]
    assert make_plan(TransferRequest(*sides, device="cpu")).plan.recipe in ("refit", "distil")


def test_the_users_word_on_a_layer_leaves_the_rest_copied():
    target = replace(SOURCE, role="target", args={"num_classes": 4})
    plan = make_plan(TransferRequest(SOURCE, target, options={"skip": ("conv1",)})).plan
    assert (plan.recipe, plan.passes) == ("grow", ())
    assert plan.fates["conv1.weight"] == "kept"
    assert {plan.fates[move.key] for move in plan.moves} == {"exact"}


def test_a_network_that_cannot_be_stopped_between_operations(folder):
    """Its answer changes from call to call: no refit can be trusted, weights can."""
    more = "self.ln, self.mix = nn.LayerNorm(12), nn.Linear(12, 12)"  # whose scales may be traded without running it
    mixed = "x = self.mix(self.ln(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)"
    target = write(folder, more, f"{mixed} + 0.1 * torch.rand(12, 8, 8)")
    file = folder / "init.safetensors"
    planned = transfer(TransferRequest(SOURCE, target, file, options={"budget": 0.2}, receipt=False))
    told = read_provenance(file)
    whys = [row["why"] for row in told["candidates"] if row["recipe"] == "graft"]
    assert "only weights can be used" in whys[-1]  # in the place of what could not be run
    assert planned.plan.recipe in ("grow", "graft")
    ran = [report["name"] for report in told["passes"]]
    assert ran == [each.name for each in planned.plan.passes]
    assert not {"refit", "distil"} & set(ran)
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


def test_a_budget_is_kept_where_time_runs_faster(folder, monkeypatch):
    """Of 600 steps as many as there is time for; what the ledger says makes the same bytes without a clock."""
    target = write(folder)
    monkeypatch.setattr("netgraft.clock.LATE", 1.1)
    seconds = iter(range(0, 10**6, 2))
    monkeypatch.setattr("netgraft.transfer.time.monotonic", lambda: float(next(seconds)))
    file, again = folder / "init.safetensors", folder / "again.safetensors"
    planned = transfer(TransferRequest(SOURCE, target, file, options={"budget": 2.0}, receipt=False))
    assert planned.plan.recipe == "distil"
    assert 0 < planned.plan.options["cut"] < planned.plan.options["steps"]
    report = next(each for each in read_provenance(file)["passes"] if each["name"] == "distil")
    assert report["cut"] == planned.plan.options["cut"]
    assert report["steps"] < 1.25 * 60 * 2.0 / 2  # each step asks for the time once
    options = {name: value for name, value in planned.plan.options.items() if name != "generator"}
    transfer(TransferRequest(SOURCE, target, again, recipe="distil", options=options, receipt=False))
    first, second = load_file(file), load_file(again)
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.fixture
def interruptible():
    """Started in the background by a shell, a process ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_writes_what_is_there_where_it_is_told_to(folder, monkeypatch):
    write(folder)
    step, taken = torch.optim.Adam.step, []

    def pressed(self, *args, **more):
        taken.append(1)
        if len(taken) == 20:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.Adam, "step", pressed)
    command = ("transfer", SOURCE.reference, "./net.py", "--recipe", "distil", "--set", "steps=200", "--no-receipt")
    result = run(*command, "-o", "init.safetensors", "--on-interrupt", "write")
    assert (result.exit_code, len(taken)) == (0, 22)
    assert "22 steps (cut short)" in result.stdout
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    taken.clear()
    assert run(*command, "-o", "other.safetensors").exit_code == 130
    assert not Path("other.safetensors").exists()


@pytest.mark.usefixtures("interruptible")
def test_pressed_twice_it_interrupts():
    with asked_to_end(OnInterrupt.WRITE) as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
