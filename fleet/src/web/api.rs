//! The API under `/api/v1`, and its OpenAPI document, which is made from these functions.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa::{IntoParams, Modify, OpenApi, ToSchema};
use uuid::Uuid;

use super::auth::{Operator, Reader, Viewer};
use super::silent_since;
use crate::audit::{Audit, Missing};
use crate::bundle::{Bundle, Way, install_args};
use crate::contract::{COMMANDS, DeviceName, is_command_id};
use crate::rollout::{ROLLOUT_COMMANDS, RolloutRequest, payload};
use crate::serve::{Shared, parts_of};
use crate::store::{
    Added, AuditEntry, BundleRow, CommandRow, DeviceFilter, DeviceRow, EventRow, GapRow, NewCommand, NewRollout,
    Overview, RolloutDeviceRow, RolloutRow, SiteRow, StoreError, TelemetryRow, UnreadableRow,
};
use crate::time::Micros;

/// Rows that one answer holds at most.
const MOST_ROWS: i64 = 1000;

const LONGEST_REFUSAL_BYTES: usize = 4096;

const DEFAULT_NOT_AFTER_S: u32 = 300;
const LONGEST_NOT_AFTER_S: u32 = 7 * 24 * 3600;
const LONGEST_GRACE_S: u32 = 365 * 24 * 3600;

/// Why a request was not answered as wished.
#[derive(Debug)]
pub(super) struct ApiError {
    code: StatusCode,
    message: String,
}

/// How errors look.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// What failed, and what to do.
    error: String,
}

impl ApiError {
    pub(super) fn new(code: StatusCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn internal(message: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn missing(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what} is not known here"))
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "a request failed");
        // What the database said goes to the log, not to whoever asks.
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the store does not answer; the server's log says why; try again later",
        )
    }
}

impl From<JsonRejection> for ApiError {
    fn from(error: JsonRejection) -> Self {
        Self::new(error.status(), error.body_text())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.code, Json(ErrorBody { error: self.message })).into_response()
    }
}

type Answer<T> = Result<Json<T>, ApiError>;
type Shares = State<Arc<Shared>>;
type Body<T> = Result<Json<T>, JsonRejection>;

/// Everything that this API does, for programs that write clients.
#[derive(OpenApi)]
#[openapi(
    info(title = "visaged-fleet", description = "The operator's side of visaged. Every request carries `Authorization: Bearer TOKEN`."),
    servers((url = "/api/v1")),
    paths(
        overview, sites, devices, device, set_tags, events, gaps, telemetry, commands, send_command, command, rollouts, create_rollout, rollout,
        rollout_devices, rollout_action, bundles, add_bundle, remove_bundle, unreadable, audit, audit_log
    ),
    components(schemas(ErrorBody, Missing)),
    modifiers(&Bearer, &Errors),
    security(("token" = []))
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// Every operation may answer with an error.
struct Errors;

impl Modify for Errors {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let schema = Ref::from_schema_name("ErrorBody");
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let error = ResponseBuilder::new()
            .description("What failed, and what to do")
            .content("application/json", content)
            .build();
        for path in document.paths.paths.values_mut() {
            let operations = [&mut path.get, &mut path.put, &mut path.post, &mut path.delete];
            for operation in operations.into_iter().flatten() {
                operation.responses.responses.insert("default".into(), error.clone().into());
            }
        }
    }
}

/// What the framework refuses by itself is said in JSON, as everything else is.
pub(super) async fn errors_as_json(response: Response) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let failed = response.status().is_client_error() || response.status().is_server_error();
    if !failed || kind.is_some_and(|kind| kind.starts_with("application/json")) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, LONGEST_REFUSAL_BYTES).await.unwrap_or_default();
    let said = String::from_utf8_lossy(&text).trim().to_owned();
    let error = if said.is_empty() { parts.status.canonical_reason().unwrap_or("refused").to_owned() } else { said };
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::CONTENT_TYPE);
    (parts.status, parts.headers, Json(ErrorBody { error })).into_response()
}

