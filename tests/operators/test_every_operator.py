"""Laws over the whole folder: every operator keeps them, and a new file in ``netgraft/resize`` must be listed here."""

import pytest
import torch

from netgraft import plugins
from netgraft.errors import NetgraftError, PlanError
from netgraft.operators.apply import apply_steps
from netgraft.plan import Step

SHAPE = (4, 6, 3, 3)
# name: options that keep SHAPE (None: it always changes), and options that change it with the shape that must come out
OPERATORS = {
    "bicubic": ({"size": (3, 3)}, [({"size": [5, 7]}, (4, 6, 5, 7)), ({"size": [2], "antialias": True}, (4, 6, 3, 2))]),
    "bilinear": ({"size": (3, 3)}, [({"size": [5, 7]}, (4, 6, 5, 7)), ({"size": [2]}, (4, 6, 3, 2))]),
    "bilinear-gain": (
        {"size": (3, 3)},
        [({"size": [5, 7]}, (4, 6, 5, 7)), ({"size": [2], "preserve": "energy"}, (4, 6, 3, 2))],
    ),
    "centre": ({"size": (3, 3)}, [({"size": [5, 1]}, (4, 6, 5, 1)), ({"size": [2]}, (4, 6, 3, 2))]),
    "concatenate": (
        {"keys": ()},
        [({"keys": ["other"], "dim": 1}, (4, 12, 3, 3)), ({"keys": ["other"]}, (8, 6, 3, 3))],
    ),
    "cyclic": ({"dim": 1, "size": 6}, [({"dim": 0, "size": 9}, (9, 6, 3, 3)), ({"dim": -3, "size": 2}, (4, 2, 3, 3))]),
    "dct": (
        {"size": SHAPE},
        [
            ({"size": [6, 3, 5, 3]}, (6, 3, 5, 3)),
            ({"size": [4, 6, 3, 7], "keep": "energy", "floor": True}, (4, 6, 3, 7)),
        ],
    ),
    "deflate": (None, [({"dim": 2}, (4, 6, 3)), ({"dim": -1}, (4, 6, 3))]),
    "dirac": (None, [({}, SHAPE)]),
    "fill": (None, [({"value": 0.5}, SHAPE), ({"value": 0}, SHAPE), ({"value": 2, "rows": [[1, 2]]}, SHAPE)]),
    "flatten": ({"dim": 1, "ndim": 1}, [({"dim": 1, "ndim": 3}, (4, 54)), ({"dim": -2, "ndim": 2}, (4, 6, 9))]),
    "fold": (
        {"dim": 1, "index": [(0, 6)]},
        [
            ({"dim": 1, "index": [[0, 4], [0, 2]]}, (4, 4, 3, 3)),
            ({"dim": -4, "index": [[1, 1], [0, 2], [0, 1]], "reduce": "sum"}, (2, 6, 3, 3)),
        ],
    ),
    "fold-norm": (
        None,
        [
            ({"variance": "var", "gamma": "gamma"}, SHAPE),
            ({"variance": "var", "eps": 1e-3}, SHAPE),
        ],
    ),
    "gather": (
        {"dim": 1, "index": [(0, 2), (2, 4)]},
        [({"dim": 1, "index": [[0, 6], [0, 3]]}, (4, 9, 3, 3)), ({"dim": -4, "index": [[2, 1]]}, (1, 6, 3, 3))],
    ),
    "head-dim": (
        {"dim": 1, "heads": 3, "size_from": 2, "size_to": 2, "queries": ((0, 1),)},
        [
            ({"dim": 1, "heads": 3, "size_from": 2, "size_to": 5, "queries": [[0, 1]]}, (4, 15, 3, 3)),
            ({"dim": -3, "heads": 2, "size_from": 3, "size_to": 2, "queries": [[1, 1]], "exponent": 1}, (4, 4, 3, 3)),
        ],
    ),
    "impulse": (
        None,
        [
            ({"rows": [[2, 2], [0, 1]], "half": "query", "side": 3, "tap": [0, 1], "scale": 0.5}, SHAPE),
            ({"rows": [[1, 3]], "half": "key", "side": 3, "tap": [-1, 0], "scale": 0.5, "dim": -3}, SHAPE),
        ],
    ),
    "in-chans": ({"size": 6}, [({"size": 1}, (4, 1, 3, 3)), ({"size": 8}, (4, 8, 3, 3))]),
    "inflate": (None, [({"size": 5}, (4, 6, 5, 3, 3)), ({"size": 4, "dim": -1, "mode": "centre"}, (4, 6, 3, 3, 4))]),
    "labels": (
        {"index": [(0, 6)], "dim": 1},
        [
            ({"index": [[-1, 2], [4, 2], [0, 3]], "dim": 1}, (4, 7, 3, 3)),
            ({"index": [[-1, 1], [1, 2]], "fill": "mean", "dim": -1}, SHAPE),
        ],
    ),
    "near-diagonal": (
        None,
        [
            ({"rows": [[2, 2], [0, 1]], "half": "left", "alpha": 0.7, "beta": 0.7, "seed": 3}, SHAPE),
            ({"rows": [[1, 4]], "half": "right", "alpha": 0.4, "beta": -0.4, "seed": 3, "dim": -3}, SHAPE),
        ],
    ),
    "overlay": (
        {"rows": [(0, 4)], "columns": [(0, 6)]},
        [
            ({"rows": [[1, 2], [-1, 3]], "columns": [[0, 6], [-1, 1]], "norm": "own"}, (5, 7, 3, 3)),
            ({"rows": [[3, 1]], "columns": [[-1, 2], [2, 2]], "rest": "own"}, (1, 4, 3, 3)),
            ({"rows": [[0, 4], [-1, 1]], "columns": [[2, 2], [-1, 1]], "turned": True}, (5, 3, 3, 3)),
        ],
    ),
    "pad": ({"dim": 1, "size": 6}, [({"dim": -1, "size": 4}, (4, 6, 3, 4)), ({"dim": 0, "size": 9}, (9, 6, 3, 3))]),
    "pi-resize": (
        {"size": (3, 3)},
        [
            ({"size": [5, 7]}, (4, 6, 5, 7)),
            ({"size": [2], "interpolation": "bilinear", "antialias": False}, (4, 6, 3, 2)),
        ],
    ),
    "positions": (
        {"size_from": (2,), "size_to": (2,), "prefix": 1},
        [
            ({"size_from": [2], "size_to": [4], "prefix": 1}, (4, 6, 5, 3)),
            ({"size_from": [3, 1], "size_to": [2, 2]}, (4, 6, 4, 3)),
        ],
    ),
    "rank-one": (None, [({"part": "spatial"}, (6, 1, 3, 3)), ({"part": "channel"}, (4, 6, 1, 1))]),
    "relative-table": (
        {"size": (2, 1), "size_from": (2, 1)},
        [
            ({"size": [3, 2], "size_from": [2, 1]}, (4, 6, 15, 3)),
            ({"size": [2, 2], "extra": 2}, (4, 6, 11, 3)),
        ],
    ),
    "regroup-norm": (
        {"part": "weight", "groups": 4, "mean": "mean", "variance": "var"},
        [
            ({"part": "weight", "groups": 2, "mean": "mean", "variance": "var"}, SHAPE),
            ({"part": "bias", "groups": 1, "mean": "mean", "variance": "var", "gamma": "gamma"}, SHAPE),
        ],
    ),
    "row-norm": (None, [({}, (4, 1, 1, 1))]),
    "scale": ({"factor": 1.0}, [({"factor": 0.5}, SHAPE), ({"factor": -3}, SHAPE)]),
    "scale-part": (
        {"dim": 1, "start": 2, "count": 3, "factor": 1},
        [
            ({"dim": 1, "start": 2, "count": 3, "factor": 0.7}, SHAPE),
            ({"dim": -1, "start": 0, "count": 1, "factor": 2.0}, SHAPE),
        ],
    ),
    "share": (
        {"dim": 1, "index": [(0, 6)], "seed": 3},
        [
            ({"dim": 1, "index": [[0, 6], [0, 3]]}, (4, 9, 3, 3)),
            ({"dim": -4, "index": [[0, 4], [1, 3]], "seed": 5, "concentration": 1}, (7, 6, 3, 3)),
        ],
    ),
    "stretch-columns": (
        {"dim": 1, "size": 6},
        [({"dim": 1, "size": 15}, (4, 15, 3, 3)), ({"dim": -4, "size": 9, "seed": 1}, (9, 6, 3, 3))],
    ),
    "stretch-norm": (
        {"size": 6, "dim": 1},
        [({"size": 15, "dim": 1}, (4, 15, 3, 3)), ({"size": 4, "role": "bias", "dim": -1}, (4, 6, 3, 4))],
    ),
    "stretch-rows": (
        {"dim": 1, "size": 6},
        [({"dim": 1, "size": 15}, (4, 15, 3, 3)), ({"dim": -4, "size": 9, "rest": "zero"}, (9, 6, 3, 3))],
    ),
    "sincos": (None, [({"side": 1, "prefix": 2}, SHAPE), ({"side": 1, "prefix": 2, "temperature": 10}, SHAPE)]),
    "subset": (
        {"dim": 1, "size": 6},
        [({"dim": 1, "size": 4}, (4, 4, 3, 3)), ({"dim": -4, "size": 3, "mode": "random", "seed": 2}, (3, 6, 3, 3))],
    ),
    "tap-sum": (None, [({}, (4, 6, 1, 1)), ({"axes": 1}, (4, 6, 3, 1))]),
    "to-dense": ({"groups": 1}, [({"groups": 2}, (4, 12, 3, 3)), ({"groups": 4}, (4, 24, 3, 3))]),
    "to-grouped": ({"groups": 1}, [({"groups": 2}, (4, 3, 3, 3))]),
    "transpose": (
        {"dim0": 1, "dim1": -3},
        [({"dim0": 1, "dim1": 2}, (4, 3, 6, 3)), ({"dim0": 1, "dim1": -4, "flip": True}, (6, 4, 3, 3))],
    ),
    "unflatten": ({"dim": 1, "shape": (6,)}, [({"dim": 1, "shape": [3, 2]}, (4, 3, 2, 3, 3))]),
    "scale-rows": (None, [({"by": "gamma"}, SHAPE)]),
    "weight-norm": (None, [({"magnitude": "gamma"}, SHAPE)]),
}
CHANGES = [(name, options, shape) for name, (_, cases) in OPERATORS.items() for options, shape in cases]
IDENTITIES = {name: options for name, (options, _) in OPERATORS.items() if options is not None}
REFUSE_EMPTY = {"concatenate", "dct", "fold-norm", "impulse", "near-diagonal", "overlay", "rank-one", "regroup-norm"}
REFUSE_EMPTY |= {"scale-rows", "weight-norm"}
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ALL_TYPES = [*FLOATS, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool, torch.complex64]


