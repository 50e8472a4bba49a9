"""The command line: what a person may ask, and with which exit code it ends; the work is done elsewhere."""
