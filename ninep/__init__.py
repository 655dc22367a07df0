"""9P2000.L: messages, codec, a server and a client of files, local files, and a FUSE mount.

Knows nothing of ssh, of cpu or of boards. Standard library only, but for `ninep.fuse`.
"""
