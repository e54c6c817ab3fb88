"""Methods that compare answers: losses against formulas in NumPy, and what each stage trains."""

import numpy as np
import pytest
import safetensors.torch
import torch
from support.runs import NET, same, state_of, steps, training, with_source, write_nets
from support.updates import EXACT, STILL, array, begin, number

from netgraft.errors import UsageError
from netgraft.finetune.engine.loader import to_device


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def soft(logits, temperature):
    z = np.exp(array(logits) / temperature)
    return z / z.sum(1, keepdims=True)


def soft_entropy(source, target, temperature):
    """H(p_S, p), a mean over samples."""
    return -(soft(source, temperature) * np.log(soft(target, temperature))).sum(1).mean()


def first_batch(running):
    return to_device(next(running.prepared.loader.epoch(0)), running.run.device)


def features_of(net, x):
    """What the classifier of ``support.runs.NET`` reads, in eval mode."""
    with torch.no_grad():
        x = net.stem_norm(net.stem(x)).relu()
        return net.last(net.body_norm(net.body(x)).relu()).relu().mean((2, 3))


def changed(before, module):
    """Names of parameters and buffers that are no longer what they were."""
    return {name for name, value in state_of(module).items() if not torch.equal(value, before[name])}


SELF = {"source_arg": {"width": 6}}
"""The source has the target's architecture."""


# ------------------------------------------------------------------------------------------------------------- lwf


def test_lwf(folder):
    """Eq. 2-3 with a fresh classifier, which is linear on the features that the target's own reads."""
    options = {"warmup_epochs": 0, "old": 0.7, "temperature": 3.0}
    running, update, _, there = begin(folder, "lwf", set=options)
    head = running.parts["source_head"].module
    features = features_of(running.run.target_module.eval(), first_batch(running).x)
    answers = features.double() @ head.weight.double().T + head.bias.double()
    expected = 0.7 * soft_entropy(there.logits, answers, 3)
    assert number(update.losses["lwf"]) == pytest.approx(expected, **EXACT)
    assert set(update.parts) == {"target", "source_head"}


def test_lwf_begins_as_the_source_where_its_classifier_fits(folder):
    given = SELF | {"source_weights": f"{folder}/init.safetensors"}
    running, update, _, there = begin(folder, "lwf", **given, set={"warmup_epochs": 0})
    own = safetensors.torch.load_file(folder / "init.safetensors")
    head = running.parts["source_head"].module
    assert torch.equal(head.weight, own["head.weight"])
    assert head.weight is not running.run.source_module.head.weight
    assert number(update.losses["lwf"]) == pytest.approx(soft_entropy(there.logits, there.logits, 2), **EXACT)
    for more in ({"set": {"head": "fresh"}, **given}, {}):  # the source of 16 features has none that fits
        other = training(with_source(folder, method="lwf", **more)).parts["source_head"].module
        assert other.in_features == 12
        assert not torch.equal(other.weight, own["head.weight"])


def test_lwf_takes_a_source_of_other_classes(folder):
    names = {}
    exec(NET, names)
    safetensors.torch.save_file(names["Net"](8, num_classes=7).state_dict(), folder / "seven.safetensors")
    given = {"source_arg": {"width": 8, "num_classes": 7}, "source_weights": f"{folder}/seven.safetensors"}
    running = training(with_source(folder, method="lwf", **given))
    assert running.run.source_classes == 7
    assert running.run.source_heads == ("head",)
    assert running.parts["source_head"].module.out_features == 7
    steps(running, 1)


@pytest.mark.parametrize("kind", ["source", "fresh"])
def test_lwf_warms_the_classifier_up(folder, kind):
    """Figure 3: the trunk and the source's own classifier frozen, statistics too; then everything trains."""
    given = SELF | {"source_weights": f"{folder}/init.safetensors", "set": {"head": kind}}
    running = training(with_source(folder, method="lwf", **given))
    net, head = running.run.target_module, running.parts["source_head"].module
    before, before_head = state_of(net), state_of(head)
    steps(running, 2)
    assert changed(before, net) == {"head.weight", "head.bias"}
    assert bool(changed(before_head, head)) == (kind == "fresh")
    before, before_head = state_of(net), state_of(head)
    running.run.epoch = 1
    steps(running, 2, epoch=1)
    assert changed(before, net) == set(before)
    assert changed(before_head, head) == set(before_head)


def test_stages_must_leave_an_epoch(folder):
    for method, option in (("lwf", "warmup_epochs"), ("fitnet", "hint_epochs"), ("fsp", "pretrain_epochs")):
        with pytest.raises(UsageError, match="no epoch for the second") as caught:
            training(with_source(folder, method=method, set={option: 2}))
        assert f"--set {option}=1" in caught.value.hint


# ------------------------------------------------------------------------------------------------- fm's second stage


