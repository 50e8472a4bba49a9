"""The pure heart: desired and observed state in, a plan out.

Nothing here reads a clock, a file, the environment or a socket: `now`, texts and schemas are arguments,
and reasons are values. Read it bottom up: model, parsing, specs, placement, planning.
"""
