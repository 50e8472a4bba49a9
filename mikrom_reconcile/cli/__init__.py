"""The command line: what a person types and sees. No logic: commands read options, call `wiring`, show `output`."""
