"""Laws over the whole folder: every operator keeps them, and a new file in ``netgraft/resize`` must be listed here."""

import pytest
import torch

from netgraft import plugins
from netgraft.errors import NetgraftError, PlanError
from netgraft.plan import Step
from netgraft.resize import apply_steps

SHAPE = (4, 6, 3, 3)
# name: options that keep SHAPE, and options that change it with the shape that must come out
OPERATORS = {
    "bilinear": ({"size": (3, 3)}, [({"size": [5, 7]}, (4, 6, 5, 7)), ({"size": [2]}, (4, 6, 3, 2))]),
    "cyclic": ({"dim": 1, "size": 6}, [({"dim": 0, "size": 9}, (9, 6, 3, 3)), ({"dim": -3, "size": 2}, (4, 2, 3, 3))]),
    "flatten": ({"dim": 1, "ndim": 1}, [({"dim": 1, "ndim": 3}, (4, 54)), ({"dim": -2, "ndim": 2}, (4, 6, 9))]),
    "unflatten": ({"dim": 1, "shape": (6,)}, [({"dim": 1, "shape": [3, 2]}, (4, 3, 2, 3, 3))]),
}
CHANGES = [(name, options, shape) for name, (_, cases) in OPERATORS.items() for options, shape in cases]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ALL_TYPES = [*FLOATS, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool, torch.complex64]


def weight(dtype=torch.float32, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).mul(9).to(dtype)


def bits(tensor):
    return (str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def test_every_operator_of_the_folder_is_tested_here():
    folder = {
        name for name, plugin in plugins.listing("resize").items() if plugin.module.startswith("netgraft.resize.")
    }
    assert folder == set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_explains_itself(name):
    assert plugins.listing("resize")[name].summary.endswith(".")
    assert all(option.doc for option in plugins.options(plugins.load("resize", name)))


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_same_size_is_the_identity_bit_for_bit(name, dtype):
    source = weight(dtype)
    source.view(-1)[0] = 0
    if dtype in FLOATS:
        source.view(-1)[:3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    result = plugins.create("resize", name, OPERATORS[name][0])(source)
    assert bits(result) == bits(source)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("name", "options", "shape"), CHANGES)
def test_shape_is_exact_dtype_kept_and_source_untouched(name, options, shape, dtype):
    source = weight(dtype)
    before = bits(source)
    operator = plugins.create("resize", name, options)
    first, second = operator(source), operator(source.clone())
    assert tuple(first.shape) == shape
    assert first.dtype == dtype
    assert first.device == source.device
    assert bits(first) == bits(second)
    assert bits(source) == before


@pytest.mark.parametrize(("name", "options", "shape"), CHANGES)
def test_memory_layout_does_not_matter(name, options, shape):
    source = weight()
    operator = plugins.create("resize", name, options)
    assert tuple(operator(source).shape) == shape
    strided = source.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strided.is_contiguous()
    assert bits(operator(strided)) == bits(operator(source))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_scalar_is_a_deliberate_error(name):
    _, [(options, _), *_] = OPERATORS[name]
    with pytest.raises(PlanError, match=name):
        plugins.create("resize", name, options)(torch.tensor(1.0))


@pytest.mark.parametrize("name", OPERATORS)
def test_an_empty_tensor_keeps_its_other_axes(name):
    _, [(options, shape), *_] = OPERATORS[name]
    operator = plugins.create("resize", name, options)
    empty = weight(shape=(0, *SHAPE[1:]) if name != "cyclic" else (*SHAPE[:3], 0))
    wanted = (0, *shape[1:]) if name != "cyclic" else (*shape[:3], 0)
    assert tuple(operator(empty).shape) == wanted


@pytest.mark.parametrize(("name", "options", "shape"), CHANGES)
def test_steps_own_their_memory_and_need_no_gradient(name, options, shape):
    source = torch.nn.Parameter(weight())
    result = apply_steps(source, [Step(name, options)])
    assert tuple(result.shape) == shape
    assert type(result) is torch.Tensor
    assert not result.requires_grad
    assert result.is_contiguous()
    before = bits(source.detach())
    result.fill_(7)
    assert bits(source.detach()) == before


@pytest.mark.parametrize("source", [weight(), weight().transpose(0, 1), weight()[1:2, 2:4], torch.tensor(3)])
def test_no_steps_copy(source):
    before = bits(source)
    result = apply_steps(source, [])
    assert bits(result) == before
    assert result.is_contiguous()
    result.fill_(7)
    assert bits(source) == before


def test_a_slice_returned_by_a_step_does_not_share_memory():
    source = weight(shape=(2, 12))
    result = apply_steps(
        source, [Step("unflatten", {"dim": 1, "shape": [3, 4]}), Step("flatten", {"dim": 1, "ndim": 2})]
    )
    result.fill_(7)
    assert bits(source) == bits(weight(shape=(2, 12)))


def test_flatten_undoes_unflatten():
    source = weight(shape=(5, 24, 2))
    split = plugins.create("resize", "unflatten", {"dim": 1, "shape": (2, 3, 4)})(source)
    assert bits(split.flatten(1, 3)) == bits(source)
    assert bits(plugins.create("resize", "flatten", {"dim": 1, "ndim": 3})(split)) == bits(source)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bilinear", {"size": []}),
        ("bilinear", {"size": [0, 3]}),
        ("cyclic", {"dim": 0, "size": -1}),
        ("flatten", {"dim": 0, "ndim": 0}),
        ("unflatten", {"dim": 0, "shape": []}),
        ("unflatten", {"dim": 0, "shape": [-1, 2]}),
        ("bilinear", {"size": "five"}),
        ("cyclic", {"dim": 0}),
        ("cyclical", {"dim": 0, "size": 3}),
    ],
)
def test_impossible_options_are_refused(name, options):
    with pytest.raises(NetgraftError):
        apply_steps(weight(), [Step(name, options)])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cyclic", {"dim": 4, "size": 3}),
        ("cyclic", {"dim": -5, "size": 3}),
        ("flatten", {"dim": 2, "ndim": 3}),
        ("flatten", {"dim": 4, "ndim": 1}),
        ("unflatten", {"dim": 4, "shape": (1,)}),
        ("unflatten", {"dim": 0, "shape": (2, 3)}),
    ],
)
def test_a_step_that_does_not_fit_says_both_shapes(name, options):
    with pytest.raises(NetgraftError, match=r"\(4, 6, 3, 3\)"):
        apply_steps(weight(), [Step(name, options)])
