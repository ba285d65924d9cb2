//! Pod networks: namespaces, bridge, addresses, host ports.
