"""How losses move the network: gradients against autograd on the formulas, with float64 copies of both networks.

The value of a loss does not tell whether its gradient reaches the network: without it the value is the same.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.runs import training, with_source, write_nets
from support.updates import STILL
from torch.autograd import grad

PAIRS = {"pairs": "stem:stem,body:body,last:last"}
LAYERS = ("stem", "body", "last")


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


class Passes:
    """A training's first batch, and what float64 copies of its networks make of it."""

    def __init__(self, folder, method, options, **more):
        self.running = training(with_source(folder, method=method, set=options, **(STILL | more)))
        self.batch = next(self.running.prepared.loader.epoch(0))
        self.net, self.theirs = (doubled(m) for m in (self.running.run.target_module, self.running.run.source_module))

    def part(self, name):
        return copy.deepcopy(self.running.parts[name].module).double()

    def update(self, number=0):
        """The one of this number, after those before it were performed."""
        self.running.set_modes()
        self.running.run.begin(self.batch)
        updates = self.running.prepared.method.epoch(self.running.run, iter([self.batch]), self.running.parts)
        for _ in range(number):
            self.running.perform(next(updates), 1.0)
        return next(updates)

    def check(self, loss, formula):
        """The gradients of both by all parameters of the network."""
        parameters = self.running.run.target_module.parameters()
        mine = grad(loss, list(parameters), materialize_grads=True, retain_graph=True)
        expected = grad(formula, list(self.net.parameters()), materialize_grads=True)
        mine, expected = (torch.cat([g.double().flatten() for g in gradients]) for gradients in (mine, expected))
        assert float(expected.norm()) > 1e-6
        assert float((mine - expected).norm()) <= 1e-5 * float(expected.norm())


def doubled(module):
    found = type(module)(module.stem.out_channels, 0.0).double().eval()
    found.load_state_dict(module.state_dict())
    return found


def seen(net, x):
    """The outputs of all layers; ``features`` is what the classifier reads."""
    at = {"stem": net.stem(x.double())}
    at["body"] = net.body(net.stem_norm(at["stem"]).relu())
    at["last"] = net.last(net.body_norm(at["body"]).relu())
    at["features"] = at["last"].relu().mean((2, 3))
    at["logits"] = net.head(at["features"])
    return at


# ------------------------------------------------------------------------------------------------- one data set


def test_lwf(folder):
    passes = Passes(folder, "lwf", {"warmup_epochs": 0, "old": 0.7, "temperature": 3.0})
    head, x = passes.part("source_head"), passes.batch.x
    p = (seen(passes.theirs, x)["logits"].detach() / 3).softmax(1)
    answers = head(seen(passes.net, x)["features"]) / 3
    passes.check(passes.update().losses["lwf"], -0.7 * (p * answers.log_softmax(1)).sum(1).mean())


def test_hint_of_fitnet(folder):
    """The norm's mean and variance depend on the features too."""
    passes = Passes(folder, "fitnet", {}, pairs="stem:stem,stem:body,last:last")
    regressor, x = passes.part("regressor"), passes.batch.x
    out = F.conv_transpose2d(seen(passes.net, x)["body"], regressor.linear.weight, regressor.linear.bias, 2, 1)
    out = F.batch_norm(out, None, None, training=True)
    hint = seen(passes.theirs, x)["stem"].detach()
    passes.check(passes.update().losses["hint"], (out - hint).square().mean() / 2)


def adapted(passes):
    """Layer by layer the target's maps at the source's width, and the source's."""
    here, there = (seen(net, passes.batch.x) for net in (passes.net, passes.theirs))
    maps = zip(LAYERS, passes.part("adapters"), strict=True)
    return [(adapt(here[name]), there[name].detach()) for name, adapt in maps]


def test_fsp(folder):
    passes = Passes(folder, "fsp", {"beta": 0.3}, **PAIRS)
    (a, b, c), formula = adapted(passes), 0
    a = [F.max_pool2d(maps, 2) for maps in a]
    for one, other in ((a, b), (b, c)):
        mine, theirs = (torch.einsum("nchw,ndhw->ncd", one[i], other[i]) / 16 for i in (0, 1))
        formula = formula + 0.3 * (mine - theirs).square().mean()
    passes.check(passes.update().losses["fsp"], formula)


def test_delta(folder):
    passes = Passes(folder, "delta", {"alpha": 0.6}, **PAIRS)
    weights, formula = list(passes.running.parts["attention"].module.buffers()), 0
    for weight, (mine, theirs) in zip(weights, adapted(passes), strict=True):
        weight.copy_(torch.rand(len(weight)).softmax(0))
        formula = formula + 0.3 * (weight.double() * (mine - theirs).square().mean((0, 2, 3))).sum()
    passes.check(passes.update().losses["delta"], formula)


def test_attention_maps_of_jacobian(folder):
    passes = Passes(folder, "jacobian", {"at": 3.0, "beta": 0.0}, **PAIRS)
    here, there = (seen(net, passes.batch.x) for net in (passes.net, passes.theirs))
    formula = 0
    for name in LAYERS:
        mine, theirs = (at[name].square().sum(1).flatten(1) for at in (here, there))
        apart = mine / mine.norm(dim=1, keepdim=True) - (theirs / theirs.norm(dim=1, keepdim=True)).detach()
        formula = formula + 1.5 * apart.norm(dim=1).mean()
    passes.check(passes.update().losses["at"], formula)


# ------------------------------------------------------------------------------------------------- two domains


def of_domains(passes):
    """Of the source's images and of those without labels."""
    return [seen(passes.net, batch.x) for batch in (passes.batch.source, passes.batch.unlabelled)]


