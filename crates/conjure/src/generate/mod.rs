//! From a request to a result.
//!
//! | module | question it answers |
//! |---|---|
//! | [`embed`] | which texts are alike in meaning? |
//! | [`image`] | how do words become a picture? |
//! | [`text`] | how are words continued and answered? |
//! | [`translate`] | how is a text put into another language? |

pub mod embed;
pub mod image;
pub mod text;
pub mod translate;