pub(super) async fn openapi(_: Reader) -> Response {
    Json(document()).into_response()
}

/// What [`DeviceName`] asks of a site and of a name; its length counts bytes.
const LEVEL: &str = r"^[^/+#\u0000-\u001f\u007f-\u009f]{1,128}$";

/// A site and a name, or nothing.
const AFTER: &str = r"^([^/+#\u0000-\u001f\u007f-\u009f]{1,128}/[^/+#\u0000-\u001f\u007f-\u009f]{1,128})?$";

/// The document, with what the types do not say of single values.
fn document() -> Value {
    let mut document = json!(Document::openapi());
    let parameters = (document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut()))
        .flat_map(|path| path.as_object_mut().into_iter().flat_map(|operations| operations.values_mut()))
        .flat_map(|operation| operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten());
    for parameter in parameters {
        if parameter["in"] == "path" && (parameter["name"] == "site" || parameter["name"] == "device") {
            parameter["schema"]["pattern"] = json!(LEVEL);
        }
        if parameter["in"] == "path" && parameter["name"] == "action" {
            parameter["schema"]["enum"] = json!(["pause", "resume", "cancel"]);
        }
        if parameter["name"] == "after" {
            parameter["schema"]["pattern"] = json!(AFTER);
        }
    }
    let schemas = &mut document["components"]["schemas"];
    schemas["CommandRequest"]["properties"]["name"]["enum"] = json!(COMMANDS);
    schemas["RolloutRequest"]["properties"]["command"]["enum"] = json!(ROLLOUT_COMMANDS);
    schemas["Tags"]["properties"]["tags"]["items"]["pattern"] = json!("^[A-Za-z0-9._-]{1,64}$");
    schemas["Plan"]["properties"]["waves"]["items"]["pattern"] = json!("^([1-9][0-9]{0,8}|([1-9][0-9]?|100)%)$");
    document
}

pub(super) async fn not_found(_: Reader) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no such path; /api/v1/openapi.json lists them")
}

/// The number of a device that a path names.
pub(super) async fn find(shared: &Shared, site: &str, device: &str) -> Result<(DeviceName, i64), ApiError> {
    let name = DeviceName::new(site, device).map_err(|error| ApiError::bad(error.to_string()))?;
    let id = shared.store.device_id(&name).await?.ok_or_else(|| ApiError::missing(&name.to_string()))?;
    Ok((name, id))
}

fn rows(limit: Option<i64>) -> i64 {
    limit.unwrap_or(100).clamp(1, MOST_ROWS)
}

/// The fleet in numbers.
#[utoipa::path(get, path = "/overview", responses((status = 200, body = Overview)))]
pub(super) async fn overview(_: Reader, State(shared): Shares) -> Answer<Overview> {
    Ok(Json(shared.store.overview(Micros::now(), silent_since(&shared)).await?.0))
}

/// Sites with their numbers of devices.
#[utoipa::path(get, path = "/sites", responses((status = 200, body = Vec<SiteRow>)))]
pub(super) async fn sites(_: Reader, State(shared): Shares) -> Answer<Vec<SiteRow>> {
    Ok(Json(shared.store.overview(Micros::now(), silent_since(&shared)).await?.1))
}

/// Which devices.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DevicesQuery {
    /// Of this site.
    pub(super) site: Option<String>,
    /// With this tag.
    pub(super) tag: Option<String>,
    /// `online`, `degraded`, `offline`, `silent`, `unknown`.
    pub(super) status: Option<String>,
    /// Whose site or name holds this.
    pub(super) q: Option<String>,
    /// Those after this `site/device`: for the next page, the last of this one.
    pub(super) after: Option<String>,
    /// At most so many; up to 1000.
    pub(super) limit: Option<i64>,
}

