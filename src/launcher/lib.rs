//! Plan, monitor and init: what runs beside and becomes a container.
