"""L2T-ww and L2T-GAN: each loss against another implementation, who moves in which update, and what is undone."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.runs import same, state_of, training, with_source, write_nets

from netgraft.errors import UsageError
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.parts import set_train_mode
from netgraft.finetune.protocol import FeaturePair
from netgraft.finetune.toolbox.adversary import reverse
from netgraft.finetune.toolbox.bilevel.discriminator import (
    Discriminators,
    PairDiscriminator,
    discriminator_loss,
    generator_loss,
)
from netgraft.finetune.toolbox.bilevel.matching import (
    Adapters,
    MatchingWeights,
    _MeanSquare,
    coefficients,
    distances,
    entropies,
    first_order_loss,
    matching_loss,
    pairs_to_match,
    pooled,
    source_features,
)

MAPS = (
    FeaturePair("a", "x", (4, 6, 6), (3, 8, 8)),
    FeaturePair("b", "x", (5, 5, 5), (3, 8, 8)),
    FeaturePair("a", "y", (4, 6, 6), (7, 3, 3)),
    FeaturePair("t", "z", (9, 6), (9, 2)),
    FeaturePair("v", "w", (8,), (3,)),
)


def some(pairs, batch=5, seed=0):
    """Source and target outputs by layer."""
    generator = torch.Generator().manual_seed(seed)
    there = {p.source: torch.randn(batch, *p.source_shape, generator=generator) for p in pairs}
    here = {p.target: torch.randn(batch, *p.target_shape, generator=generator) for p in pairs}
    return there, here


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


ADAMS = [
    ("l2t-ww", "weights", "meta_lr"),
    ("l2t-gan", "weights", "meta_lr"),
    ("l2t-gan", "discriminators", "gan_lr"),
]
"""Parts with an optimizer of their own, and the option that is its learning rate."""


def running(folder, method, drop=0.2, **options):
    found = training(with_source(folder, method=method, set=options, target_arg={"drop": drop}))
    set_train_mode(found.parts, bn="train")
    return found


def updates(found, count=1):
    """(batch, update) of each update of so many batches, before it is performed."""
    run, shown = found.run, SimpleNamespace(batch=None)

    def batches():
        for number, batch in enumerate(found.prepared.loader.epoch(0)):
            if number == count:
                return
            shown.batch = to_device(batch, run.device)
            run.begin(shown.batch)
            yield shown.batch
            run.step += 1

    for update in found.prepared.method.epoch(run, batches(), found.parts):
        yield shown.batch, update
        found.perform(update, found.settings.lam)


def everything(found, *parts):
    """Parameters, buffers and momentum of parts."""
    state = {}
    for part in parts or found.parts:
        state |= {f"{part}.{key}": value for key, value in state_of(found.parts[part].module).items()}
        for i, slot in found.run.optimizers[part].state_dict()["state"].items():
            state |= {f"{part} {i} {key}": v.clone() for key, v in slot.items() if isinstance(v, torch.Tensor)}
    return state


# ------------------------------------------------------------------------------------------------------------ matching


def test_matching_loss_is_that_of_the_paper():
    """Pair by pair, sample by sample, channel by channel."""
    torch.manual_seed(0)
    there, here = some(MAPS)
    adapters, weights = Adapters(MAPS), MatchingWeights(MAPS)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    w, lam = weights([pooled(there[pair.source]) for pair in MAPS])
    found = matching_loss(coefficients(w, lam, 0.5), distances(adapters(here), source_features(MAPS, there)))
    expected = 0.0
    place = {"x": 0, "y": 1, "z": 2, "w": 3}
    first = {0: 0, 1: 4, 2: 0, 3: 0, 4: 0}  # where a pair's channels begin in its layer's adapter
    for i, pair in enumerate(MAPS):
        layer, count = adapters.maps[place[pair.target]], w[i].shape[1]
        matrix = layer.weight.flatten(1)[first[i] : first[i] + count]
        bias = layer.bias[first[i] : first[i] + count]
        f, g = there[pair.source], here[pair.target]
        if f.dim() == 4:
            f = F.interpolate(f, size=g.shape[2:], mode="bilinear", align_corners=False)
            flat, goal = g.flatten(2).transpose(1, 2), f.flatten(2).transpose(1, 2)
            mean = there[pair.source].flatten(2).mean(2)
        else:
            flat, goal = (g, f) if f.dim() == 3 else (g[:, None], f[:, None])
            mean = goal.mean(1)
        channels, losses = weights.channels[i], weights.losses[i]
        for b in range(len(g)):
            mine = torch.softmax(channels.weight @ mean[b] + channels.bias, 0)
            pair_weight = (losses.weight @ mean[b] + losses.bias).clamp(0, 6)
            square = ((flat[b] @ matrix.T + bias - goal[b]) ** 2).mean(0)
            expected = expected + 0.5 * pair_weight[0] * (mine * square).sum() / len(g)
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 2, 2), (4, 2), (3,)])
def test_derivatives_of_distances(shape):
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_MeanSquare.apply, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(_MeanSquare.apply, (x,))


def test_weights_begin_uniform():
    there, _ = some(MAPS)
    seen = [pooled(there[pair.source]) for pair in MAPS]
    for networks in (True, False):
        w, lam = MatchingWeights(MAPS, networks=networks)(seen)
        for one, pair_weight, g in zip(w, lam, seen, strict=True):
            assert torch.equal(one, torch.full_like(g, 1 / g.shape[1]))
            assert torch.equal(pair_weight, torch.ones(len(g), 1))


def test_all_to_all():
    """Every source layer with every target layer of its kind, once."""
    module = torch.nn.ModuleDict({name: torch.nn.Conv2d(1, 1, 1) for name in ("a", "b", "x", "y", "t", "z", "v", "w")})
    run = SimpleNamespace(pairs=MAPS, source_module=module, target_module=module)
    found = [(pair.source, pair.target) for pair in pairs_to_match(run, "all")]
    assert found == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("t", "z"), ("v", "w")]
    assert pairs_to_match(run, "one-to-one") == MAPS


def test_first_order_stops_at_the_floor():
    """Descending sum_c w_c d_c alone puts all weight on one channel."""
    torch.manual_seed(0)
    pairs = MAPS[:1]
    there, _ = some(pairs)
    d = [torch.rand(5, 4)]
    for floor, least, most in ((0.0, 0.0, 0.05), (0.6, 0.55, 0.65)):
        weights = MatchingWeights(pairs, networks=False)
        optimizer = torch.optim.Adam(weights.parameters(), lr=0.02)
        for _ in range(800):
            optimizer.zero_grad()
            w, _ = weights([pooled(there["a"])])
            first_order_loss(w, d, floor).backward()
            optimizer.step()
        assert least <= float(entropies(w[0].detach()).mean()) <= most


# ------------------------------------------------------------------------------------------------------------ adversary


@pytest.mark.parametrize("gan", ["nonsat", "minimax", "grl", "lsgan", "hinge"])
def test_adversarial_losses(gan):
    real, fake = torch.randn(3, 6), torch.randn(3, 6)
    p, q = torch.sigmoid(real), torch.sigmoid(fake)
    discriminator = {
        "lsgan": ((real - 1) ** 2 + fake**2) / 2,
        "hinge": (1 - real).clamp(min=0) + (1 + fake).clamp(min=0),
    }.get(gan, -torch.log(p) - torch.log(1 - q))
    generator = {
        "nonsat": -torch.log(q),
        "lsgan": (fake - 1) ** 2 / 2,
        "hinge": -fake,
    }.get(gan, torch.log(1 - q))
    assert torch.allclose(discriminator_loss(real, fake, gan), discriminator.sum() / 6, atol=1e-5)
    assert torch.allclose(generator_loss(fake, gan), generator.sum() / 6, atol=1e-5)


def test_reversal_is_minimax():
    """One loss through a reversal: the discriminator's gradient, and the generator's by lambda."""
    torch.manual_seed(0)
    nets = Discriminators(MAPS).eval()
    there, _ = some(MAPS)
    real = [there[pair.source] for pair in MAPS]
    fake = [(x + 1).requires_grad_() for x in real]
    loss = discriminator_loss(nets(real), nets([reverse(x, 0.3) for x in fake]), "grl")
    found = torch.autograd.grad(loss, fake)
    expected = torch.autograd.grad(0.3 * generator_loss(nets.frozen(fake), "minimax"), fake)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 5, 5), (9, 6), (8,)])
def test_discriminators_learn(shape):
    torch.manual_seed(0)
    net = PairDiscriminator(shape)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        real, fake = torch.randn(16, *shape) + 1, torch.randn(16, *shape)
        optimizer.zero_grad()
        discriminator_loss(net(real)[None], net(fake)[None], "nonsat").backward()
        optimizer.step()
    assert float((net(real) > 0).float().mean() + (net(fake) < 0).float().mean()) > 1.7
    other = torch.cat([real[:1], fake])
    assert torch.allclose(net.eval()(real)[0], net(other)[0], atol=1e-5)  # no sample sees another


@pytest.mark.parametrize("shape", [(6, 5, 5), (7, 6), (9,)])
def test_every_layer_of_a_discriminator_has_norm_one(shape):
    """The largest singular value of each weight, by LAPACK, the last layer's too; a fresh layer's is far from it."""
    torch.manual_seed(0)
    net = PairDiscriminator(shape)
    for _ in range(30):  # a power iteration in each
        net(torch.randn(4, *shape))
    net.eval()
    for name in ("first", "second", "last"):
        weight = net.get_submodule(name).weight.detach()
        assert float(torch.linalg.svdvals(weight.flatten(1))[0]) == pytest.approx(1, rel=1e-2), name
    plain = torch.nn.Linear(net.last.in_features, 1).weight.detach()
    assert abs(float(plain.norm()) - 1) > 0.1


# ------------------------------------------------------------------------------------------------- the order of updates


def names(found, count=1):
    return [(sorted(update.parts), sorted(update.losses)) for _, update in updates(found, count)]


BOTH, D, W = ["adapters", "target"], ["discriminators"], ["weights"]


def test_order_fused(folder):
    inner = [(D, ["discriminator"]), (BOTH, ["fm", "gan"])]
    expected = [(BOTH, ["fm", "gan", "task"]), *inner, *inner, (["target"], ["task"]), (W, ["meta"])]
    assert names(running(folder, "l2t-gan")) == expected


def test_order_of_the_algorithm(folder):
    inner = [(BOTH, ["fm"]), (D, ["discriminator"]), (BOTH, ["gan"])]
    expected = [(BOTH, ["fm", "gan", "task"]), *inner, *inner, (["target"], ["task"]), (W, ["meta"])]
    assert names(running(folder, "l2t-gan", fuse=False)) == expected


def test_order_with_reversal(folder):
    inner = [(sorted([*BOTH, *D]), ["fm", "grl"])]
    expected = [(BOTH, ["fm", "gan", "task"]), *inner, (["target"], ["task"])]
    assert names(running(folder, "l2t-gan", gan="grl", inner_steps=1, meta="fixed")) == expected


def test_ablations_of_figure_3b(folder):
    def losses(letter):
        found = names(running(folder, "l2t-gan", ablation=letter, gamma=0.1))
        return {name for _, some_names in found for name in some_names}

    whole = {"task", "fm", "gan", "discriminator", "mmd", "meta"}
    assert losses("A") == whole
    assert losses("B") == whole - {"gan", "discriminator"}
    assert losses("C") == whole - {"fm", "meta"}
    assert losses("D") == whole - {"mmd"}


@pytest.mark.parametrize("options", [{}, {"fuse": False}, {"gan": "hinge", "weights": "parameters"}])
def test_only_the_parts_of_an_update_move(folder, options):
    """Discriminators are frozen, spectral norms and all, while the target descends their loss; and the reverse."""
    found = running(folder, "l2t-gan", **options)
    before = {part: everything(found, part) for part in found.parts}
    moved, last = [], None
    for _, update in updates(found, 2):
        if last is not None:
            now = {part: everything(found, part) for part in found.parts}
            moved.append((set(last.parts), {part for part in now if not same_shapes(now[part], before[part])}))
            before = now
        last = update
    assert any("discriminators" in parts for parts, _ in moved)
    for parts, changed in moved:
        buffers_of = {"target"} if "weights" in parts or parts == {"target"} else set()  # a new batch's statistics
        buffers_of |= {"discriminators"} if parts == {"target", "adapters"} else set()  # of the next update's own pass
        assert parts <= changed
        assert changed <= parts | buffers_of


def same_shapes(one, other):
    return one.keys() == other.keys() and same(one, other)


def test_generator_leaves_discriminators_alone():
    torch.manual_seed(0)
    nets = Discriminators(MAPS).train()
    there, _ = some(MAPS)
    before = state_of(nets)
    nets.frozen([there[pair.source] for pair in MAPS])
    assert same(before, state_of(nets))
    assert nets.training
    nets([there[pair.source] for pair in MAPS])
    assert not same(before, state_of(nets))  # what it is frozen against


@pytest.mark.parametrize("options", [{}, {"ablation": "B"}, {"fuse": False, "meta": "fixed"}])
def test_rollback(folder, options):
    """Parameters, momentum and BatchNorm's statistics after a batch are those after its first update."""
    found = running(folder, "l2t-gan", inner="rollback", **options)
    seen = {}
    for _, update in updates(found, 3):
        seen.setdefault(found.run.step, []).append((update, everything(found, "target", "adapters")))
    for performed in seen.values():
        after_first, before_last = performed[1][1], performed[-2 if "weights" in performed[-1][0].parts else -1][1]
        assert not same(after_first, before_last)
        if "weights" in performed[-1][0].parts:
            assert same(after_first, performed[-1][1])
    assert same(after_first, everything(found, "target", "adapters"))


