//! pinnace serve: the CRI server.
