"""Frozen types that cross a stage, one module per stage: specs, desired, observed, plan, run.

All are `msgspec.Struct`s: slotted, immutable, and encoded to JSON by msgspec wherever they travel (records,
Redis, `-o json`). Values only; no behaviour beyond what a value knows about itself.
"""