impl DevicesQuery {
    pub(super) fn filter(&self, silent_since: Micros) -> Result<DeviceFilter, ApiError> {
        let given = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
        let after = given(&self.after).map(|after| after.parse::<DeviceName>()).transpose();
        Ok(DeviceFilter {
            site: given(&self.site),
            tag: given(&self.tag),
            status: given(&self.status),
            text: given(&self.q),
            after: after.map_err(|error| ApiError::bad(format!("after: {error}")))?,
            limit: rows(self.limit),
            silent_since,
        })
    }
}

/// Devices, by site and name.
#[utoipa::path(get, path = "/devices", params(DevicesQuery), responses((status = 200, body = Vec<DeviceRow>)))]
pub(super) async fn devices(
    _: Reader,
    State(shared): Shares,
    Query(query): Query<DevicesQuery>,
) -> Answer<Vec<DeviceRow>> {
    let filter = query.filter(silent_since(&shared))?;
    Ok(Json(shared.store.devices(&filter).await?))
}

/// One device.
#[utoipa::path(get, path = "/devices/{site}/{device}", params(("site" = String, Path), ("device" = String, Path)),
    responses((status = 200, body = DeviceRow), (status = 404, body = ErrorBody)))]
pub(super) async fn device(
    _: Reader,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
) -> Answer<DeviceRow> {
    let (name, _) = find(&shared, &site, &device).await?;
    let found = shared.store.device(&name, silent_since(&shared)).await?;
    found.map(Json).ok_or_else(|| ApiError::missing(&name.to_string()))
}

/// What a device is called by.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Tags {
    /// Each of 1 to 64 of `A-Z a-z 0-9 . _ -`.
    #[schema(max_items = 50)]
    tags: Vec<String>,
}

/// Replaces a device's tags.
#[utoipa::path(put, path = "/devices/{site}/{device}/tags", params(("site" = String, Path), ("device" = String, Path)),
    request_body = Tags, responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody)))]
pub(super) async fn set_tags(
    Operator(viewer): Operator,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
    tags: Body<Tags>,
) -> Result<StatusCode, ApiError> {
    let Json(Tags { tags }) = tags?;
    change_tags(&shared, &viewer, &site, &device, tags).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn change_tags(
    shared: &Shared,
    viewer: &Viewer,
    site: &str,
    device: &str,
    mut tags: Vec<String>,
) -> Result<(), ApiError> {
    let (name, id) = find(shared, site, device).await?;
    if let Some(bad) = tags.iter().find(|tag| !is_command_id(tag)) {
        return Err(ApiError::bad(format!("tag {bad:?}: want 1 to 64 of A-Z a-z 0-9 . _ -")));
    }
    tags.sort();
    tags.dedup();
    if tags.len() > 50 {
        return Err(ApiError::bad("at most 50 tags a device"));
    }
    Ok(shared.store.set_tags(id, &name.to_string(), &tags, &viewer.name, Micros::now()).await?)
}

/// A span of time.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SpanQuery {
    /// From here on, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Micros>,
    /// Before this, RFC 3339: for the next page, the time of the last of this one.
    #[param(value_type = Option<String>, format = DateTime)]
    before: Option<Micros>,
    /// At most so many; up to 1000.
    limit: Option<i64>,
}

/// A device's events, newest first, by its own clock.
#[utoipa::path(get, path = "/devices/{site}/{device}/events", params(("site" = String, Path), ("device" = String, Path), SpanQuery),
    responses((status = 200, body = Vec<EventRow>)))]
pub(super) async fn events(
    _: Reader,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
    Query(span): Query<SpanQuery>,
) -> Answer<Vec<EventRow>> {
    let (_, id) = find(&shared, &site, &device).await?;
    let (since, before) = (span.since.unwrap_or(Micros(i64::MIN)), span.before.unwrap_or(Micros(i64::MAX)));
    Ok(Json(shared.store.events(id, since, before, rows(span.limit)).await?))
}

