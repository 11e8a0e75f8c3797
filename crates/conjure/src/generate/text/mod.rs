//! Words are continued or answered: a language model from request to text.
//!
//! ```text
//! TextRequest -> tokens -> prefill -> [ mask -> filters -> choice -> stop strings -> piece of text ] ... -> Generated
//! ```
//!
//! | file | question it answers |
//! |---|---|
//! | [`request`] | what can be asked for, and what is refused before work begins? |
//! | [`next_token`] | what is a model to the loop, and which part of a prompt has it read already? |
//! | [`event`] | what happens meanwhile, and what comes of it? |
//! | [`generation`] | how is text made, token by token? |
//! | [`stop`] | how is a stop string found that begins in one token and ends in another? |
//! | [`beam`] | how is the likeliest whole text searched? |
//! | [`search`] | which beginnings does such a search follow, and when is it over? |
//! | [`grammar`] | how is text held to a JSON schema or a grammar? |
//! | `adapters` | how is a model changed by LoRAs? |
//! | [`language_model`] | what is in a model's folder or GGUF file? |
//! | [`together`] | how are several texts made at once? |
//! | [`chat`] | how does a conversation go on without reading it again? |

mod adapters;
pub mod beam;
pub mod chat;
pub mod event;
pub mod generation;
pub mod grammar;
pub mod language_model;
pub mod next_token;
pub mod request;
pub mod search;
pub mod stop;
mod tiny;
pub mod together;
#[cfg(test)]
mod toy;

pub use beam::beam_search;
pub use chat::Chat;
pub use conjure_core::blocks::KeptAs;
pub use event::{Event, Finish, Generated, Stats, Token};
pub use generation::{Generation, TextStream};
pub use grammar::{Constraint, Grammar, TokenBytes};
pub use language_model::LanguageModel;
pub use next_token::{Cached, NextToken};
pub use request::{Beams, Prompt, Sampling, TextRequest};
pub use stop::StopStrings;
pub use tiny::save_tiny;
