//! Pages for people: whole without JavaScript; with it, the part `#live` is renewed when something changes.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{DOCTYPE, Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::api::{self, ApiError, CommandRequest, DevicesQuery, find};
use super::auth::{Operator, Reader, Viewer};
use super::chart::Series;
use super::silent_since;
use crate::contract::COMMANDS;
use crate::rollout::{Execution, Plan, ROLLOUT_COMMANDS, RolloutRequest, State as RolloutState, Target};
use crate::serve::Shared;
use crate::store::{
    BundleRow, CommandRow, DeviceFilter, DeviceRow, EventRow, GapRow, Overview, Role, RolloutDeviceRow, RolloutRow,
    TelemetryRow, WaveCount,
};
use crate::time::Micros;

type Shares = State<Arc<Shared>>;
type Page = Result<Response, Problem>;

const MINUTE_US: i64 = 60_000_000;
const HOUR: Duration = Duration::from_secs(3600);
const SHORTEST_CHART: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Devices on one page of the overview.
const DEVICES_A_PAGE: i64 = 50;

/// Devices of each kind that is not well, at the top of the overview.
const LOOK_AT: i64 = 5;

/// Devices that a roll-out's page lists; the API gives all.
const ROLLOUT_DEVICES: i64 = 100;

/// An error as a page.
pub(super) struct Problem(ApiError);

impl<E: Into<ApiError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let message = self.0.message().to_owned();
        let status = self.0.into_response().status();
        let body =
            html! { main { h1 { "That did not work" } p.notice { (message) } p { a href="/" { "To the fleet" } } } };
        (status, Html(document("Problem", false, &body).into_string())).into_response()
    }
}

fn document(title: &str, script: bool, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · visaged fleet" }
                link rel="icon" href="/icon.svg";
                link rel="stylesheet" href="/page.css";
                @if script { script src="/page.js" defer {} }
            }
            body { (body) }
        }
    }
}

fn page(viewer: &Viewer, here: &str, title: &str, body: &Markup) -> Response {
    let links = [("/", "Fleet"), ("/rollouts", "Roll-outs"), ("/audit-log", "Audit log")];
    let whole = html! {
        a.skip href="#main" { "To the content" }
        header.top {
            a.brand href="/" { "visaged fleet" }
            nav aria-label="Pages" {
                @for (to, name) in links { a href=(to) aria-current=[(to == here).then_some("page")] { (name) } }
            }
            span #link {}
            form method="post" action="/logout" {
                span.who { (viewer.name) " · " (viewer.role.word()) }
                button.quiet { "Log out" }
            }
        }
        main #main { (body) }
    };
    Html(document(title, true, &whole).into_string()).into_response()
}

fn state(word: &str) -> Markup {
    html! { span class=(format!("state {word}")) { (word.replace('_', " ")) } }
}

fn device_link(site: &str, device: &str) -> String {
    format!("/devices/{}/{}", escape(site), escape(device))
}

/// Percent-encodes what is not plain in a path.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn ago(time: Option<Micros>, now: Micros) -> String {
    let Some(time) = time else { return "never".into() };
    match now.since(time).as_secs() {
        0..10 => "now".into(),
        seconds @ 10..120 => format!("{seconds} s ago"),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86400),
    }
}

