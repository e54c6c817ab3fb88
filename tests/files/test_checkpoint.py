"""The output file: readable by safetensors, the same bytes every time, whole or absent, and never over an input."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netgraft
from netgraft.errors import CorruptFile, OutputError, UsageError
from netgraft.files import checkpoint
from netgraft.files.checkpoint import (
    check_output,
    describe,
    file_sha256,
    read_header,
    read_provenance,
    write_checkpoint,
)

PROVENANCE = {"tool": "netgraft 0", "source": {"sha256": "ab", "name": "réseau"}, "coverage": [1, 2.5, None, True]}


def tensors():
    tied = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    made = {
        "tied.a": tied,
        "tied.b": tied,
        "transposed": tied.t(),
        "strided": tied[:, ::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "scalar": torch.tensor(2.5),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        'odd "name"\n.é': torch.ones(1),
    }
    for dtype in checkpoint.DTYPES:
        made[f"type.{dtype}"] = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    return made


def bits(tensor):
    tensor = tensor.detach().resolve_conj().contiguous()
    return tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).tolist()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "init.safetensors"


@pytest.fixture
def existing(out):
    out.write_bytes(b"precious")
    return out


# ----------------------------------------------------------------------------------------------------------- round trip


def test_safetensors_reads_what_was_written(out):
    write_checkpoint(out, tensors(), PROVENANCE)
    loaded = safetensors.torch.load_file(out)
    assert {key: bits(tensor) for key, tensor in loaded.items()} == {k: bits(t) for k, t in tensors().items()}
    with safetensors.safe_open(out, "pt") as file:
        assert set(file.keys()) == set(tensors())
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["netgraft"]) == PROVENANCE
    assert read_provenance(out) == PROVENANCE


def test_every_type_that_safetensors_loads_is_written():
    assert {name: dtype for dtype, name in checkpoint.DTYPES.items()} == safetensors.torch._TYPES


def test_a_model_with_tied_weights_loads_strictly(out):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    write_checkpoint(out, model.state_dict(), {})
    Tied().load_state_dict(safetensors.torch.load_file(out), strict=True)


def test_describe_and_read_header(out):
    write_checkpoint(out, tensors(), PROVENANCE)
    assert [key for key, _, _ in describe(out)] == sorted(tensors())
    assert ("type.torch.bfloat16", "BF16", (2, 3)) in describe(out)
    assert ("scalar", "F32", ()) in describe(out)
    metadata, entries = read_header(out)
    assert list(metadata) == ["format", "netgraft"]
    entry = entries["transposed"]
    data = out.read_bytes()[entry.offset : entry.offset + entry.size]
    assert torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(entry.shape).equal(tensors()["transposed"])


def test_tensors_are_aligned_to_their_width(out):
    write_checkpoint(out, tensors(), PROVENANCE)
    widths = {name: dtype.itemsize for dtype, name in checkpoint.DTYPES.items()}
    assert all(entry.offset % widths[entry.dtype] == 0 for entry in read_header(out)[1].values())


def test_metadata_may_be_null_as_in_safetensors(out):
    out.write_bytes(with_header(b'{"__metadata__":null}'))
    assert read_header(out) == ({}, {})
    assert safetensors.torch.load_file(out) == {}


def test_files_of_safetensors_itself_can_be_read(out):
    safetensors.torch.save_file({"a": torch.ones(2, 3), "b": torch.zeros((), dtype=torch.int64)}, out)
    assert describe(out) == [("a", "F32", (2, 3)), ("b", "I64", ())]
    with pytest.raises(UsageError, match="not written by netgraft"):
        read_provenance(out)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(
    spec=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda key: key != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from([*checkpoint.DTYPES])),
        max_size=6,
    )
)
def test_any_names_shapes_and_types(spec, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    made = {key: torch.ones(shape).cumsum(0).to(dtype) if shape else torch.ones((), dtype=dtype)
            for key, (shape, dtype) in spec.items()}  # fmt: skip
    write_checkpoint(path, made, {})
    loaded = safetensors.torch.load_file(path)
    assert {key: bits(tensor) for key, tensor in loaded.items()} == {key: bits(t) for key, t in made.items()}
    assert describe(path) == sorted(
        (key, checkpoint.DTYPES[tensor.dtype], tuple(tensor.shape)) for key, tensor in made.items()
    )


# ------------------------------------------------------------------------------------------------------- the same bytes


def test_bytes_do_not_depend_on_the_order_of_dictionaries(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", tensors(), PROVENANCE)
    shuffled = dict(reversed(tensors().items()))
    write_checkpoint(tmp_path / "b.safetensors", shuffled, dict(reversed(PROVENANCE.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (
        file_sha256(tmp_path / "a.safetensors") == hashlib.sha256((tmp_path / "b.safetensors").read_bytes()).hexdigest()
    )


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    script = """if True:
        import sys, torch
        from netgraft.files.checkpoint import write_checkpoint
        keys = {f"layer{i}.weight" for i in range(20)}
        write_checkpoint(sys.argv[1], {key: torch.full((2,), float(len(key))) for key in keys}, {k: 1 for k in keys})
    """
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(netgraft.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.safetensors"], env=env, check=True)
    keys = sorted(f"layer{i}.weight" for i in range(20))
    here = {key: torch.full((2,), float(len(key))) for key in keys}
    write_checkpoint(tmp_path / "b.safetensors", here, dict.fromkeys(keys, 1))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_exact_bytes(out):
    write_checkpoint(out, {"b": torch.tensor([1, 2], dtype=torch.uint8), "a": torch.tensor(1.0)}, {"z": 1, "a": (2,)})
    text = (
        b'{"__metadata__":{"format":"pt","netgraft":"{\\"a\\":[2],\\"z\\":1}"},'
        b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}'
    )
    text += b" " * (-len(text) % 8)
    assert out.read_bytes() == len(text).to_bytes(8, "little") + text + b"\x00\x00\x80\x3f\x01\x02"


def test_provenance_must_be_json(out):
    for wrong in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            write_checkpoint(out, {}, wrong)
        assert not out.exists()


# -------------------------------------------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o000, 0o666)])
def test_the_mode_follows_the_umask(out, umask, mode):
    before = os.umask(umask)
    try:
        write_checkpoint(out, {"a": torch.ones(1)}, {})
    finally:
        assert os.umask(before) == umask
    assert stat.S_IMODE(out.stat().st_mode) == mode


class Failing(dict):
    """Tensors that can be looked at once each; the second look at "b", while writing, fails."""

    def __init__(self, error):
        super().__init__(a=torch.ones(1000), b=torch.ones(2))
        self.error, self.looks = error, 0

    def __getitem__(self, key):
        self.looks += key == "b"
        if self.looks == 2:
            raise self.error
        return super().__getitem__(key)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), MemoryError(), SystemExit(1)], ids=repr)
def test_a_failure_while_writing_leaves_nothing_behind(out, error):
    with pytest.raises(type(error)):
        write_checkpoint(out, Failing(error), {})
    assert names(out.parent) == []


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=repr)
def test_a_failure_while_writing_keeps_the_old_file(existing, error):
    with pytest.raises(type(error)):
        write_checkpoint(existing, Failing(error), {}, force=True)
    assert names(existing.parent) == [existing.name]
    assert existing.read_bytes() == b"precious"


@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
def test_a_full_disk_is_a_deliberate_error(existing, monkeypatch, function):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OutputError, match="No space left"):
        write_checkpoint(existing, {"a": torch.ones(3)}, {}, force=True)
    monkeypatch.undo()
    assert names(existing.parent) == [existing.name]
    assert existing.read_bytes() == b"precious"


def test_a_tensor_that_changes_its_shape_is_refused(out):
    class Growing(dict):
        def __getitem__(self, key):
            self.looks = getattr(self, "looks", 0) + 1
            return torch.ones(self.looks)

    with pytest.raises(OutputError, match="changed its shape"):
        write_checkpoint(out, Growing(a=None), {})
    assert names(out.parent) == []


def test_a_file_that_appears_meanwhile_is_not_replaced(out):
    class Slow(dict):
        def __getitem__(self, key):
            out.write_bytes(b"precious")
            return super().__getitem__(key)

    with pytest.raises(OutputError, match="exists"):
        write_checkpoint(out, Slow(a=torch.ones(1)), {})
    assert names(out.parent) == [out.name]
    assert out.read_bytes() == b"precious"


def test_the_folder_that_cannot_be_synced_is_no_error(out, monkeypatch):
    synced = []

    def fsync(descriptor, real=os.fsync):
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if synced[-1]:
            raise OSError("not supported here")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_checkpoint(out, {"a": torch.ones(1)}, {})
    assert synced == [False, True]
    assert describe(out) == [("a", "F32", (1,))]


# ------------------------------------------------------------------------------------------------------------- refusals


def refused(error_class, match, hint, path, **options):
    with pytest.raises(error_class, match=match) as caught:
        check_output(path, **options)
    assert hint in caught.value.hint
    with pytest.raises(error_class, match=match):
        write_checkpoint(path, {}, {}, **options)


def test_a_good_output_passes(out, existing):
    check_output(out.with_name("new.safetensors"))
    check_output(existing, force=True, inputs=[out.with_name("missing.pth"), out.parent])


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("init.pth", "init.safetensors"),
        ("init", "init.safetensors"),
        ("resnet18.a1_in1k", "resnet18.a1_in1k.safetensors"),
        ("my init", "'my init.safetensors'"),
    ],
)
def test_another_suffix_is_refused(name, typed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused(UsageError, r"\.safetensors", f"-o {typed}", name)
    refused(UsageError, r"\.safetensors", f"-o {typed}", name, force=True)


def test_a_missing_folder_is_refused(tmp_path):
    refused(OutputError, "does not exist", f"mkdir -p {tmp_path / 'runs'}", tmp_path / "runs" / "init.safetensors")
    refused(OutputError, "does not exist", f"mkdir -p '{tmp_path}/my runs'", tmp_path / "my runs" / "init.safetensors")


def test_a_folder_is_refused(tmp_path):
    refused(OutputError, "is a folder", f"-o {tmp_path / 'init.safetensors'}", tmp_path)
    (tmp_path / "x.safetensors").mkdir()
    refused(OutputError, "is a folder", "init.safetensors", tmp_path / "x.safetensors", force=True)


def test_a_path_under_a_file_is_refused(existing):
    refused(OutputError, "is not a folder", "another -o", existing / "init.safetensors", force=True)


def test_a_folder_without_write_permission_is_refused(out, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != out.parent)
    refused(OutputError, "not writable", "another -o", out, force=True)


def test_an_existing_file_needs_force(existing):
    refused(OutputError, "exists", "--force", existing)
    assert existing.read_bytes() == b"precious"
    write_checkpoint(existing, {"a": torch.ones(1)}, {}, force=True)
    assert describe(existing) == [("a", "F32", (1,))]


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
@pytest.mark.parametrize("force", [False, True])
def test_an_input_is_never_the_output(existing, link, force):
    path = existing
    if link:
        path = existing.with_name("link.safetensors")
        getattr(path, link)(existing)
    refused(OutputError, "one of the inputs", "another -o", path, force=force, inputs=["resnet18", existing])
    assert existing.read_bytes() == b"precious"


def test_a_symbolic_link_is_replaced_and_not_followed(existing):
    link = existing.with_name("link.safetensors")
    link.symlink_to(existing)
    dangling = existing.with_name("dangling.safetensors")
    dangling.symlink_to(existing.with_name("nowhere"))
    refused(OutputError, "exists", "--force", dangling)
    write_checkpoint(link, {}, {}, force=True)
    assert existing.read_bytes() == b"precious"
    assert not link.is_symlink()


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex128)],
    ids=["meta", "sparse", "complex128"],
)
def test_a_tensor_that_the_format_cannot_hold(out, tensor):
    with pytest.raises(OutputError, match="cannot hold"):
        write_checkpoint(out, {"layer.weight": tensor}, {})
    assert names(out.parent) == []


def test_a_reserved_name_and_a_huge_header(out, monkeypatch):
    with pytest.raises(OutputError, match="__metadata__"):
        write_checkpoint(out, {"__metadata__": torch.ones(1)}, {})
    monkeypatch.setattr(checkpoint, "MAX_HEADER", 1000)
    with pytest.raises(OutputError, match="1000"):
        write_checkpoint(out, {"a" * 1000: torch.ones(1)}, {})


# -------------------------------------------------------------------------------------------------------- corrupt files


def with_header(text, data=b"", length=None):
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one_tensor(data=b"\0\0\0\0", **changes):
    fields = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}
    return with_header(json.dumps({"a": fields}).encode(), data)


CORRUPT = {
    "empty": b"",
    "three bytes": b"abc",
    "no header": with_header(b"", length=0),
    "huge header": with_header(b"{}", b" " * 100, length=100_000_001),
    "absurd header": b"\xff" * 100,
    "header longer than the file": with_header(b"{}", length=3),
    "text": b"<!DOCTYPE html><html><body>404</body></html>",
    "a pickle": b"PK\x03\x04" + b"\0" * 200,
    "not UTF-8": with_header(b'{"\xff": 1}'),
    "not JSON": with_header(b'{"a": '),
    "UTF-16": with_header('{"a": 1}'.encode("utf-16")),
    "deep JSON": with_header(b"[" * 200_000),
    "a list": with_header(b"[1, 2]"),
    "metadata of numbers": with_header(b'{"__metadata__": {"a": 1}}'),
    "metadata as a list": with_header(b'{"__metadata__": []}'),
    "an entry that is a list": with_header(b'{"a": [1]}'),
    "an entry that is empty": with_header(b'{"a": {}}'),
    "unknown type": one_tensor(dtype="F3"),
    "type of another type": one_tensor(dtype=["F32"]),
    "negative shape": one_tensor(shape=[-1, -1]),
    "boolean shape": one_tensor(shape=[True]),
    "text shape": one_tensor(shape="1"),
    "shape of another size": one_tensor(shape=[2]),
    "three offsets": one_tensor(data_offsets=[0, 4, 4]),
    "offsets backwards": one_tensor(data_offsets=[4, 0]),
    "a gap": one_tensor(data=b"\0" * 8, data_offsets=[4, 8]),
    "truncated": one_tensor(data=b"\0\0\0"),
    "too long": one_tensor(data=b"\0" * 5),
    "overlap": with_header(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
        b"\0\0\0",
    ),
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_file_is_a_deliberate_error(out, content):
    out.write_bytes(content)
    for function in (read_header, read_provenance, describe):
        with pytest.raises(CorruptFile, match=r"not a whole \.safetensors file") as caught:
            function(out)
        assert str(out) in caught.value.where
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(out)


def test_every_truncation_is_noticed(out):
    write_checkpoint(out, {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bool)}, {"x": 1})
    whole = out.read_bytes()
    for length in range(len(whole)):
        out.write_bytes(whole[:length])
        with pytest.raises(CorruptFile):
            read_provenance(out)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000], ids=["cut", "list", "deep"])
def test_corrupt_provenance(out, text):
    safetensors.torch.save_file({"a": torch.ones(1)}, out, metadata={"netgraft": text})
    with pytest.raises(CorruptFile, match="netgraft metadata"):
        read_provenance(out)


def test_a_file_that_cannot_be_read(tmp_path):
    for function in (read_header, read_provenance, describe, file_sha256):
        for path in (tmp_path / "missing.safetensors", tmp_path):
            with pytest.raises(UsageError, match="cannot be read"):
                function(path)
