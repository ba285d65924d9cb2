//! The OCI distribution client: references, hosts, authentication, fetch.
