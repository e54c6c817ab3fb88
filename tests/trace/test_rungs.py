"""Which rung holds, what it is fed, and what the user reads when none does."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.architecture.chain import longest_chain
from netgraft.errors import BuildError, ForwardError, ModelFileError, NetgraftError, TraceError
from netgraft.trace import trace


@dataclass(frozen=True)
class Net:
    """A model as ``netgraft.models`` hands it over."""

    build: Callable[[], nn.Module]
    input_size: tuple[int, ...] | None = None
    example_inputs: Callable[[], Any] | None = None
    name: str = "Net"
    file: Path | None = Path(__file__)


class Small(nn.Module):
    def __init__(self, side: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * side * side, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).flatten(1))


def names(graph: Any) -> list[str]:
    return [layer.name for layer in graph.kernels()]


def test_meta_rung_with_a_given_size() -> None:
    graph = trace(Net(Small, (3, 32, 32)))
    assert (graph.rung, graph.warnings) == ("meta", ())
    assert graph.layers["fc"].flattened == (8, 32, 32)
    assert graph.layers["conv"].in_shape == (2, 3, 32, 32)


def test_a_guessed_size_is_said() -> None:
    graph = trace(Net(Small))
    assert graph.warnings == ("The input size 3x32x32 was guessed; say --input-size 3,32,32 if it is another.",)


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: nn.Conv1d(2, 4, 3), (2, 224)),
        (lambda: nn.Conv3d(1, 2, 3), (1, 16, 112, 112)),
        (lambda: nn.Linear(7, 2), (7,)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), (784,)),
        (lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)), (16,)),
        (lambda: nn.LSTM(5, 4, batch_first=True), (16, 5)),
        (lambda: nn.LayerNorm(6), (6,)),
        (lambda: nn.LazyConv2d(4, 3), (3, 224, 224)),
        (lambda: nn.ReLU(), (3, 224, 224)),
    ],
)
def test_guesses_follow_the_first_layer(build: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    graph = trace(Net(build))
    text = "x".join(map(str, size))
    assert (
        any(f"input size {text} was guessed" in warning for warning in graph.warnings)
        or graph.nodes[0].shape[1:] == size
    )
    assert graph.nodes[0].shape == (2, *size)


def test_a_model_that_only_takes_a_batch_of_one() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.reshape(12))

    assert trace(Net(One, (3, 2, 2))).layers["fc"].in_shape == (12,)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y)


@pytest.mark.parametrize(
    "given",
    [
        (torch.zeros(2, 3), torch.zeros(2, 5)),
        [torch.zeros(2, 3), torch.zeros(2, 5)],
        {"y": torch.zeros(2, 5), "x": torch.zeros(2, 3)},
    ],
)
def test_example_inputs_may_be_a_tuple_or_keywords(given: Any) -> None:
    graph = trace(Net(Several, example_inputs=lambda: given))
    assert set(names(graph)) == {"a", "b"}
    assert [node.op for node in graph.nodes][:2] == ["input", "input"]


def test_example_inputs_may_be_one_tensor() -> None:
    assert names(trace(Net(lambda: nn.Linear(3, 4), example_inputs=lambda: torch.zeros(1, 3)))) == ["(model)"]


def test_several_inputs_that_differ_cannot_be_made_up() -> None:
    with pytest.raises(ForwardError, match=r"takes 2 inputs \(x, y\)") as caught:
        trace(Net(Several))
    assert "example_inputs()" in caught.value.hint


def test_several_equal_inputs_are_made_up_and_said() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.fc(one) - self.fc(other)

    graph = trace(Net(Siamese, (3,)))
    assert [node.id for node in graph.nodes if node.op in ("input", "layer")] == ["input", "input_1", "fc", "fc@2"]
    assert [node.inputs for node in graph.nodes if node.op == "layer"] == [("input",), ("input_1",)]
    assert "The 2 inputs of forward were all given the same size" in graph.warnings[0]


class Item(nn.Module):
    """A constructor that looks at values, as torchvision's RegNets do."""

    def __init__(self) -> None:
        super().__init__()
        widths = torch.linspace(4, 8, 3).int()
        self.register_buffer("shift", torch.tensor([1.0]))
        self.offset = torch.tensor([2.0])
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(int(widths.max().item()) - 6)))
        self.head = nn.Linear(4, 4)
        self.head.weight = self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x + self.shift + self.offset))


def test_a_constructor_that_needs_values_goes_through_register_parameter() -> None:
    graph = trace(Net(Item, (4,)))
    assert graph.rung == "meta"
    assert names(graph) == ["layers.0", "layers.1", "head"]
    assert graph.layers["layers.0"].tensors["weight"].aliases == ("head.weight",)


def test_register_parameter_is_put_back() -> None:
    before = nn.Module.register_parameter
    trace(Net(Item, (4,)))
    assert nn.Module.register_parameter is before


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) if x.abs().sum() > 0.01 else self.small(x)


