//! Whole-program tests of the `conjure` command, and the rules of the house.

mod architecture;
mod bad_input;
mod command;
mod data;
mod embed;
mod evaluate;
mod explain;
mod image;
mod language_training;
mod models;
mod replay;
mod text;
mod train;
mod translate;
