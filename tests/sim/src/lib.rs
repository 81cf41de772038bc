//! Two replicas, one thread, one seed: the simulator of the replication protocol.

#![forbid(unsafe_code)]
