"""The builder: from a board profile to what is flashed. Runs on the build host; nothing of it is on a board."""