def test_look_ahead_leaves_no_trace(folder):
    """The meta step of L2T-ww: parameters, momentum, BatchNorm's statistics, random numbers."""
    found = running(folder, "l2t-ww")
    moments = []
    for _, update in updates(found, 3):
        moments.append((update, everything(found, "target", "adapters"), found.run.numbers.state[0]))
    assert [sorted(update.losses) for update, _, _ in moments] == [["task", "wfm"], ["meta"]] * 3
    found = running(folder, "l2t-ww", meta_every=1000)
    found.run.step = 1
    without = [(everything(found, "target", "adapters"), found.run.numbers.state[0]) for _ in updates(found, 3)]
    assert len(without) == 3
    first, second = moments[2], without[1]  # before the second batch's update: weight networks are still about uniform
    assert first[1].keys() == second[0].keys()
    for key in first[1]:
        assert torch.equal(first[1][key], second[0][key]), key
    assert torch.equal(first[2], second[1])


def test_look_ahead_is_where_the_steps_lead(folder):
    """The meta loss, computed after A, is J where the engine's own steps of B and C end."""
    found = running(folder, "l2t-gan", drop=0.0, ablation="B", beta=5.0)
    for batch, update in updates(found):
        if "meta" in update.losses:
            there = found.run.task(found.run.target(batch), batch)
            assert torch.allclose(update.losses["meta"], there, rtol=1e-5)
            return
    pytest.fail("no meta step")


