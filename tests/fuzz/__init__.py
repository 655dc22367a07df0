"""What hostile peers send: the targets of the fuzzers, and what they and the state machines stand on."""
