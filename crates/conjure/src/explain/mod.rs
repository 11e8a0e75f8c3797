//! How a model does what it does, shown.

pub mod attention;
pub mod lens;
pub mod odds;