@pytest.mark.parametrize("lam", [0.0, 3.0])
def test_look_ahead_is_where_pytorch_s_own_steps_lead(folder, lam):
    """Twice beta L_fm + lam L_g against frozen discriminators, once J, on copies; the meta loss is J there.

    Before any weight has learnt, L_fm is beta times the sum over pairs of mean squares.
    """
    found = running(folder, "l2t-gan", drop=0.0, beta=5.0, **({"lam": lam} if lam else {"ablation": "B"}))
    run = found.run
    batch = to_device(next(found.prepared.loader.epoch(0)), run.device)
    run.begin(batch)
    turns = found.prepared.method.epoch(run, iter([batch]), found.parts)
    found.perform(next(turns), 1.0)  # A)
    parts = {name: found.parts[name].module for name in ("target", "adapters")}
    optimizers = [run.optimizers[name] for name in parts]
    net, adapters, *optimizers = copy.deepcopy((*parts.values(), *optimizers))
    judge = copy.deepcopy(found.parts["discriminators"].module).eval() if lam else None
    shown = {}
    for pair in run.pairs:
        hook = lambda _, __, out, name=pair.target: shown.__setitem__(name, out)  # noqa: E731
        net.get_submodule(pair.target).register_forward_hook(hook)
    there = run.source(batch).at
    sources = [
        F.interpolate(there[p.source], size=p.target_shape[1:], mode="bilinear", align_corners=False) for p in run.pairs
    ]

    def step(loss):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    for _ in range(2):
        net(batch.x)
        adapted = adapters(shown)
        loss = 5 * sum(F.mse_loss(a, f) for a, f in zip(adapted, sources, strict=True))
        if judge is not None:
            logits = [one(a) for one, a in zip(judge.each, adapted, strict=True)]
            loss = loss - lam * sum(F.logsigmoid(z).mean() for z in logits)
        step(loss)
    step(F.cross_entropy(net(batch.x), batch.y))
    expected = float(F.cross_entropy(net(batch.x), batch.y).detach())
    metas = [float(update.losses["meta"].detach()) for update in turns if "meta" in update.losses]
    assert metas == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize(("method", "part", "option"), ADAMS)
