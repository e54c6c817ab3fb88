"""From settings to networks, data and a method: every refusal comes before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netgraft import plugins
from netgraft.data.folds import HeldOutFold
from netgraft.data.pictures import LabelledPictures, Pixels
from netgraft.errors import NetgraftError, UsageError
from netgraft.files.checkpoint import read_provenance
from netgraft.finetune.combine import Rule, find_rule
from netgraft.finetune.engine import pairing
from netgraft.finetune.engine.batch_norm import synchronise
from netgraft.finetune.engine.freezing import Freezing
from netgraft.finetune.engine.judge import Judge
from netgraft.finetune.engine.loader import Loader
from netgraft.finetune.engine.loss_scale import LossScale
from netgraft.finetune.engine.places import places
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.engine.rates import factors_of
from netgraft.finetune.engine.retrieve import make_search
from netgraft.finetune.engine.run import LiveRun, SourceNet
from netgraft.finetune.engine.sets import find_normalisation, make_loader, open_sets
from netgraft.finetune.engine.several import check_labels
from netgraft.finetune.engine.source import build_source, load_source, make_cache
from netgraft.finetune.needs import FOLDER, check_needs, needs_of, rule_of
from netgraft.finetune.protocol import FeaturePair, Method, Need
from netgraft.finetune.settings import TrainingSettings
from netgraft.finetune.toolbox.domains import head_of
from netgraft.finetune.toolbox.taps import first_tensor, shapes, submodule
from netgraft.finetune.toolbox.triplet import TripletLoss
from netgraft.models.model import Model, load_model
from netgraft.models.running import forward, load_state
from netgraft.models.side import own_weights
from netgraft.plan import KEPT, SET, Plan
from netgraft.trace import trace

Progress = Callable[[str], None]


@dataclass
class PreparedTraining:
    """Everything that a training is made of."""

    settings: TrainingSettings
    processes: Processes
    method: Method
    rule: Rule
    rule_name: str
    needs: frozenset[Need]
    run: LiveRun
    loader: Loader
    judge: Judge
    freezing: Freezing
    factors: Mapping[int, float]  # of the learning rate, by the id of a parameter
    record: dict[str, Any] = field(default_factory=dict)  # for provenance: init, source, data, normalisation, pairs


def prepare(
    settings: TrainingSettings, progress: Progress = lambda _: None, fold: HeldOutFold | None = None
) -> PreparedTraining:
    """Load, open and check all of it.

    With ``fold`` that is validation, and test images are not opened. Raises a NetgraftError for anything that is wrong,
    with nothing written.
    """
    described = plugins.describe(FOLDER, settings.method)
    check_needs(settings, described)
    needs = frozenset(needs_of(described))
    method = plugins.create(FOLDER, settings.method, settings.set)
    rule_name = settings.combine or rule_of(described)
    rule = find_rule(rule_name, settings.dtnh_scope)
    by_hand = pairing.given_names(settings.pairs)
    pairing.check_matcher(settings.matcher)
    model = load_model(
        settings.target,
        role="target",
        args=settings.target_arg,
        input_size=settings.input_size,
        weights_file=Path(settings.init) if settings.init else None,
    )
    source = load_source(settings)
    if model.input_size is None:
        hint = "Add --input-size C,H,W, or give the class an attribute input_size."
        raise UsageError(f"The input size of {model.name} is not known.", hint=hint)
    ledger = _ledger(settings.init)
    normalisation = find_normalisation(settings, model, source)
    if normalisation.remark:
        progress(normalisation.remark)
    sets = open_sets(settings, fold)
    train = sets.train
    check_labels(settings, train)
    processes = Processes(settings.device)
    loader = make_loader(settings, model.input_size, normalisation, train, sets.others, processes)
    test, held_out = (
        None if pictures is None else Pixels(pictures, model.input_size, normalisation)
        for pictures in (sets.test, sets.validation)
    )
    search = make_search(settings, sets.search, test, model.input_size, normalisation)
    judge = Judge(test, held_out, search)
    if search is not None:
        progress(search.remark)
    if judge.warning:
        progress(judge.warning)

    traced = cache(lambda: trace(model))
    progress(f"building {model.name}")
    module, init = _build(model, settings.seed)
    module.to(processes.device)
    images = loader.target.pixels.batch([0, 1 % len(train)]).to(processes.device)
    _check_classes(module, model, images, train)
    net, source_record, source_classes = None, None, 0
    if source is not None:
        progress(f"building {source.name}")
        net, source_record = build_source(settings, source, model.input_size, normalisation, processes.device)
        source_classes = _check_source(net, source, images, train, needs)
    pairs: tuple[FeaturePair, ...] = ()
    if net is not None and source is not None and (Need.PAIRS in needs or by_hand is not None):
        progress("pairing layers")
        names, computed = (
            (by_hand, False)
            if by_hand
            else pairing.names_of(ledger, source.name, lambda: (trace(source), traced()), settings.matcher)
        )
        pairs = _measure(names, net, module, images, chosen=by_hand is not None, computed=computed)
        if settings.pairs == "stages":
            pairs = pairing.last_of_stages(pairs)
        pairing.check_some(pairs, source.name, model.name)
        net.last = "" if net.compiled else _last(net, pairs, images)
    if settings.channels_last:
        module.to(memory_format=torch.channels_last)
    if settings.bn == "sync":
        synchronise(module, processes)
    if net is not None:
        net.cache = make_cache(settings, source_record or {}, loader, pairs)
    run = LiveRun(
        module,
        processes,
        classes=len(train.classes),
        multilabel=train.multilabel,
        source_classes=source_classes,
        epochs=settings.epochs,
        steps=settings.epochs * len(loader),
        seed=settings.seed,
        smoothing=settings.smoothing,
        loader=loader,
        precision=getattr(torch, settings.amp_dtype) if settings.amp else None,
        loss_scale=LossScale(processes.device) if settings.amp and settings.amp_dtype == "float16" else None,
        channels_last=settings.channels_last,
        net=net,
        pairs=pairs,
        needs=needs,
        find_graph=traced,
        find_transferred=lambda: came(name for name, _ in module.named_parameters(remove_duplicate=False)),
        find_source_heads=lambda: tuple(layer.name for layer in trace(source).heads()) if source is not None else (),
    )

    if search is not None:
        head_of(run)  # traced now, before the training's random numbers
    if settings.triplet:
        run.triplet = TripletLoss(settings.triplet, settings.margin, head_of(run))

    def came(names: Iterable[str]) -> frozenset[str]:
        return _transferred(ledger, names, run.heads, model.weights is not None)

    freezing = Freezing.of(settings, traced, lambda: came(_tensor_names(module)))
    factors = factors_of(settings, ledger, module)
    record = {
        "init": init,
        "source": source_record,
        "data": sets.record(),
        "best_chosen_on": judge.chosen_on,
        "normalisation": {"mean": list(normalisation.mean), "std": list(normalisation.std)},
        "pairs": [[pair.source, pair.target] for pair in pairs],
    }
    return PreparedTraining(
        settings, processes, method, rule, rule_name, needs, run, loader, judge, freezing, factors, record
    )


# --------------------------------------------------------------------------------------------------------------- models


def _build(model: Model, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The target with its weights on the CPU, and where they are from."""
    tensors, origin = own_weights(model, seed, allow_nonfinite=False)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        module = model.build()
    load_state(module, tensors)
    return module, origin


