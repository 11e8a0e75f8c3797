//! From a request to a result.
//!
//! | module | question it answers |
//! |---|---|
//! | [`embed`] | which texts are alike in meaning? |
//! | [`image`] | how do words become a picture? |

pub mod embed;
pub mod image;
