//! Parse, hand over to [`visaged::cli`].

fn main() {}
