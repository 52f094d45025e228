//! Counters and latency histograms: Prometheus text and the telemetry payload.