/// Gaps that a device declared, newest first.
#[utoipa::path(get, path = "/devices/{site}/{device}/gaps", params(("site" = String, Path), ("device" = String, Path)),
    responses((status = 200, body = Vec<GapRow>)))]
pub(super) async fn gaps(
    _: Reader,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
) -> Answer<Vec<GapRow>> {
    let (_, id) = find(&shared, &site, &device).await?;
    Ok(Json(shared.store.gaps(id, MOST_ROWS).await?))
}

/// A device's telemetry, oldest first, by when it came.
#[utoipa::path(get, path = "/devices/{site}/{device}/telemetry", params(("site" = String, Path), ("device" = String, Path), SpanQuery),
    responses((status = 200, body = Vec<TelemetryRow>)))]
pub(super) async fn telemetry(
    _: Reader,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
    Query(span): Query<SpanQuery>,
) -> Answer<Vec<TelemetryRow>> {
    let (_, id) = find(&shared, &site, &device).await?;
    Ok(Json(shared.store.telemetry(id, span.since.unwrap_or(Micros(0)), rows(span.limit)).await?))
}

/// The last commands to a device, newest first.
#[utoipa::path(get, path = "/devices/{site}/{device}/commands", params(("site" = String, Path), ("device" = String, Path)),
    responses((status = 200, body = Vec<CommandRow>)))]
pub(super) async fn commands(
    _: Reader,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
) -> Answer<Vec<CommandRow>> {
    let (_, id) = find(&shared, &site, &device).await?;
    Ok(Json(shared.store.commands(id, 100).await?))
}

/// A command to be sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandRequest {
    /// Such as `ping`.
    pub(super) name: String,
    /// What it takes.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub(super) args: Value,
    /// The device refuses it when it comes later than in so many seconds.
    #[schema(minimum = 1, maximum = 604800)]
    pub(super) not_after_s: Option<u32>,
    /// The device is not told that: for one without a time server, which would reject what it cannot compare with its clock.
    #[serde(default)]
    pub(super) without_expiry: bool,
}

/// The id to ask for the answer with.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Accepted {
    /// Of the command, or of the roll-out.
    pub(super) id: String,
}

/// Sends a command; while the device is away it waits, until it is too late.
#[utoipa::path(post, path = "/devices/{site}/{device}/commands", params(("site" = String, Path), ("device" = String, Path)),
    request_body = CommandRequest, responses((status = 202, body = Accepted), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody)))]
pub(super) async fn send_command(
    Operator(viewer): Operator,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
    request: Body<CommandRequest>,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let Json(request) = request?;
    let id = add_command(&shared, &viewer, &site, &device, request).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { id })))
}

pub(super) async fn add_command(
    shared: &Shared,
    viewer: &Viewer,
    site: &str,
    device: &str,
    request: CommandRequest,
) -> Result<String, ApiError> {
    let (name, device) = find(shared, site, device).await?;
    if !COMMANDS.contains(&request.name.as_str()) {
        return Err(ApiError::bad(format!("command {:?}: want one of {}", request.name, COMMANDS.join(", "))));
    }
    let args = if request.args.is_null() { json!({}) } else { request.args };
    if !args.is_object() {
        return Err(ApiError::bad("args: want a JSON object"));
    }
    let args = with_bundle(shared, &request.name, args, Micros::now()).await?;
    let seconds = request.not_after_s.unwrap_or(DEFAULT_NOT_AFTER_S);
    if !(1..=LONGEST_NOT_AFTER_S).contains(&seconds) {
        return Err(ApiError::bad(format!("not_after_s: want 1 to {LONGEST_NOT_AFTER_S}")));
    }
    let now = Micros::now();
    let not_after = now.plus(std::time::Duration::from_secs(seconds.into()));
    let id = Uuid::new_v4().simple().to_string();
    let command = NewCommand {
        payload: payload(&id, &args, (!request.without_expiry).then_some(not_after)),
        id: id.clone(),
        device,
        parts: parts_of(&shared.store, &args).await?.filter(|_| request.name == INSTALL),
        name: request.name,
        not_after,
        rollout: None,
        created_by: viewer.name.clone(),
    };
    shared.store.add_command(&command, &name.to_string(), now).await?;
    Ok(id)
}

