//! OCI runtime spec: defaults, users, and lowering to a launch plan.
//!
//! ```text
//! image config ─┐
//! CRI request ──┼─ defaults, image, user, capabilities, devices, mounts ──► OCI Spec ── lower ──► LaunchPlan
//! CDI, NRI ─────┘                     (building blocks)                        │                  + descriptors
//!                                                                              └── process::Template ► Process
//! ```
//!
//! The OCI [`Spec`](oci_spec::runtime::Spec) in the middle is the contract that NRI, CDI, inspection and foreign runtimes see.
//! [`lower()`] is the only way from it to something that runs: whatever the plan cannot express is refused there by
//! the name of its field, never dropped. Annotations decide nothing (reliability rule R8).

pub mod capabilities;
pub mod cdi;
pub mod defaults;
pub mod devices;
mod error;
pub mod facts;
pub mod image;
pub mod lower;
mod mountinfo;
pub mod mounts;
mod namespaces;
pub mod process;
pub mod signal;
pub mod sysctl;
pub mod user;
pub mod validate;

pub use error::{Code, Error};
pub use facts::Facts;
pub use lower::{Context, Lowered, lower};
