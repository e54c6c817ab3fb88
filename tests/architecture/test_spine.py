"""Units of a network: the worked example of the text, and laws over drawn graphs."""

from hypothesis import given, settings
from support.drawn import Drawing, graphs

from netgraft.architecture.endings import find_endings
from netgraft.architecture.spine import spine


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(graphs())
def test_every_node_that_the_output_depends_on_is_in_one_unit(graph):
    units = spine(graph)
    inside = [node.id for unit in units for node in unit.nodes]
    assert len(inside) == len(set(inside))
    assert set(inside) <= graph.to_output
    assert {id for id in graph.to_output if id in graph.from_input} <= set(inside)
    for unit in units[1:]:
        for node in unit.nodes:  # nothing is read from before a step of every path but the step itself
            known = {unit.entry, *(n.id for n in unit.nodes)}
            assert {id for id in node.inputs if id in graph.from_input} <= known


def test_units_and_endings_of_a_residual_network():
    d = Drawing()
    x = d.op("relu", d.norm(d.conv(d.input(), name="stem")))
    branch = d.norm(d.conv(d.op("relu", d.norm(d.conv(x, name="conv1"), name="bn1")), name="conv2"), name="bn2")
    total = d.add(x, branch)
    d.output(d.linear(d.op("relu", total), name="head"))
    graph = d.graph()
    found = [" ".join(node.layer or node.op for node in unit.nodes) for unit in spine(graph)]
    assert found == ["input", "stem L2 relu", "conv1 bn1 relu conv2 bn2 add", "relu", "head", "output"]
    endings = find_endings(graph)
    assert (endings["conv1"].node, endings["conv1"].activated, endings["conv1"].add) == ("bn1", True, None)
    assert (endings["conv2"].node, endings["conv2"].norm, endings["conv2"].skip) == (total, "bn2", x)
