"""What a fine-tuning method and the engine know of each other.

A method is one file in ``finetune/methods`` (``fm.py`` is ``--method fm``) with one public frozen dataclass, whose
fields are its options (``--set beta=0.5``). It says what it needs, which modules train, and in ``epoch`` yields
updates; the engine performs each of them (gradients, one all-reduce, combine rule, optimizer step) and resumes the
generator, which then sees the stepped parameters. So a paper's algorithm reads as straight-line code::

    @dataclass(frozen=True)
    class FeatureMatching:
        '''First line: shown by ``netgraft methods``. Then the equation, the reference, ``Departs from the paper:``.'''

        beta: float = field(default=0.5, metadata={"help": "weight of the distances"})

        needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})

        def parts(self, run: Run) -> Mapping[str, Part]:
            adapters = nn.ModuleList(nn.Conv2d(p.target_shape[0], p.source_shape[0], 1) for p in run.pairs)
            return {"target": Part(run.target_module), "adapters": Part(adapters)}

        def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
            for batch in batches:
                target, source = run.target(batch), run.source(batch, logits=False)
                distance = sum(...)                        # target.at[pair.target], source.at[pair.source]
                yield Update(("target", "adapters"), {"task": run.task(target, batch), "fm": self.beta * distance})

Class variables (``typing.ClassVar``; all but ``needs`` may be left out). They are read with ``ast``, so write literals:

``needs``       frozenset of ``Need``: what the user must give. It is refused before any work if it is missing.
``category``    where the survey of Tan et al. 2018 puts it, one of ``Category``: "instances", "mapping", "network" or
                "adversarial". `netgraft methods --by category` lists by it, and one without any under "other".
``combine``     the combine rule where the user names none: "total" (default) or "dtnh".
``plain_when``  options with which, at ``--lambda 0``, the method is plain fine-tuning bit for bit; {} by default (no
                option is needed), None where nothing makes it so. The laws over all methods test it.

The rules, each of which is a test over every method:

1. *Losses are named, not summed.* "task" is the empirical loss, always ``run.task(seen, batch)`` without a factor;
   anything else is a regulariser. Losses are means over samples and places, so that weights do not depend on the batch
   size. In updates of the part "target" the engine multiplies all but "task" by the user's ``--lambda`` of this epoch;
   at 0 it drops them, and skips an update with no loss left. In updates of other parts alone nothing is multiplied.
   A regulariser whose gradient is known goes into ``penalties`` and costs no backward pass (``terms.l2_penalty``).
2. *Steps are declared, not performed.* Never call ``backward`` or ``step``. An update's gradients are those of its
   losses with respect to the parameters of the parts it names, nothing else is touched: a discriminator's loss on
   detached features trains it alone, a generator's loss in an update of ("target",) leaves the discriminator alone. A
   parameter that no loss reaches is not stepped, nor decayed. All losses of an update share one graph; a graph that is
   used by a later update too (the same forward pass) needs ``keep=True`` in the earlier one.
   With ``--accumulate`` a step comes after several batches: a method must yield one update for each of them.
3. *All state lives in parts* - parameters and buffers of their modules - or is computed anew from the batch. Resuming
   calls ``epoch`` again with the rest of the batches: nothing else is carried from batch to batch, also not in local
   variables. One ``Part`` has one optimizer; a part may have no parameters at all, only buffers. ``parts`` is called
   once, with seeded random numbers; the engine moves modules to the device and sets train mode.
4. *The source never changes.* It is in eval mode, without gradients. ``run.source(batch)`` computes once per batch,
   however often it is asked, and may come from the cache. ``logits=False`` stops after the deepest paired layer. With
   ``Need.SOURCE_GRADIENTS``, ``run.source(x, params=run.source_parameters)`` can be differentiated by these copies of
   its parameters, and by ``x``.
5. *BatchNorm statistics have one owner:* the first ``run.target(batch)`` of every target batch updates the running
   statistics; later passes, passes of other data and passes with ``params`` normalise by their own batch (in train
   mode) and leave them alone. ``stats=True`` or ``False`` says otherwise.
6. *The run's random numbers have the same owner:* a pass that updates statistics draws them (dropout), and nothing else
   does. Whatever a method draws besides - in other passes, in modules of its own, by ``torch.randn`` - comes from a
   second stream that begins anew at every batch, from the run's seed, the step and the process: so an extra pass
   changes no dropout of the training's own, and there is nothing to save. ``draw=True`` or ``False`` says otherwise:
   the passes of further steps that last draw the run's numbers (l2t-gan). What must not depend on how many processes
   there are is drawn by ``run.random`` (for each image) or ``run.generator`` (for all).
7. *Gradients that a method takes itself* must be the same on all processes: ``run.grad``, ``run.reduce`` average over
   processes; ``run.gather`` concatenates the batches of all processes with gradients (for kernels between samples).
   With float16 the losses of updates and of ``run.grad`` are scaled for the pass backwards, and gradients are what they
   were without; a bare ``torch.autograd.grad`` through a network loses what is below 6e-8.
8. Logits and tapped features are float32 outside autocast, whatever precision the networks run in.

For several steps per batch that do not last, ``saved = run.snapshot("target")`` ... ``run.restore(saved)`` brings back
parameters, optimizer state (momentum) and buffers. For a pass with other parameters, ``run.target(batch,
params={name: tensor})`` is ``torch.func.functional_call`` with cloned buffers; it can be differentiated, twice if need
be. ``train=False`` is a pass in eval mode, as the network is used in the end; theta^0 as it was used is
``run.target(x, params={**run.start, **run.start_buffers}, train=False)``.

What has to be known before the first batch (a Fisher information, prototypes) is computed in an optional method
``prepare(run, batches, parts)``: see ``Prepares``. ``examples/own_method.py`` is a whole method with it. What a method
makes of images can be looked at where it has ``pictures(run, images, parts)``: see ``Shows``.

A method whose steps do not all cost the same has ``stage(run)``, which ``--explain`` asks: see ``Staged``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor, nn

    from netgraft.architecture.graph import LayerGraph

TASK = "task"
"""The name of the empirical loss."""
TARGET = "target"
"""The name of the part that is the network to be trained; every method has it."""


class Need(StrEnum):
    """What a method cannot do without; the value says what the user adds."""

    START = "--init FILE"  # an initialisation that is worth staying near
    SOURCE_MODEL = "--source REF"
    SOURCE_GRADIENTS = "--source REF (which gradients go through)"
    SOURCE_DATA = "--source-data NAME"
    PAIRS = "--source REF (its layers are paired with the target's)"
    SAME_CLASSES = "--source REF whose outputs are the target's classes"
    UNLABELLED = "--unlabelled NAME"


class Category(StrEnum):
    """The approaches to deep transfer learning of the survey: its Table 1, and section 3."""

    INSTANCES = "instances"
    MAPPING = "mapping"
    NETWORK = "network"
    ADVERSARIAL = "adversarial"


class FeaturePair(NamedTuple):
    """A layer of the source and one of the target whose outputs are compared."""

    source: str  # module path
    target: str
    source_shape: tuple[int, ...]  # of the output, without the batch axis: (C, H, W), (tokens, width), (features,)
    target_shape: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Something that trains: a module and how its one optimizer differs from the run's (None: it does not)."""

    module: nn.Module
    lr: float | None = None
    rate: float = 1.0  # a factor of that learning rate
    opt: str | None = None  # timm's name: "sgd", "adam", "adamw"
    weight_decay: float | None = None
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # further arguments of the optimizer, {"betas": (0.5, 0.999)}
    trained: tuple[str, ...] | None = (
        None  # submodules that train; the rest is frozen, its norms in eval mode. None: all
    )


