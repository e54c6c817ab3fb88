"""How a target is made from a source: a matcher, operators and passes under one name. One file each.

A recipe is a frozen dataclass whose ``plan(source, target)`` answers with a ``Pairing`` and the fate of every key of
the target's state_dict: ``Move`` or ``Kept``. It reads layer graphs only; no weight is touched before the plan stands.
``passes(source, target)``, where a recipe has it, says what runs after the moves: names and options of
``netgraft.passes``.
"""
