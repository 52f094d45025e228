//! HTTP: the API under `/api/v1`, pages for people, what changes pushed to them.
//!
//! Invariants: everything but the login page, its files, hosted bundles (signed, and no secret) and the health checks asks for a token; whoever changes something has the role for it, and
//! its name is in the audit log; pages read without JavaScript, refer to nothing from elsewhere and hold nothing inline; a request that a
//! foreign site's page makes through somebody's browser changes nothing.

mod api;
mod auth;
mod chart;
mod pages;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::bundle::{LARGEST_ARCHIVE_BYTES, PART_BYTES};
use crate::serve::Shared;
use crate::time::Micros;

/// Nothing from elsewhere, nothing inline, no framing.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// An archive in Base64, and room for its signature.
const LARGEST_UPLOAD_BYTES: usize = LARGEST_ARCHIVE_BYTES / 3 * 4 + 64 * 1024;

const PAGE_CSS: &str = include_str!("page.css");
const PAGE_JS: &str = include_str!("page.js");
const ICON_SVG: &str = include_str!("icon.svg");

/// Everything that HTTP answers.
pub fn router(shared: Arc<Shared>) -> Router {
    let api = Router::new()
        .route("/openapi.json", get(api::openapi))
        .route("/overview", get(api::overview))
        .route("/sites", get(api::sites))
        .route("/devices", get(api::devices))
        .route("/devices/{site}/{device}", get(api::device))
        .route("/devices/{site}/{device}/tags", put(api::set_tags))
        .route("/devices/{site}/{device}/events", get(api::events))
        .route("/devices/{site}/{device}/gaps", get(api::gaps))
        .route("/devices/{site}/{device}/telemetry", get(api::telemetry))
        .route("/devices/{site}/{device}/commands", get(api::commands).post(api::send_command))
        .route("/commands/{id}", get(api::command))
        .route("/rollouts", get(api::rollouts).post(api::create_rollout))
        .route("/rollouts/{id}", get(api::rollout))
        .route("/rollouts/{id}/devices", get(api::rollout_devices))
        .route("/rollouts/{id}/{action}", post(api::rollout_action))
        .route("/bundles", get(api::bundles).post(api::add_bundle).layer(DefaultBodyLimit::max(LARGEST_UPLOAD_BYTES)))
        .route("/bundles/{name}", delete(api::remove_bundle))
        .route("/unreadable", get(api::unreadable))
        .route("/audit", get(api::audit))
        .route("/audit-log", get(api::audit_log))
        .fallback(api::not_found)
        .layer(middleware::map_response(api::errors_as_json));
    Router::new()
        .nest("/api/v1", api)
        .route("/", get(pages::overview))
        .route("/devices/{site}/{device}", get(pages::device))
        .route("/devices/{site}/{device}/tags", post(pages::set_tags))
        .route("/devices/{site}/{device}/commands", post(pages::send_command))
        .route("/rollouts", get(pages::rollouts).post(pages::create_rollout))
        .route("/rollouts/{id}", get(pages::rollout))
        .route("/rollouts/{id}/{action}", post(pages::rollout_action))
        .route("/audit-log", get(pages::audit_log))
        .route("/bundles/{sha256}/{file}", get(bundle_archive))
        .route("/live", get(live))
        .route("/login", get(pages::login).post(auth::login))
        .route("/logout", post(auth::logout))
        .route("/page.css", get(|| async { file("text/css; charset=utf-8", PAGE_CSS) }))
        .route("/page.js", get(|| async { file("text/javascript; charset=utf-8", PAGE_JS) }))
        .route("/icon.svg", get(|| async { file("image/svg+xml", ICON_SVG) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .layer(middleware::map_response(add_headers))
        .with_state(shared)
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text)
}

async fn add_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Nothing heard since then means silent.
fn silent_since(shared: &Shared) -> Micros {
    Micros::now().minus(shared.settings.silent_after)
}

/// Ready: the broker is connected and the store answers.
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let store = shared.store.fingerprint(Micros::now()).await.is_ok();
    let broker = shared.linked.load(Ordering::Relaxed);
    let code = if store && broker { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = |up: bool| if up { "ok" } else { "away" };
    (code, format!("store {}\nbroker {}\n", word(store), word(broker))).into_response()
}

/// A hosted bundle, for devices, which have no token: what it is worth they tell by its signature. Whole, or from a byte on, for a device that goes on
/// where its link broke.
async fn bundle_archive(
    State(shared): State<Arc<Shared>>,
    Path((sha256, _)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, api::ApiError> {
    let found = match shared.settings.public_url {
        Some(_) => shared.store.bundle_of(&sha256).await?,
        None => None,
    };
    let Some(bundle) = found else { return Ok(StatusCode::NOT_FOUND.into_response()) };
    let (tag, size) = (format!("\"{sha256}\""), usize::try_from(bundle.size).unwrap_or(0));
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let same = text(header::IF_RANGE).is_none_or(|given| given == tag);
    let from = text(header::RANGE)
        .filter(|_| same)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let about = [(header::CONTENT_TYPE, "application/x-tar".to_owned()), (header::ETAG, tag)];
    if from.is_some_and(|from| from >= size) {
        let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
        return Ok((StatusCode::RANGE_NOT_SATISFIABLE, about, range).into_response());
    }
    let first = from.unwrap_or(0);
    let mut bytes = Vec::with_capacity(size - first);
    for (part, data) in shared.store.bundle_parts(&bundle.name).await?.iter().enumerate() {
        let begin = part * PART_BYTES;
        if begin + PART_BYTES > first {
            let part = STANDARD.decode(data).map_err(|error| api::ApiError::internal(error.to_string()))?;
            bytes.extend_from_slice(part.get(first.saturating_sub(begin)..).unwrap_or_default());
        }
    }
    let range = from.map(|from| [(header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", size - 1))]);
    Ok(match range {
        Some(range) => (StatusCode::PARTIAL_CONTENT, about, range, bytes).into_response(),
        None => (about, [(header::ACCEPT_RANGES, "bytes")], bytes).into_response(),
    })
}

/// A word to a page when something that it shows may have changed.
async fn live(
    _: auth::Reader,
    State(shared): State<Arc<Shared>>,
) -> Sse<impl futures_util::Stream<Item = Result<Event, Infallible>>> {
    let news = stream::unfold(shared.version.subscribe(), |mut version| async move {
        version.changed().await.ok()?;
        let now = *version.borrow_and_update();
        Some((Ok(Event::default().event("changed").data(now.to_string())), version))
    });
    Sse::new(news).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}

async fn metrics(_: auth::Reader, State(shared): State<Arc<Shared>>) -> Result<Response, api::ApiError> {
    let (overview, _) = shared.store.overview(Micros::now(), silent_since(&shared)).await?;
    let mut registry = Registry::with_prefix("visaged_fleet");
    let counters = &shared.counters;
    for (name, help, counter) in [
        ("events_stored", "Events stored that were new", &counters.events),
        ("events_duplicate", "Events that came again", &counters.duplicates),
        ("messages", "Messages of any kind that were handled", &counters.messages),
        ("batches", "Transactions", &counters.batches),
        ("messages_unreadable", "Messages that could not be read", &counters.unreadable),
        ("messages_dropped", "QoS 0 messages that found no room", &counters.dropped),
        ("store_retries", "Transactions that failed and were tried again", &counters.retries),
        ("sessions_adopted", "Sessions of dead instances that were taken over", &counters.adopted),
    ] {
        registry.register(name, help, ConstCounter::new(counter.load(Ordering::Relaxed)));
    }
    let help = "From an event's publishing, by the device's clock, to its being in the store, by the server's";
    registry.register_with_unit("event_lag", help, Unit::Seconds, counters.lag.0.clone());
    for (name, help, value) in [
        ("devices_online", "Devices online", overview.online),
        ("devices_degraded", "Devices degraded", overview.degraded),
        ("devices_offline", "Devices offline", overview.offline),
        ("devices_silent", "Devices that say to be there and are not heard", overview.silent),
        ("broker_connected", "1 while the broker is connected", i64::from(shared.linked.load(Ordering::Relaxed))),
        ("leader", "1 while this process leads", i64::from(shared.leads.load(Ordering::Relaxed))),
    ] {
        registry.register(name, help, ConstGauge::new(value));
    }
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| api::ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}
