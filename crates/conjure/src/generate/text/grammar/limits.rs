//! How large a grammar may be.

/// Deepest nesting of parentheses, which is `llguidance`'s.
pub const MAX_NESTING: usize = 28;
/// Most rules and parentheses: it goes through them by recursion, and each may lead to the next.
pub const MAX_PARTS: usize = 20_000;
/// What preparing a grammar's texts and patterns may cost, in `llguidance`'s unit of some 20 nanoseconds.
pub const FUEL: u64 = 1_000_000;
/// Most alternatives at one place of a text.
pub const MAX_ALTERNATIVES: usize = 5_000;
