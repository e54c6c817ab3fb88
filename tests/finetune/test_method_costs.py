"""Steps of the matching methods do at most 1.05 of the FLOPs that they cannot do without."""

import sys
from pathlib import Path

import pytest
from support.runs import with_source, write_nets

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from finetune_cost_methods import count, kinds


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    folder = write_nets(tmp_path_factory.mktemp("cost"))
    return {name: count(training) for name, training in kinds(lambda **more: with_source(folder, **more))}


def test_at_most_the_floor(counted):
    for name, (step, floor) in counted.items():
        assert 0.9 * floor < step <= 1.05 * floor, name


def test_analytic_gradients_cost_nothing(counted):
    for name in ("l2", "l2-sp", "dtnh"):
        assert counted[name].step == counted["plain"].step


def test_the_source_stops_early(counted):
    assert counted["at"].step < counted["kd"].step
