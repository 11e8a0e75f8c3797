//! Every model family that Conjure knows, declared once.