@pytest.mark.parametrize("rate", [1e-3, 0.05])
def test_learning_rates_of_other_parts(folder, method, part, option, rate):
    """Adam's first step moves what has a gradient by its learning rate, up or down."""
    found = running(folder, method, **{option: rate})
    module = found.parts[part].module
    before, steps = None, []
    for _, update in updates(found):
        if before is not None and not steps:
            steps = [(after - b).abs().flatten() for after, b in zip(module.parameters(), before, strict=True)]
        if part in update.parts and before is None:
            before = [p.detach().clone() for p in module.parameters()]
    if not steps:  # it was the last update
        steps = [(after - b).abs().flatten() for after, b in zip(module.parameters(), before, strict=True)]
    moved = torch.cat(steps).detach()
    moved = moved[moved > 0]
    assert len(moved) > 10
    assert float(moved.median()) == pytest.approx(rate, rel=0.02)
    assert float(moved.max()) <= rate * 1.001


def test_meta_every(folder):
    found = running(folder, "l2t-ww", meta_every=2)
    performed = [found.run.step for _, update in updates(found, 5) if "weights" in update.parts]
    assert performed == [0, 2, 4]


@pytest.mark.parametrize("method", ["l2t-ww", "l2t-gan"])
def test_source_runs_once_for_a_batch(folder, method):
    found = running(folder, method)
    calls = []
    found.run.source_module.stem.register_forward_hook(lambda *_: calls.append(1))
    list(updates(found, 2))
    assert len(calls) == 2


