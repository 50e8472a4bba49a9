"""What VMs boot from, store on and talk through: images, disks, networks, metadata, secrets."""
