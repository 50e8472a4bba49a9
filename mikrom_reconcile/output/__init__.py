"""What people and programs are shown of plans, runs and lists. Pure, like the core."""
