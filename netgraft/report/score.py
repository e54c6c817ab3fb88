"""The verdicts of ``score`` and ``compare``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from netgraft.report.text import safe, shape_text, some, table

if TYPE_CHECKING:
    from netgraft.score.interval import Interval
    from netgraft.score.verdict import Verdicts


def score_lines(scores: Verdicts) -> Iterator[str]:
    """What was scored on what, one row for each initialisation, the best first, and the refusals."""
    train, test = scores.train, scores.test
    drawn = f" ({train['samples_per_class']} per class, seed {train['seed']})" if "seed" in train else ""
    yield safe(f"target: {scores.target}, the {scores.features:,} features that {some(scores.heads)} reads, frozen")
    if scores.norms:
        yield f"        statistics of {scores.norms} BatchNorm layers re-estimated on the training images (no labels)"
    yield safe(
        f"data:   {train['data']}, {train['images']:,} training images{drawn}, {test['images']:,} test images, "
        f"{train['classes']} classes"
    )
    normalisation = scores.normalisation
    mean, std = (",".join(f"{v:g}" for v in values) for values in (normalisation.mean, normalisation.std))
    yield safe(f"        {shape_text(scores.size)}, mean {mean}, std {std} ({normalisation.of})")
    if normalisation.remark:
        yield safe(f"        {normalisation.remark}")
    yield ""
    title = "recipe" if scores.source else "file"
    header = (title, "accuracy", "95 % interval", "against scratch", "95 % interval", "verdict")
    ranked = sorted(scores.scored, key=lambda scored: -scored.probe.accuracy)
    rows: list[tuple[str, ...]] = [
        (
            scored.name,
            f"{100 * scored.probe.accuracy:.1f} %",
            _span(scored.probe.interval, ""),
            f"{100 * scored.difference:+.1f}",
            _span(scored.interval, "+"),
            scored.verdict,
        )
        for scored in ranked
    ]
    accuracies = [probe.accuracy for probe in scores.scratch]
    spread = f"{100 * min(accuracies):.1f} to {100 * max(accuracies):.1f}"
    seeds = f"scratch, mean of {len(accuracies)} seeds"
    rows.append((seeds, f"{100 * sum(accuracies) / len(accuracies):.1f} %", f"{spread} (seeds)", "", "", ""))
    yield from table(header, rows)
    yield from (safe(f"{name}: refused: {why}") for name, why in scores.refused.items())


def score_document(scores: Verdicts) -> dict[str, Any]:
    """The same as JSON; accuracies and differences are shares, 0 to 1."""
    accuracies = [probe.accuracy for probe in scores.scratch]
    normalisation = scores.normalisation
    remark = {"remark": normalisation.remark} if normalisation.remark else {}
    title = "recipe" if scores.source else "file"
    return {
        **({"source": scores.source} if scores.source else {}),
        "target": scores.target,
        "heads": list(scores.heads),
        "features": scores.features,
        "input_size": list(scores.size),
        "normalisation": {
            "mean": list(normalisation.mean),
            "std": list(normalisation.std),
            "of": normalisation.of,
            **remark,
        },
        "bn": scores.settings.bn,
        "train": dict(scores.train),
        "test": dict(scores.test),
        "level": 0.95,
        "scratch": {
            "seeds": list(range(len(accuracies))),
            "accuracies": [round(accuracy, 6) for accuracy in accuracies],
            "accuracy": round(sum(accuracies) / len(accuracies), 6),
        },
        f"{title}s": [
            {
                title: scored.name,
                **({"sha256": scored.sha256} if scored.sha256 else {}),
                "accuracy": round(scored.probe.accuracy, 6),
                "interval": [round(edge, 6) for edge in scored.probe.interval],
                "difference": round(scored.difference, 6),
                "difference_interval": [round(edge, 6) for edge in scored.interval],
                "verdict": scored.verdict,
            }
            for scored in scores.scored
        ],
        **({"refused": dict(scores.refused)} if scores.source else {}),
    }


def _span(interval: Interval, sign: str) -> str:
    return " to ".join(f"{100 * edge:{sign}.1f}" for edge in interval)
