"""Commands that train: finetune, methods."""

# ruff: noqa: ARG001 - the options of finetune are read together, from its context

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from netgraft import plugins
from netgraft.cli.app import Format, command, write_json, write_lines
from netgraft.cli.memory import keep_freed_memory
from netgraft.cli.options import OutputFormat, parse_args, parse_lambdas, parse_milestones, parse_size
from netgraft.errors import UsageError
from netgraft.finetune.needs import FOLDER, check_needs
from netgraft.finetune.settings import TrainingSettings, read_config


class BatchNorm(StrEnum):
    TRAIN = "train"
    EVAL = "eval"
    SYNC = "sync"


class DtnhScope(StrEnum):
    ALL = "all"
    SHARED = "shared"
    PER_TENSOR = "per-tensor"


class AmpDtype(StrEnum):
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class CropMode(StrEnum):
    RRC = "rrc"
    RKRC = "rkrc"
    RKRR = "rkrr"
    RC = "rc"


class Distance(StrEnum):
    EUCLIDEAN = "euclidean"
    COSINE = "cosine"


class Grouping(StrEnum):
    CATEGORY = "category"


class Resume(StrEnum):
    AUTO = "auto"


def _text(value: Any) -> Any:
    """A setting of a ``config.json`` as it is typed."""
    if isinstance(value, Mapping):
        return [f"{name}={each!r}" for name, each in value.items()]
    return value


def _use_config(context: typer.Context, file: Path | None) -> Path | None:
    """Settings of a file become the defaults; what is typed beside it counts more."""
    if file is None or context.resilient_parsing:
        return file
    try:
        document = read_config(file)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    document["settings"] = document.pop("set", None)
    for name in ("input_size", "source_input_size", "mean", "std", "milestones"):
        if document.get(name) is not None:
            document[name] = ",".join(map(str, document[name]))
    lambdas = document.pop("lambdas", None)
    if lambdas is not None:
        document["lam"] = ",".join(map(str, lambdas))
    context.default_map = {name: _text(value) for name, value in document.items() if value is not None}
    return file


def _option(help: str, *names: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, **more)


