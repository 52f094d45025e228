//! The operator's side of `visaged`: everything that a fleet of devices needs at the other end of MQTT.
//!
//! | module | does |
//! |---|---|
//! | [`contract`] | topics, payloads, commands and answers, read tolerantly: what later versions add is passed over |
//! | [`store`] | SQLite or PostgreSQL behind one set of queries; migrations |
//! | [`link`] | one MQTT 5 session: connects, hands on messages, acknowledges by hand |
//! | [`broker`] | the embedded broker, for trials |
//! | [`bundle`] | model bundles that the server hosts, and the parts that they are sent in |
//! | [`ingest`] | from messages to rows, in batches; says which messages may be acknowledged |
//! | [`serve`] | joins the parts; instances, their leases, adoption of a dead one's session; the leader's work |
//! | [`rollout`] | roll-outs: a pure state machine and the reading and writing round it |
//! | [`audit`] | proves from the store that nothing is missing that was not declared |
//! | [`simulate`] | devices over real connections, with seeded faults |
//! | [`web`] | HTTP API, OpenAPI document, pages |
//! | [`mod@bench`] | measures what it all costs |
//! | [`cli`] | the command line |
//!
//! Nothing here knows the networks or the camera: the library `visaged` is no dependency. Only [`serve`] and [`cli`] know everybody.
//! Time comes in as an argument wherever a test must drive it.

pub mod audit;
pub mod bench;
pub mod broker;
pub mod bundle;
pub mod cli;
pub mod contract;
pub mod ingest;
pub mod link;
pub mod rollout;
pub mod serve;
pub mod simulate;
pub mod store;
pub mod time;
pub mod web;
