"""Vocabulary maps: which token of the source each of the target's is, by their strings. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from netgraft.errors import UsageError

NEW = -1
"""A token of the target that the source does not know."""

_FORMS = """Give two vocabularies as SOURCE:TARGET, each a vocab.json ({token: number}), a tokenizer.json or a vocab.txt
(a token a line), or one JSON file: a list with one source number (or null) per target token."""


def read_vocabulary_map(given: str) -> tuple[int, ...]:
    """The source's number of each of the target's tokens, -1 for a new one, from FILE or SOURCE:TARGET.

    Tokens are equal if their strings are, to the last bit. Raises UsageError for files that are missing or of another
    form, and for vocabularies without one token in common.
    """
    if Path(given).is_file() or ":" not in given:
        return _read_list(Path(given))
    cuts = [place for place, letter in enumerate(given) if letter == ":"]  # a path may hold one, as C:\\vocab.txt
    pairs = [(Path(given[:cut]), Path(given[cut + 1 :])) for cut in cuts]
    paths = next((pair for pair in pairs if pair[0].is_file() and pair[1].is_file()), pairs[-1])
    source, target = (read_vocabulary(path) for path in paths)
    numbers = {token: number for number, token in enumerate(source) if token is not None}
    found = tuple(numbers.get(token, NEW) if token is not None else NEW for token in target)
    if all(number == NEW for number in found):
        where = f"{paths[0]}: {len(source)} tokens, {paths[1]}: {len(target)}"
        raise UsageError("The two vocabularies have no token in common.", where=where, hint=_FORMS)
    return found


def read_vocabulary(path: Path) -> list[str | None]:
    """The token of each number; None for a number without one. Raises UsageError as ``read_vocabulary_map``."""
    text = _text(path)
    if path.suffix != ".json":
        tokens = text.split("\n")
        found = [token.removesuffix("\r") for token in (tokens[:-1] if tokens[-1] == "" else tokens)]
        return _whole(dict(enumerate(found)), path)
    content = _json(text, path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        vocabulary = content["model"].get("vocab")
        if isinstance(vocabulary, list):  # [token, score], as SentencePiece's unigram models have them
            vocabulary = {entry[0]: n for n, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
        added = content.get("added_tokens") or []
        if isinstance(vocabulary, dict) and isinstance(added, list):
            more = {each.get("content"): each.get("id") for each in added if isinstance(each, dict)}
            content = vocabulary | more
    if isinstance(content, list):
        if not all(isinstance(token, str) for token in content):
            raise UsageError("This is not a vocabulary.", where=str(path), hint=_FORMS)
        return _whole(dict(enumerate(content)), path)
    if not isinstance(content, dict) or not all(isinstance(t, str) and _is_number(n) for t, n in content.items()):
        raise UsageError("This is not a vocabulary.", where=str(path), hint=_FORMS)
    if len(set(content.values())) != len(content):
        raise UsageError("Two tokens of the vocabulary have the same number.", where=str(path), hint=_FORMS)
    return _whole({number: token for token, number in content.items()}, path)


def _whole(tokens: dict[int, str], path: Path) -> list[str | None]:
    length = max(tokens, default=-1) + 1
    if not tokens or length > 2 * len(tokens) + 1000:
        what = "The vocabulary is empty." if not tokens else f"The vocabulary has numbers up to {length - 1}."
        raise UsageError(what, where=f"{path}: {len(tokens)} tokens", hint=_FORMS)
    if len(set(tokens.values())) != len(tokens):
        raise UsageError("The vocabulary has a token twice.", where=str(path), hint=_FORMS)
    return [tokens.get(number) for number in range(length)]


def _read_list(path: Path) -> tuple[int, ...]:
    content = _json(_text(path), path)
    if isinstance(content, list) and content and all(entry is None or _is_number(entry) for entry in content):
        return tuple(NEW if entry is None else entry for entry in content)
    raise UsageError("This is not a vocabulary map.", where=str(path), hint=_FORMS)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError("The vocabulary cannot be read.", where=f"{path}: {error}", hint=_FORMS) from error


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError("The vocabulary is not JSON.", where=f"{path}: {error}", hint=_FORMS) from error


def _is_number(entry: object) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0
