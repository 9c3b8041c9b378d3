"""The runtime's sub-commands, one file each. They need click and rich."""
