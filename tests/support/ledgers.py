"""Initialisations of the net of ``runs`` with a ledger, as a transfer of weights writes it."""

import safetensors.torch

from netgraft.files.checkpoint import write_checkpoint
from netgraft.plan import REFITTED, Kept, Move, Pairing, Plan, PlannedPass, Step


def write_ledger(folder, *, head=False):
    """``ledger.safetensors``: the stem is exact, the body was refitted, the last convolution filled.

    The head is the target's own; with ``head`` all is the source's.
    """
    tensors = safetensors.torch.load_file(folder / "init.safetensors")
    moves, kept = [], []
    for key, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if key.startswith("head") and not head:
            kept.append(Kept(key, shape, "the classes differ"))
        elif key.startswith("last") and not head:
            moves.append(Move(key, "", shape, shape, (Step("fill", {"value": 0.0}),), "an inserted block"))
        else:
            moves.append(Move(key, key, shape, shape, (), "the same"))
    body = tuple(key for key in tensors if key.startswith("body"))
    refit = PlannedPass("refit", {}, REFITTED, body)
    plan = Plan("theirs", "net", "", "", "refit", {}, Pairing(()), tuple(moves), tuple(kept), passes=(refit,))
    write_checkpoint(folder / "ledger.safetensors", tensors, {"plan": plan.to_json()}, force=True)
    return str(folder / "ledger.safetensors")
