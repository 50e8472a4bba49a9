"""The operating system, wrapped: files, folders, locks, processes, sockets, netlink. Knows nothing of VMs."""
