"""How a target is made from a source: a matcher, operators and passes under one name. One file each (``protocol``)."""
