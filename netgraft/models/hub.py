"""Downloads that fail within seconds, in words that say what to do without them.

Without a connection huggingface_hub retries every file for half a minute. Here one request asks first whether the hub
answers; if it does not, only files that are already in the cache are used.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from netgraft.errors import HubUnreachable

PATIENCE = 8.0  # seconds without an answer
_NETWORK_PACKAGES = frozenset(
    {"huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "httpcore2", "requests"}
    | {"urllib3", "urllib", "http", "socket", "ssl"}
)


@contextmanager
def downloading(what: str, *, hint: str, uses_hub: bool) -> Iterator[None]:
    """Run a download: network errors in the block become HubUnreachable.

    ``what`` ("The weights of resnet18") opens the message and ``hint`` closes it; ``uses_hub`` says whether the
    Hugging Face hub is asked, rather than another server.
    """
    silence = _offline_reason() if uses_hub else None
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with _cache_only(silence is not None):
            yield
    except Exception as error:
        chain = _chain(error)
        if not any(_is_network_error(link) for link in chain):
            raise
        if silence is not None:
            chain = _chain(silence)
        named = {type(link).__name__ for link in chain}
        reason = next((str(link).strip() for link in reversed(chain) if str(link).strip()), "")
        if "OfflineModeIsEnabled" in named:
            said = "downloads are switched off by HF_HUB_OFFLINE"
        elif "GatedRepoError" in named:
            said = "the hub wants you to log in and accept its terms"
        elif "RepositoryNotFoundError" in named or "RevisionNotFoundError" in named:
            said = "the hub has no such repository, or it is private"
        elif "RemoteEntryNotFoundError" in named or ("EntryNotFoundError" in named and silence is None):
            said = "the repository on the hub lacks the file"
        else:
            said = "no connection"
        raise HubUnreachable(
            f"{what} could not be downloaded: {said}.",
            where=f"{type(chain[-1]).__name__}: {reason.splitlines()[0] if reason else ''}",
            hint=hint,
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _offline_reason() -> BaseException | None:
    """Why the Hugging Face hub does not answer, None if it does."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:
        return error
    return None


@contextmanager
def _cache_only(active: bool) -> Iterator[None]:
    from_environment = None
    if active:
        from huggingface_hub import constants

        from_environment, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        if active:
            from huggingface_hub import constants

            constants.HF_HUB_OFFLINE = bool(from_environment)


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and what caused it, outermost first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _is_network_error(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return package in _NETWORK_PACKAGES or isinstance(error, (ConnectionError, TimeoutError))