/// One command with its answer.
#[utoipa::path(get, path = "/commands/{id}", params(("id" = String, Path)),
    responses((status = 200, body = CommandRow), (status = 404, body = ErrorBody)))]
pub(super) async fn command(_: Reader, State(shared): Shares, Path(id): Path<String>) -> Answer<CommandRow> {
    shared.store.command(&id).await?.map(Json).ok_or_else(|| ApiError::missing("this command"))
}

/// The last hundred roll-outs, newest first.
#[utoipa::path(get, path = "/rollouts", responses((status = 200, body = Vec<RolloutRow>)))]
pub(super) async fn rollouts(_: Reader, State(shared): Shares) -> Answer<Vec<RolloutRow>> {
    Ok(Json(shared.store.rollouts(100).await?))
}

/// Begins a roll-out.
#[utoipa::path(post, path = "/rollouts", request_body = RolloutRequest,
    responses((status = 202, body = Accepted), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody)))]
pub(super) async fn create_rollout(
    Operator(viewer): Operator,
    State(shared): Shares,
    request: Body<RolloutRequest>,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let Json(request) = request?;
    let id = add_rollout(&shared, &viewer, &request).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { id })))
}

pub(super) async fn add_rollout(
    shared: &Shared,
    viewer: &Viewer,
    request: &RolloutRequest,
) -> Result<String, ApiError> {
    let now = Micros::now();
    let args = with_bundle(shared, &request.command, request.args.clone(), now).await?;
    let request = &RolloutRequest { args, ..request.clone() };
    request.check(now).map_err(|error| ApiError::bad(error.to_string()))?;
    let id = Uuid::new_v4().simple().to_string()[..12].to_owned();
    let devices = request.draw(&id, shared.store.targets(&request.target).await?);
    if devices.is_empty() {
        return Err(ApiError::bad("target: no device of the registry is meant by it"));
    }
    let new = NewRollout { id: &id, request, devices: &devices, actor: &viewer.name };
    shared.store.add_rollout(&new, now).await?;
    Ok(id)
}

/// One roll-out.
#[utoipa::path(get, path = "/rollouts/{id}", params(("id" = String, Path)),
    responses((status = 200, body = RolloutRow), (status = 404, body = ErrorBody)))]
pub(super) async fn rollout(_: Reader, State(shared): Shares, Path(id): Path<String>) -> Answer<RolloutRow> {
    shared.store.rollout(&id).await?.map(Json).ok_or_else(|| ApiError::missing("this roll-out"))
}

/// Every device of a roll-out with its outcome, by wave.
#[utoipa::path(get, path = "/rollouts/{id}/devices", params(("id" = String, Path)),
    responses((status = 200, body = Vec<RolloutDeviceRow>)))]
pub(super) async fn rollout_devices(
    _: Reader,
    State(shared): Shares,
    Path(id): Path<String>,
) -> Answer<Vec<RolloutDeviceRow>> {
    Ok(Json(shared.store.rollout_devices(&id).await?))
}

