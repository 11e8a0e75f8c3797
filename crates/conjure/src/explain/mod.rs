//! How a model does what it does, shown.

pub mod odds;
pub mod attention;