def test_hypergradient_reaches_the_weights(folder):
    """Against finite differences of the weight networks' parameters, small ones: ReLUs bend the curve."""
    found = running(folder, "l2t-ww", drop=0.0, beta=20.0)
    weights = found.parts["weights"].module
    for _, update in updates(found, 2):
        if "meta" in update.losses:
            parameters = [net.bias for net in weights.channels]
            exact = torch.autograd.grad(update.losses["meta"], parameters, retain_graph=True)
            break
    direction = [g / torch.stack([h.norm() for h in exact]).norm() for g in exact]
    values = []
    for step in (-0.002, 0.002):
        found = running(folder, "l2t-ww", drop=0.0, beta=20.0)
        for _, update in updates(found, 2):
            if "wfm" in update.losses:
                nets = found.parts["weights"].module.channels
                continue
            break
        values.append(_meta_with_bias(found, nets, direction, step))
    slope = (values[1] - values[0]) / 0.004
    assert slope == pytest.approx(float(torch.stack([g.norm() for g in exact]).norm()), rel=0.01)


def _meta_with_bias(found, nets, direction, step):
    from netgraft.finetune.toolbox.adapters import features
    from netgraft.finetune.toolbox.bilevel.look_ahead import look_ahead

    run, weights = found.run, found.parts["weights"].module
    pairs = pairs_to_match(run, "all")
    batch = run._current
    with torch.no_grad():
        for net, move in zip(nets, direction, strict=True):
            net.bias.add_(move, alpha=step)
    there = features(run.source_module, run.source(batch, logits=False))
    w, lam = weights([pooled(there[pair.source]) for pair in pairs])
    sources = source_features(pairs, there)
    a = coefficients(w, lam, 20.0)
    return float(look_ahead(run, batch, found.parts["adapters"].module, sources, a, steps=2).detach())


# ----------------------------------------------------------------------------------------------------- MMD and refusals


@pytest.mark.parametrize("mode", ["paper", "ddc"])
def test_mmd(folder, mode):
    found = running(folder, "l2t-gan", drop=0.0, gamma=0.7, mmd_mode=mode)
    batch, update = next(iter(updates(found)))
    run = found.run
    there = run.source(batch.source) if mode == "paper" else run.target(batch.source)
    here = run.target(batch)
    expected = 0.7 * sum((a - b) ** 2 for a, b in zip(there.logits.mean(0), here.logits.mean(0), strict=True))
    assert torch.allclose(update.losses["mmd"], expected, rtol=1e-4)


def test_mmd_needs_source_images(folder):
    chosen = with_source(folder, method="l2t-gan", set={"gamma": 0.1}, source_data=None)
    found = training(chosen)
    set_train_mode(found.parts, bn="train")
    with pytest.raises(UsageError, match="source images") as raised:
        next(iter(updates(found)))
    assert "--source-data" in raised.value.hint


def test_other_optimizers_are_refused(folder):
    found = training(with_source(folder, method="l2t-ww", opt="adamw"))
    with pytest.raises(UsageError, match="SGD"):
        list(updates(found))


@pytest.mark.parametrize(
    ("method", "options"),
    [("l2t-ww", {"inner_steps": 0}), ("l2t-ww", {"meta_every": 0}), ("l2t-gan", {"lam": 0.0, "ablation": "C"})],
)
def test_senseless_options_are_refused(folder, method, options):
    with pytest.raises(UsageError):
        running(folder, method, **options)


def test_first_order_and_literal_run(folder):
    for options in ({"meta": "first-order"}, {"gan": "grl", "fuse": False}, {"weights": "parameters", "match": "all"}):
        found = running(folder, "l2t-gan", **options)
        for _, update in updates(found, 2):
            assert all(bool(loss.isfinite()) for loss in update.losses.values())