def kernel_mmd(one, other, weights=(1, 1, 1, 1, 1)):
    """Biased, by all pairs, with the five Gaussians; their width counts as constant."""
    both = torch.cat([one, other])
    squared = (both[:, None] - both[None]).square().sum(2)
    mean, factors = squared.detach().mean(), (1 / 8, 1 / 4, 1 / 2, 1, 2)
    k = sum(w * torch.exp(-squared / (2 * f * mean)) for w, f in zip(weights, factors, strict=True))
    n = len(one)
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def test_rtn(folder):
    passes = Passes(folder, "rtn", {"weight": 2.0, "entropy": 0.7, "estimator": "biased"})
    residual = passes.running.parts["residual"].module
    with torch.no_grad():
        for parameter in residual.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    residual, losses = passes.part("residual"), passes.update().losses
    for name in ("task", "entropy", "mmd"):
        source, target = of_domains(passes)
        if name == "task":
            formula = F.cross_entropy(residual(source["logits"]), passes.batch.source.y)
        elif name == "entropy":
            formula = 0.7 * torch.distributions.Categorical(logits=target["logits"]).entropy().mean()
        else:
            fused = (torch.einsum("nf,nk->nfk", at["features"], at["logits"]).flatten(1) for at in (source, target))
            formula = 2 * kernel_mmd(*fused)
        passes.check(losses[name], formula)


def test_tzeng(folder):
    """Against the discriminator as its own update left it."""
    passes = Passes(folder, "tzeng", {"confusion": 0.5, "soft": 0.7, "temperature": 3.0})
    labels = passes.running.parts["soft_labels"].module.each
    labels.copy_(torch.randn(10, 10, generator=torch.Generator().manual_seed(0)).softmax(1))
    update, discriminator = passes.update(1), passes.part("discriminator")
    told = [discriminator(at["features"]) for at in of_domains(passes)]
    passes.check(update.losses["confusion"], -0.25 * sum((F.logsigmoid(z) + F.logsigmoid(-z)).mean() for z in told) / 2)
    log_p = (seen(passes.net, passes.batch.x)["logits"] / 3).log_softmax(1)
    passes.check(update.losses["soft"], -0.7 * (labels[passes.batch.y].double() * log_p).sum(1).mean())


def test_kernels_of_an_epoch(folder):
    """DAN's loss has the weights that were solved for, layer by layer; they are constants."""
    passes = Passes(folder, "dan", {"kernels": "epoch", "estimator": "biased", "weight": 1.5})
    each = passes.running.parts["kernels"].module.each
    each.copy_(torch.rand(2, 5, generator=torch.Generator().manual_seed(0)) * 2)
    weights, loss = each.double(), passes.update().losses["mmd"]
    source, target = of_domains(passes)
    layers = zip(("features", "logits"), weights, strict=True)
    formula = 1.5 * sum(kernel_mmd(source[name], target[name], w) for name, w in layers)
    assert float(loss.detach()) == pytest.approx(float(formula.detach()), abs=2e-6)
    passes.check(loss, formula)


@pytest.mark.parametrize("bottleneck", [0, 4])
def test_dan_and_its_bottleneck(folder, bottleneck):
    passes = Passes(folder, "dan", {"bottleneck": bottleneck, "estimator": "biased", "layers": "features"})
    source, target = (at["features"] for at in of_domains(passes))
    if bottleneck:
        source, target = map(passes.part("bottleneck").down, (source, target))
    passes.check(passes.update().losses["mmd"], kernel_mmd(source, target))


@pytest.mark.parametrize("width", ["0", "5"])
def test_ddc_and_its_adaptation_layer(folder, width):
    passes = Passes(folder, "ddc", {"width": width, "weight": 2.0})
    source, target = (at["features"] for at in of_domains(passes))
    if width != "0":
        source, target = map(passes.part("adaptation").each[0].down, (source, target))
    passes.check(passes.update().losses["mmd"], 2 * (source.mean(0) - target.mean(0)).square().sum())


# ------------------------------------------------------------------------------------------------- single images


def each_loss(passes, batch):
    return F.cross_entropy(seen(passes.net, batch.x)["logits"], batch.y, reduction="none")


def test_instance_weighting(folder):
    passes = Passes(folder, "instance-weighting", {"weight": 0.3})
    images = passes.running.parts["images"].module
    images.set(torch.rand(len(images.weights), generator=torch.Generator().manual_seed(0)))
    source = passes.batch.source
    expected = 0.3 * (images.weights[source.ids].double() * each_loss(passes, source)).mean()
    passes.check(passes.update().losses["instances"], expected)


def test_tradaboost(folder):
    """Both losses together: the weighted sum over the images of both data sets."""
    passes = Passes(folder, "tradaboost", {})
    expected = 0
    for name, batch in (("source", passes.batch.source), ("target", passes.batch)):
        images = passes.running.parts["images"].module[name]
        images.set(torch.rand(len(images.weights), generator=torch.Generator().manual_seed(0)))
        expected += (len(images.weights) * images.weights[batch.ids].double() * each_loss(passes, batch)).mean()
    passes.check(sum(passes.update().losses.values()), expected)


@pytest.mark.parametrize("method", ["instance-weighting", "tradaboost"])
def test_statistics_are_of_the_target_s_images(folder, method):
    """The pass of the source's images leaves BatchNorm's running statistics to the target's."""
    passes = Passes(folder, method, {}, bn="train")
    net, mine = passes.running.run.target_module, passes.net.train()
    passes.update()
    seen(mine, passes.batch.x)
    buffers = dict(net.named_buffers())
    for name, expected in mine.named_buffers():
        torch.testing.assert_close(buffers[name].to(expected), expected, atol=1e-6, rtol=1e-6)
