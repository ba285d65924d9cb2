//! From a reference to an image in the store, in one streaming pass.
