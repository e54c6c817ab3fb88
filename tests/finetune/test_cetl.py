"""CETL: who moves in which stage, on what loss; what the weights are held to; configurations, variants, turns."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.runs import Killed, Killer, other_folder, same, train, training, with_source, write_nets

from netgraft.errors import UsageError
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.parts import set_train_mode
from netgraft.finetune.methods.cetl import CoupledEndToEnd
from netgraft.finetune.methods.kd import soft_divergence
from netgraft.finetune.toolbox.shared_decoder import layers_before

EXAMPLES = Path(__file__).parents[2] / "examples"
STILL = {"bn": "eval", "target_arg": {"drop": 0.0}}  # the same features in every pass
ADAPTERS = {"source_adapter", "target_adapter"}
FIFTEEN = {"epochs": 3}  # steps: five for each stage


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def running(folder, **options):
    more = options.pop("more", STILL | FIFTEEN)
    found = training(with_source(folder, method="cetl", set=options, **more))
    set_train_mode(found.parts, bn="eval")
    return found


def updates(found, count=100):
    """(step, batch, update, what has moved) of each batch, the update before it is performed."""
    run, shown = found.run, []

    def batches():
        for epoch in range(run.epochs):
            run.epoch = epoch
            for batch in found.prepared.loader.epoch(epoch):
                if run.step == count:
                    return
                shown.append(to_device(batch, run.device))
                run.begin(shown[-1])
                yield shown[-1]
                run.step += 1

    for update in found.prepared.method.epoch(run, batches(), found.parts):
        before = {name: weights(part.module) for name, part in found.parts.items()}
        moved = set()
        yield run.step, shown[-1], update, moved
        found.perform(update, found.settings.lam)
        moved |= {name for name, part in found.parts.items() if not same(before[name], weights(part.module))}


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def images(found, batch):
    """T1 o S and T1 o T2 of a batch, module by module."""
    parts, pair = found.parts, found.run.pairs[-1]
    here, there = found.run.target(batch, stats=False).at[pair.target], found.run.source(batch).at[pair.source]
    decode = parts["decoder"].module
    return decode(parts["source_adapter"].module(there)), decode(parts["target_adapter"].module(here))


def mean_square(one, other):
    return float((one.double() - other.double()).square().mean().detach())


def test_stages_update_what_the_paper_says_on_its_losses(folder):
    seen = []
    for step, batch, update, moved in updates(running(folder)):
        seen.append((step, set(update.losses), set(update.penalties), moved))
        del batch
    stages = [
        ({"recons1"}, set(), {"decoder", "source_adapter"}),
        ({"recons2"}, {"dwa1"}, {"target", "decoder", "target_adapter"}),
        ({"task"}, {"dwa3"}, {"target"}),
    ]
    assert [(losses, dwa, moved) for _, losses, dwa, moved in seen] == [stage for stage in stages for _ in range(5)]


def test_stage_2_leaves_the_classifier_alone_and_dwa2_is_that_of_the_second_turn(folder):
    found = running(folder, stage_unit="step", stage_count=2)
    for step, _, update, _ in updates(found, 9):
        head = found.run.target_module.head.weight
        if step in (2, 3):
            assert torch.autograd.grad(update.losses["recons2"], head, retain_graph=True, allow_unused=True) == (None,)
        assert set(update.penalties) == (
            {"dwa2"} if step in (6, 7) else {"dwa1"} if step in (2, 3, 8) else {"dwa3"} if step in (4, 5) else set()
        )


@pytest.mark.parametrize("config", ["cetl", "coupled"])
def test_losses_are_means_over_samples_and_places(folder, config):
    found = running(folder, config=config, alpha=0.5, beta=0.25)
    for step, batch, update, _ in updates(found, 11):
        if step not in (0, 5, 10):
            continue
        by_source, by_target = images(found, batch)
        expected = {
            "recons1": mean_square(by_source, batch.x),
            "recons2": mean_square(by_target, by_source),
            "task": torch.nn.functional.cross_entropy(found.run.target(batch, stats=False).logits, batch.y).item(),
        }
        factors = {"recons1": 0.5, "recons2": 0.25} if config == "coupled" else {}
        for name, loss in update.losses.items():
            assert float(loss.detach()) == pytest.approx(factors.get(name, 1) * expected[name], rel=1e-6), name
        assert len(update.losses) == (3 if config == "coupled" else 1)


def test_what_the_source_gives_is_a_constant_in_stage_2(folder):
    found = running(folder)
    for step, batch, update, _ in updates(found, 6):
        if step == 5:
            by_source, by_target = images(found, batch)
            decoder = list(found.parts["decoder"].module.parameters())
            loss = (by_target - by_source.detach()).square().mean()
            mine = torch.autograd.grad(update.losses["recons2"], decoder, retain_graph=True)
            for one, other in zip(mine, torch.autograd.grad(loss, decoder), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def flat_gradient(loss, parameters):
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
    )


def test_fisher_information_is_that_of_the_last_batches_of_a_stage(folder):
    """S1: of L_r^s and L_r^t in T1; S2: the same, L_r^t first, and L_r^t and J in T2. Held from then on."""
    found = running(folder, fisher_batches=3, cap=0.0)
    decoder, target = (list(found.parts[name].module.parameters()) for name in ("decoder", "target"))
    memory, kept = found.parts["memory"].module, {"s": [], "t": [], "own": [], "task": []}
    for step, batch, update, _ in updates(found, 11):
        if step == 5:
            anchored = torch.cat([p.detach().flatten() for p in decoder])
            check(memory.of_decoder, kept["s"], kept["t"])
            assert torch.equal(memory.dwa1.anchor, anchored)
            held_fisher(memory.dwa1.importance, kept["s"], memory.of_decoder.relative())
            kept = {name: [] for name in kept}
        if step == 10:
            check(memory.of_decoder, kept["t"], kept["s"])
            check(memory.of_target, kept["own"], kept["task"])
            held_fisher(memory.dwa2.importance, kept["t"], memory.of_decoder.relative())
            held_fisher(memory.dwa3.importance, kept["own"], memory.of_target.relative())
            assert torch.equal(memory.dwa3.anchor, torch.cat([p.detach().flatten() for p in target]))
        if step in (2, 3, 4, 7, 8, 9):
            by_source, by_target = images(found, batch)
            other = (by_target - by_source.detach()).square().mean()
            kept["s"].append(flat_gradient((by_source - batch.x).square().mean(), decoder))
            kept["t"].append(flat_gradient(other, decoder))
            kept["own"].append(flat_gradient(other, target))
            logits = found.run.target(batch, stats=False).logits
            kept["task"].append(flat_gradient(torch.nn.functional.cross_entropy(logits, batch.y), target))
        del update


def check(fisher, first, second):
    assert fisher.count == len(first)
    for row, gradients in zip(fisher.fisher, (first, second), strict=True):
        expected = torch.stack(gradients).double().square().mean(0)
        torch.testing.assert_close(row.double(), expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


def held_fisher(importance, gradients, relative):
    """F over its mean where it was kept: 9 of 10 of the weights that both tasks share, 1 of 10 of the others."""
    fisher = torch.stack(gradients).square().mean(0)
    kept = importance != 0
    torch.testing.assert_close(importance[kept], (fisher / fisher.mean())[kept], rtol=1e-3, atol=1e-5)
    reached = fisher > 1e-12 * fisher.max()
    for chosen, share in ((reached & (relative >= 0.5), 0.9), (reached & (relative < 0.5), 0.1)):
        assert chosen.sum() > 100
        assert float(kept[chosen].double().mean()) == pytest.approx(share, abs=0.1)


def test_plain_fisher_holds_every_weight(folder):
    found = running(folder, config="fi", cap=0.0)
    for _ in updates(found, 6):
        pass
    memory = found.parts["memory"].module
    torch.testing.assert_close(memory.dwa1.importance.mean(), torch.tensor(1.0))
    assert not memory.of_decoder.fisher[1].any(), "the second task is not measured"


def test_the_outputs_directions_are_another_fisher_information(folder):
    seen = []
    for fisher in ("loss", "output"):
        found = running(folder, fisher=fisher, config="fi")
        for _ in updates(found, 6):
            pass
        seen.append(found.parts["memory"].module.dwa1.importance)
    assert not torch.allclose(*seen, rtol=0.1)


@pytest.mark.parametrize(
    ("config", "trains"),
    [("f", {"target_adapter"}), ("u", {"target_adapter", "decoder"}), ("coupled", ADAPTERS | {"decoder"})],
)
def test_configurations_that_take_both_losses_at_once(folder, config, trains):
    """f and u reconstruct from the source until that settles, half of the training at most."""
    found = running(folder, config=config)
    alone, together = {"decoder", "source_adapter"}, {"target"} | trains
    seen = [(set(update.losses), moved) for _, _, update, moved in updates(found)]
    first = 0 if config == "coupled" else 7
    losses = {"task", "recons2"} | ({"recons1"} if config == "coupled" else set())
    assert seen == [({"recons1"}, alone)] * first + [(losses, together)] * (15 - first)
    assert "memory" not in found.parts


def test_the_first_stage_of_f_ends_when_it_has_settled(folder):
    found = running(folder, config="f", tolerance=10.0, stage_unit="step", stage_count=1)
    first = [step for step, _, update, _ in updates(found) if "recons1" in update.losses]
    assert first == [0, 1], "a second turn like the first"


def test_nothing_moves_once_all_stages_have_settled(folder):
    found = running(folder, config="e", tolerance=10.0, stage_unit="step", stage_count=1)
    assert [step for step, *_ in updates(found)] == [0, 1, 2, 3, 4, 5]


def test_labels_of_the_source_and_reconstructions_without_labels(folder):
    found = running(folder, labels="source", reconstruct="both", config="e")
    for step, batch, update, _ in updates(found, 11):
        if step == 0:
            both = [mean_square(images(found, one)[0], one.x) for one in (batch, batch.unlabelled)]
            assert float(update.losses["recons1"].detach()) == pytest.approx(sum(both) / 2, rel=1e-6)
        if step == 10:
            logits = found.run.target(batch.source, stats=False).logits
            expected = torch.nn.functional.cross_entropy(logits, batch.source.y)
            assert float(update.losses["task"].detach()) == pytest.approx(expected.item(), rel=1e-6)


def test_soft_targets_and_both_sides_of_the_bound(folder):
    found = running(folder, soft_targets=0.5, bound=True, config="e", stage_unit="step")
    for step, batch, update, _ in updates(found, 3):
        if step == 2:
            here, there = found.run.target(batch, stats=False).logits, found.run.source(batch).logits
            assert float(update.losses["kd"].detach()) == pytest.approx(0.5 * soft_divergence(here, there, 4.0).item())
            left = float((here.argmax(1) != batch.y).float().mean())
            error = float((found.run.source(batch.source).logits.argmax(1) != batch.source.y).float().mean())
            disagree = float((here.argmax(1) != there.argmax(1)).float().mean())
            away = [(one - batch.x).square().flatten(1).mean(1).sqrt().mean() for one in images(found, batch)]
            noted = found.run.meters.means()
            assert float(noted["bound_left"]) == pytest.approx(left, abs=1e-6)
            right = error + 2 * disagree + 3 * away[0].item() + 2 * away[1].item()
            assert float(noted["bound_right"]) == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "without", "said"),
    [
        ({"labels": "source", "config": "coupled"}, {"source_data": None}, "--source-data"),
        ({"reconstruct": "unlabelled"}, {"unlabelled": None}, "--unlabelled"),
        ({"soft_targets": 1.0, "config": "coupled"}, {"source_arg": {"width": 8, "num_classes": 3}}, "same classes"),
    ],
)
def test_what_a_variant_needs_is_asked_for(folder, options, without, said):
    if "source_arg" in without:
        net = safetensors.torch.load_file(folder / "theirs.safetensors")
        net |= {"head.weight": net["head.weight"][:3].clone(), "head.bias": net["head.bias"][:3].clone()}
        safetensors.torch.save_file(net, folder / "theirs.safetensors")
    found = running(folder, more=STILL | FIFTEEN | without, **options)
    with pytest.raises(UsageError) as refused:
        next(updates(found))
    assert said in f"{refused.value} {refused.value.hint}"


def test_a_stage_of_one_step_cannot_hold_weights():
    with pytest.raises(ValueError, match="stage_count=10"):
        CoupledEndToEnd(stage_unit="step")
    CoupledEndToEnd(stage_unit="step", config="e")


def test_only_layers_before_the_features_are_mirrored(folder):
    found = running(folder, config="e", more=STILL | FIFTEEN | {"pairs": "body:body"})
    assert layers_before(found.run, "body") == ("stem", "body")
    assert len(found.parts["decoder"].module) == 2
    assert layers_before(found.run, "last") == ("stem", "body", "last")


def test_resumed_in_the_middle_of_a_stage_and_of_a_window(folder):
    """Saved after eight of fifteen steps: three of S2, one of them in the window of three batches."""
    chosen = with_source(folder, method="cetl", set={"fisher_batches": 3}, recovery_interval=2, epochs=3)
    train(other_folder(chosen, "whole"))
    killed = other_folder(chosen, "killed")
    with pytest.raises(Killed):
        train(killed, watch=Killer(9))
    train(killed, resume=True)
    assert same(*(safetensors.torch.load_file(folder / out / "last.safetensors") for out in ("whole", "killed")))


def test_the_decoder_reconstructs_letters(folder):
    """L_r^s falls below half of its start within 200 steps, from the features of a source that was never trained."""
    more = {"target_arg": {"num_classes": 26}, "source_arg": {"width": 8, "num_classes": 26}, "init": None}
    more |= {"data": "netgraft:glyphs", "source_weights": None, "random_source": True, "samples_per_class": 16}
    more |= {"source_data": None, "unlabelled": None, "epochs": 16}  # 26 steps each
    found = running(folder, config="u", more=more)
    losses = [float(update.losses["recons1"].detach()) for *_, update, _ in updates(found, 200)]
    assert len(losses) == 200
    assert sum(losses[-10:]) / 10 < losses[0] / 2


def test_a_deep_decoder_reconstructs_letters(folder):
    """Eight layers, where norms of each image by itself left one picture for all of them."""
    more = {"target": f"{EXAMPLES / 'few_labels.py'}:VGG9", "target_arg": {"num_classes": 26}, "init": None}
    more |= {"source": "netgraft:resnet20-glyphs", "source_arg": {}, "source_weights": None, "source_data": None}
    more |= {"data": "netgraft:glyphs", "samples_per_class": 10, "unlabelled": None, "epochs": 30}  # 16 steps each
    found = running(folder, config="u", more=more)
    losses = [float(update.losses["recons1"].detach()) for *_, update, _ in updates(found, 200)]
    assert len(losses) == 200
    assert sum(losses[-10:]) / 10 < losses[0] / 2
    with torch.no_grad():
        made = images(found, to_device(next(iter(found.prepared.loader.epoch(0))), found.run.device))[0]
    assert float(made.var(0).mean()) > 0.1, "not one picture for all"