/// Pauses, resumes or cancels a roll-out.
#[utoipa::path(post, path = "/rollouts/{id}/{action}",
    params(("id" = String, Path), ("action" = String, Path, description = "`pause`, `resume` or `cancel`")),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn rollout_action(
    Operator(viewer): Operator,
    State(shared): Shares,
    Path((id, action)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    change_rollout(&shared, &viewer, &id, &action).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn change_rollout(shared: &Shared, viewer: &Viewer, id: &str, action: &str) -> Result<(), ApiError> {
    // The leader may be changing it at the same moment: then it is taken out again.
    for _ in 0..20 {
        let now = Micros::now();
        let Some(mut taken) = shared.store.take_rollout(id, now).await? else {
            return Err(ApiError::missing("this roll-out"));
        };
        let state = taken.rollout.state;
        let (done, word) = match action {
            "pause" => (taken.rollout.pause(), "rollout.pause"),
            "resume" => (taken.rollout.resume(), "rollout.resume"),
            "cancel" => (taken.rollout.cancel(format!("canceled by {}", viewer.name)), "rollout.cancel"),
            other => return Err(ApiError::bad(format!("{other:?}: want pause, resume or cancel"))),
        };
        if !done {
            return Err(ApiError::new(StatusCode::CONFLICT, format!("it is {}: cannot {action} it", state.word())));
        }
        if shared.store.put_rollout(&taken, None, Some((&viewer.name, word)), now).await? {
            return Ok(());
        }
    }
    Err(ApiError::new(StatusCode::CONFLICT, "it changes all the time; try again"))
}

const INSTALL: &str = "models.install";

/// A hosted bundle lasts so long where its signer set no end: devices want one.
const LASTS: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// How a hosted bundle is asked for, in place of what `models.install` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostedArgs {
    bundle: String,
    /// `mqtt` or `https`.
    via: Option<String>,
    expires: Option<Micros>,
}

/// `{"bundle": NAME}` becomes what devices want to know of it. What comes in parts must be hosted here.
async fn with_bundle(shared: &Shared, command: &str, args: Value, now: Micros) -> Result<Value, ApiError> {
    if command != INSTALL {
        return Ok(args);
    }
    if args.get("bundle").is_none() {
        return match args.get("chunks").is_none() || parts_of(&shared.store, &args).await?.is_some() {
            true => Ok(args),
            false => {
                Err(ApiError::bad("args.chunks: no such archive is hosted here; add it, and give {\"bundle\": NAME}"))
            }
        };
    }
    let asked: HostedArgs = serde_json::from_value(args)
        .map_err(|error| ApiError::bad(format!("args: {error}; beside bundle there are via and expires")))?;
    let Some(hosted) = shared.store.bundle(&asked.bundle).await? else {
        let names: Vec<_> = shared.store.bundles().await?.into_iter().map(|bundle| bundle.name).collect();
        let known = if names.is_empty() { "none".into() } else { names.join(", ") };
        return Err(ApiError::bad(format!("args.bundle: {:?} is not hosted here; there are: {known}", asked.bundle)));
    };
    let way = match (asked.via.as_deref(), &shared.settings.public_url) {
        (Some("mqtt"), _) | (None, None) => Way::Parts,
        (Some("https") | None, Some(url)) => Way::Url(format!("{url}/bundles/{}/{}.tar", hosted.sha256, hosted.name)),
        (Some("https"), None) => return Err(ApiError::bad("args.via: https wants --public-url at this server")),
        (Some(other), _) => return Err(ApiError::bad(format!("args.via: {other:?}: want mqtt or https"))),
    };
    let expires = asked.expires.or(hosted.expires).unwrap_or(now.plus(LASTS));
    Ok(Value::Object(install_args(&hosted, &way, expires)))
}

/// A bundle to be hosted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Upload {
    /// What `visaged models pack` wrote, in Base64.
    #[schema(min_length = 4)]
    archive: String,
    /// The text of its signature file.
    #[schema(min_length = 1)]
    signature: String,
}

/// Hosted model bundles, by task, the newest upload first.
#[utoipa::path(get, path = "/bundles", responses((status = 200, body = Vec<BundleRow>)))]
pub(super) async fn bundles(_: Reader, State(shared): Shares) -> Answer<Vec<BundleRow>> {
    Ok(Json(shared.store.bundles().await?))
}