class Penalty(NamedTuple):
    """A regulariser of parameters alone, with its gradient: no graph, no backward pass, no all-reduce."""

    value: Tensor  # scalar
    parameters: Sequence[Tensor]  # of parts of the update; all others have gradient 0
    gradients: Sequence[Tensor]  # detached, one for each, made for this update: the engine overwrites them


@dataclass(frozen=True)
class Update:
    """One step of the optimizers of ``parts``, against the combined gradient of all losses and penalties."""

    parts: tuple[str, ...]
    losses: Mapping[str, Tensor] = field(default_factory=dict)  # scalars with a graph
    penalties: Mapping[str, Penalty] = field(default_factory=dict)  # names differ from those of losses
    keep: bool = False  # the graph of the losses is needed again


@dataclass(frozen=True)
class Batch:
    """Images of one process, on its device, as networks read them."""

    x: Tensor  # [B, C, H, W] float32, normalised
    y: Tensor  # [B] int64, -1 where the data have no labels; of several classes each [B, classes] float32 of 0 and 1
    ids: Tensor  # [B] int64 on the CPU: number of the image in its data set
    view: int = 0  # which random view of the images this is; 0 always, where they are not augmented
    data: str = "target"  # "target", "source", "unlabelled"
    source: Batch | None = None  # as many source images, with their own labels (Need.SOURCE_DATA)
    unlabelled: Batch | None = None  # as many images without labels (Need.UNLABELLED)


