//! Picture files: reading what users give, writing pictures that carry their recipe.
