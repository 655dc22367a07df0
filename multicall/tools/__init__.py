"""Small commands, one file each."""
