//! What configs of models have in common: how large a number in one may be, and how an entry that nobody knows is refused.
//!
//! A damaged or malicious file must be refused before its sizes overflow when they are multiplied, or its layers are counted
//! one by one for hours; the limits are far above every published model.

use crate::{Error, Result};
use std::fmt::Display;

/// Features, channels, rows of a table.
pub const MAX_FEATURES: usize = 1 << 20;
/// Layers of a stack.
pub const MAX_LAYERS: usize = 128;

/// Refuses an entry outside `1..=most`, by its name.
pub fn check_size(name: &str, value: usize, most: usize) -> Result<()> {
    if value == 0 {
        return Err(Error::request(format!("{name} is 0")));
    }
    if value > most {
        return Err(Error::request(format!("{name} is {value}; at most {most} is supported"))
            .with_help("the config is damaged, or no model of this family"));
    }
    Ok(())
}

/// The refusal of an entry that no field of the config stands for and that says more than null or false.
pub fn unknown_entry(key: &str, value: impl Display) -> Error {
    Error::request(format!("unknown entry {key} ({value}), which may change the model"))
        .with_help("remove the entry if the model is known not to need it")
}
