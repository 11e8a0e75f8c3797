//! From a request to a result.
//!
//! | module | question it answers |
//! |---|---|
//! | [`image`] | how do words become a picture? |
//! | [`text`] | how are words continued and answered? |

pub mod image;
pub mod text;
