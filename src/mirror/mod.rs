//! What a person sees: the live page.
