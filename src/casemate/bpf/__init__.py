"""Classic BPF as seccomp uses it: assemble, decode, evaluate. Pure, no I/O."""
