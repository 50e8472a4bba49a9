"""What people and programs are shown: text and JSON of plans, runs and lists. Pure, like the core.

Everything that could differ between two calls is an argument: colour, width, the time. Nothing here decides
anything, except how a run is judged (`verdict`).
"""
