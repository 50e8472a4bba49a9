"""The pure heart: desired and observed state in, a plan out. Bottom up: model, parsing, specs, placement, planning."""
