//! Threads, queues, supervision.