def test_control_flow_that_depends_on_data_is_followed_on_real_values_and_said() -> None:
    graph = trace(Net(DataDependent, (4,)))
    assert graph.rung == "cpu"
    assert names(graph) == ["large"]
    assert any("real values" in warning for warning in graph.warnings)
    assert any("never used 2 parameters: small.weight, small.bias" in warning for warning in graph.warnings)


def test_real_values_are_the_same_each_time_and_leave_no_trace() -> None:
    class Chancy(DataDependent):
        def forward(self, x: Tensor) -> Tensor:
            return self.large(x) if x.sum() > 0 and random.random() > 0.5 else self.small(x)

    torch.manual_seed(5)
    random.seed(5)
    state, python = torch.get_rng_state(), random.getstate()
    graphs = [trace(Net(Chancy, (4,))).fingerprint() for _ in range(3)]
    assert len(set(graphs)) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python


def test_tensors_made_in_forward_without_a_device() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), 4)
            for step in x.unbind(1):
                state = self.cell(torch.cat([step, state], 1))
            return state

    graph = trace(Net(Recurrent, (3, 4)))
    assert graph.rung == "meta"
    assert graph.layers["cell"].calls == 3


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_failing_forward_names_the_users_line_the_input_and_the_way_out() -> None:
    with pytest.raises(ForwardError) as caught:
        trace(Net(lambda: Small(20), (3, 32, 32)))
    error = caught.value
    assert "1x3x32x32" in error.what
    assert "mat1 and mat2" in error.what
    assert "test_rungs.py:" in error.where
    assert "self.fc(F.relu(self.conv(x)).flatten(1))" in error.where
    assert "--input-size" in error.hint
    assert "example_inputs()" in error.hint


def test_a_failing_forward_on_a_guessed_input_says_guessed() -> None:
    with pytest.raises(ForwardError, match=r"1x3x224x224 \(guessed\)"):
        trace(Net(lambda: Small(20)))


@pytest.mark.parametrize("error", [BuildError("It needs x."), ModelFileError("Broken.")])
def test_what_the_builder_says_comes_through(error: NetgraftError) -> None:
    def build() -> nn.Module:
        raise error

    with pytest.raises(NetgraftError) as caught:
        trace(Net(build))
    assert caught.value is error


def test_a_bare_builder_that_raises() -> None:
    def build() -> nn.Module:
        raise ZeroDivisionError("no")

    with pytest.raises(BuildError, match="could not be built: ZeroDivisionError: no"):
        trace(Net(build))


class Stubborn(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002
        raise self.error


@pytest.mark.parametrize(
    "error", [SystemExit(3), RecursionError("deep"), MemoryError(), KeyError("a\nb"), StopIteration()]
)
def test_whatever_forward_raises_is_a_forward_error(error: BaseException) -> None:
    with pytest.raises(ForwardError):
        trace(Net(lambda: Stubborn(error), (3,)))


def test_control_c_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        trace(Net(lambda: Stubborn(KeyboardInterrupt()), (3,)))


def test_the_time_limit_on_real_values() -> None:
    class Slow(DataDependent):
        def forward(self, x: Tensor) -> Tensor:
            while x.abs().sum() > 0:
                time.sleep(0.01)
            return self.small(x)

    with pytest.raises(TraceError, match="time limit") as caught:
        trace(Net(Slow, (4,)), seconds=0.2)
    assert caught.value.where.startswith("meta: ")
    assert "\ncpu: TimeoutError" in caught.value.where


def test_a_forward_that_works_but_cannot_be_recorded_names_each_rung() -> None:
    class Watchful(DataDependent):
        def forward(self, x: Tensor) -> Tensor:
            from torch.utils._python_dispatch import _get_current_dispatch_mode

            if _get_current_dispatch_mode() is not None:
                raise RuntimeError("watched")
            return self.small(x)

    with pytest.raises(TraceError, match="works, but could not be recorded") as caught:
        trace(Net(Watchful, (4,)))
    assert caught.value.where == "meta: RuntimeError: watched\ncpu: RuntimeError: watched"


# --------------------------------------------------------------------------------------------------------- known models


@pytest.mark.parametrize(
    ("name", "chain", "kernels"),
    [
        ("resnet18", 18, 21),
        ("resnet50", 50, 54),
        ("vgg11", 11, 11),
        ("vgg11_bn", 11, 11),
        ("densenet121", 121, 121),
        ("inception_v3", 48, 95),
        ("mobilenetv3_small_100", 54, 54),
        ("efficientnet_b0", 82, 82),
        ("vit_tiny_patch16_224", 50, 50),
        ("convnext_tiny", 59, 59),
    ],
)
def test_chain_lengths_of_known_models(name: str, chain: int, kernels: int) -> None:
    import timm

    graph = trace(Net(lambda: timm.create_model(name), (3, 299, 299) if "inception" in name else (3, 224, 224)))
    assert (graph.rung, graph.warnings) == ("meta", ())
    assert (len(longest_chain(graph)), len(graph.kernels())) == (chain, kernels)
