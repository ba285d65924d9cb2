//! The ground itself: worlds are private and vanish, the leak checker finds what it must find, images are
//! what they say, registries serve them. Without these the other suites would prove nothing.

mod images;
mod leak;
mod registry;
mod world;
