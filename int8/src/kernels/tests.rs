//! Every kernel that this processor can run against the definition: random layers, borders, zero-points and extreme values.
//!
//! A task is made here as the planner makes one: a random arena, views within it, canary bytes around every output.
