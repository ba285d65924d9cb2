//! Plan, monitor and init: what runs beside and becomes a container.

pub mod plan;
pub mod protocol;