def weight(dtype=torch.float32, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).mul(9).to(dtype)


def beside_all(shape):
    """What there is to read beside the tensor itself, for a result of this shape: the target's own, and the source."""
    rng = torch.Generator().manual_seed(1)
    source = {name: torch.rand(SHAPE[0], generator=rng) + 0.1 for name in ("mean", "var", "gamma", "bias")}
    source["other"] = torch.randn(SHAPE, generator=rng)
    return {"own": torch.randn(shape, generator=rng), "source": source}


def called(name, options, shape=SHAPE):
    """The operator as a function of the tensor alone."""
    operator = plugins.create("operators", name, options)
    reads = getattr(operator, "reads", None)
    return operator if reads is None else lambda tensor: operator(tensor, beside_all(shape)[reads])


def applied(tensor, name, options, shape=SHAPE):
    return apply_steps(tensor, [Step(name, options)], **beside_all(shape))


def bits(tensor):
    return (str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def test_every_operator_of_the_folder_is_tested_here():
    folder = {
        name for name, plugin in plugins.listing("operators").items() if plugin.module.startswith("netgraft.operators.")
    }
    assert folder == set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_explains_itself(name):
    assert plugins.listing("operators")[name].summary.endswith(".")
    assert all(option.doc for option in plugins.options(plugins.load("operators", name)))


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("name", IDENTITIES)
def test_same_size_is_the_identity_bit_for_bit(name, dtype):
    source = weight(dtype)
    source.view(-1)[0] = 0
    if dtype in FLOATS:
        source.view(-1)[:3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    result = called(name, IDENTITIES[name])(source)
    assert bits(result) == bits(source)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("name", "options", "shape"), CHANGES)
def test_shape_is_exact_dtype_kept_and_source_untouched(name, options, shape, dtype):
    source = weight(dtype)
    before = bits(source)
    operator = called(name, options, shape)
    first, second = operator(source), operator(source.clone())
    assert tuple(first.shape) == shape
    assert first.dtype == dtype
    assert first.device == source.device
    assert bits(first) == bits(second)
    assert bits(source) == before


@pytest.mark.parametrize(("name", "options", "shape"), CHANGES)
def test_memory_layout_does_not_matter(name, options, shape):
    source = weight()
    operator = called(name, options, shape)
    assert tuple(operator(source).shape) == shape
    strided = source.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strided.is_contiguous()
    assert bits(operator(strided)) == bits(operator(source))


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - {"scale", "fill"}))
def test_a_scalar_is_a_deliberate_error(name):
    _, [(options, _), *_] = OPERATORS[name]
    with pytest.raises(PlanError, match=name):
        called(name, options)(torch.tensor(1.0))


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - REFUSE_EMPTY))
def test_an_empty_tensor_keeps_its_other_axes(name):
    _, [(options, shape), *_] = OPERATORS[name]
    operator = called(name, options, shape)
    empty = weight(shape=(0, *SHAPE[1:]) if name != "cyclic" else (*SHAPE[:3], 0))
    wanted = (0, *shape[1:]) if name != "cyclic" else (*shape[:3], 0)
    assert tuple(operator(empty).shape) == wanted


