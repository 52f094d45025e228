//! Topics, payloads, discovery, the client and its outbox. Knows no pictures.
