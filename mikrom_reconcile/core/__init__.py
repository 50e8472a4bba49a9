"""The pure heart: desired and observed state in, a plan out. Clocks, texts and schemas are arguments. Read it bottom
up: model, parsing, specs, placement, planning.
"""