@dataclass(frozen=True)
class Outputs:
    """What a forward pass gave."""

    logits: Tensor  # [B, classes] float32; empty, [B, 0], where the pass stopped before
    at: Mapping[str, Tensor]  # float32 output of every tapped layer, by module path: [B, *shape]


class Run(Protocol):
    """What the engine gives to a method. Everything here is the same after resuming."""

    epoch: int  # 0, 1, ...
    epochs: int
    step: int  # batches before this one since the training began
    steps: int  # batches of the whole training
    seed: int
    classes: int
    multilabel: bool  # whether an image may have several classes; methods that cannot say so: toolbox.labels
    source_classes: int  # how many numbers the source puts out; 0 without a source
    pairs: tuple[FeaturePair, ...]  # empty without a source
    target_module: nn.Module

    @property
    def source_module(self) -> nn.Module | None: ...
    @property
    def start(self) -> Mapping[str, Tensor]:
        """The target's parameters before training, by name: theta^0 (Need.START). Never write to them."""

    @property
    def start_buffers(self) -> Mapping[str, Tensor]:
        """The target's buffers before training, by name: theta^0's BatchNorm statistics. Never write to them."""

    @property
    def source_parameters(self) -> Mapping[str, Tensor]:
        """Copies of the source's parameters, by name, that gradients can be taken of (Need.SOURCE_GRADIENTS)."""

    @property
    def transferred(self) -> frozenset[str]:
        """Names of the parameters that came from a source: by the ledger of --init, else all but the head's."""

    @property
    def graph(self) -> LayerGraph:
        """The target's layers and how data flows between them, as traced, with the shapes of a pass over images."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Module paths of the target's classifier."""

    @property
    def source_heads(self) -> tuple[str, ...]:
        """Module paths of the source's classifier; none without a source."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many training images each data set has: "target", and "source", "unlabelled" where they are given."""

    @property
    def device(self) -> torch.device: ...
    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...

    def target(
        self,
        x: Batch | Tensor,
        *,
        params: Mapping[str, Tensor] | None = None,
        train: bool = True,
        stats: bool | None = None,
        draw: bool | None = None,
        until: str | None = None,
    ) -> Outputs:
        """A forward pass of the target; paired layers are tapped.

        ``params`` are parameters and buffers, by name, that take the place of its own; none is written to. With
        ``train=False`` all of it is in eval mode, else it is in the modes that the run gives it. ``stats``: whether the
        pass updates BatchNorm's running statistics (rule 5). ``draw``: whether it draws the run's random numbers
        (rule 6). ``until`` is a paired layer of the target: nothing behind it runs, and there are no logits. Raises
        UsageError for ``stats=True`` in eval mode, UnknownName where ``until`` is not paired.
        """

    def source(self, x: Batch | Tensor, *, logits: bool = True, params: Mapping[str, Tensor] | None = None) -> Outputs:
        """A forward pass of the frozen source, without gradients.

        With ``params`` (parameters and buffers, by name, in place of its own; {} for its own) gradients flow to these
        and to ``x``, and the pass is neither remembered nor cached. Raises UsageError without a source, and for
        ``params`` without Need.SOURCE_GRADIENTS.
        """

    def task(self, seen: Outputs, batch: Batch, weights: Tensor | None = None) -> Tensor:
        """The empirical loss: cross-entropy with the run's label smoothing, a scalar.

        The mean over images; of each image's loss times its weight, where there are ``weights`` ``[B]``. Where images
        have several classes each it is the binary cross-entropy, a mean over classes too.
        """

    def every_image(self, data: str) -> Iterator[Batch]:
        """All images of a data set once, in their order, as this epoch shows them: each process has its share.

        For what is measured of all of them at once, in ``prepare`` or after the last batch of an epoch; passes are
        extra ones (rules 5 and 6). Raises UsageError for a data set that the training does not have.
        """

    def grad(self, loss: Tensor, wrt: Sequence[Tensor], *, keep: bool = False) -> tuple[Tensor, ...]:
        """Gradients averaged over processes in one collective; zeros where ``loss`` does not depend on a tensor."""

    def reduce(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The average over processes, in one collective, detached."""

    def gather(self, tensor: Tensor) -> Tensor:
        """``[B, ...]`` of every process below each other, ``[world * B, ...]``; gradients flow back."""

    def optimizer(self, part: str) -> torch.optim.Optimizer: ...

    def snapshot(self, *parts: str) -> object:
        """Parameters, buffers and optimizer state of these parts."""

    def restore(self, snapshot: object) -> None: ...

    def autocast(self) -> AbstractContextManager[object]:
        """The run's mixed precision, for modules of the method's own."""

    def generator(self, tag: str) -> torch.Generator:
        """Random numbers that are the same on all processes: a CPU generator seeded by the run's seed, step and tag."""

    def random(self, batch: Batch, tag: str, *shape: int) -> Tensor:
        """Random numbers of each image, ``[B, *shape]``, uniform from 0 to 1, on the batch's device.

        They depend on the run's seed, the step, the tag and the image's number in its data set: not on the process
        that holds it, nor on its place in the batch.
        """

    def note(self, name: str, value: Tensor | float) -> None:
        """Log a number; the epoch's record has its mean."""


class Method(Protocol):
    """A fine-tuning method; see the top of this file."""

    needs: ClassVar[frozenset[Need]]

    def parts(self, run: Run) -> Mapping[str, Part]: ...

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]: ...