/// A bar of so many in a hundred.
fn bar(share_percent: f64) -> Markup {
    html! { svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true" { rect.bar x="0" y="0" height="1" width=(format!("{share_percent:.2}")) {} } }
}

// ---- the fleet ----

pub(super) async fn overview(Reader(viewer): Reader, State(shared): Shares, Query(query): Query<DevicesQuery>) -> Page {
    let (now, silent) = (Micros::now(), silent_since(&shared));
    let store = &shared.store;
    let (fleet, sites) = store.overview(now, silent).await?;
    let mut filter = query.filter(silent)?;
    filter.limit = DEVICES_A_PAGE + 1;
    let mut devices = store.devices(&filter).await?;
    let more = devices.len() > DEVICES_A_PAGE as usize;
    devices.truncate(DEVICES_A_PAGE as usize);
    let look = match (&filter.status, &filter.after) {
        (None, None) => need_a_look(&shared, &fleet, silent).await?,
        _ => Vec::new(),
    };
    let from = now.minus(HOUR);
    let counts = store.event_counts(from).await?;
    let points = counts.iter().map(|count| (count.start, count.events as f64)).collect();
    let chart = Series { title: "Events a minute", unit: "", digits: 0, from, to: now, points };
    let instances = store.instances(store.now().await?.minus(shared.settings.lease)).await?;
    let tile =
        |status: &str, n: i64| html! { a href=(format!("/?status={status}#devices")) { b { (n) } (state(status)) } };
    let body = html! {
        div #live {
            div.head { h1 { "Fleet" } p { (fleet.devices) " devices at " (sites.len()) " sites · served by " (instances.join(", ")) } }
            div.tiles {
                (tile("online", fleet.online)) (tile("degraded", fleet.degraded)) (tile("silent", fleet.silent)) (tile("offline", fleet.offline))
                @if fleet.unknown > 0 { (tile("unknown", fleet.unknown)) }
                div { b { (fleet.events_last_hour) } span { "events in the last hour" } }
                div { b { (fleet.declared_lost_last_day) } span { "declared lost in a day" } }
                @if fleet.unreadable > 0 { div { b { (fleet.unreadable) } span { "unreadable messages" } } }
            }
            div.pair {
                section.card { (chart.bars(MINUTE_US)) }
                section.card {
                    h2 { "Sites" }
                    @if sites.is_empty() { p.none { "No device has been heard yet." } }
                    ul.bars { @for site in sites.iter().take(12) {
                        li {
                            a href=(format!("/?site={}#devices", escape(&site.site))) { (site.site) }
                            (bar(site.online as f64 * 100.0 / site.devices.max(1) as f64))
                            span { (site.online) " / " (site.devices) }
                        }
                    } }
                    @if sites.len() > 12 { p.none { "and " (sites.len() - 12) " more" } }
                }
            }
            @if !look.is_empty() { section.card { h2 { "Need a look" small { "the first of each kind" } } (device_table(&look, now)) } }
            section.card #devices { h2 { "Devices" } (device_table(&devices, now)) @if more { (next_page(&query, &devices)) } }
        }
        (filter_form(&query))
    };
    Ok(page(&viewer, "/", "Fleet", &body))
}

/// The first devices of each kind that is not well.
async fn need_a_look(shared: &Shared, fleet: &Overview, silent_since: Micros) -> Result<Vec<DeviceRow>, ApiError> {
    let mut found = Vec::new();
    let counts = [("degraded", fleet.degraded), ("silent", fleet.silent), ("offline", fleet.offline)];
    for (status, _) in counts.into_iter().filter(|(_, count)| *count > 0) {
        let filter =
            DeviceFilter { status: Some(status.into()), limit: LOOK_AT, silent_since, ..DeviceFilter::default() };
        found.extend(shared.store.devices(&filter).await?);
    }
    Ok(found)
}

fn filter_form(query: &DevicesQuery) -> Markup {
    let value = |text: &Option<String>| text.clone().unwrap_or_default();
    html! {
        section.card.find {
            h2 { "Find devices" }
            form.row method="get" action="/#devices" {
                label { "Name holds" input name="q" value=(value(&query.q)); }
                label { "Site" input name="site" value=(value(&query.site)); }
                label { "Tag" input name="tag" value=(value(&query.tag)); }
                label { "Status" select name="status" {
                    @for word in ["", "online", "degraded", "silent", "offline", "unknown"] {
                        option value=(word) selected[query.status.as_deref().unwrap_or("") == word] { @if word.is_empty() { "any" } @else { (word) } }
                    }
                } }
                button { "Find" }
                a href="/" { "All" }
            }
        }
    }
}

fn next_page(query: &DevicesQuery, devices: &[DeviceRow]) -> Markup {
    let last = devices.last().map(|device| format!("{}/{}", device.site, device.device)).unwrap_or_default();
    let pairs = [("q", &query.q), ("site", &query.site), ("tag", &query.tag), ("status", &query.status)];
    let mut link = format!("/?after={}", escape(&last));
    for (key, value) in pairs {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            link.push_str(&format!("&{key}={}", escape(value)));
        }
    }
    html! { p { a href=(format!("{link}#devices")) { "Next " (DEVICES_A_PAGE) } } }
}

