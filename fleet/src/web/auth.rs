//! Who asks, and what they may do.

use std::sync::Arc;

use axum::Form;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::api::ApiError;
use crate::serve::Shared;
use crate::store::Role;

const COOKIE: &str = "visaged_fleet";

/// A browser is asked again after a working day.
const COOKIE_LIFE_S: u32 = 12 * 3600;

/// Somebody with a valid token.
#[derive(Clone, Debug)]
pub(super) struct Viewer {
    /// Their token's name.
    pub(super) name: String,
    /// What it allows.
    pub(super) role: Role,
}

/// May look.
#[derive(Clone, Debug)]
pub(super) struct Reader(pub(super) Viewer);

/// May change.
#[derive(Clone, Debug)]
pub(super) struct Operator(pub(super) Viewer);

impl FromRequestParts<Arc<Shared>> for Reader {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Response> {
        viewer(parts, shared).await.map(Self)
    }
}

impl FromRequestParts<Arc<Shared>> for Operator {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Response> {
        let viewer = viewer(parts, shared).await?;
        match viewer.role {
            Role::Operate => Ok(Self(viewer)),
            Role::Read => {
                let message = format!("token {:?} may only read; this wants one with the role operate", viewer.name);
                Err(ApiError::new(StatusCode::FORBIDDEN, message).into_response())
            }
        }
    }
}

async fn viewer(parts: &Parts, shared: &Shared) -> Result<Viewer, Response> {
    let bearer =
        parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let cookie = cookie(&parts.headers);
    let Some(secret) = bearer.or(cookie) else { return Err(ask_to_log_in(parts, "no token given")) };
    // A browser adds the cookie whoever made the request; only our own pages may change something.
    let changes = !matches!(parts.method, Method::GET | Method::HEAD);
    if changes && bearer.is_none() && !is_same_origin(&parts.headers) {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "this request comes from another site's page").into_response());
    }
    match shared.store.check_token(secret.trim()).await {
        Ok(Some((name, role))) => Ok(Viewer { name, role }),
        Ok(None) => Err(ask_to_log_in(parts, "this token is not valid, or was revoked")),
        Err(error) => Err(ApiError::from(error).into_response()),
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(';')).find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some() && origin == text(header::HOST)
}

fn ask_to_log_in(parts: &Parts, why: &str) -> Response {
    let wants_page =
        parts.headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()).is_some_and(|a| a.contains("text/html"));
    if parts.method == Method::GET && wants_page {
        return Redirect::to("/login").into_response();
    }
    let message = format!("{why}: send `Authorization: Bearer TOKEN`; `visaged-fleet token create` makes one");
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, message).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

#[derive(Debug, Deserialize)]
pub(super) struct LoginForm {
    token: String,
}

/// Keeps the token in a cookie that scripts cannot read and other sites' pages do not send.
pub(super) async fn login(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Form(form): Form<LoginForm>,
) -> Response {
    let secret = form.token.trim();
    match shared.store.check_token(secret).await {
        Ok(Some(_)) => {
            // A proxy with TLS says so; on plain loopback a browser would not send a cookie marked secure.
            let encrypted = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
            let secure = if encrypted { "; Secure" } else { "" };
            let cookie =
                format!("{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={COOKIE_LIFE_S}{secure}");
            ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
        }
        Ok(None) => Redirect::to("/login?wrong=1").into_response(),
        Err(error) => ApiError::from(error).into_response(),
    }
}

pub(super) async fn logout() -> Response {
    let cookie = format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    ([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response()
}
