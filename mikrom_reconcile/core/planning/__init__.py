"""Desired and observed state to a plan: diff, guards, rollouts, leases, selections, explanations."""