fn device_table(devices: &[DeviceRow], now: Micros) -> Markup {
    html! {
        @if devices.is_empty() { p.none { "None." } } @else {
            div.scroll { table.fold {
                thead { tr { th { "Device" } th { "Status" } th { "Reason" } th { "Heard" } th { "Version" } th { "Models" } th { "Tags" } } }
                tbody { @for device in devices {
                    tr {
                        td { a href=(device_link(&device.site, &device.device)) { (device.site) "/" (device.device) } }
                        td data-label="Status" { (state(&device.status)) }
                        td.wide data-label="Reason" { (device.reason.as_deref().unwrap_or("—")) }
                        td.time data-label="Heard" { (ago(device.last_seen, now)) }
                        td data-label="Version" { (device.version.as_deref().unwrap_or("—")) }
                        td data-label="Models" { (models(&device.info)) }
                        td data-label="Tags" { (tags(&device.tags)) }
                    }
                } }
            } }
        }
    }
}

fn tags(tags: &[String]) -> Markup {
    html! { @if tags.is_empty() { "—" } @for tag in tags { span.tag { (tag) } } }
}

fn models(info: &Value) -> String {
    let models = info["models"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |model: &Value, key: &str| model[key].as_str().unwrap_or("?").to_owned();
    let all: Vec<_> =
        models.iter().map(|model| format!("{} {}", text(model, "name"), text(model, "version"))).collect();
    if all.is_empty() { "—".into() } else { all.join(", ") }
}

// ---- one device ----

/// What a device's page shows.
struct Dossier {
    device: DeviceRow,
    events: Vec<EventRow>,
    gaps: Vec<GapRow>,
    commands: Vec<CommandRow>,
    charts: Vec<Markup>,
    emotions: Vec<(String, i64)>,
}

pub(super) async fn device(
    Reader(viewer): Reader,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
) -> Page {
    let (name, id) = find(&shared, &site, &device).await?;
    let (now, store) = (Micros::now(), &shared.store);
    let Some(row) = store.device(&name, silent_since(&shared)).await? else {
        return Err(ApiError::new(StatusCode::NOT_FOUND, format!("{name} is not known here")).into());
    };
    // A device that has just come has no hour behind it.
    let known = now.since(row.first_seen).max(SHORTEST_CHART);
    let from = now.minus(HOUR.min(known));
    let telemetry = store.telemetry(id, from, 1000).await?;
    let counts = store.device_event_counts(id, from).await?;
    let points = counts.iter().filter(|c| c.start <= now).map(|count| (count.start, count.events as f64)).collect();
    let events = Series { title: "Events a minute", unit: "", digits: 0, from, to: now, points };
    let mut charts = vec![events.bars(MINUTE_US)];
    charts.extend(telemetry_charts(&telemetry, from, now));
    let dossier = Dossier {
        device: row,
        events: store.events(id, Micros(i64::MIN), Micros(i64::MAX), 25).await?,
        gaps: store.gaps(id, 10).await?,
        commands: store.commands(id, 10).await?,
        charts,
        emotions: store.emotions(id, now.minus(DAY)).await?,
    };
    Ok(page(&viewer, "", &name.to_string(), &device_body(&dossier, &viewer, now)))
}

fn telemetry_charts(telemetry: &[TelemetryRow], from: Micros, to: Micros) -> Vec<Markup> {
    let series = |title, unit, digits, value: &dyn Fn(&TelemetryRow) -> Option<f64>| {
        let points = telemetry.iter().filter_map(|row| Some((row.received, value(row)?))).collect();
        Series { title, unit, digits, from, to, points }.line()
    };
    let thousandth = |value: Option<i64>| value.map(|value| value as f64 / 1000.0);
    vec![
        series("Frames analysed a second", "fps", 1, &|row| thousandth(row.analysis_mfps)),
        series("Processor, of one core", "%", 0, &|row| thousandth(row.cpu_mpercent)),
        series("Memory", "MB", 0, &|row| row.memory_bytes.map(|bytes| bytes as f64 / 1e6)),
        series("Temperature", "°C", 0, &|row| thousandth(row.temperature_mcelsius)),
        series("Events waiting on the device", "", 0, &|row| Some(row.outbox_depth as f64)),
    ]
}

fn device_body(dossier: &Dossier, viewer: &Viewer, now: Micros) -> Markup {
    let device = &dossier.device;
    let emotions: i64 = dossier.emotions.iter().map(|(_, n)| n).sum();
    html! {
        div #live {
            div.head { h1 { (device.site) "/" (device.device) } (state(&device.status)) p { (device.reason.as_deref().unwrap_or("")) } }
            section.card { h2 { "Lately" small { "the last hour, or since it was first heard" } } div.charts { @for chart in &dossier.charts { (chart) } } }
            div.pair {
                section.card { h2 { "Device" } (facts(device, now)) }
                section.card {
                    h2 { "Emotions" small { "events of the last day" } }
                    @if dossier.emotions.is_empty() { p.none { "No event with an emotion." } }
                    ul.bars { @for (emotion, n) in &dossier.emotions {
                        li { span { (emotion) } (bar(*n as f64 * 100.0 / emotions.max(1) as f64)) span { (n) } }
                    } }
                }
            }
            section.card { h2 { "Commands" } (command_table(&dossier.commands)) }
            @if !dossier.gaps.is_empty() { section.card { h2 { "Declared gaps" } (gap_table(&dossier.gaps)) } }
            section.card { h2 { "Last events" small { "by the device's clock" } } (event_table(&dossier.events)) }
        }
        @if viewer.role == Role::Operate { (device_forms(device)) }
    }
}

