"""Frozen structs that cross a stage, one module per stage: specs, desired, observed, plan. Values only."""
