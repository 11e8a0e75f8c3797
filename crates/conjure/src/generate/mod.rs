//! From a request to a result.
//!
//! | module | question it answers |
//! |---|---|
//! | [`image`] | how do words become a picture? |

pub mod image;
