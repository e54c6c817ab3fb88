"""What the user sees: plans, layer graphs and listings as text for people and as JSON for programs.

Text goes through ``table`` and ``safe``: on a terminal it has colour, elsewhere it is plain and names are never cut.
"""