/// Hosts a model bundle. Whether its signature holds is for the devices to say: the server knows no keys.
#[utoipa::path(post, path = "/bundles", request_body = Upload,
    responses((status = 201, body = BundleRow), (status = 200, body = BundleRow), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub(super) async fn add_bundle(
    Operator(viewer): Operator,
    State(shared): Shares,
    upload: Body<Upload>,
) -> Result<(StatusCode, Json<BundleRow>), ApiError> {
    let Json(upload) = upload?;
    let archive = STANDARD
        .decode(upload.archive.trim())
        .map_err(|error| ApiError::bad(format!("archive: no Base64: {error}")))?;
    let bundle = Bundle::new(&archive, &upload.signature).map_err(|error| ApiError::bad(error.to_string()))?;
    let added = shared.store.add_bundle(&bundle, &viewer.name, Micros::now()).await?;
    let code = match added {
        Added::New => StatusCode::CREATED,
        Added::Same => StatusCode::OK,
        Added::Other => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("another {} is hosted: a change wants a higher version", bundle.name()),
            ));
        }
    };
    let row = shared.store.bundle(&bundle.name()).await?.ok_or_else(|| ApiError::missing("this bundle"))?;
    Ok((code, Json(row)))
}

/// Hosts a bundle no longer.
#[utoipa::path(delete, path = "/bundles/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn remove_bundle(
    Operator(viewer): Operator,
    State(shared): Shares,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    match shared.store.remove_bundle(&name, &viewer.name, Micros::now()).await? {
        Some(true) => Ok(StatusCode::NO_CONTENT),
        Some(false) => Err(ApiError::new(StatusCode::CONFLICT, "a roll-out or a command still needs it")),
        None => Err(ApiError::missing("this bundle")),
    }
}

/// The last messages on devices' topics that could not be read.
#[utoipa::path(get, path = "/unreadable", responses((status = 200, body = Vec<UnreadableRow>)))]
pub(super) async fn unreadable(_: Reader, State(shared): Shares) -> Answer<Vec<UnreadableRow>> {
    Ok(Json(shared.store.unreadable(100).await?))
}

/// How much may still be on its way.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Pass over holes whose next event came within so many seconds.
    #[param(maximum = 31536000)]
    grace_s: Option<u32>,
}

/// Whether events are missing that were not declared lost. Reads every event: not for every minute.
#[utoipa::path(get, path = "/audit", params(AuditQuery), responses((status = 200, body = Audit)))]
pub(super) async fn audit(_: Reader, State(shared): Shares, Query(query): Query<AuditQuery>) -> Answer<Audit> {
    let grace_s = query.grace_s.unwrap_or(60);
    if grace_s > LONGEST_GRACE_S {
        return Err(ApiError::bad(format!("grace_s: want 0 to {LONGEST_GRACE_S}")));
    }
    let grace = std::time::Duration::from_secs(grace_s.into());
    Ok(Json(crate::audit::audit(&shared.store, Micros::now().minus(grace)).await?))
}

/// The last changes that somebody made, newest first.
#[utoipa::path(get, path = "/audit-log", responses((status = 200, body = Vec<AuditEntry>)))]
pub(super) async fn audit_log(_: Reader, State(shared): Shares) -> Answer<Vec<AuditEntry>> {
    Ok(Json(shared.store.audit_log(MOST_ROWS).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_document_says_what_single_values_may_be_and_holds_no_null() {
        let document = document();
        let text = document.to_string();
        assert!(!text.contains(":null"), "{text}");
        assert_eq!(document["components"]["schemas"]["CommandRequest"]["properties"]["name"]["enum"], json!(COMMANDS));
        let device = &document["paths"]["/devices/{site}/{device}"]["get"]["parameters"];
        assert_eq!(device[0]["schema"]["pattern"], LEVEL);
        assert_eq!(device[1]["schema"]["pattern"], LEVEL);
    }
}
