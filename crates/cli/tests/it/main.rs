//! Whole-program tests of the `conjure` command, and the rules of the house.

mod architecture;
