"""Container images as root disks: read from a registry, a folder or a file, unpacked, and made into ext4."""