def _forward(module: nn.Module, images: Tensor, model: Model) -> Tensor:
    """The output of a network in eval mode; its mode stays as it was. Raises ForwardError."""
    training = module.training
    try:
        with torch.no_grad():
            return first_tensor(forward(module.eval(), images, model))
    finally:
        module.train(training)


def _check_classes(module: nn.Module, model: Model, images: Tensor, train: LabelledPictures) -> None:
    logits = _forward(module, images, model)
    if logits.dim() != 2 or logits.shape[1] != len(train.classes):
        shape = "x".join(map(str, logits.shape))
        what = f"{model.name} puts out {shape} for two images, and {train.name} has {len(train.classes)} classes."
        hint = f"Give its constructor the number: --target-arg num_classes={len(train.classes)}"
        raise UsageError(what, hint=hint)


def _check_source(
    net: SourceNet, source: Model, images: Tensor, train: LabelledPictures, needs: frozenset[Need]
) -> int:
    """How many numbers it puts out for an image."""
    logits = _forward(net.module, net.adapt(images), source)
    if Need.SAME_CLASSES in needs and logits.shape[-1] != len(train.classes):
        what = f"The method compares classes: {source.name} has {logits.shape[-1]}, the data {len(train.classes)}."
        raise UsageError(what, where=train.name, hint="Take a source that was trained on these classes.")
    return int(logits.shape[-1])


def _measure(
    names: pairing.Names, net: SourceNet, module: nn.Module, images: Tensor, *, chosen: bool, computed: bool
) -> tuple[FeaturePair, ...]:
    if chosen:
        for source_layer, target_layer in names:
            submodule(net.module, source_layer), submodule(module, target_layer)
    if computed:
        in_source = places(net.module, net.adapt(images), (source_layer for source_layer, _ in names))
        in_target = places(module, images, (target_layer for _, target_layer in names))
        seen = [(in_source[a], in_target[b]) for a, b in names if a in in_source and b in in_target]
        names = list(dict.fromkeys(seen))
    training = module.training
    found = pairing.measure(names, net.module, module.eval(), (net.adapt(images), images), chosen=chosen)
    module.train(training)
    return found


def _last(net: SourceNet, pairs: tuple[FeaturePair, ...], images: Tensor) -> str:
    """The paired layer of the source that runs last."""
    return list(shapes(net.module, [pair.source for pair in pairs], net.adapt(images)))[-1]


# ---------------------------------------------------------------------------------------------------- the init's ledger


def _ledger(init: str | None) -> Plan | None:
    """The plan behind an initialisation; None for a file without any."""
    if init is None:
        return None
    try:
        return Plan.from_json(read_provenance(init)["plan"])
    except (NetgraftError, KeyError, TypeError):
        return None


def _tensor_names(module: nn.Module) -> list[str]:
    """Of parameters and buffers, all names of those that are shared."""
    found = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return [name for name, _ in found]


def _transferred(plan: Plan | None, names: Iterable[str], heads: tuple[str, ...], has_weights: bool) -> frozenset[str]:
    if plan is not None:
        return frozenset(name for name in names if plan.fates.get(name, KEPT) not in (SET, KEPT))
    inside = tuple(f"{head}." for head in heads)
    return frozenset(name for name in names if has_weights and not name.startswith(inside))