@command(
    "netgraft finetune examples/my_arch.py --input-size 1,16,16 --data netgraft:digits --epochs 1 --out run",
    "netgraft finetune -c run/config.json --out again --seed 1",
    "netgraft finetune -c run/config.json --resume auto",
)
def finetune(
    context: typer.Context,
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="The network to train, e.g. ./my_arch.py.")
    ] = None,
    config: Annotated[
        Path | None,
        _option(
            "Settings of an earlier run (its config.json).",
            "-c",
            "--config",
            metavar="FILE",
            is_eager=True,
            callback=_use_config,
        ),
    ] = None,
    data: Annotated[
        str | None,
        _option(
            "Labelled images: a folder for each class, or labels.csv (file,labels: 1.jpg,cat;dog) beside images of "
            "several classes each; netgraft:digits, torch/cifar10...",
            metavar="DIR|NAME",
        ),
    ] = None,
    out: Annotated[str | None, _option("The folder to write.", "-o", "--out", metavar="DIR")] = None,
    method: Annotated[str, _option("How to train (netgraft methods).", metavar="NAME")] = "plain",
    settings: Annotated[
        list[str] | None, _option("Option of the method; repeatable.", "--set", metavar="NAME=VALUE")
    ] = None,
    combine: Annotated[
        str | None,
        _option("How losses' gradients are combined: total, dtnh; the method's own without it.", metavar="RULE"),
    ] = None,
    dtnh_scope: Annotated[
        DtnhScope, _option("Which weights dtnh compares gradients of: all as one, shared ones, tensor by tensor.")
    ] = DtnhScope.ALL,
    lam: Annotated[
        str,
        _option(
            "Factor of everything but the task's loss; several to choose from: 0.01,0.1,1.",
            "--lambda",
            metavar="NUMBER[,NUMBER...]",
        ),
    ] = "1.0",
    folds: Annotated[
        int | None,
        _option("Choose lambda by cross-validation on so many parts of the training images.", metavar="NUMBER", min=2),
    ] = None,
    lam_decay: Annotated[
        float, _option("Factor of lambda with every epoch.", "--lambda-decay", metavar="NUMBER", min=0, max=1)
    ] = 1.0,
    init: Annotated[str | None, _option("Weights of TARGET to start from (netgraft transfer).", metavar="FILE")] = None,
    source: Annotated[str | None, _option("The source network of methods that need one.", metavar="REF")] = None,
    source_weights: Annotated[str | None, _option("Its weights, instead of its own.", metavar="FILE")] = None,
    random_source: Annotated[bool, _option("Random source weights, to try things out.", "--random-source")] = False,
    source_arg: Annotated[
        list[str] | None, _option("Argument of its constructor; repeatable.", metavar="NAME=VALUE")
    ] = None,
    source_input_size: Annotated[str | None, _option("Scale the images to this for it.", metavar="C,H,W")] = None,
    target_arg: Annotated[
        list[str] | None, _option("Argument of the target's constructor; repeatable.", metavar="NAME=VALUE")
    ] = None,
    input_size: Annotated[str | None, _option("Size of the images.", metavar="C,H,W")] = None,
    pairs: Annotated[
        str, _option("Layers to compare: stages, all, or SOURCE:TARGET,SOURCE:TARGET.", metavar="PAIRS")
    ] = "stages",
    matcher: Annotated[
        str | None, _option("Pair layers by a matcher, not by how far they have come.", metavar="NAME")
    ] = None,
    source_data: Annotated[str | None, _option("Labelled images of the source's task.", metavar="DIR|NAME")] = None,
    unlabelled: Annotated[str | None, _option("Images whose labels are not looked at.", metavar="DIR|NAME")] = None,
    samples_per_class: Annotated[
        int | None, _option("Train with so many images of each class.", metavar="NUMBER", min=1)
    ] = None,
    val_split: Annotated[
        float | None,
        _option("Hold out this share of the training images, and choose best.safetensors by it.", metavar="SHARE"),
    ] = None,
    draw_seed: Annotated[int, _option("Seed of these draws.", metavar="NUMBER", min=0)] = 0,
    data_dir: Annotated[
        str | None, _option("Where data sets with a name lie; ./data without it.", metavar="DIR")
    ] = None,
    download: Annotated[bool, _option("Fetch data that are not there.", "--download")] = False,
    mean: Annotated[
        str | None, _option("Mean of the images by channel; the source's where it is known.", metavar="NUMBERS")
    ] = None,
    std: Annotated[str | None, _option("Standard deviation, given like --mean.", metavar="NUMBERS")] = None,
    epochs: Annotated[int, _option("Passes over the training images.", metavar="NUMBER", min=1)] = 10,
    val_interval: Annotated[int, _option("Epochs between two evaluations.", metavar="NUMBER", min=1)] = 1,
    retrieval: Annotated[
        Distance | None,
        _option(
            "Measure CMC and mAP by the features too: each test image is searched for among the rest, or those of "
            "DIR/query in DIR/gallery (always, where the data have these)."
        ),
    ] = None,
    batch_size: Annotated[
        int, _option("Images of a step and process.", "-b", "--batch-size", metavar="NUMBER", min=1)
    ] = 64,
    accumulate: Annotated[
        int, _option("So many batches make one step, as if they were one.", metavar="NUMBER", min=1)
    ] = 1,
    opt: Annotated[str, _option("Optimizer, by timm's name.", metavar="NAME")] = "sgd",
    lr: Annotated[float, _option("Learning rate.", metavar="NUMBER", min=0)] = 0.01,
    momentum: Annotated[float, _option("Momentum.", metavar="NUMBER", min=0)] = 0.9,
    weight_decay: Annotated[float, _option("Weight decay, not of norms and biases.", metavar="NUMBER", min=0)] = 1e-4,
    sched: Annotated[
        str | None,
        _option("Schedule, by timm's name; none for a constant rate; without it cosine.", metavar="NAME"),
    ] = None,
    warmup_epochs: Annotated[int, _option("Epochs of warm-up.", metavar="NUMBER", min=0)] = 0,
    min_lr: Annotated[float, _option("Rate at the end.", metavar="NUMBER", min=0)] = 0.0,
    decay_epochs: Annotated[float, _option("Epochs between two decays of --sched step.", metavar="NUMBER")] = 10.0,
    decay_rate: Annotated[float, _option("Factor of such a decay.", "--decay-rate", "--gamma", metavar="NUMBER")] = 0.1,
    milestones: Annotated[
        str | None, _option("The rate decays after so many epochs: 30,60 (--sched multistep).", metavar="EPOCHS")
    ] = None,
    triplet: Annotated[
        float, _option("Weight of the batch-hard triplet loss beside the cross-entropy.", metavar="NUMBER", min=0)
    ] = 0.0,
    triplet_margin: Annotated[str, _option("Its margin, or soft.", metavar="NUMBER|soft")] = "0.3",
    class_images: Annotated[
        int | None,
        _option("Batches of random classes with so many images of each; 4 with --triplet.", metavar="NUMBER", min=2),
    ] = None,
    smoothing: Annotated[float, _option("Label smoothing.", metavar="NUMBER", min=0, max=1)] = 0.0,
    clip_grad: Annotated[float | None, _option("Largest norm of a step's direction.", metavar="NUMBER")] = None,
    freeze: Annotated[
        str | None,
        _option(
            "The first NUMBER layers of the chain do not train, or nothing that came from the source: transferred.",
            metavar="NUMBER|transferred",
        ),
    ] = None,
    unfreeze_every: Annotated[
        int | None,
        _option(
            "First the head alone trains, and after so many epochs each the layer before.", metavar="NUMBER", min=1
        ),
    ] = None,
    lr_exact: Annotated[
        float,
        _option("Factor of the rate for tensors that are the source's, by --init's ledger.", metavar="NUMBER", min=0),
    ] = 1.0,
    lr_refitted: Annotated[
        float, _option("The same for those that came from the source and were changed.", metavar="NUMBER", min=0)
    ] = 1.0,
    lr_fresh: Annotated[
        float, _option("The same for those that did not come from the source.", metavar="NUMBER", min=0)
    ] = 1.0,
    aug: Annotated[
        bool | None, _option("Augment by timm's transforms; by default all but netgraft's own data.", "--aug/--no-aug")
    ] = None,
    train_crop_mode: Annotated[
        CropMode,
        _option(
            "Crops of --aug, by timm's names: rrc of random area, rkrc and rkrr rescaled at times and cropped in the "
            "middle or anywhere; and rc: resized, cropped anywhere."
        ),
    ] = CropMode.RRC,
    crop_pct: Annotated[
        float, _option("Of rc: edge of the crop by that of the resized image.", metavar="SHARE", max=1)
    ] = 0.875,
    scale: Annotated[tuple[float, float], _option("Area of random crops.", metavar="LOW HIGH")] = (0.08, 1.0),
    ratio: Annotated[tuple[float, float], _option("Aspect of random crops.", metavar="LOW HIGH")] = (0.75, 4 / 3),
    hflip: Annotated[float, _option("Probability of mirroring.", metavar="NUMBER", min=0, max=1)] = 0.5,
    vflip: Annotated[float, _option("Probability of turning upside down.", metavar="NUMBER", min=0, max=1)] = 0.0,
    color_jitter: Annotated[float, _option("Strength of colour changes.", metavar="NUMBER", min=0)] = 0.4,
    aa: Annotated[str | None, _option("timm's policy: rand-m9-mstd0.5, augmix-m5...", metavar="POLICY")] = None,
    reprob: Annotated[float, _option("Probability of erasing a part.", metavar="NUMBER", min=0, max=1)] = 0.0,
    views: Annotated[
        int | None,
        _option("So many random views of an image, for --cache; else one per epoch.", metavar="NUMBER", min=1),
    ] = None,
    bn: Annotated[
        BatchNorm, _option("BatchNorm: each process's batch, frozen statistics, all processes'.")
    ] = BatchNorm.TRAIN,
    model_ema: Annotated[bool, _option("Judge and write the moving average of the weights.", "--model-ema")] = False,
    model_ema_decay: Annotated[float, _option("Its decay.", metavar="NUMBER", min=0, max=1)] = 0.9998,
    amp: Annotated[bool, _option("Mixed precision.", "--amp")] = False,
    amp_dtype: Annotated[
        AmpDtype, _option("Its type; with float16 losses are scaled, and a step that overflows is skipped.")
    ] = AmpDtype.BFLOAT16,
    channels_last: Annotated[bool, _option("Memory format of the networks.", "--channels-last")] = False,
    compile_source: Annotated[bool, _option("torch.compile the source.", "--compile-source")] = False,
    seed: Annotated[int, _option("Seed of everything else.", metavar="NUMBER", min=0)] = 0,
    device: Annotated[str, _option("Where to train: cpu, cuda; auto takes what there is.", metavar="NAME")] = "auto",
    workers: Annotated[int, _option("Processes that read images.", "-j", "--workers", metavar="NUMBER", min=0)] = 0,
    log_interval: Annotated[int, _option("Batches between two looks at the losses.", metavar="NUMBER", min=1)] = 50,
    recovery_interval: Annotated[
        int, _option("Batches between saved states; 0: at the end of epochs.", metavar="NUMBER", min=0)
    ] = 0,
    tensorboard: Annotated[bool, _option("Write for TensorBoard where it is installed.")] = True,
    pictures: Annotated[
        int,
        _option("Pictures of so many test images, by methods that make any (cetl); 0: none.", metavar="NUMBER", min=0),
    ] = 8,
    picture_interval: Annotated[
        int, _option("Epochs between two of them; 0: after the last one alone.", metavar="NUMBER", min=0)
    ] = 0,
    cache: Annotated[str | None, _option("Keep the source's features there.", metavar="DIR")] = None,
    resume: Annotated[Resume | None, _option("auto: go on where the folder's run stopped.", metavar="auto")] = None,
    force: Annotated[bool, _option("Replace the run in the folder.", "-f", "--force")] = False,
    explain: Annotated[bool, _option("Tell what a step costs, and train nothing.", "--explain")] = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Train TARGET on its task, from an initialisation and with what a source knows.

    The folder holds config.json, metrics.jsonl and .csv, best.safetensors and last.safetensors, and the state that
    --resume auto goes on from. Several processes: accelerate launch -m netgraft finetune ..., or torchrun.
    """
    given = dict(context.params)
    for name in ("config", "resume", "force", "explain", "format"):
        given.pop(name)
    for name, what in (("target", "TARGET"), ("data", "--data NAME"), ("out", "--out DIR")):
        if given[name] is None:
            if name == "out" and explain:
                given["out"] = "."
                continue
            raise UsageError(f"{what} is missing.", hint="netgraft finetune --help ends with examples.")
    chosen = _settings(given)
    check_needs(chosen, plugins.describe(FOLDER, chosen.method))
    if explain:
        _explain(chosen, format)
        return
    from netgraft.finetune.engine.loop import finetune as train
    from netgraft.report.training import result_document, result_lines, watching

    keep_freed_memory()
    with watching() as watch:
        result = train(chosen, resume=resume is not None, force=force, watch=watch)
    if not result.first:
        return
    write_json(result_document(result)) if format is Format.JSON else write_lines(result_lines(result))


def _explain(settings: TrainingSettings, format: Format) -> None:
    from netgraft.finetune.engine.explain import explain
    from netgraft.report.training import cost_lines

    cost = explain(settings)
    write_json(cost.document()) if format is Format.JSON else write_lines(cost_lines(cost))


def _settings(given: dict[str, Any]) -> TrainingSettings:
    """From what was typed. Raises UsageError."""
    given["set"] = parse_args(given.pop("settings"))
    for name in ("source_arg", "target_arg"):
        given[name] = parse_args(given[name])
    for name in ("input_size", "source_input_size"):
        given[name] = parse_size(given[name])
    if given["mean"] is not None or given["std"] is not None:
        from netgraft.models.normalisation import parse_statistics

        for name in ("mean", "std"):
            given[name] = parse_statistics(given[name], f"--{name}") if given[name] is not None else None
    given["milestones"] = parse_milestones(given["milestones"])
    given["sched"] = given["sched"] or ("cosine" if given["milestones"] is None else "multistep")
    given["lam"], given["lambdas"] = parse_lambdas(given["lam"])
    given["bn"] = BatchNorm(given["bn"]).value
    given["retrieval"] = Distance(given["retrieval"]).value if given["retrieval"] is not None else None
    given["dtnh_scope"] = DtnhScope(given["dtnh_scope"]).value
    given["train_crop_mode"] = CropMode(given["train_crop_mode"]).value
    given["amp_dtype"] = AmpDtype(given["amp_dtype"]).value
    return TrainingSettings(**given)


@command("netgraft methods", "netgraft methods plain", "netgraft methods --by category")
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A method, or the path of your own: ./own_method.py.")
    ] = None,
    by: Annotated[
        Grouping | None, typer.Option("--by", help="Order them as the survey of deep transfer learning does.")
    ] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the methods: how a network is fine-tuned.

    With NAME: its equation and reference, what it needs, and its options for --set.
    With --by category: the survey's four categories, with what there is for Python alone.
    """
    from netgraft.report.categories import by_category, categories_document, categories_text
    from netgraft.report.listing import plugin_text, plugins_document, plugins_text
    from netgraft.report.training import method_document, method_notes

    if name is not None and by is not None:
        raise UsageError("One method has one category.", where=f"{name}, --by {by}", hint="Leave out one of them.")
    if by is not None:
        groups = by_category()
        write_json(categories_document(groups)) if format is Format.JSON else write_lines(categories_text(groups))
    elif name is None:
        found = plugins.listing(FOLDER)
        write_json(plugins_document(found)) if format is Format.JSON else write_lines(plugins_text(FOLDER, found))
    else:
        method = plugins.describe(FOLDER, name)
        if format is Format.JSON:
            write_json(method_document(method))
        else:
            write_lines(plugin_text(FOLDER, method, method_notes(method)))
