//! Black-box suites: the real program, real gRPC, a real kernel.