def test_hints_of_fm_are_followed_by_the_answers(folder):
    """FitNets' second stage is knowledge distillation: J and the source's predictions."""
    options = {"hint_epochs": 1, "kd": 0.6, "temperature": 3.0}
    running, first, *_ = begin(folder, "fm", pairs="body:body", set=options)
    assert set(first.losses) == {"fm"}
    running.run.epoch = 1
    batch = first_batch(running)
    running.run.begin(batch)
    update = next(running.prepared.method.epoch(running.run, iter([batch]), running.parts))
    assert set(update.losses) == {"task", "kd"}
    with torch.no_grad():
        here, there = running.run.target(batch), running.run.source(batch)
    p, q = soft(there.logits, 3), soft(here.logits, 3)
    expected = 0.6 * 9 * (p * np.log(p / q)).sum(1).mean()
    assert number(update.losses["kd"]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_hints_of_fm_without_answers(folder):
    names = {}
    exec(NET, names)
    safetensors.torch.save_file(names["Net"](8, num_classes=7).state_dict(), folder / "seven.safetensors")
    given = {"source_arg": {"width": 8, "num_classes": 7}, "source_weights": f"{folder}/seven.safetensors"}
    with pytest.raises(UsageError, match="has 7 classes, the data 10") as caught:
        training(with_source(folder, method="fm", **given, set={"hint_epochs": 1}))
    assert "kd=0" in caught.value.hint
    running = training(with_source(folder, method="fm", **given, set={"hint_epochs": 1, "kd": 0}))
    running.run.epoch = 1
    batch = first_batch(running)
    running.run.begin(batch)
    update = next(running.prepared.method.epoch(running.run, iter([batch]), running.parts))
    assert set(update.losses) == {"task"}
    training(with_source(folder, method="fm", **given))  # without stages there are no answers


# ------------------------------------------------------------------------------------------------------- jacobian


def double(module):
    copy = type(module)(module.stem.out_channels, 0.0).double().eval()
    copy.load_state_dict(module.state_dict())
    return copy.requires_grad_(False)


def answer(net, top):
    return lambda x: net(x[None])[0, top]


def attention(net, layer):
    """The largest value of the sum of squares over channels, by the network up to the layer."""

    def largest(x):
        x = net.stem(x[None])
        if layer != "stem":
            x = net.body(net.stem_norm(x).relu())
        return (x**2).sum(1).max()

    return largest


def matching(source, target, images, functions):
    """The sum over functions of the squared distance of unit Jacobians, image by image."""
    total = 0.0
    for one, other in functions:
        for k, x in enumerate(images):
            a = torch.autograd.functional.jacobian(one(source, k), x)
            b = torch.autograd.functional.jacobian(other(target, k), x)
            total += float((a / a.norm() - b / b.norm()).square().sum()) / len(images)
    return total


@pytest.mark.parametrize("of", ["answers", "attention"])
def test_jacobian(folder, of):
    """Each image's Jacobian by autograd in float64, of copies of the networks."""
    running, update, _, there = begin(folder, "jacobian", pairs="stem:stem,body:body", set={"of": of, "beta": 0.5})
    source, target = double(running.run.source_module), double(running.run.target_module)
    images = first_batch(running).x.double()
    top = array(there.logits).argmax(1)
    functions = (
        [(lambda net, k: answer(net, top[k]),) * 2]
        if of == "answers"
        else [(lambda net, _, layer=layer: attention(net, layer),) * 2 for layer in ("stem", "body")]
    )
    expected = 0.5 * matching(source, target, images, functions)
    assert number(update.losses["jacobian"]) == pytest.approx(expected, rel=2e-6)
    assert number(update.losses["task"]) > 0

    # the gradient, which goes through the gradient of the image, along one direction
    weight = running.run.target_module.body.weight
    (gradient,) = torch.autograd.grad(update.losses["jacobian"], weight)
    direction = gradient.double() / gradient.double().norm()
    size, values = 1e-5, []
    for sign in (1, -1):
        target.body.weight.add_(sign * size * direction)
        values.append(0.5 * matching(source, target, images, functions))
        target.body.weight.sub_(sign * size * direction)
    slope = (values[0] - values[1]) / (2 * size)
    assert slope == pytest.approx(float((gradient.double() * direction).sum()), rel=1e-3)


def test_jacobian_of_an_image_that_changes_nothing():
    from netgraft.finetune.methods.jacobian import unit

    gradient = torch.zeros(2, 3, dtype=torch.float64)
    gradient[1] = torch.tensor([3.0, 0.0, 4.0])
    gradient.requires_grad_()
    found = unit(gradient)
    assert found.tolist() == [[0, 0, 0], [0.6, 0, 0.8]]
    found.sum().backward()
    assert gradient.grad[0].tolist() == [0, 0, 0]
    assert gradient.grad[1].isfinite().all()


def test_jacobian_with_attention_maps(folder):
    """``at`` is the loss of --method at, with a factor."""
    given = {"pairs": "stem:stem,body:body"}
    _, update, *_ = begin(folder, "jacobian", **given, set={"at": 3.0})
    _, other, *_ = begin(folder, "at", **given)
    assert number(update.losses["at"]) == pytest.approx(3 * number(other.losses["at"]), **EXACT)
    _, plain, *_ = begin(folder, "jacobian", **given)
    assert set(plain.losses) == {"task", "jacobian"}


def test_jacobian_of_answers_needs_the_classes(folder):
    names = {}
    exec(NET, names)
    safetensors.torch.save_file(names["Net"](8, num_classes=7).state_dict(), folder / "seven.safetensors")
    given = {"source_arg": {"width": 8, "num_classes": 7}, "source_weights": f"{folder}/seven.safetensors"}
    with pytest.raises(UsageError, match="has 7 classes") as caught:
        training(with_source(folder, method="jacobian", **given))
    assert "of=attention" in caught.value.hint
    steps(training(with_source(folder, method="jacobian", **given, set={"of": "attention"}, **STILL)), 1)


def test_jacobian_leaves_the_statistics_to_its_one_pass(folder):
    """As in plain fine-tuning, BatchNorm sees each batch once."""
    found = []
    for method in ("plain", "jacobian"):
        running = training(with_source(folder, method=method, lam=0.0))
        steps(running, 2)
        found.append(state_of(running.run.target_module))
    assert same(*found)