@pytest.mark.parametrize("name", sorted(REFUSE_EMPTY))
def test_an_empty_tensor_is_a_deliberate_error_where_its_rows_are_wanted(name):
    _, [(options, shape), *_] = OPERATORS[name]
    with pytest.raises(PlanError, match=name):
        called(name, options, shape)(weight(shape=(0, *SHAPE[1:])))


@pytest.mark.parametrize(("name", "beside"), [("overlay", "own"), ("fold-norm", "source")])
def test_without_what_it_reads_an_operator_refuses(name, beside):
    _, [(options, shape), *_] = OPERATORS[name]
    with pytest.raises(PlanError, match=f"{name}: there is nothing to read"):
        apply_steps(weight(), [Step(name, options)])
    with pytest.raises(PlanError, match=f"{name}: there is nothing to read"):
        apply_steps(weight(), [Step(name, options)], **{k: v for k, v in beside_all(shape).items() if k != beside})


@pytest.mark.parametrize(("name", "options", "shape"), CHANGES)
def test_steps_own_their_memory_and_need_no_gradient(name, options, shape):
    source = torch.nn.Parameter(weight())
    result = applied(source, name, options, shape)
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
    split = plugins.create("operators", "unflatten", {"dim": 1, "shape": (2, 3, 4)})(source)
    assert bits(split.flatten(1, 3)) == bits(source)
    assert bits(plugins.create("operators", "flatten", {"dim": 1, "ndim": 3})(split)) == bits(source)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bilinear", {"size": []}),
        ("bilinear", {"size": [0, 3]}),
        ("cyclic", {"dim": 0, "size": -1}),
        ("flatten", {"dim": 0, "ndim": 0}),
        ("unflatten", {"dim": 0, "shape": []}),
        ("unflatten", {"dim": 0, "shape": [-1, 2]}),
        ("bicubic", {"size": []}),
        ("dct", {"size": [4, 0, 3, 3]}),
        ("dct", {"size": [4, 6, 3, 5], "keep": "mean"}),
        ("impulse", {"rows": [[0, 2]], "half": "left", "side": 3, "tap": [0, 1], "scale": 1}),
        ("impulse", {"rows": [[0, 2]], "half": "key", "side": 3, "tap": [0, 3], "scale": 1}),
        ("impulse", {"rows": [[0, 2]], "half": "key", "side": 1, "tap": [0, 0], "scale": 1}),
        ("impulse", {"rows": [[0, 2]], "half": "key", "side": 3, "tap": [0, 1], "scale": 0}),
        ("impulse", {"rows": [[-1, 2]], "half": "key", "side": 3, "tap": [0, 1], "scale": 1}),
        ("near-diagonal", {"rows": [[0, 2]], "half": "query", "alpha": 1, "beta": 1, "seed": 0}),
        ("near-diagonal", {"rows": [[-1, 2]], "half": "left", "alpha": 1, "beta": 1, "seed": 0}),
        ("sincos", {"side": 0}),
        ("sincos", {"side": 2, "temperature": 1}),
        ("subset", {"dim": 0, "size": 0}),
        ("subset", {"dim": 0, "size": 2, "mode": "last"}),
        ("bilinear-gain", {"size": [0]}),
        ("bilinear-gain", {"size": [5, 5], "preserve": "mean"}),
        ("centre", {"size": [0, 3]}),
        ("fill", {"value": "zero"}),
        ("fill", {"value": 0, "rows": [[-1, 2]]}),
        ("fold", {"dim": 0, "index": [[0, 2], [3, 2]]}),
        ("fold", {"dim": 0, "index": [[0, 3], [-1, 1]]}),
        ("fold-norm", {}),
        ("fold-norm", {"variance": "nowhere"}),
        ("gather", {"dim": 0, "index": [[-2, 1]]}),
        ("gather", {"dim": 0, "index": [[0, 0]]}),
        ("gather", {"dim": 0, "index": [0, 4]}),
        ("head-dim", {"dim": 0, "heads": 2, "size_from": 2, "size_to": 0}),
        ("head-dim", {"dim": 0, "heads": 2, "size_from": 2, "size_to": 3, "queries": [[1, 2]]}),
        ("in-chans", {"size": 0}),
        ("inflate", {"size": 0}),
        ("inflate", {"size": 3, "mode": "first"}),
        ("labels", {"index": [[0, 2]], "fill": "noise"}),
        ("overlay", {"rows": [[-2, 1]]}),
        ("overlay", {"rows": [[0, 4]], "norm": "mine"}),
        ("overlay", {"rows": [[0, 4]], "rest": "one"}),
        ("pad", {"dim": 0, "size": -1}),
        ("pi-resize", {"size": []}),
        ("pi-resize", {"size": [5], "interpolation": "nearest"}),
        ("positions", {"size_from": [], "size_to": []}),
        ("positions", {"size_from": [3], "size_to": [0]}),
        ("positions", {"size_from": [3], "size_to": [2, 2]}),
        ("positions", {"size_from": [3], "size_to": [4], "prefix": -1}),
        ("rank-one", {"part": "both"}),
        ("relative-table", {"size": []}),
        ("relative-table", {"size": [2]}),
        ("relative-table", {"size": [2, 2], "size_from": [3]}),
        ("relative-table", {"size": [2, 2], "extra": -1}),
        ("scale", {"factor": "nan"}),
        ("scale-part", {"dim": 0, "start": -1, "count": 2, "factor": 2}),
        ("scale-part", {"dim": 0, "start": 0, "count": 2, "factor": float("inf")}),
        ("share", {"dim": 0, "index": [[0, 4]], "concentration": 0}),
        ("stretch-columns", {"dim": 0, "size": -1}),
        ("stretch-columns", {"dim": 0, "size": 9, "concentration": -1}),
        ("stretch-norm", {"size": 9, "role": "gain"}),
        ("stretch-norm", {"size": -1}),
        ("stretch-rows", {"dim": 0, "size": 9, "rest": "one"}),
        ("stretch-rows", {"dim": 0, "size": -1}),
        ("tap-sum", {"axes": 0}),
        ("to-dense", {"groups": 0}),
        ("to-grouped", {"groups": 0}),
        ("bilinear", {"size": "five"}),
        ("cyclic", {"dim": 0}),
        ("cyclical", {"dim": 0, "size": 3}),
    ],
)
def test_impossible_options_are_refused(name, options):
    with pytest.raises(NetgraftError):
        applied(weight(), name, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cyclic", {"dim": 4, "size": 3}),
        ("cyclic", {"dim": -5, "size": 3}),
        ("flatten", {"dim": 2, "ndim": 3}),
        ("flatten", {"dim": 4, "ndim": 1}),
        ("deflate", {"dim": 4}),
        ("fold", {"dim": 0, "index": [[0, 3]]}),
        ("gather", {"dim": 0, "index": [[0, 5]]}),
        ("gather", {"dim": 0, "index": [[0, 3], [-1, 1]]}),
        ("head-dim", {"dim": 1, "heads": 2, "size_from": 2, "size_to": 4}),
        ("inflate", {"size": 2, "dim": 5}),
        ("labels", {"index": [[4, 1]]}),
        ("fold-norm", {"variance": "var", "mean": "mean"}),
        ("overlay", {"rows": [[0, 5]]}),
        ("overlay", {"rows": [[0, 4]], "columns": [[2, 5]]}),
        ("pad", {"dim": 1, "size": 5}),
        ("positions", {"size_from": [2], "size_to": [4]}),
        ("relative-table", {"size": [2, 2]}),
        ("relative-table", {"size": [2, 2], "extra": 4}),
        ("scale-part", {"dim": 1, "start": 4, "count": 3, "factor": 2}),
        ("share", {"dim": 1, "index": [[0, 7]]}),
        ("share", {"dim": 1, "index": [[0, 4], [0, 4]]}),
        ("stretch-columns", {"dim": 1, "size": 4}),
        ("stretch-norm", {"dim": 1, "size": 4}),
        ("stretch-rows", {"dim": 1, "size": 4}),
        ("dct", {"size": [4, 6, 3]}),
        ("fill", {"value": 0, "rows": [[3, 2]]}),
        ("impulse", {"rows": [[2, 3]], "half": "key", "side": 3, "tap": [0, 1], "scale": 1}),
        ("near-diagonal", {"rows": [[2, 3]], "half": "left", "alpha": 1, "beta": 1, "seed": 0}),
        ("sincos", {"side": 2}),
        ("subset", {"dim": 1, "size": 7}),
        ("to-dense", {"groups": 3}),
        ("to-grouped", {"groups": 3}),
        ("to-grouped", {"groups": 4}),
        ("transpose", {"dim0": 0, "dim1": 4}),
        ("unflatten", {"dim": 4, "shape": (1,)}),
        ("unflatten", {"dim": 0, "shape": (2, 3)}),
    ],
)
def test_a_step_that_does_not_fit_says_both_shapes(name, options):
    with pytest.raises(NetgraftError, match=r"\(4, 6, 3, 3\)"):
        applied(weight(), name, options)


COMPUTING = (
    "bicubic bilinear bilinear-gain dct deflate fold fold-norm in-chans pi-resize positions rank-one relative-table"
)


@pytest.mark.parametrize(
    "name", [*COMPUTING.split(), "impulse", "near-diagonal", "scale", "scale-part", "share", "sincos", "tap-sum"]
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_operators_that_compute_refuse_what_is_not_a_float(name, dtype):
    _, [(options, _), *_] = OPERATORS[name]
    with pytest.raises(PlanError, match=str(dtype)):
        applied(weight(dtype), name, options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options", "shape"), CHANGES)
def test_small_types_are_rounded_once(name, options, shape, dtype):
    source = weight(dtype)
    result, wanted = (applied(given, name, options, shape) for given in (source, source.float()))
    assert bits(result) == bits(wanted.to(dtype))
    assert tuple(result.shape) == shape