@runtime_checkable
class Prepares(Protocol):
    """A method with work to do before the first batch."""

    def prepare(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> None:
        """Compute what ``epoch`` needs, and write it to parameters or buffers of ``parts``.

        It is called once, and not when a training is resumed, which finds the parts as they were saved. ``batches``
        are those of the first epoch, as often as they are iterated over; all passes are extra ones (rules 5 and 6),
        in train mode unless they say ``train=False``. Results must be the same on all processes (rule 7); those of the
        first one are given to all.
        """


@runtime_checkable
class Shows(Protocol):
    """A method whose work can be looked at: the engine writes what it makes of test images to ``pictures/``."""

    def pictures(self, run: Run, images: Tensor, parts: Mapping[str, Part]) -> Mapping[str, Tensor]:
        """Rows of a picture, from top to bottom, by name: each ``[n, C, H, W]``, normalised as ``images`` are.

        ``images`` ``[n, C, H, W]`` are the first of the test images, as networks read them, on the run's device. All
        parts are in eval mode and nothing has a gradient; pass ``train=False`` to ``run.target``. The first process
        calls it alone, after an epoch: nothing may be averaged or gathered over processes.
        """


@runtime_checkable
class Staged(Protocol):
    """A method whose steps do not all cost the same."""

    def stage(self, run: Run) -> str:
        """What the step of ``run.epoch`` and ``run.step`` does, in a few words; steps of one name cost the same.

        ``--explain`` asks it of all steps of a training that has not begun. What depends on losses, as a stage that
        ends when they have settled, counts as its longest.
        """