fn facts(device: &DeviceRow, now: Micros) -> Markup {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "—".into());
    html! {
        dl.facts {
            dt { "Heard" } dd { (ago(device.last_seen, now)) }
            dt { "First heard" } dd { (device.first_seen.seconds()) }
            dt { "Status since" } dd { (device.since.map_or("—".into(), Micros::seconds)) }
            dt { "Version" } dd { (text(&device.version)) }
            dt { "Board" } dd { (text(&device.board)) }
            dt { "Camera" } dd { (text(&device.camera)) }
            dt { "Models" } dd { (models(&device.info)) }
            dt { "Boot" } dd { code { (text(&device.boot)) } }
            dt { "Tags" } dd { (tags(&device.tags)) }
        }
    }
}

fn command_table(commands: &[CommandRow]) -> Markup {
    html! {
        @if commands.is_empty() { p.none { "None yet." } } @else {
            div.scroll { table.fold {
                thead { tr { th { "When" } th { "Command" } th { "State" } th { "Answer" } th { "By" } } }
                tbody { @for command in commands {
                    tr {
                        td.time { (command.created.seconds()) }
                        td data-label="Command" { code { (command.name) } }
                        td data-label="State" { (state(command.state.word())) }
                        td.wide data-label="Answer" { (answer(command)) }
                        td data-label="By" { (command.created_by) }
                    }
                } }
            } }
        }
    }
}

fn answer(command: &CommandRow) -> Markup {
    let result = command.result.to_string();
    let short: String = result.chars().take(200).collect();
    html! {
        @if let Some(code) = &command.error_code { (code) ": " (command.error_message.as_deref().unwrap_or("")) }
        @else if command.result.is_null() { "—" }
        @else { code { (short) @if short.len() < result.len() { "…" } } }
    }
}

fn gap_table(gaps: &[GapRow]) -> Markup {
    html! {
        div.scroll { table.fold {
            thead { tr { th { "When" } th { "Numbers" } th.number { "Lost" } th { "Reason" } th { "Boot" } } }
            tbody { @for gap in gaps {
                tr {
                    td.time { (gap.time.seconds()) }
                    td data-label="Numbers" { (gap.from) " to " (gap.to) }
                    td.number data-label="Lost" { (gap.count) }
                    td data-label="Reason" { (gap.reason) }
                    td data-label="Boot" { code { (gap.boot.get(..8).unwrap_or_default()) } }
                }
            } }
        } }
    }
}

fn event_table(events: &[EventRow]) -> Markup {
    html! {
        @if events.is_empty() { p.none { "None yet." } } @else {
            div.scroll { table.fold {
                thead { tr { th { "When" } th { "Event" } th { "Emotion" } th.number { "Number" } th { "Boot" } th {} } }
                tbody { @for event in events {
                    tr {
                        td.time { (event.time.seconds()) }
                        td data-label="Event" { (event.kind) }
                        td data-label="Emotion" { (event.emotion.as_deref().unwrap_or("—")) }
                        td.number data-label="Number" { (event.seq) }
                        td data-label="Boot" { code { (event.boot.get(..8).unwrap_or_default()) } }
                        td { @if event.historical { "came late" } }
                    }
                } }
            } }
        }
    }
}

