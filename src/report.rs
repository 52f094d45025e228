//! Observations to events: the fixed JSON contract.
