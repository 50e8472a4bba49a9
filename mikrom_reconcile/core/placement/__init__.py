"""VMs to hosts: who has room, which host each VM belongs on, and the desired state that comes of it."""
