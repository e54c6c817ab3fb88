"""What every matcher keeps to, checked for one source and one target."""

from support.drawn import renamed

from netgraft.matchers.protocol import Ablation
from netgraft.plan import Pairing


def check_laws(matcher, source, target):
    pairing = matcher(source, target)
    assert isinstance(pairing, Pairing)
    targets = [pair.target for pair in pairing.pairs]
    assert len(set(targets)) == len(targets), "a target more than once"
    assert set(targets) <= target.layers.keys()
    assert {pair.source for pair in pairing.pairs} <= source.layers.keys()
    assert all(pair.why for pair in pairing.pairs)
    for pair in pairing.pairs:
        assert source.layers[pair.source].kind == target.layers[pair.target].kind
    kernels = {layer.name for layer in target.kernels()}
    assert kernels <= set(targets) | pairing.unpaired.keys(), "a kernel without a partner and without a reason"
    assert not set(targets) & pairing.unpaired.keys()
    assert all(pairing.unpaired.values())
    assert matcher(source, target) == pairing, "not deterministic"
    return pairing


def check_names(matcher, source, target, pairing):
    """Other names, same pairs."""
    (other_source, there), (other_target, here) = renamed(source, "s_"), renamed(target, "t_")
    other = matcher(other_source, other_target)
    assert [(there[p.source], here[p.target]) for p in other.pairs] == [(p.source, p.target) for p in pairing.pairs]
    assert {here[name] for name in other.unpaired} == set(pairing.unpaired)


def check_identity(matcher, graph):
    pairing = matcher(graph, graph)
    if isinstance(matcher, Ablation) and matcher.ablation:
        return
    assert all(pair.source == pair.target for pair in pairing.pairs)
    if any(graph.by_id[id].layer in {k.name for k in graph.kernels()} for id in graph.from_input & graph.to_output):
        assert pairing.pairs
