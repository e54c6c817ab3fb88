"""A method of one's own whose regularisers are against the task, as the text of its file."""

AWAY = """
from dataclasses import dataclass, field
from typing import ClassVar
import torch
from netgraft.finetune.protocol import Part, Update
from netgraft.finetune.toolbox.terms import l2_penalty, squared_distance

@dataclass(frozen=True)
class Away:
    \"\"\"Regularisers against the task: the logits to 0, the weights to 0.\"\"\"

    needs: ClassVar[frozenset] = frozenset()
    combine: ClassVar[str] = "dtnh"

    def parts(self, run):
        return {"target": Part(run.target_module)}

    def epoch(self, run, batches, parts):
        for batch in batches:
            here = run.target(batch)
            flat = squared_distance(here.logits, torch.zeros_like(here.logits))
            decay = l2_penalty(list(run.target_module.parameters()), 0.01)
            yield Update(("target",), {"task": run.task(here, batch), "flat": flat}, {"decay": decay})
"""
