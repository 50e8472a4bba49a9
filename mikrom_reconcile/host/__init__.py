"""What runs on a hypervisor host: observe what is here, execute one action. It knows nothing of control."""
