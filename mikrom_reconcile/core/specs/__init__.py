"""Documents to VMs: read together, checked against one another, expanded."""
