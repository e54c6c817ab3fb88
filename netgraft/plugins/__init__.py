"""The folder is the registry: ``matchers/longest_chain.py`` is ``--matcher longest-chain``.

A plug-in is a frozen dataclass whose fields are its options; its file defines exactly one public class. It comes from
one of netgraft's folders, from a user's own file (``./own_matcher.py`` or ``./own_matcher.py:Class``), or from an
installed package with an entry point in the group ``netgraft.<folder>``, of a nested folder its last part
(``netgraft.methods``, ``netgraft.generators``). Netgraft's own names cannot be replaced.
Listing and describing read files with ``ast`` and import nothing; loading a file runs its code.
"""

from netgraft.plugins.description import Description, describe
from netgraft.plugins.fields import REQUIRED, Option, options, type_text
from netgraft.plugins.registry import Plugin, create, known, listing, load, noun

__all__ = [
    "REQUIRED",
    "Description",
    "Option",
    "Plugin",
    "create",
    "describe",
    "known",
    "listing",
    "load",
    "noun",
    "options",
    "type_text",
]