fn device_forms(device: &DeviceRow) -> Markup {
    let base = device_link(&device.site, &device.device);
    html! {
        div.pair {
            section.card {
                h2 { "Send a command" }
                form.grid method="post" action=(format!("{base}/commands")) {
                    label { "Command" select name="name" { @for name in COMMANDS { option { (name) } } } }
                    label { "Valid for, in seconds" input name="not_after_s" type="number" min="1" max="604800" value="300"; }
                    label { "Device without a time server" input name="without_expiry" type="checkbox" value="true"; }
                    label.full { "Arguments, as JSON" textarea name="args" { "{}" } }
                    div { button.main { "Send" } }
                }
            }
            section.card {
                h2 { "Tags" }
                form.grid method="post" action=(format!("{base}/tags")) {
                    label.full { "Separated by spaces" input name="tags" value=(device.tags.join(" ")); }
                    div { button { "Save tags" } }
                }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct TagsForm {
    tags: String,
}

pub(super) async fn set_tags(
    Operator(viewer): Operator,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
    Form(form): Form<TagsForm>,
) -> Page {
    let tags = form.tags.split([' ', ',']).filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
    api::change_tags(&shared, &viewer, &site, &device, tags).await?;
    Ok(Redirect::to(&device_link(&site, &device)).into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct CommandForm {
    name: String,
    args: String,
    not_after_s: Option<u32>,
    #[serde(default)]
    without_expiry: bool,
}

pub(super) async fn send_command(
    Operator(viewer): Operator,
    State(shared): Shares,
    Path((site, device)): Path<(String, String)>,
    Form(form): Form<CommandForm>,
) -> Page {
    let CommandForm { name, args, not_after_s, without_expiry } = form;
    let request = CommandRequest { name, args: read_json(&args)?, not_after_s, without_expiry };
    api::add_command(&shared, &viewer, &site, &device, request).await?;
    Ok(Redirect::to(&device_link(&site, &device)).into_response())
}

fn read_json(text: &str) -> Result<Value, ApiError> {
    serde_json::from_str(text).map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("arguments: {error}")))
}

// ---- roll-outs ----

pub(super) async fn rollouts(Reader(viewer): Reader, State(shared): Shares) -> Page {
    let rollouts = shared.store.rollouts(100).await?;
    let bundles = shared.store.bundles().await?;
    let body = html! {
        div #live {
            div.head { h1 { "Roll-outs" } }
            section.card {
                @if rollouts.is_empty() { p.none { "None yet." } } @else {
                    div.scroll { table.fold {
                        thead { tr { th { "Name" } th { "State" } th { "Command" } th { "Devices" } th { "Wave" } th { "Made" } th { "By" } } }
                        tbody { @for rollout in &rollouts { (rollout_line(rollout)) } }
                    } }
                }
            }
            section.card { h2 { "Hosted bundles" small { "roll one out with models.install and {\"bundle\": NAME}" } } (bundle_table(&bundles)) }
        }
        @if viewer.role == Role::Operate { (rollout_form()) }
    };
    Ok(page(&viewer, "/rollouts", "Roll-outs", &body))
}

fn total(rollout: &RolloutRow) -> i64 {
    rollout.devices.values().sum()
}

fn count(rollout: &RolloutRow, executions: &[Execution]) -> i64 {
    executions.iter().filter_map(|execution| rollout.devices.get(execution.word())).sum()
}

const FAILURES: [Execution; 3] = [Execution::Failed, Execution::Rejected, Execution::TimedOut];

fn rollout_line(rollout: &RolloutRow) -> Markup {
    html! {
        tr {
            td { a href=(format!("/rollouts/{}", rollout.id)) { (rollout.name) } }
            td data-label="State" { (state(rollout.state.word())) }
            td data-label="Command" { code { (rollout.command) } }
            td data-label="Devices" {
                (count(rollout, &[Execution::Succeeded])) " of " (total(rollout)) " succeeded"
                @let failed = count(rollout, &FAILURES); @if failed > 0 { ", " (failed) " failed" }
            }
            td data-label="Wave" { (rollout.wave + 1) }
            td.time data-label="Made" { (rollout.created.seconds()) }
            td data-label="By" { (rollout.created_by) }
        }
    }
}

fn bundle_table(bundles: &[BundleRow]) -> Markup {
    html! {
        @if bundles.is_empty() { p.none { "None. On the server, " code { "visaged-fleet models add FILE.tar" } " adds one." } } @else {
            div.scroll { table.fold {
                thead { tr { th { "Name" } th.number { "Size" } th { "SHA-256" } th { "Expires" } th { "Added" } th { "By" } } }
                tbody { @for bundle in bundles {
                    tr {
                        td { code { (bundle.name) } }
                        td.number data-label="Size" { (format!("{:.2} MB", bundle.size as f64 / 1e6)) }
                        td data-label="SHA-256" { code { (bundle.sha256.get(..12).unwrap_or_default()) "…" } }
                        td.time data-label="Expires" { (bundle.expires.map_or("—".into(), Micros::seconds)) }
                        td.time data-label="Added" { (bundle.created.seconds()) }
                        td data-label="By" { (bundle.created_by) }
                    }
                } }
            } }
        }
    }
}

fn rollout_form() -> Markup {
    html! {
        section.card {
            h2 { "New roll-out" }
            form.grid method="post" action="/rollouts" {
                label { "Name" input name="name" required maxlength="200"; }
                label { "Command" select name="command" { @for name in ROLLOUT_COMMANDS { option { (name) } } } }
                label.full { "Arguments, as JSON" textarea name="args" { "{\"set\": {\"camera.fps\": 15}}" } }
                label { "Site (empty: all)" input name="site"; }
                label { "Tag (empty: all)" input name="tag"; }
                label { "Share of these, in percent" input name="share_percent" type="number" min="1" max="100" value="100"; }
                label { "Waves; the rest is the last" input name="waves" value="1, 10%"; }
                label { "Abort when more than … % of a wave fail" input name="abort_threshold_percent" type="number" min="0" max="100" value="0"; }
                label { "Time-out of a device, in seconds" input name="timeout_s" type="number" min="1" value="600"; }
                label { "At most so many at a time (empty: no limit)" input name="max_in_progress" type="number" min="1"; }
                label { "Devices without a time server" input name="without_expiry" type="checkbox" value="true"; }
                div.full { button.main { "Begin" } }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct RolloutForm {
    name: String,
    command: String,
    args: String,
    site: String,
    tag: String,
    share_percent: String,
    waves: String,
    abort_threshold_percent: String,
    timeout_s: String,
    max_in_progress: String,
    #[serde(default)]
    without_expiry: bool,
}

impl RolloutForm {
    fn request(&self) -> Result<RolloutRequest, ApiError> {
        fn number<T: std::str::FromStr>(key: &str, text: &str) -> Result<T, ApiError> {
            let bad = || ApiError::new(StatusCode::BAD_REQUEST, format!("{key}: {text:?} is no number that fits"));
            text.trim().parse().map_err(|_| bad())
        }
        fn given(text: &str) -> Option<String> {
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        }
        let waves =
            self.waves.split([',', ' ']).filter(|size| !size.is_empty()).map(str::parse).collect::<Result<_, String>>();
        let share = given(&self.share_percent).map(|share| number("share", &share)).transpose()?;
        Ok(RolloutRequest {
            name: self.name.clone(),
            command: self.command.clone(),
            args: read_json(&self.args)?,
            target: Target {
                site: given(&self.site),
                tag: given(&self.tag),
                share_percent: share.filter(|share| *share != 100),
            },
            plan: Plan {
                waves: waves.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error))?,
                abort_threshold_percent: number("abort threshold", &self.abort_threshold_percent)?,
                timeout_s: number("time-out", &self.timeout_s)?,
                max_in_progress: given(&self.max_in_progress).map(|most| number("at a time", &most)).transpose()?,
                without_expiry: self.without_expiry,
            },
        })
    }
}

pub(super) async fn create_rollout(
    Operator(viewer): Operator,
    State(shared): Shares,
    Form(form): Form<RolloutForm>,
) -> Page {
    let id = api::add_rollout(&shared, &viewer, &form.request()?).await?;
    Ok(Redirect::to(&format!("/rollouts/{id}")).into_response())
}

pub(super) async fn rollout_action(
    Operator(viewer): Operator,
    State(shared): Shares,
    Path((id, action)): Path<(String, String)>,
) -> Page {
    api::change_rollout(&shared, &viewer, &id, &action).await?;
    Ok(Redirect::to(&format!("/rollouts/{id}")).into_response())
}

pub(super) async fn rollout(Reader(viewer): Reader, State(shared): Shares, Path(id): Path<String>) -> Page {
    let Some(rollout) = shared.store.rollout(&id).await? else {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "this roll-out is not known here").into());
    };
    let waves = waves(&shared.store.rollout_waves(&id).await?);
    let devices = shared.store.rollout_devices_to_look_at(&id, ROLLOUT_DEVICES).await?;
    let body = html! {
        div #live {
            div.head {
                h1 { (rollout.name) } (state(rollout.state.word()))
                p { (rollout.reason.as_deref().unwrap_or("")) }
                @if viewer.role == Role::Operate { (rollout_buttons(&rollout)) }
            }
            section.card { h2 { "Waves" } @for wave in &waves { (wave_progress(&rollout, wave)) } }
            section.card { h2 { "Roll-out" } (rollout_facts(&rollout)) }
            section.card { h2 { "Devices" small { "those that failed first, then those in progress" } } (outcome_table(&devices, total(&rollout))) }
        }
    };
    Ok(page(&viewer, "/rollouts", &rollout.name, &body))
}

fn rollout_buttons(rollout: &RolloutRow) -> Markup {
    let actions: &[(&str, &str, &str)] = match rollout.state {
        RolloutState::Running => &[("pause", "Pause", ""), ("cancel", "Cancel", "bad")],
        RolloutState::Paused => &[("resume", "Resume", "main"), ("cancel", "Cancel", "bad")],
        _ => &[],
    };
    html! {
        div.actions { @for (action, name, class) in actions {
            form method="post" action=(format!("/rollouts/{}/{action}", rollout.id)) { button class=(class) { (name) } }
        } }
    }
}

fn rollout_facts(rollout: &RolloutRow) -> Markup {
    let target = &rollout.target;
    let sizes: Vec<_> = rollout.plan.waves.iter().map(ToString::to_string).chain(["the rest".to_owned()]).collect();
    html! {
        dl.facts {
            dt { "Command" } dd { code { (rollout.command) } }
            dt { "Arguments" } dd { code { (rollout.args) } }
            dt { "Target" } dd {
                "site " (target.site.as_deref().unwrap_or("any")) ", tag " (target.tag.as_deref().unwrap_or("any"))
                @if let Some(share) = target.share_percent { ", " (share) " % of them" }
            }
            dt { "Waves" } dd { (sizes.join(", ")) }
            dt { "Aborts" } dd { @match rollout.plan.abort_threshold_percent {
                0 => "at the first failure",
                percent => { "when more than " (percent) " % of a wave fail" }
            } }
            dt { "Time-out" } dd { (rollout.plan.timeout_s) " s a device" }
            dt { "Made" } dd { (rollout.created.seconds()) " by " (rollout.created_by) }
            dt { "Id" } dd { code { (rollout.id) } }
        }
    }
}

/// One wave in numbers.
struct Wave {
    number: i64,
    counts: Vec<(Execution, i64)>,
}

/// In the order of [`Execution::ALL`] within each.
fn waves(counts: &[WaveCount]) -> Vec<Wave> {
    let mut waves: Vec<Wave> = Vec::new();
    for count in counts {
        if waves.last().is_none_or(|wave| wave.number != count.wave) {
            waves.push(Wave { number: count.wave, counts: Execution::ALL.map(|execution| (execution, 0)).into() });
        }
        let known = waves.last_mut().and_then(|wave| wave.counts.iter_mut().find(|(e, _)| *e == count.state));
        if let Some(known) = known {
            known.1 += count.devices;
        }
    }
    waves
}

fn wave_progress(rollout: &RolloutRow, wave: &Wave) -> Markup {
    let all: i64 = wave.counts.iter().map(|(_, n)| n).sum();
    let share = |execution: &dyn Fn(Execution) -> bool| {
        wave.counts.iter().filter(|(e, _)| execution(*e)).map(|(_, n)| *n).sum::<i64>() as f64 * 100.0
            / all.max(1) as f64
    };
    let parts = [
        ("succeeded", share(&|e| e == Execution::Succeeded)),
        ("failed", share(&|e| e.is_failure())),
        ("in_progress", share(&|e| e == Execution::InProgress)),
        ("canceled", share(&|e| e == Execution::Canceled)),
    ];
    let starts = parts.iter().scan(0.0, |at, (_, width)| {
        let start = *at;
        *at += width;
        Some(start)
    });
    let words: Vec<_> = wave
        .counts
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(e, n)| format!("{n} {}", e.word().replace('_', " ")))
        .collect();
    html! {
        div.progress {
            div.what {
                span { "Wave " (wave.number + 1) ": " (all) @if all == 1 { " device" } @else { " devices" } @if wave.number == rollout.wave && !rollout.state.is_over() { " (now)" } }
                span { (words.join(", ")) }
            }
            svg viewBox="0 0 100 1" preserveAspectRatio="none" role="img" aria-label=(words.join(", ")) {
                @for ((class, width), x) in parts.iter().zip(starts) {
                    rect class=(class) x=(format!("{x:.2}")) width=(format!("{width:.2}")) y="0" height="1" {}
                }
            }
        }
    }
}

fn outcome_table(devices: &[RolloutDeviceRow], all: i64) -> Markup {
    html! {
        div.scroll { table.fold {
            thead { tr { th { "Device" } th.number { "Wave" } th { "State" } th { "Detail" } th { "Begun" } th { "Ended" } } }
            tbody { @for device in devices {
                tr {
                    td { a href=(device_link(&device.site, &device.device)) { (device.site) "/" (device.device) } }
                    td.number data-label="Wave" { (device.wave + 1) }
                    td data-label="State" { (state(device.state.word())) }
                    td.wide data-label="Detail" { (detail(device)) }
                    td.time data-label="Begun" { (device.begun.map_or("—".into(), Micros::seconds)) }
                    td.time data-label="Ended" { (device.ended.map_or("—".into(), Micros::seconds)) }
                }
            } }
        } }
        @if all > ROLLOUT_DEVICES { p.none { "The first " (ROLLOUT_DEVICES) " of " (all) "; the API gives all." } }
    }
}

fn detail(device: &RolloutDeviceRow) -> String {
    match (&device.detail, device.parts_arrived.zip(device.parts), device.state) {
        (Some(detail), ..) => detail.clone(),
        (None, Some((arrived, parts)), Execution::InProgress) => format!("{arrived} of {parts} parts sent"),
        _ => "—".into(),
    }
}

// ---- the rest ----

pub(super) async fn audit_log(Reader(viewer): Reader, State(shared): Shares) -> Page {
    let entries = shared.store.audit_log(500).await?;
    let body = html! {
        div #live {
            div.head { h1 { "Audit log" } p { "Every change that somebody made, newest first" } }
            section.card {
                @if entries.is_empty() { p.none { "None yet." } } @else {
                    div.scroll { table.fold {
                        thead { tr { th { "When" } th { "Who" } th { "What" } th { "To" } th { "Detail" } } }
                        tbody { @for entry in &entries {
                            tr {
                                td.time { (entry.time.seconds()) }
                                td data-label="Who" { (entry.actor) }
                                td data-label="What" { code { (entry.action) } }
                                td data-label="To" { (entry.object) }
                                td.wide data-label="Detail" { (entry.detail) }
                            }
                        } }
                    } }
                }
            }
        }
    };
    Ok(page(&viewer, "/audit-log", "Audit log", &body))
}

#[derive(Debug, Deserialize)]
pub(super) struct LoginQuery {
    wrong: Option<String>,
}

pub(super) async fn login(Query(query): Query<LoginQuery>) -> Response {
    let body = html! {
        main.login {
            section.card {
                h1 { "visaged fleet" }
                @if query.wrong.is_some() { p.notice { "That token is not valid, or was revoked." } }
                form method="post" action="/login" {
                    label { "Token" input name="token" type="password" autocomplete="current-password" required autofocus; }
                    button.main { "Log in" }
                }
                p.none { "On the server, " code { "visaged-fleet token create --role read --name NAME" } " makes one." }
            }
        }
    };
    Html(document("Log in", false, &body).into_string()).into_response()
}
