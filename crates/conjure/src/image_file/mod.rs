//! Picture files: reading what users give, writing pictures that carry their recipe.
//!
//! | module | question it answers |
//! |---|---|
//! | [`picture`] | how does a user's picture or mask become pixels, safely? |
//! | [`recipe`] | what must a picture remember so that it can be made again? |
//! | [`png_recipe`] | how does a PNG carry its recipe, and how is it read from a stranger's file? |
//! | [`write`] | how is a file written so that a failure leaves nothing broken behind? |
//! | [`grid`](mod@grid) | how do several pictures become one sheet? |
//! | [`strip`](mod@strip) | how do several pictures become one, with labels? |

pub mod grid;
pub mod picture;
pub mod png_recipe;
pub mod recipe;
pub mod strip;
pub mod write;

pub use grid::grid;
pub use picture::{Mask, Picture};
pub use png_recipe::{read_recipe, read_texts, write_png};
pub use recipe::Recipe;
pub use strip::strip;
pub use write::write_atomically;
